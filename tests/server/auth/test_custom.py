"""The owner's own authentication: what it may say, and that its faults let nobody in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from taskcast_trio.config.errors import ConfigError
from taskcast_trio.core.access import OPEN, Caller
from taskcast_trio.core.errors import AuthUnavailable, Forbidden, NotFound, Unauthorized
from taskcast_trio.server.auth.custom import AuthRequest, ask, load

REQUEST = AuthRequest(
    method="GET",
    path="/tasks",
    headers=(("cookie", "a=1"), ("x-name", "\xe9"), ("cookie", "a=2")),
    client="127.0.0.1",
)
MODULE = """
from taskcast_trio.core.access import Caller

async def authenticate(request):
    return Caller(sub=request.header("X-Name"))

class Holder:
    inner = authenticate

LIMIT = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what was imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("owners_"):
            del sys.modules[name]


# Loading


@pytest.mark.parametrize("name", ["authenticate", "Holder.inner"])
async def test_a_callable_is_found_in_the_current_directory(folder: Path, name: str) -> None:
    (folder / "owners_auth.py").write_text(MODULE)
    authenticate = load(f"owners_auth:{name}")
    assert await ask(authenticate, REQUEST, 1) == Caller(sub="\xe9")
    assert sys.path.count(str(folder)) == 1
    load("owners_auth:authenticate")
    assert sys.path.count(str(folder)) == 1


async def test_a_callable_is_found_inside_a_package(folder: Path) -> None:
    (folder / "owners_package").mkdir()
    (folder / "owners_package" / "auth.py").write_text(MODULE)
    assert callable(load("owners_package.auth:authenticate"))


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("", "expected module:callable"),
        ("owners_auth", "expected module:callable"),
        ("owners_auth.authenticate", "expected module:callable"),
        (":authenticate", "expected module:callable"),
        ("owners_auth:", "expected module:callable"),
        ("owners_auth:a:b", "expected module:callable"),
        (".owners_auth:authenticate", "expected module:callable"),
        ("owners_auth:authenticate()", "expected module:callable"),
        ("owners auth:authenticate", "expected module:callable"),
        ("../owners_auth:authenticate", "expected module:callable"),
        ("owners_gone:a", "owners_gone cannot be imported: No module named 'owners_gone'"),
        (
            "owners_auth.x:a",
            "owners_auth.x cannot be imported: "
            "No module named 'owners_auth.x'; 'owners_auth' is not a package",
        ),
        ("owners_broken:a", "owners_broken cannot be imported: SyntaxError"),
        ("owners_raising:a", "owners_raising cannot be imported: RuntimeError"),
        ("owners_auth:gone", "owners_auth has no gone"),
        ("owners_auth:Holder.gone", "owners_auth has no Holder.gone"),
        ("owners_auth:LIMIT", "owners_auth:LIMIT is not callable"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(folder: Path, spec: str, line: str) -> None:
    (folder / "owners_auth.py").write_text(MODULE)
    (folder / "owners_broken.py").write_text("def")
    (folder / "owners_raising.py").write_text("raise RuntimeError('hunter2')")
    with pytest.raises(ConfigError) as caught:
        load(spec)
    assert str(caught.value) == f"auth.custom: {line}"


# The request


def test_a_header_is_found_in_any_case_and_the_first_of_several_is_it() -> None:
    assert REQUEST.header("Cookie") == "a=1"
    assert REQUEST.header("x-NAME") == "\xe9"
    assert REQUEST.header("authorization") is None


def test_a_request_does_not_show_its_headers() -> None:
    assert "a=1" not in repr(REQUEST)
    assert "a=1" not in f"{REQUEST}"
    assert "/tasks" in repr(REQUEST)


def test_a_request_does_not_change() -> None:
    with pytest.raises(AttributeError):
        REQUEST.path = "/"  # type: ignore[misc]


# Asking


@pytest.mark.parametrize("caller", [Caller(), Caller(sub="a", scopes=frozenset("b")), OPEN])
async def test_the_caller_is_who_it_says(caller: Caller) -> None:
    seen: list[AuthRequest] = []

    async def authenticate(request: AuthRequest) -> Caller:
        seen.append(request)
        return caller

    assert await ask(authenticate, REQUEST, 1) is caller
    assert seen == [REQUEST]


async def test_none_is_nobody() -> None:
    async def authenticate(request: AuthRequest) -> None:
        return None

    with pytest.raises(Unauthorized):
        await ask(authenticate, REQUEST, 1)


@pytest.mark.parametrize("refusal", [Unauthorized("who?"), Forbidden("not you")])
async def test_a_refusal_in_its_own_words_passes(refusal: Exception) -> None:
    async def authenticate(request: AuthRequest) -> None:
        raise refusal

    with capture_logs() as lines, pytest.raises(type(refusal)) as caught:
        await ask(authenticate, REQUEST, 1)
    assert caught.value is refusal
    assert lines == []


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("hunter2"),
        NotFound("hunter2"),
        trio.TooSlowError("hunter2"),
        ExceptionGroup("hunter2", [Unauthorized("hunter2")]),
        AssertionError("hunter2"),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_any_other_fault_is_logged_and_a_503_that_does_not_tell(fault: Exception) -> None:
    async def authenticate(request: AuthRequest) -> None:
        raise fault

    with capture_logs() as lines, pytest.raises(AuthUnavailable) as caught:
        await ask(authenticate, REQUEST, 1)
    assert (caught.value.status, caught.value.wait) == (503, True)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__
    (line,) = lines
    assert line["event"] == "custom authentication failed"
    assert line["error"] == type(fault).__name__
    assert line["exc_info"] is fault


@pytest.mark.parametrize(
    "answer", [True, False, 0, "alice", {"sub": "hunter2"}, Caller, [Caller()]]
)
async def test_an_answer_that_is_no_caller_lets_nobody_in(answer: Any) -> None:
    async def authenticate(request: AuthRequest) -> Any:
        return answer

    with capture_logs() as lines, pytest.raises(AuthUnavailable):
        await ask(authenticate, REQUEST, 1)
    (line,) = lines
    assert line["returned"] == type(answer).__name__
    assert "hunter2" not in str(lines)


async def test_a_callable_that_is_not_async_lets_nobody_in() -> None:
    def authenticate(request: AuthRequest) -> Any:
        return Caller()

    with capture_logs() as lines, pytest.raises(AuthUnavailable):
        await ask(authenticate, REQUEST, 1)
    assert lines[0]["error"] == "TypeError"


async def test_it_has_its_time_and_no_more(autojump_clock: trio.testing.MockClock) -> None:
    async def authenticate(request: AuthRequest) -> Caller:
        await trio.sleep(float(request.path))
        return Caller()

    def request(seconds: float) -> AuthRequest:
        return AuthRequest(method="GET", path=str(seconds))

    await ask(authenticate, request(2.9), 3)
    start = trio.current_time()
    with capture_logs() as lines, pytest.raises(AuthUnavailable):
        await ask(authenticate, request(1e6), 3)
    assert trio.current_time() - start == pytest.approx(3)
    assert [line["event"] for line in lines] == ["custom authentication took too long"]


async def test_a_request_that_is_cancelled_is_cancelled_in_there_too() -> None:
    ended = trio.Event()

    async def authenticate(request: AuthRequest) -> Caller:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    with capture_logs() as lines, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, authenticate, REQUEST, 1000)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert ended.is_set()
    assert lines == []
