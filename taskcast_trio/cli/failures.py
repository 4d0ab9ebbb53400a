"""Exit statuses, and the line that tells a person what went wrong and what helps."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Final

import click

from taskcast_trio.core.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NotBlocked,
    NotFound,
    TaskcastError,
    TaskEnded,
    TaskNotFound,
    TokenExpired,
    TokenRevoked,
    Unauthorized,
)

if TYPE_CHECKING:
    from taskcast_trio.cli.server import Server

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NO_SERVER: Final = 3
DENIED: Final = 4
NOT_FOUND: Final = 5
CONFLICT: Final = 6
HUNG_UP: Final = 129
INTERRUPTED: Final = 130
CLOSED_PIPE: Final = 141
TERMINATED: Final = 143

_PLAIN: Final = ("default", "--url")
"""Who has the URL from there need not be told."""

EXIT_STATUSES: Final = """\
Exit status:

\b
  0    done
  1    it failed otherwise
  2    wrong arguments, configuration or input (bad JSON)
  3    no server, or one that can't answer now: again later may help
  4    no token, or one that does not allow it (401, 403)
  5    no such task (404)
  6    the state does not allow it, as for a task that has ended (409)
  129  SIGHUP: the terminal was closed
  130  Ctrl-C
  141  whoever read the output has left, as `head` does
  143  SIGTERM
"""


class Failed(click.ClickException):
    """A failure that is said in one line, with an exit status of its own."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        # A constant of the class elsewhere; here each failure has its own.
        self.exit_code = exit_code  # type: ignore[misc]


def failure_of(error: Exception, server: Server) -> Failed | None:
    """What an error of talking to `server` is to a person; None for one that is a bug of ours."""
    import httpx

    from taskcast_trio.client import ResponseError, ServerUnavailable

    if isinstance(error, ServerUnavailable) and isinstance(error.__cause__, httpx.HTTPError):
        return _unreachable(error.__cause__, server)
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return _unreachable(error, server)
    if isinstance(error, ResponseError):
        return _odd_answer(error, server)
    if isinstance(error, TaskcastError):
        return _refused(error, server)
    return None


def not_taskcast(server: Server) -> Failed:
    """Something else answers there."""
    return Failed(
        f"{server.url} answers, but not as a Taskcast server: a wrong port, or a path that is "
        "missing?",
        NO_SERVER,
    )


def _unreachable(error: Exception, server: Server) -> Failed:
    import httpx

    base = server.url
    if isinstance(error, httpx.ConnectError):
        tls = _tls_error(error)
        if isinstance(tls, ssl.SSLCertVerificationError):
            why = printable(tls.verify_message)
            return Failed(f"the certificate of {base} is not trusted: {why}", NO_SERVER)
        if tls is not None:
            return Failed(f"what listens at {base} does not speak TLS: http://?", NO_SERVER)
        if not server.is_local and (names := proxies()):
            return Failed(f"no connection to {base} through {', '.join(names)}", NO_SERVER)
        chosen = "" if server.url_from in _PLAIN else f" ({server.whence})"
        helps = "Start one with `taskcast-trio`, or" if server.is_local else "Does it run? If so,"
        return Failed(
            f"no server at {base}{chosen}. {helps} say where it is with --url.", NO_SERVER
        )
    if isinstance(error, httpx.TimeoutException):
        return Failed(f"no answer from {base} in time", NO_SERVER)
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return no_url(base)
    if isinstance(error, httpx.RemoteProtocolError):
        return Failed(
            f"what listens at {base} does not answer in HTTP (RemoteProtocolError): a wrong port, "
            "or https:// ?",
            NO_SERVER,
        )
    if isinstance(error, httpx.NetworkError):
        return Failed(f"the connection to {base} broke: is it a Taskcast server?", NO_SERVER)
    return Failed(f"{base}: {type(error).__name__}", NO_SERVER)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """What TLS had against it: httpx tells of it in words only, and on Trio in none."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def proxies() -> list[str]:
    """The variables that set a proxy."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    return [name for name in names if os.environ.get(name) or os.environ.get(name.lower())]


def no_url(text: str) -> Failed:
    return Failed(f"{printable(text)} is no URL; one looks like http://host:3721", USAGE)


def _odd_answer(error: TaskcastError, server: Server) -> Failed:
    if error.code == "bad_answer":
        return not_taskcast(server)
    said = f"{server.url} answered {error.status}"
    if error.code:
        said += f": {printable(str(error)[:500])}"
    elif error.status >= 500:
        said += ": does something before the server, like a proxy, not reach it?"
    return Failed(said, _status_of(error.status))


def _refused(error: TaskcastError, server: Server) -> Failed:
    said = printable(str(error)[:500])
    if isinstance(error, Unauthorized):
        return Failed(
            f"{server.url} wants a token it knows: {said}. {_help(error, server)}", DENIED
        )
    if isinstance(error, Forbidden):
        return Failed(f"the token does not allow this: {said}", DENIED)
    if isinstance(error, TaskNotFound):
        return Failed(
            f"no task {printable(error.task_id)} at {server.url}. `taskcast-trio tasks list` "
            "shows what is there.",
            NOT_FOUND,
        )
    if type(error) is NotFound:
        return not_taskcast(server)
    return Failed(said, CONFLICT if _is_conflict(error) else _status_of(error.status))


def _is_conflict(error: TaskcastError) -> bool:
    return isinstance(error, Conflict | TaskEnded | NotBlocked)


def _status_of(status: int) -> int:
    if status in (401, 403):
        return DENIED
    if status == BadRequest.status:
        return USAGE
    if status == NotFound.status:
        return NOT_FOUND
    if status == Conflict.status:
        return CONFLICT
    return NO_SERVER if status in (429, 502, 503, 504) else FAILED


def _help(error: Unauthorized, server: Server) -> str:
    if isinstance(error, TokenExpired | TokenRevoked) and server.token_from is not None:
        return f"A new one has to replace that of {server.token_from}."
    return _token_hint(server)


def _token_hint(server: Server) -> str:
    if server.token_from is not None:
        return f"The one sent is from {server.token_from}."
    said = token_help(server)
    return f"{said[0].upper()}{said[1:]}."


def token_help(server: Server) -> str:
    """How the server would be sent a token."""
    keep = (
        f"set TASKCAST_TOKEN, or keep one with `taskcast-trio node token {server.node or 'NAME'}`"
    )
    return keep if server.node else f"{keep} and say --node NAME"


def printable(text: str) -> str:
    """What may go to a terminal: names, ids and errors are from elsewhere."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
