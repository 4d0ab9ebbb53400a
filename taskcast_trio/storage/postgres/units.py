"""Parts that units of work share: asyncio functions, each on one connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any

from . import statements as sql
from .connection import Connection, Row
from .rows import MAX_INT


def within(number: int) -> int:
    return max(-MAX_INT, min(number, MAX_INT))


def fetch_value(query: str, *arguments: object) -> Callable[[Connection], Awaitable[Any]]:
    async def work(connection: Connection) -> Any:
        return await connection.fetchval(query, *arguments)

    return work


async def begin_write(connection: Connection, task_id: str, epoch: str) -> Row:
    """Begin a write of the task, beside which no other one of it runs, and see what is there."""
    # Two tasks with one digest wait for each other; nothing worse.
    digest = blake2b(task_id.encode(), digest_size=8).digest()
    lock = int.from_bytes(digest, "big", signed=True)
    await connection.execute(f"BEGIN; SELECT pg_advisory_xact_lock({lock})")
    state = await connection.fetchrow(sql.STATE, task_id, epoch)
    assert state is not None, "it selects one row"
    return state
