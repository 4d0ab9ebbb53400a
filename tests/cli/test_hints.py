"""A first-time user gets a hint in one line, and a script an exit status; nobody a traceback."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner, Result

from taskcast_trio.cli import main
from tests.integration.fleet import fleet

SECRET = secrets.token_hex(32)

TALKING = [
    ["ping"],
    ["tasks", "list"],
    ["tasks", "inspect", "t"],
    ["tasks", "cancel", "t"],
    ["tasks", "delete", "-y", "t"],
    ["publish", "t", "--type", "x", "--no-data"],
    ["publish", "--new", "--type", "x", "--no-data"],
    ["logs", "t"],
    ["logs", "t", "--follow"],
    ["tail"],
    ["tail", "--since", "1h", "--no-follow"],
    ["webhooks", "t"],
    ["cleanup", "--dry-run"],
]
ABOUT_A_TASK = [call for call in TALKING if "t" in call]
OF_TASKS = [call for call in TALKING if call != ["ping"]]

each = pytest.mark.parametrize("call", TALKING, ids=" ".join)


def failed(runner: CliRunner, *arguments: str, status: int) -> str:
    """The one line of a call that fails so."""
    result = runner.invoke(main, [*arguments])
    assert result.exit_code == status, (result.output, result.exception)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@contextmanager
def peer(answer: bytes) -> Iterator[str]:
    """Something on a port that says this to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(10)
                    connection.recv(65_536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65_536):  # to close with input unread is a reset
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture(scope="module")
def open_server() -> Iterator[str]:
    with fleet(1) as (server,):
        yield server.url


@pytest.fixture(scope="module")
def jwt_server() -> Iterator[str]:
    options = ("--auth-mode", "jwt", "--auth-jwt-secret", SECRET)
    with fleet(1, *options) as (server,):
        yield server.url


def token(**claims: object) -> str:
    return jwt.encode({"scope": ["*"], **claims}, SECRET)


@pytest.fixture(scope="module")
def nowhere() -> str:
    with socket.create_server(("127.0.0.1", 0)) as freed:
        return f"http://127.0.0.1:{freed.getsockname()[1]}"


@each
def test_no_server(runner: CliRunner, nowhere: str, call: list[str]) -> None:
    line = failed(runner, *call, "--url", nowhere, status=3)
    assert line == (
        f"Error: no server at {nowhere}. Start one with `taskcast-trio`, "
        "or say where it is with --url."
    )


@each
def test_a_wrong_port_with_another_web_server(runner: CliRunner, call: list[str]) -> None:
    page = b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>"
    with peer(page) as url:
        line = failed(runner, *call, "--url", url, status=3)
    assert f"{url} answers, but not as a Taskcast server: a wrong port" in line


@each
def test_a_wrong_port_that_does_not_speak_http(runner: CliRunner, call: list[str]) -> None:
    with peer(b"SSH-2.0-OpenSSH_9.6\r\n") as url:
        line = failed(runner, *call, "--url", url, status=3)
    assert f"{url} does not answer in HTTP" in line


@pytest.mark.parametrize("call", OF_TASKS, ids=" ".join)
def test_no_token(runner: CliRunner, jwt_server: str, call: list[str]) -> None:
    line = failed(runner, *call, "--url", jwt_server, status=4)
    assert f"{jwt_server} wants a token" in line
    keep = (
        "Set TASKCAST_TOKEN, or keep one with `taskcast-trio node token NAME` and say --node NAME."
    )
    assert keep in line


@pytest.mark.parametrize("call", OF_TASKS, ids=" ".join)
def test_a_token_that_has_expired_is_said_to_be_and_where_it_is_from(
    runner: CliRunner, jwt_server: str, call: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = token(exp=1)
    monkeypatch.setenv("TASKCAST_TOKEN", stale)
    line = failed(runner, *call, "--url", jwt_server, status=4)
    assert "A new one has to replace that of TASKCAST_TOKEN." in line
    assert stale not in line


def test_a_wrong_token_and_one_that_may_not(runner: CliRunner, jwt_server: str) -> None:
    line = failed(runner, "tail", "--url", jwt_server, "--token", "wrong", status=4)
    assert "The one sent is from --token." in line
    weak = token(scope=["event:history"])
    line = failed(runner, "tasks", "list", "--url", jwt_server, "--token", weak, status=4)
    assert "the token does not allow this" in line
    assert "event:subscribe" in line


@pytest.mark.parametrize("call", ABOUT_A_TASK, ids=" ".join)
def test_an_unknown_task(runner: CliRunner, open_server: str, call: list[str]) -> None:
    line = failed(runner, *call, "--url", open_server, status=5)
    assert line == (
        f"Error: no task t at {open_server}. `taskcast-trio tasks list` shows what is there."
    )


@each
def test_what_is_no_url(runner: CliRunner, call: list[str]) -> None:
    line = failed(runner, *call, "--url", "localhost:3721", status=2)
    assert line == "Error: localhost:3721 is no URL; one looks like http://host:3721"


def test_tls_where_there_is_none(runner: CliRunner, open_server: str) -> None:
    url = open_server.replace("http:", "https:")
    assert "does not speak TLS" in failed(runner, "ping", "--url", url, status=3)


def doctor(runner: CliRunner, *arguments: str) -> tuple[Result, dict[str, str]]:
    """What doctor says, and the state of each check."""
    result = runner.invoke(main, ["doctor", *arguments])
    assert "Traceback" not in result.output
    return result, {line.split()[1]: line.split()[0] for line in result.stdout.splitlines()}


def test_doctor_finds_nothing_wrong_with_a_server_that_is_well(
    runner: CliRunner, open_server: str
) -> None:
    result, states = doctor(runner, "--url", open_server)
    assert result.exit_code == 0
    assert set(states.values()) == {"ok"}
    assert {"server", "answer", "version", "ready", "storage", "token", "stream"} <= states.keys()
    assert "memory: nothing survives a restart" in result.stdout


def test_doctor_finds_no_server(runner: CliRunner, nowhere: str) -> None:
    result, states = doctor(runner, "--url", nowhere)
    assert result.exit_code == 3
    assert states["answer"] == "failed"
    assert "Start one with `taskcast-trio`" in result.stdout


def test_doctor_finds_another_server(runner: CliRunner) -> None:
    with peer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}") as url:
        result, states = doctor(runner, "--url", url)
    assert (result.exit_code, states["answer"]) == (3, "failed")
    assert "not as a Taskcast server" in result.stdout


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (None, "auth jwt, none sent"),
        ({"exp": 1}, "auth jwt, that of TASKCAST_TOKEN, which has expired"),
        ({"scope": []}, "may not list tasks"),
    ],
)
def test_doctor_says_what_is_wrong_with_the_token(
    runner: CliRunner,
    jwt_server: str,
    monkeypatch: pytest.MonkeyPatch,
    sent: dict[str, object] | None,
    says: str,
) -> None:
    if sent is not None:
        monkeypatch.setenv("TASKCAST_TOKEN", token(**sent))
    result, states = doctor(runner, "--url", jwt_server)
    assert (result.exit_code, states["token"]) == (4, "failed")
    assert says in result.stdout


def test_doctor_says_how_long_a_token_is_good_for(
    runner: CliRunner, jwt_server: str, clean: Path
) -> None:
    import time

    runner.invoke(main, ["node", "add", "here", jwt_server])
    good = token(exp=time.time() + 1800)
    runner.invoke(main, ["node", "token", "here"], input=good)
    result, states = doctor(runner)
    assert (result.exit_code, states["token"]) == (0, "ok")
    assert "(`node use`, node here)" in result.stdout
    assert "that of node here, good for 30 min" in result.stdout
    assert good not in result.output


def test_doctor_warns_of_a_file_of_nodes_that_others_can_read(
    runner: CliRunner, open_server: str, clean: Path
) -> None:
    runner.invoke(main, ["node", "add", "here", open_server])
    (clean / ".config" / "taskcast" / "nodes.json").chmod(0o640)
    result, states = doctor(runner)
    assert (result.exit_code, states["nodes"]) == (0, "warning")


@pytest.mark.parametrize("call", [*TALKING, ["doctor"]], ids=" ".join)
def test_tls_where_there_is_none_is_said_by_every_command(
    runner: CliRunner, open_server: str, call: list[str]
) -> None:
    url = open_server.replace("http:", "https:")
    result = runner.invoke(main, [*call, "--url", url])
    assert result.exit_code == 3
    assert f"what listens at {url} does not speak TLS: http://?" in result.output


PROXIES = ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "bad://"]


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("call", [["ping"], ["doctor"], ["tasks", "list"]], ids=" ".join)
def test_a_server_on_this_machine_is_reached_past_every_proxy(
    runner: CliRunner,
    open_server: str,
    monkeypatch: pytest.MonkeyPatch,
    call: list[str],
    proxy: str,
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("ALL_PROXY", proxy)
    result = runner.invoke(main, [*call, "--url", open_server])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("proxy", "status", "says"),
    [
        ("http://u:hush@127.0.0.1:9", 3, "no connection to http://tasks.invalid:3721 through"),
        ("socks5://u:hush@127.0.0.1:9", 1, "pip install 'httpx[socks]'"),
        ("bad://u:hush@127.0.0.1:9", 1, "a proxy of the environment is no URL"),
    ],
)
@pytest.mark.parametrize("call", [["ping"], ["doctor"], ["tasks", "list"]], ids=" ".join)
def test_a_proxy_in_between_is_named(
    runner: CliRunner,
    monkeypatch: pytest.MonkeyPatch,
    call: list[str],
    proxy: str,
    status: int,
    says: str,
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("ALL_PROXY", proxy)
    result = runner.invoke(main, [*call, "--url", "http://tasks.invalid:3721"])
    assert result.exit_code == status
    assert says in result.output
    assert "ALL_PROXY" in result.output
    assert "hush" not in result.output


def test_certificates_that_are_not_there_are_named(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    line = failed(runner, "ping", "--url", "https://tasks.invalid", status=1)
    assert line == "Error: the certificates of SSL_CERT_FILE or SSL_CERT_DIR can't be read"


def test_it_is_said_whence_a_server_is_that_is_not_there(
    runner: CliRunner, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.invoke(main, ["node", "add", "stale", nowhere])
    line = failed(runner, "tasks", "list", status=3)
    assert f"no server at {nowhere} (`node use`, node stale). Start one" in line
    monkeypatch.setenv("TASKCAST_URL", nowhere)
    assert f"{nowhere} (TASKCAST_URL). Start" in failed(runner, "ping", status=3)
    line = failed(runner, "ping", "--url", "http://tasks.invalid", status=3)
    assert line == (
        "Error: no server at http://tasks.invalid. Does it run? If so, say where it is with --url."
    )


def test_the_node_that_lacks_a_token_is_named(runner: CliRunner, jwt_server: str) -> None:
    runner.invoke(main, ["node", "add", "here", jwt_server])
    line = failed(runner, "tasks", "list", status=4)
    assert line.endswith("or keep one with `taskcast-trio node token here`.")


def test_doctor_says_why_a_token_is_refused(runner: CliRunner, jwt_server: str) -> None:
    result, _ = doctor(runner, "--url", jwt_server, "--token", "wrong")
    assert "refused: The token is not a JWT (auth jwt, that of --token)" in result.stdout
