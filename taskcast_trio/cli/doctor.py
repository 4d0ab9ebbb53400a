"""``taskcast-trio doctor``: what stands between this machine and a working server."""

from __future__ import annotations

import base64
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import click

from taskcast_trio import __version__
from taskcast_trio.cli.connect import explained, new_http, server_options
from taskcast_trio.cli.ctrl_c import run_on_trio
from taskcast_trio.cli.failures import (
    DENIED,
    FAILED,
    NO_SERVER,
    Failed,
    failure_of,
    not_taskcast,
    printable,
    proxies,
    token_help,
)
from taskcast_trio.cli.nodes import nodes_file, open_to_others
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.server import Server

if TYPE_CHECKING:
    import httpx

TIMEOUT_S: Final = 5.0
SKEW_S: Final = 5.0
SOON_S: Final = 3600

State: TypeAlias = Literal["ok", "warning", "failed"]
_STYLES: Final[dict[State, str]] = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found."""

    name: str
    state: State
    text: str
    exit_code: int = FAILED


Tell: TypeAlias = Callable[[Check], None]


@click.command(short_help="Find what is wrong between here and the server.")
@server_options
@click.pass_context
def doctor(ctx: click.Context, server: Server, out: Out) -> None:
    """Look at all that can be wrong between here and the server, and say what helps.

    Which server is meant, whether it answers, its storage and its dependencies, the token, the
    clocks, and whether streams come through at once.

    Exit status: 0 unless something failed; warnings do not count.
    """
    found: list[Check] = []

    def tell(check: Check) -> None:
        found.append(check)
        if not out.as_json:
            state = out.styled(f"{check.state:<8}", fg=_STYLES[check.state])
            out.say(f"{state}{check.name:<10}{check.text}")

    with explained(server):
        run_on_trio(partial(examine, server, tell))
    failed = [check for check in found if check.state == "failed"]
    if out.as_json:
        checks = [{"name": c.name, "state": c.state, "text": c.text} for c in found]
        out.json({"url": server.url, "ok": not failed, "checks": checks})
    if failed:
        ctx.exit(failed[0].exit_code)


async def examine(server: Server, tell: Tell) -> None:
    """Make every check that can be made, one after the other."""
    tell(Check("server", "ok", f"{server.url} ({server.whence})"))
    path = nodes_file(os.environ)
    if open_to_others(path):
        tell(Check("nodes", "warning", f"others can read {path}: chmod 600 it"))
    _tell_transport(server, tell)
    headers = {"Authorization": f"Bearer {server.token.reveal()}"} if server.token else {}
    async with new_http(server, timeout=TIMEOUT_S, headers=headers) as http:
        health = await _health(http, server, tell)
        if health is None:
            return
        detail = await _get(http, server, "/health/detail")
        await _tell_readiness(http, server, tell)
        _tell_storage(detail, tell)
        mode = _text(detail, "auth", "mode")
        if await _tell_token(http, server, mode, tell):
            await _tell_stream(http, server, tell)


def _tell_transport(server: Server, tell: Tell) -> None:
    if server.url.startswith("http:") and server.token and not server.is_local:
        tell(Check("transport", "warning", "the token goes over http://, where others can read it"))
    if (names := proxies()) and not server.is_local:
        tell(Check("proxy", "warning", f"{', '.join(names)} is set, and used"))


async def _health(http: httpx.AsyncClient, server: Server, tell: Tell) -> httpx.Response | None:
    """Whether a Taskcast server answers; tells of its version and its clock."""
    from taskcast_trio.client.errors import error_of

    began = time.perf_counter()
    try:
        answer = await http.get(f"{server.url}/health")
        if not answer.is_success:
            raise error_of(answer.status_code, answer.content, None)
        told = answer.json()
        name, version = printable(str(told["name"])), printable(str(told["version"]))
    except (ValueError, KeyError, TypeError):
        tell(_failed("answer", not_taskcast(server)))
        return None
    except Exception as error:
        failure = failure_of(error, server)
        if failure is None:
            raise
        tell(_failed("answer", failure))
        return None
    tell(Check("answer", "ok", f"{(time.perf_counter() - began) * 1000:.1f} ms"))
    if name != "taskcast-trio":
        tell(Check("version", "warning", f"{name} {version}: not everything here works with it"))
    elif version != __version__:
        tell(Check("version", "warning", f"{name} {version}, and {__version__} here"))
    else:
        tell(Check("version", "ok", f"{name} {version}"))
    _tell_clock(answer, tell)
    return answer


def _tell_clock(answer: httpx.Response, tell: Tell) -> None:
    try:
        there_s = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return
    off_s = time.time() - there_s
    if abs(off_s) > SKEW_S:
        ahead = "ahead of" if off_s > 0 else "behind"
        text = f"this one is {abs(off_s):.0f} s {ahead} the server's: --since counts by the latter"
        tell(Check("clock", "warning", text))
    else:
        tell(Check("clock", "ok", "as the server's"))


async def _get(http: httpx.AsyncClient, server: Server, path: str) -> Any:
    """The JSON answer, whatever its status; None where there is none."""
    import httpx as errors

    try:
        return (await http.get(f"{server.url}{path}")).json()
    except (errors.HTTPError, ValueError):
        return None


async def _tell_readiness(http: httpx.AsyncClient, server: Server, tell: Tell) -> None:
    ready = await _get(http, server, "/health/ready")
    if not isinstance(ready, dict):
        tell(Check("ready", "failed", "no answer to /health/ready", NO_SERVER))
    elif ready.get("draining"):
        tell(Check("ready", "failed", "it shuts down", NO_SERVER))
    elif ready.get("ok"):
        tell(Check("ready", "ok", "takes work"))
    else:
        found = ready.get("dependencies")
        known = found if isinstance(found, dict) else {}
        away = [name for name in known if _text(known, name, "status") != "ok"]
        text = f"away: {printable(', '.join(away) or 'something it depends on')}"
        tell(Check("ready", "failed", text, NO_SERVER))


def _tell_storage(detail: Any, tell: Tell) -> None:
    provider = _text(detail, "adapters", "shortTermStore", "provider")
    archive = _text(detail, "adapters", "longTermStore", "provider")
    if provider is None:
        return
    text = provider + (f", archived in {archive}" if archive else "")
    if provider == "memory" and not archive:
        text += ": nothing survives a restart of the server"
    tell(Check("storage", "ok", text))


async def _tell_token(
    http: httpx.AsyncClient, server: Server, mode: str | None, tell: Tell
) -> bool:
    """Whether it may look at tasks."""
    import httpx as errors

    from taskcast_trio.client.errors import error_of

    try:
        answer = await http.get(f"{server.url}/tasks", params={"limit": "1"})
    except errors.HTTPError as error:
        tell(Check("token", "failed", type(error).__name__, NO_SERVER))
        return False
    sent = f"that of {server.token_from}" if server.token_from else "none sent"
    about = f"auth {mode or 'unknown'}, {sent}{_lifetime(server)}"
    if answer.status_code == errors.codes.UNAUTHORIZED:
        said = printable(str(error_of(answer.status_code, answer.content, None))[:200])
        text = f"refused: {said} ({about}): {token_help(server)}"
        tell(Check("token", "failed", text, DENIED))
    elif answer.status_code == errors.codes.FORBIDDEN:
        tell(Check("token", "failed", f"may not list tasks ({about}): event:subscribe", DENIED))
    elif answer.is_success:
        tell(Check("token", "ok", about))
        return True
    else:
        tell(Check("token", "failed", f"GET /tasks answered {answer.status_code}", NO_SERVER))
    return False


def _lifetime(server: Server) -> str:
    """What a JWT says of its own end; nothing for other tokens. It is not verified."""
    if server.token is None:
        return ""
    try:
        middle = server.token.reveal().split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        left_s = float(claims["exp"]) - time.time()
    except (ValueError, IndexError, KeyError, TypeError):
        return ""
    if left_s <= 0:
        return ", which has expired"
    return f", good for {left_s / 60:.0f} min" if left_s < SOON_S * 48 else ""


async def _tell_stream(http: httpx.AsyncClient, server: Server, tell: Tell) -> None:
    """Whether the first bytes of a stream come while it is open."""
    import httpx as errors
    import trio

    began = time.perf_counter()
    try:
        async with http.stream("GET", f"{server.url}/events") as answer:
            kind = answer.headers.get("Content-Type", "")
            if not kind.startswith("text/event-stream"):
                tell(Check("stream", "failed", f"GET /events answered {answer.status_code}"))
                return
            parts = answer.aiter_raw()
            await anext(parts, None)
            # httpx reads through nested generators, which have to end in order: resumed under a
            # cancelled scope, they do.
            with trio.CancelScope(deadline=-math.inf):
                async for _ in parts:
                    pass
    except errors.HTTPError:
        text = f"nothing came in {TIMEOUT_S:g} s: does a proxy before the server buffer?"
        tell(Check("stream", "failed", text))
        return
    tell(Check("stream", "ok", f"comes at once ({(time.perf_counter() - began) * 1000:.1f} ms)"))


def _failed(name: str, failure: Failed) -> Check:
    return Check(name, "failed", failure.message, failure.exit_code)


def _text(found: Any, *keys: str) -> str | None:
    for key in keys:
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return printable(found) if isinstance(found, str) else None
