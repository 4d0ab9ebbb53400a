"""Custom authentication: the contract between the server and a callable of its owner.

::

    async def authenticate(request: AuthRequest) -> Caller | None:
        user = await lookup(request.header("cookie"))
        return user and Caller(sub=user.id, scopes=frozenset({"event:subscribe"}))

None is a caller who is not known (401). The callable may raise Unauthorized or Forbidden with words
of its own; whatever else it raises is its own fault, and the caller may come again (503).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from functools import reduce
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias, cast

import structlog
import trio
from msgspec import Struct, ValidationError, convert, structs

from taskcast_trio.config.errors import ConfigError
from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import AuthUnavailable, Forbidden, Unauthorized

log = structlog.get_logger(__name__)


class AuthRequest(Struct, frozen=True, kw_only=True):
    """What custom authentication sees of a request.

    ``headers`` are in the order they came, names in lower case, both decoded as Latin-1. ``client``
    is the address of the peer, None where there is none.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    client: str | None = None

    def header(self, name: str) -> str | None:
        """Return the first header of that name, in any case; None where there is none."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key == wanted), None)

    def __repr__(self) -> str:
        """Without the headers: they hold what the caller proves itself with."""
        return f"AuthRequest(method={self.method!r}, path={self.path!r})"


Authenticate: TypeAlias = Callable[[AuthRequest], Awaitable[Caller | None]]


def load(spec: str) -> Authenticate:
    """Import what ``auth.custom`` names: ``package.module:name``, or a name within a name.

    The current directory can be imported from, as with other servers.

    Raises:
        ConfigError: it is malformed, can't be imported, or is nothing to call.
    """
    module, colon, names = spec.partition(":")
    parts = [*module.split("."), *names.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ConfigError("auth.custom: expected module:callable")
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
    except Exception as error:
        # Anything at all: it is the owner's code that runs here.
        reason = str(error) if isinstance(error, ModuleNotFoundError) else type(error).__name__
        raise ConfigError(f"auth.custom: {module} cannot be imported: {reason}") from error
    try:
        found = reduce(getattr, names.split("."), found)
    except AttributeError:
        raise ConfigError(f"auth.custom: {module} has no {names}") from None
    if not callable(found):
        raise ConfigError(f"auth.custom: {spec} is not callable")
    return cast("Authenticate", found)


async def ask(authenticate: Authenticate, request: AuthRequest, timeout_s: float) -> Caller:
    """Return the caller whom ``authenticate`` finds behind a request, within ``timeout_s`` seconds.

    What goes wrong in there is logged, and no more of it shown to the caller.

    Raises:
        Unauthorized: nobody known; or as raised in there.
        Forbidden: as raised in there.
        AuthUnavailable: it failed, took too long, or returned something else.
    """
    with trio.move_on_after(timeout_s):
        try:
            found: object = await authenticate(request)
        except (Unauthorized, Forbidden):
            raise
        except Exception as error:
            log.error("custom authentication failed", error=type(error).__name__, exc_info=error)
            raise _unavailable() from None
        if found is None:
            raise Unauthorized("The caller is not known")
        if isinstance(found, Caller) and _is_sound(found):
            return found
        log.error("custom authentication returned no sound Caller", returned=type(found).__name__)
        raise _unavailable()
    log.error("custom authentication took too long", timeout_s=timeout_s)
    raise _unavailable()


def _is_sound(caller: Caller) -> bool:
    """Whether its fields are what their types say, and its claims can be written as JSON.

    A text in place of a set, say, would be searched for parts of it.
    """
    try:
        convert(structs.asdict(caller), Caller)
        json.dumps(dict(caller.claims))
    except (ValidationError, TypeError, ValueError, RecursionError):
        return False
    times = (caller.issued_at, caller.expires_at)
    return all(time is None or isfinite(time) for time in times)


def _unavailable() -> AuthUnavailable:
    return AuthUnavailable("Authentication is not available; try again")
