"""A service is who has its key, and nothing about a key can be found out by trying."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.config.schema import TrustedService
from taskcast_trio.config.secret import Secret
from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import Unauthorized
from taskcast_trio.server.auth import services as module
from taskcast_trio.server.auth.services import TrustedServices

SERVICES = TrustedServices(
    [
        TrustedService(name="builder", key=Secret("key-1"), scope=("task:create", "a")),
        TrustedService(name="reader", key=Secret("key-2"), scope=("b",), task_ids=("t",)),
        TrustedService(name="star", key=Secret("clé"), task_ids="*"),
        TrustedService(name="none", key=Secret("key-4"), task_ids=()),
        TrustedService(name="late", key=Secret("key-1"), scope=("*",)),
    ]
)


def test_only_configured_services_make_it_true() -> None:
    assert SERVICES
    assert not TrustedServices(())


@pytest.mark.parametrize(
    ("key", "caller"),
    [
        (b"key-1", Caller(service="builder", scopes=frozenset({"task:create", "a"}))),
        (
            b"key-2",
            Caller(service="reader", scopes=frozenset({"b"}), task_ids=frozenset({"t"})),
        ),
        ("clé".encode(), Caller(service="star")),
        (b"key-4", Caller(service="none", task_ids=frozenset())),
    ],
)
def test_a_key_gives_its_services_scopes_and_tasks(key: bytes, caller: Caller) -> None:
    assert SERVICES.identify(key) == caller


@pytest.mark.parametrize(
    "key",
    [b"", b"key", b"key-11", b"KEY-1", b" key-1", b"key-1\n", b"\xff\xfe", b"cl\xe9", b"x" * 10**6],
    ids=lambda key: repr(key[:10]),
)
def test_any_other_key_is_nobodys(key: bytes) -> None:
    with pytest.raises(Unauthorized, match=r"^The service key is not known$"):
        SERVICES.identify(key)


@given(st.binary(max_size=40))
def test_no_bytes_are_more_than_a_401(key: bytes) -> None:
    with pytest.raises(Unauthorized):
        SERVICES.identify(key)


def test_without_services_nobody_is_known() -> None:
    with pytest.raises(Unauthorized):
        TrustedServices(()).identify(b"")


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of one length, in constant time: neither order nor length of keys can be measured."""
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(module, "compare_digest", compare)
    for key in (b"key-1", b"key-4"):
        SERVICES.identify(key)
    with pytest.raises(Unauthorized):
        SERVICES.identify(b"x" * 1000)
    assert compared == [(32, 32)] * 15


def test_a_key_that_is_no_text_of_unicode_still_starts() -> None:
    odd = TrustedServices([TrustedService(name="a", key=Secret("\udcff"))])
    with pytest.raises(Unauthorized):
        odd.identify(b"\xff")
