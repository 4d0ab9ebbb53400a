"""What errors of asyncpg and of the server mean to a caller.

Messages of either may quote rows or the URL: none is passed on, only the kind of the error.
"""

from __future__ import annotations

from typing import Final

import asyncpg  # type: ignore[import-untyped]

from taskcast_trio.core.errors import StoreUnavailable

CONNECTION_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""Everything that a unit of work may meet that is neither its own nor a mistake in this code."""

_REFUSED_CLASSES: Final = ("22", "54")
"""Data exceptions and program limits (PostgreSQL, appendix A): the value is at fault, and will be
the next time too.
"""


class Refused(Exception):
    """PostgreSQL can't hold a value that it was given."""


def translated(error: BaseException) -> Exception:
    """What to raise instead of ``error``, one of :data:`CONNECTION_ERRORS`."""
    name = type(error).__name__
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if state[:2] in _REFUSED_CLASSES:
            return Refused(f"{name}, SQLSTATE {state}")
        hint = ": is the schema there? `taskcast-trio migrate`" if state[:2] == "42" else ""
        return StoreUnavailable(f"PostgreSQL refused: {name}, SQLSTATE {state}{hint}")
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return Refused(name)  # asyncpg could not encode an argument
    return StoreUnavailable(f"PostgreSQL is away: {name}")
