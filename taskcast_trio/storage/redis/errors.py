"""What Redis's errors mean to those who wait for an answer, and to those who start a server.

No message of the server or of the driver is passed on: it may hold what a caller sent.
"""

from __future__ import annotations

import re
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from taskcast_trio.core.errors import StoreUnavailable

CONNECTION_ERRORS: Final = (RedisError, RedisClusterException, OSError, EOFError, TimeoutError)
"""Everything that talking to Redis may bring that is neither an answer nor a mistake in this code.
"""

_PASSING: Final = (
    ClusterDownError,
    MasterDownError,
    MovedError,
    AskError,
    ReadOnlyError,
    TryAgainError,
)
_IN_SCRIPT: Final = re.compile(r"-(READONLY|OOM|MISCONF|NOREPLICAS)\b")
"""What Redis 6 says within the words of another error, where a script met it."""

_REFUSALS: Final = (AuthenticationError, AuthorizationError, NoPermissionError)


def is_passing(error: ResponseError) -> bool:
    """Whether it is the answer of a server that did nothing, and another one, or the same one a
    little later, would.
    """
    return isinstance(error, _PASSING) or _word_in(error) == "READONLY"


def _word_in(error: ResponseError) -> str | None:
    found = _IN_SCRIPT.search(str(error))
    return found[1] if found else None


def unavailable(error: BaseException) -> StoreUnavailable:
    """What a caller is told."""
    if isinstance(error, StoreUnavailable):
        return error
    if isinstance(error, _REFUSALS):
        return StoreUnavailable("Redis refuses this server's user or password")
    if isinstance(error, ResponseError):
        return StoreUnavailable(f"Redis refused a step: {code_of(error)}")
    return StoreUnavailable(f"Redis is away: {type(error).__name__}")


def code_of(error: ResponseError) -> str:
    """The word in capitals that begins an error of the server, or the driver's class for it."""
    if type(error) is not ResponseError:
        return type(error).__name__
    word = _word_in(error) or str(error).partition(" ")[0]
    return word if word.isalpha() and word.isupper() and len(word) < 20 else "ERR"


def refusal(error: BaseException, where: str, *, has_password: bool) -> str:
    """Why a server can't be started on the Redis at ``where``, in one line."""
    if isinstance(error, _REFUSALS):
        if has_password:
            return f"Redis at {where} refuses the user or the password"
        return f"Redis at {where} asks for a password"
    if isinstance(error, BusyLoadingError):
        return f"Redis at {where} is still loading its data: try again"
    if isinstance(error, ResponseError):
        return f"What answers at {where} is not a Redis that can be used: {code_of(error)}"
    if isinstance(error, RedisError) and type(error).__name__ == "InvalidResponse":
        return f"What answers at {where} is no Redis"
    return f"Redis at {where} can't be reached: {type(error.__cause__ or error).__name__}"
