"""`ping` tells a server from none, and from something else, without a traceback."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner, Result

from taskcast_trio.cli import main
from taskcast_trio.cli.failures import NO_SERVER, USAGE


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A peer on a free port that gives one connection `answer`, and notes what it was sent."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(10)
                requests.append(connection.recv(65536))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", requests
        finally:
            thread.join()


def response(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


HEALTHY = response('{"ok": true, "name": "taskcast", "version": "1.2.3", "apiVersion": "v1"}')


def test_it_prints_version_and_round_trip(runner: CliRunner) -> None:
    with answering(HEALTHY) as (url, requests):
        result = runner.invoke(main, ["ping", "--url", f"{url}/", "--token", "hush"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"taskcast 1.2.3 at {url}: ")
    assert result.stdout.endswith(" ms\n")
    assert requests[0].startswith(b"GET /health HTTP/1.1\r\n")
    assert b"authorization: bearer hush" in requests[0].lower()


def test_json_is_for_programs(runner: CliRunner) -> None:
    with answering(HEALTHY) as (url, _):
        told = json.loads(runner.invoke(main, ["ping", "--url", url, "--json"]).stdout)
    assert told.pop("ms") >= 0
    assert told == {"name": "taskcast", "version": "1.2.3", "url": url}


def test_url_and_token_come_from_the_environment_too(runner: CliRunner) -> None:
    with answering(HEALTHY) as (url, requests):
        env = {"TASKCAST_URL": url, "TASKCAST_TOKEN": "hush"}
        assert runner.invoke(main, ["ping"], env=env).exit_code == 0
    assert b"authorization: bearer hush" in requests[0].lower()


def failed(result: Result, exit_code: int = NO_SERVER) -> str:
    """Return the one line of a failed call."""
    assert (result.exit_code, result.stdout) == (exit_code, "")
    [line] = result.stderr.splitlines()
    return line


def test_no_server_is_a_hint(runner: CliRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as freed:
        url = f"http://127.0.0.1:{freed.getsockname()[1]}"
    line = failed(runner.invoke(main, ["ping", "--url", url]))
    assert line.startswith(f"Error: no server at {url}. Start one with `taskcast-trio`")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            response("nope", "503 Service Unavailable"),
            "answered 503: does something before the server",
        ),
        (response("<html>"), "answers, but not as a Taskcast server"),
        (response('{"status": "up"}'), "answers, but not as a Taskcast server"),
        (response("[]"), "answers, but not as a Taskcast server"),
        (b"SSH-2.0-x\r\n", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
    ],
)
def test_something_else_on_the_port_is_said_so(
    runner: CliRunner, answer: bytes, reason: str
) -> None:
    with answering(answer) as (url, _):
        line = failed(runner.invoke(main, ["ping", "--url", url]))
    assert reason in line


@pytest.mark.parametrize("url", ["localhost:3721", "ftp://h", "http://", "\x00"])
def test_what_is_no_url_is_said_so(runner: CliRunner, url: str) -> None:
    assert "is no URL" in failed(runner.invoke(main, ["ping", "--url", url]), USAGE)
