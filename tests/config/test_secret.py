"""Secrets show in no form of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.config import Redis, Secret, SecretUrl, TrustedService, load_config
from taskcast_trio.config.show import render, rows

PLANTED = "hush-planted"
FILE = f"""
adminToken: {PLANTED}-1
auth: {{jwt: {{secret: {PLANTED}-2, publicKey: {PLANTED}-3}}}}
trustedServices: [{{name: a, key: {PLANTED}-4}}]
redis: {{url: "redis://user:{PLANTED}-5@host:6379/0"}}
postgres: {{url: "postgres://user:{PLANTED}-6@host/db?sslpassword={PLANTED}-7"}}
adapters: {{shortTermStore: {{url: "redis://:{PLANTED}-8@host"}}}}
sentry: {{dsn: {PLANTED}-9}}
"""


def test_no_form_of_the_configuration_shows_a_secret(tmp_path: Path) -> None:
    (tmp_path / "taskcast.config.yaml").write_text(FILE)
    loaded = load_config(path=None, flags={}, env={}, cwd=tmp_path, home=tmp_path)
    config = loaded.config
    shown = f"{config!r} {config} {loaded!r} {loaded.warnings} {list(rows(loaded))}"
    assert PLANTED not in shown
    assert config.admin_token == Secret(f"{PLANTED}-1")
    assert config.trusted_services[0].key.reveal() == f"{PLANTED}-4"


def test_plain_text_for_a_secret_is_refused_where_it_is_given_and_not_shown() -> None:
    with pytest.raises(TypeError, match=r"Redis\.url .* url=SecretUrl\(") as refused:
        Redis(url=PLANTED)  # type: ignore[arg-type]
    assert PLANTED not in str(refused.value)
    with pytest.raises(TypeError, match=r"TrustedService\.key .* key=Secret\("):
        TrustedService(name="billing", key=PLANTED, scope=())  # type: ignore[arg-type]
    assert Redis(url=SecretUrl("redis://host"), prefix="text").prefix == "text"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:pass@host/0", "redis://********@host/0"),
        ("redis://:p@ss/w?rd@host", "redis://********@host"),
        (
            "postgres:///db?password=x&sslmode=require",
            "postgres:///db?password=********&sslmode=********",
        ),
        ("host=h password=x", "********"),
    ],
)
def test_a_url_shows_its_place_and_not_its_credentials(url: str, shown: str) -> None:
    assert str(SecretUrl(url)) == shown
    assert SecretUrl(url).reveal() == url


@given(st.text(min_size=1), st.text(min_size=1))
def test_secrets_compare_by_text(left: str, right: str) -> None:
    assert (Secret(left) == Secret(right)) == (left == right)
    assert Secret(left) == Secret(left)
    assert hash(Secret(left)) == hash(Secret(left))
    assert Secret(left) != left


@given(st.text())
def test_every_value_is_shown_on_one_line(text: str) -> None:
    assert render(text).splitlines() == [render(text)]
