"""The long-term store in PostgreSQL: logs as rows, written in batches, read in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, Literal, TypeAlias

import asyncpg  # type: ignore[import-untyped]

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import RevisionConflict, TaskNotFound
from taskcast_trio.core.ids import parse_event_id
from taskcast_trio.core.model import TERMINAL
from taskcast_trio.core.series import SeriesValues, fold
from taskcast_trio.storage.bridge import Bridge
from taskcast_trio.storage.long_term import Extent, Summary, UnwritableRows
from taskcast_trio.storage.records import NO_PUBLISHERS, Page, Publishers, Snapshot, TaskRecord

from . import statements as sql
from .connection import Connection, Row
from .due_list import PostgresDueList
from .errors import Refused, translated
from .pool import open_pool
from .rows import MAX_INT, EventRow, entry_of, event_row, given, record_of, stored, task_row
from .units import begin_write, fetch_value, within

Outcome: TypeAlias = Literal["saved", "refused", "older life"]

PURGE_EVENTS: Final = 20_000
"""How many events of an ended life are removed at once: each time is well within the deadline."""

TOMBS: Final = 1000
"""How many are looked at at once."""

SERIES_EVENTS: Final = 1000
"""How many events of series are read at once for a snapshot."""

READ_ONLY: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class PostgresStore(PostgresDueList):
    """Archived tasks; see :class:`LongTermStore` for every step.

    Each step is one transaction, but for :meth:`delete` and :meth:`snapshot` of long logs. All
    raise StoreUnavailable where the database is away or gives no answer in time; a write may have
    happened then, and is repeated without harm.
    """

    async def ping(self) -> None:
        """Return where the database answers."""
        await self.pool.run(_ping)

    async def save(
        self,
        record: TaskRecord,
        entries: Sequence[Entry],
        *,
        through: int | None = None,
        values: Sequence[Entry] = (),
        due_ms: int | None = None,
        publishers: Mapping[str, int] = NO_PUBLISHERS,
    ) -> bool:
        """See :meth:`LongTermStore.save`."""
        if through is None:
            through = entries[-1].index if entries else -1
        rows = _rows(record.epoch, entries)
        careful = False
        while True:
            work = partial(
                _save,
                record=record,
                rows=rows,
                through=through,
                values=_value_rows(record.epoch, values),
                due_ms=due_ms,
                publishers=publishers,
                careful=careful,
            )
            try:
                outcome = await self.pool.run(work)
            except Refused:
                careful = True
                continue
            if outcome != "older life":
                return outcome == "saved"
            await self._purge(record.task.id)

    async def archived_index(self, task_id: str, epoch: str) -> int:
        """See :meth:`LongTermStore.archived_index`."""
        found = await self.pool.run(fetch_value(sql.ARCHIVED, stored(task_id), stored(epoch)))
        return -1 if found is None else int(found)

    async def load(self, task_id: str) -> TaskRecord | None:
        """See :meth:`LongTermStore.load`."""
        row = await self.pool.run(partial(_load, task_id=stored(task_id)))
        return None if row is None else record_of(row)

    async def extents(self, task_ids: Sequence[str]) -> dict[str, Extent]:
        """See :meth:`LongTermStore.positions`."""
        names = [stored(task_id) for task_id in task_ids]

        async def work(connection: Connection) -> Sequence[Row]:
            return await connection.fetch(sql.EXTENTS, names)

        return {
            given(row["id"]): Extent(given(row["epoch"]), row["revision"], row["next_index"])
            for row in await self.pool.run(work)
        }

    async def summary(self) -> Summary:
        """See :meth:`LongTermStore.summary`."""

        async def work(connection: Connection) -> Row | None:
            return await connection.fetchrow(sql.SUMMARY)

        row = await self.pool.run(work)
        assert row is not None, "it aggregates"
        return Summary(row["tasks"], row["events"], row["updated_at"])

    async def exists(self, task_id: str) -> bool:
        """See :meth:`LongTermStore.exists`."""
        return bool(await self.pool.run(fetch_value(sql.EXISTS, stored(task_id))))

    async def list_tasks(
        self,
        *,
        limit: int,
        statuses: frozenset[str] | None = None,
        type_: str | None = None,
        after: tuple[int, str] | None = None,
    ) -> list[TaskRecord]:
        """See :meth:`LongTermStore.list_tasks`."""
        created_at, id_ = after or (-MAX_INT, "")
        arguments = (
            within(created_at),
            stored(id_),
            None if statuses is None else list(statuses),
            None if type_ is None else stored(type_),
            limit,
        )

        async def work(connection: Connection) -> Sequence[Row]:
            return await connection.fetch(sql.LIST, *arguments)

        return [record_of(row) for row in await self.pool.run(work)]

    async def read(self, task_id: str, *, after: int, limit: int) -> Page:
        """See :meth:`LongTermStore.read`."""
        return await self._page(sql.READ, task_id, within(after), limit=limit)

    async def read_places(
        self, task_id: str, *, after_place: int, after_index: int, limit: int
    ) -> Page:
        """See :meth:`LongTermStore.read_places`."""
        places = (within(after_place), within(after_index))
        return await self._page(sql.READ_PLACES, task_id, *places, limit=limit)

    async def _page(self, query: str, task_id: str, *arguments: int, limit: int) -> Page:
        task, rows = await self._read(query, task_id, *arguments, limit + 1)
        entries = [entry_of(task_id, row) for row in rows[:limit]]
        return Page(record_of(task), entries, more=len(rows) > limit)

    async def _read(
        self, query: str, task_id: str, *arguments: object
    ) -> tuple[Row, Sequence[Row]]:
        work = partial(_read, query=query, task_id=stored(task_id), arguments=arguments)
        task, rows = await self.pool.run(work)
        if task is None:
            raise TaskNotFound(task_id)
        return task, rows

    async def publishers(self, task_id: str) -> Publishers:
        """See :meth:`LongTermStore.publishers`."""
        task, rows = await self._read(sql.PUBLISHERS, task_id)
        return Publishers(
            record_of(task), {given(row["client_id"]): row["expected"] for row in rows}
        )

    async def find(self, task_id: str, event_id: str) -> Entry | None:
        """See :meth:`LongTermStore.find`."""
        position = parse_event_id(event_id)
        index = -1 if position is None else position.index
        _, rows = await self._read(sql.FIND, task_id, stored(event_id), index)
        return entry_of(task_id, rows[0]) if rows else None

    async def snapshot(self, task_id: str) -> Snapshot:
        """See :meth:`LongTermStore.snapshot`. Reads every event of a series, page by page."""
        values: SeriesValues = {}
        kept: dict[str, int] = {}
        after = -1
        life: tuple[str, int] | None = None
        while True:
            page = await self._page(sql.READ_SERIES, task_id, after, limit=SERIES_EVENTS)
            if life != (page.record.epoch, page.record.trims):
                if life is None and not page.record.trims:
                    life = (page.record.epoch, 0)
                else:
                    life, after = await self._read_values(task_id, values, kept), -1
                    continue
            for entry in page.entries:
                if entry.index > kept.get(entry.event.series_id or "", -1):
                    fold(values, entry)
                after = entry.index
            if not page.more:
                # Of what was replaced between two pages the successor has been read.
                return Snapshot(page.record, {name: value.entry for name, value in values.items()})

    async def _read_values(
        self, task_id: str, values: SeriesValues, kept: dict[str, int]
    ) -> tuple[str, int]:
        """Begin with the values that are written down; of which life of the log they are, and after
        how many trims.
        """
        task, rows = await self._read(sql.READ_VALUES, task_id)
        values.clear()
        kept.clear()
        for entry in (entry_of(task_id, row) for row in rows):
            fold(values, entry)
            kept[entry.event.series_id or ""] = entry.index
        record = record_of(task)
        return record.epoch, record.trims

    async def trim(self, task_id: str, indexes: Sequence[int], *, epoch: str) -> int:
        """See :meth:`LongTermStore.trim`."""
        wanted = [index for index in indexes if 0 <= index <= MAX_INT]
        rows: list[EventRow] | None = None
        while True:
            work = partial(
                _trim, task_id=stored(task_id), epoch=stored(epoch), indexes=wanted, values=rows
            )
            count = await self.pool.run(work)
            if count is not None:
                return count
            try:
                values = (await self.snapshot(task_id)).values.values()
            except TaskNotFound:
                return 0
            rows = _value_rows(epoch, values)

    async def renew(self, task_id: str, *, epoch: str, new_epoch: str) -> TaskRecord:
        """See :meth:`LongTermStore.renew`."""
        old, new = stored(epoch), stored(new_epoch)
        work = partial(_renew, task_id=stored(task_id), epoch=old, new_epoch=new)
        row = await self.pool.run(work)
        if row is None:
            raise TaskNotFound(task_id)
        record = record_of(row)
        if record.epoch != new_epoch:
            raise RevisionConflict(task_id)
        return record

    async def delete(self, task_id: str, *, epoch: str | None = None) -> bool:
        """See :meth:`LongTermStore.delete`."""
        old = None if epoch is None else stored(epoch)
        there, left = await self.pool.run(partial(_bury, task_id=stored(task_id), epoch=old))
        if left:
            await self._purge(task_id)
        return there

    async def finish_deletions(self) -> None:
        """See :meth:`LongTermStore.finish_deletions`."""
        after = ("", "")
        while True:
            tombs = await self.pool.run(partial(_buried, after=after))
            for tomb in tombs:
                if tomb["has_rows"]:
                    await self._purge(given(tomb["task_id"]))
            if len(tombs) < TOMBS:
                return
            after = (tombs[-1]["task_id"], tombs[-1]["epoch"])

    async def _purge(self, task_id: str) -> None:
        """Remove the rows of a life that has its tombstone; nobody sees them any more."""
        work = partial(_purge, task_id=stored(task_id))
        more = True
        while more:
            more = await self.pool.run(work)


@asynccontextmanager
async def open_postgres(
    url: str,
    *,
    max_connections: int = 10,
    timeout_s: float = 5.0,
    bridge: Bridge | None = None,
) -> AsyncIterator[PostgresStore]:
    """A store in the database at ``url``, open as long as the context.

    The database need not be up: it is connected to when something is asked of it, each call within
    ``timeout_s``. Its schema is not looked at: see :func:`migrations.require_migrated`. It shares
    the ``bridge`` that is given, else it has one of its own. Leaving closes the connections and
    waits for no server.

    Raises:
        ValueError: the URL is none of PostgreSQL.
    """
    async with open_pool(
        url, max_connections=max_connections, timeout_s=timeout_s, bridge=bridge
    ) as pool:
        yield PostgresStore(pool)


def _rows(epoch: str, entries: Sequence[Entry]) -> list[EventRow]:
    rows = _writable_rows(epoch, entries)
    if len(rows) < len(entries):
        good = {row.idx for row in rows}
        raise UnwritableRows([entry.index for entry in entries if entry.index not in good])
    return rows


def _writable_rows(epoch: str, entries: Iterable[Entry]) -> list[EventRow]:
    rows = []
    for entry in entries:
        with suppress(ValueError):
            rows.append(event_row(entry, epoch))
    return rows


def _value_rows(epoch: str, values: Iterable[Entry]) -> list[EventRow]:
    return [row._replace(data=None) for row in _writable_rows(epoch, values)]


# Units of work: asyncio functions, each on one connection. -------------------------------------


async def _ping(connection: Connection) -> None:
    await connection.fetchval("SELECT 1")


async def _load(connection: Connection, *, task_id: str) -> Row | None:
    return await connection.fetchrow(sql.LOAD, task_id)


async def _read(
    connection: Connection, *, query: str, task_id: str, arguments: Sequence[object]
) -> tuple[Row | None, Sequence[Row]]:
    """The task and some of its events, as of one moment."""
    await connection.execute(READ_ONLY)
    task = await connection.fetchrow(sql.LOAD, task_id)
    rows = [] if task is None else await connection.fetch(query, task_id, *arguments)
    await connection.execute("COMMIT")
    return task, rows


async def _save(
    connection: Connection,
    *,
    record: TaskRecord,
    rows: Sequence[EventRow],
    through: int,
    values: Sequence[EventRow],
    due_ms: int | None,
    publishers: Mapping[str, int],
    careful: bool,
) -> Outcome:
    task_id, epoch = stored(record.task.id), stored(record.epoch)
    state = await begin_write(connection, task_id, epoch)
    outcome: Outcome = "saved"
    if state["buried"]:
        outcome = "refused"
    elif state["epoch"] not in (None, epoch):
        is_older = state["alive"] and record.task.created_at < state["created_at"]
        outcome = "refused" if is_older and not record.imported else "older life"
        if outcome == "older life":
            await connection.execute(sql.BURY, task_id, [state["epoch"]])
    else:
        if state["epoch"] is None or record.revision > state["revision"]:
            await _put_task(connection, record, careful=careful)
        if state["epoch"] is not None:
            rows = [row for row in rows if not _is_trimmed(row, state)]
        await _put_events(connection, task_id, epoch, rows, careful=careful)
        await connection.execute(sql.ADVANCE, task_id, through + 1)
        if values:
            await connection.execute(sql.KEEP_VALUES, task_id, epoch, *zip(*values, strict=True))
        if publishers:
            names = [stored(client_id) for client_id in publishers]
            await connection.execute(sql.EXPECT, task_id, names, list(publishers.values()))
        if due_ms is not None:
            await connection.execute(sql.SET_DUE, task_id, epoch, within(due_ms))
    await connection.execute("COMMIT")
    return outcome


def _is_trimmed(row: EventRow, state: Row) -> bool:
    """Whether it may have been, after it was archived; then it is in its place already or gone."""
    trimmed: bool = row.idx <= state["trimmed"] and row.idx < state["next_index"]
    return trimmed


async def _put_task(connection: Connection, record: TaskRecord, *, careful: bool) -> None:
    try:
        values = task_row(record, copies=True).values()
        if not careful:
            await connection.execute(sql.UPSERT, *values)
            return
        if await _fits(connection, sql.UPSERT, *values):
            return
        if await _fits(connection, sql.UPSERT, *task_row(record, copies=False).values()):
            return
    except ValueError:
        pass
    raise UnwritableRows([], task=True)


async def _put_events(
    connection: Connection, task_id: str, epoch: str, rows: Sequence[EventRow], *, careful: bool
) -> None:
    moved = [(row.place, row.idx) for row in rows if row.place != row.idx]
    if moved:
        for query in sql.REPLACE:
            await connection.execute(query, task_id, *map(list, zip(*moved, strict=True)))
    if careful:
        bad = await _put_what_fits(connection, task_id, epoch, rows)
        if bad:
            raise UnwritableRows(bad)
    elif rows:
        await connection.execute(sql.INSERT, task_id, epoch, *zip(*rows, strict=True))


async def _put_what_fits(
    connection: Connection, task_id: str, epoch: str, rows: Sequence[EventRow]
) -> list[int]:
    """Insert what can be, by halves; return the indexes of the rest."""
    if not rows or await _fits(connection, sql.INSERT, task_id, epoch, *zip(*rows, strict=True)):
        return []
    if len(rows) > 1:
        half = len(rows) // 2
        first = await _put_what_fits(connection, task_id, epoch, rows[:half])
        return first + await _put_what_fits(connection, task_id, epoch, rows[half:])
    if rows[0].data is not None:
        return await _put_what_fits(connection, task_id, epoch, [rows[0]._replace(data=None)])
    return [rows[0].idx]


async def _fits(connection: Connection, query: str, *arguments: object) -> bool:
    """Execute the query; False, and nothing done, where a value is refused."""
    await connection.execute("SAVEPOINT fits")
    try:
        await connection.execute(query, *arguments)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if not isinstance(translated(error), Refused):
            raise
        await connection.execute("ROLLBACK TO fits")
        return False
    await connection.execute("RELEASE fits")
    return True


async def _renew(connection: Connection, *, task_id: str, epoch: str, new_epoch: str) -> Row | None:
    state = await begin_write(connection, task_id, epoch)
    if state["alive"] and state["epoch"] == epoch:
        await connection.execute(sql.RENEW, task_id, new_epoch)
        await connection.execute(sql.BURY, task_id, [epoch])
    row = await connection.fetchrow(sql.LOAD, task_id)
    await connection.execute("COMMIT")
    return row


async def _trim(
    connection: Connection,
    *,
    task_id: str,
    epoch: str,
    indexes: Sequence[int],
    values: Sequence[EventRow] | None,
) -> int | None:
    """How many events were removed; None, and nothing done, where series would lose their values by
    it: ask again with these.
    """
    state = await begin_write(connection, task_id, epoch)
    count: int | None = 0
    if state["alive"] and state["epoch"] == epoch and state["status"] in TERMINAL:
        if values:
            await connection.execute(sql.KEEP_VALUES, task_id, epoch, *zip(*values, strict=True))
        if values is None and await connection.fetchval(sql.NEEDS_VALUES, task_id, indexes):
            count = None
        else:
            gone = await connection.fetch(sql.TRIM, task_id, indexes)
            count = len(gone)
            series = {row["series_id"] for row in gone} - {None}
            if series:
                await connection.execute(sql.FORGET_VALUES, task_id, list(series))
            if gone:
                highest = max(row["idx"] for row in gone)
                await connection.execute(sql.TRIMMED, task_id, highest, count)
    await connection.execute("COMMIT")
    return count


async def _bury(connection: Connection, *, task_id: str, epoch: str | None) -> tuple[bool, bool]:
    """Whether there was a task, and whether rows of an ended one are left."""
    state = await begin_write(connection, task_id, epoch or "")
    archived = state["epoch"]
    was_there = archived is not None and state["alive"]
    again = epoch is not None and state["buried"]
    if not again:  # else what is there now is a later life
        await connection.execute(sql.BURY, task_id, [e for e in {epoch, archived} if e is not None])
    await connection.execute("COMMIT")
    left = archived is not None and not (again and state["alive"])
    return was_there and not again, left


async def _buried(connection: Connection, *, after: tuple[str, str]) -> Sequence[Row]:
    return await connection.fetch(sql.BURIED, *after, TOMBS)


async def _purge(connection: Connection, *, task_id: str) -> bool:
    """Remove some events of a buried life, at last its row; whether there is more to do."""
    state = await begin_write(connection, task_id, "")
    more = False
    if state["epoch"] is not None and not state["alive"]:
        removed = await connection.execute(sql.PURGE, task_id, PURGE_EVENTS)
        more = removed == f"DELETE {PURGE_EVENTS}"
        if not more:
            await connection.execute(sql.DROP, task_id)
            await connection.execute(sql.FORGET)
    await connection.execute("COMMIT")
    return more
