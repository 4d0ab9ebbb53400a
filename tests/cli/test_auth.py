"""A server that could not keep its promises of authentication does not start, and says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from taskcast_trio.cli import main
from taskcast_trio.cli.run import with_admin_token
from taskcast_trio.config import Config, Secret

HUSH = "hush-0123456789-0123456789-0123456789"
HELLO = """
from taskcast_trio.core.access import Caller


async def hello(request):
    return Caller(sub="anybody", scopes=frozenset({"*"}))


NOT_CALLABLE = 5
"""


@pytest.mark.parametrize("check", [[], ["--check-config"]])
@pytest.mark.parametrize(
    ("auth", "says"),
    [
        ({"mode": "jwt"}, "auth.jwt"),
        ({"mode": "jwt", "jwt": {"secret": "hush"}}, "32 bytes"),
        ({"mode": "jwt", "jwt": {"publicKeyFile": "nowhere.pem"}}, "auth.jwt.secret"),
        (
            {"mode": "jwt", "jwt": {"algorithm": "RS256", "publicKeyFile": "nowhere.pem"}},
            "nowhere.pem",
        ),
        ({"mode": "jwt", "jwt": {"algorithm": "ES256", "secret": HUSH}}, "ES256"),
        ({"mode": "jwt", "jwt": {"algorithm": "none", "secret": HUSH}}, "auth.jwt.algorithm"),
        ({"mode": "custom", "custom": "nowhere:hello"}, "nowhere"),
        ({"mode": "custom", "custom": "hello:NOT_CALLABLE"}, "NOT_CALLABLE"),
        ({"mode": "custom", "custom": "hello"}, "module:callable"),
    ],
)
def test_a_start_that_can_not_authenticate_is_refused_in_one_line(
    runner: CliRunner, auth: dict[str, Any], says: str, check: list[str]
) -> None:
    Path("hello.py").write_text(HELLO)
    Path("c.yaml").write_text(yaml.safe_dump({"auth": auth}))
    done = runner.invoke(main, ["-c", "c.yaml", *check])
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert says in done.output
    assert "hush" not in done.output


def test_a_configuration_that_can_is_good(runner: CliRunner) -> None:
    Path("hello.py").write_text(HELLO)
    for auth in (
        {"mode": "jwt", "jwt": {"secret": HUSH}},
        {"mode": "custom", "custom": "hello:hello"},
        {"mode": "custom"},
    ):
        Path("c.yaml").write_text(yaml.safe_dump({"auth": auth}))
        done = runner.invoke(main, ["-c", "c.yaml", "--check-config"])
        assert (done.exit_code, done.output.splitlines()[-1]) == (0, "OK")
        assert HUSH not in done.output


def test_an_admin_api_without_a_token_gets_one_for_this_run() -> None:
    config, made = with_admin_token(Config(admin_api=True))
    assert made is not None
    assert len(made) >= 32
    assert config.admin_token == Secret(made)
    assert with_admin_token(Config(admin_api=True))[1] != made
    for given in (Config(), Config(admin_api=True, admin_token=Secret("x"))):
        assert with_admin_token(given) == (given, None)


def test_a_command_line_with_a_module_of_the_working_directory_authenticates(clean: Path) -> None:
    """The whole way: the process, its configuration, and a request."""
    (clean / "hello.py").write_text(HELLO)
    probe = """
import sys, trio, httpx
async def main():
    command = [sys.executable, "-m", "taskcast_trio", "-p", "0", "-c", "c.yaml"]
    process = await trio.lowlevel.open_process(command, stdout=-1, stderr=-3)
    said = b""
    with trio.fail_after(20):
        while b"docs" not in said:
            said += await process.stdout.receive_some()
        url = next(w for w in said.decode().split() if w.startswith("http"))
        async with httpx.AsyncClient() as client:
            print((await client.get(f"{url}/tasks")).status_code)
        process.terminate()
        await process.wait()
        await process.stdout.aclose()
trio.run(main)
"""
    for auth, status in (
        ({"mode": "custom", "custom": "hello:hello"}, "200"),
        ({"mode": "custom"}, "401"),
    ):
        (clean / "c.yaml").write_text(yaml.safe_dump({"auth": auth, "host": "127.0.0.1"}))
        done = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, timeout=40, check=True
        )
        assert done.stdout.strip() == status
