"""When archived tasks are to be cleaned up, and what was noted of that."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from taskcast_trio.core.model import TERMINAL
from taskcast_trio.storage.records import TaskRecord, Timer

from . import statements as sql
from .connection import Connection, Row
from .pool import Pool
from .rows import given, record_of, stored
from .units import fetch_value, within


class PostgresDueList:
    """The part of :class:`LongTermStore` that cleanup asks; see there for every step."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def list_ended(self, *, after: str | None, limit: int) -> list[TaskRecord]:
        """See :meth:`LongTermStore.list_ended`."""
        arguments = (stored(after or ""), list(TERMINAL), limit)

        async def work(connection: Connection) -> Sequence[Row]:
            return await connection.fetch(sql.LIST_ENDED, *arguments)

        return [record_of(row) for row in await self.pool.run(work)]

    async def mark(self, name: str) -> str | None:
        """See :meth:`LongTermStore.mark`."""
        found: str | None = await self.pool.run(fetch_value(sql.MARK, name))
        return found

    async def put_mark(self, name: str, value: str) -> None:
        """See :meth:`LongTermStore.put_mark`."""
        await self.pool.run(fetch_value(sql.PUT_MARK, name, value))

    async def set_due(self, task_id: str, due_ms: int | None, *, epoch: str) -> bool:
        """See :meth:`LongTermStore.set_due`."""
        at = None if due_ms is None else within(due_ms)
        return bool(
            await self.pool.run(fetch_value(sql.SET_DUE, stored(task_id), stored(epoch), at))
        )

    async def take_due(self, kind: str, *, now_ms: int, lease_ms: int, limit: int) -> list[Timer]:
        """See :meth:`DueList.take_due`; a repeat takes others."""
        until_ms = now_ms + lease_ms
        due = await self._due(sql.TAKE_DUE, kind, within(now_ms), limit, within(until_ms))
        return [Timer(timer.task_id, kind, until_ms) for timer in due]

    async def list_due(self, kind: str, *, now_ms: int, limit: int) -> list[Timer]:
        """See :meth:`DueList.list_due`."""
        return await self._due(sql.LIST_DUE, kind, within(now_ms), limit)

    async def _due(self, query: str, kind: str, *arguments: int) -> list[Timer]:
        async def work(connection: Connection) -> Sequence[Row]:
            return await connection.fetch(query, *arguments)

        rows = await self.pool.run(work)
        due = [Timer(given(row["id"]), kind, row["cleanup_at"]) for row in rows]
        return sorted(due, key=attrgetter("due_ms"))

    async def next_due(self, kind: str) -> int | None:
        """See :meth:`DueList.next_due`."""
        due_ms: int | None = await self.pool.run(fetch_value(sql.NEXT_DUE))
        return due_ms
