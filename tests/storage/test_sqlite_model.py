"""SQLite against the memory store: hypothesis looks for steps that they answer differently."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.core.ids import event_id
from taskcast_trio.core.model import Draft, Status
from taskcast_trio.storage.memory import MemoryBackend
from taskcast_trio.storage.memory_log import Log
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import (
    PARKED_MS,
    Commit,
    CountLimits,
    Former,
    LogLimits,
    Page,
    Snapshot,
    TaskRecord,
)
from taskcast_trio.storage.sqlite import SqliteBackend, open_sqlite

from .support import DAY, NOW, Announced, counted, draft, event, key, latest, piece, task

Step = Callable[[ShortTermStore], Awaitable[object]]

drafts = st.lists(
    st.one_of(
        st.builds(draft, st.integers(0, 9)),
        st.builds(piece, st.text("ab", max_size=2), st.sampled_from("rs")),
        st.builds(latest, st.text("cd", max_size=2), st.sampled_from("rs")),
        st.builds(draft, st.integers(0, 9), st.sampled_from("rs"), st.just("keep-all")),
        st.just(Draft(type="bare", level="debug")),
    ),
    max_size=4,
)
counts = st.lists(
    st.one_of(
        st.builds(counted, st.integers(0, 4), st.sampled_from("mn"), data=st.integers(0, 9)),
        st.builds(
            lambda draft, seq: replace(draft, client_id="m", client_seq=seq),
            st.builds(latest, st.text("cd", max_size=2), st.sampled_from("rs")),
            st.integers(0, 4),
        ),
        st.builds(draft, st.integers(0, 9)),
    ),
    max_size=4,
)
publishers = st.dictionaries(st.sampled_from("mno"), st.integers(1, 3), max_size=2)
ids = st.sampled_from(["t", "u"])
keys = st.none() | st.builds(key, st.sampled_from("kl"), st.sampled_from([b"one", b"two"]))
times = st.integers(-5, 5)
"""Relative to a base that only grows: what a clock that steps back over the expiry of a key makes
of the key is left to each store.
"""
limits = st.none() | st.builds(LogLimits, st.integers(0, 8), st.integers(0, 120))
statuses = st.sampled_from(["running", "paused", "completed"])
cursors = st.integers(-2, 12)
kinds = st.sampled_from(["a", "b"])
wakes = st.dictionaries(kinds, times)
dues = times | st.just(PARKED_MS)
timers = st.dictionaries(kinds, st.none() | dues)
where_due = st.none() | st.dictionaries(kinds, dues, max_size=1)
trims = st.lists(st.integers(-1, 9), max_size=6)
nexts = st.none() | st.integers(0, 4)
values = st.none() | st.binary(max_size=2)
commands = st.one_of(
    st.tuples(st.just("create"), ids, times, keys, timers),
    st.tuples(st.just("append"), ids, drafts, times, keys, limits, wakes, wakes),
    st.tuples(st.just("append"), ids, drafts, times, keys, limits, wakes, wakes),
    st.tuples(st.just("count"), ids, counts, times, keys, limits),
    st.tuples(st.just("count"), ids, counts, times, st.none(), st.none()),
    st.tuples(st.just("move"), ids, statuses, drafts, times, keys, st.booleans(), timers, wakes),
    st.tuples(st.just("delete"), ids),
    st.tuples(st.just("import"), ids, st.integers(0, 3), st.booleans(), timers, publishers),
    st.tuples(
        st.just("restore"),
        ids,
        statuses,
        drafts | counts,
        st.integers(0, 5),
        trims,
        timers,
        publishers,
    ),
    st.tuples(st.just("release"), ids, times, st.booleans(), st.lists(kinds, max_size=1)),
    st.tuples(st.just("trim"), ids, trims, st.booleans()),
    st.tuples(st.just("trim"), ids, trims, st.just(False)),
    st.tuples(st.just("take due"), kinds, times),
    st.tuples(st.just("list due"), kinds, times),
    st.tuples(st.just("set timer"), ids, kinds, st.none() | dues, st.none() | dues, nexts),
    st.tuples(st.just("task note"), ids, values, st.booleans(), timers, where_due),
    st.tuples(st.just("repeated"), ids, keys.filter(bool), times),
    st.tuples(st.just("places"), ids, cursors, cursors, st.integers(1, 4)),
    st.tuples(st.just("snapshot"), ids),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("next day")),
)


def step_of(command: str, *arguments: Any, number: int, base: int, record: Any) -> Step:
    epoch = f"EPOCH{number:03}"
    if command == "create":
        id_, now, idempotency, due = arguments
        return lambda store: store.create(
            task(id_, type=f"type{number}"),
            epoch=epoch,
            now_ms=base + now,
            idempotency=idempotency,
            timers=at(base, due),
        )
    if command == "append":
        id_, batch, now, idempotency, bounds, due, hasten = arguments
        return lambda store: store.append(
            id_,
            batch,
            now_ms=base + now,
            idempotency=idempotency,
            limits=bounds,
            wake=at(base, due),
            hasten=at(base, hasten),
        )
    if command == "count":
        id_, batch, now, idempotency, bounds = arguments
        return lambda store: store.append(
            id_,
            batch,
            now_ms=base + now,
            idempotency=idempotency,
            limits=bounds,
            counting=CountLimits(publishers=2, kept=2),
        )
    if command == "move":
        return move_of(*arguments, base=base, record=record)
    if command == "delete":
        return lambda store: store.delete(arguments[0])
    if command == "import":
        id_, count, overwrite, due, known = arguments
        events = [replace(event(index, at=NOW + 3 * index), task_id=id_) for index in range(count)]
        events[1:2] = [replace(each, client_id="m", client_seq=2) for each in events[1:2]]
        return lambda store: store.import_task(
            task(id_),
            events,
            epoch=epoch,
            overwrite=overwrite,
            timers=at(base, due),
            publishers=known,
        )
    if command == "restore":
        *of, due, known = arguments
        restored, entries = log_elsewhere(*of, epoch=epoch)
        return lambda store: store.restore(
            restored, entries, timers=at(base, due), publishers=known
        )
    if command == "release":
        id_, now, stale, unless = arguments
        return lambda store: store.release(
            id_,
            epoch=record.epoch if record else "EPOCH999",
            revision=record.revision + stale if record else 0,
            now_ms=base + now,
            unless=unless,
        )
    if command == "take due":
        kind, now = arguments
        return lambda store: store.take_due(kind, now_ms=base + now, lease_ms=8, limit=9)
    if command == "list due":
        kind, now = arguments
        return lambda store: store.list_due(kind, now_ms=base + now, limit=9)
    if command == "trim":
        id_, indexes, stale = arguments
        return lambda store: store.trim(
            id_, indexes, epoch=record.epoch if record and not stale else "EPOCH999"
        )
    if command == "set timer":
        id_, kind, due, if_due, if_next = arguments
        return lambda store: store.set_timer(
            id_, kind, when(base, due), if_due=when(base, if_due), if_next=if_next
        )
    if command == "task note":
        id_, value, stale, due, if_due = arguments
        return lambda store: store.put_task_note(
            id_,
            "n",
            value,
            epoch=record.epoch if record and not stale else "EPOCH999",
            timers=at(base, due),
            if_due=at(base, if_due or {}),
        )
    if command == "repeated":
        id_, idempotency, now = arguments
        return lambda store: store.repeated(id_, idempotency, now_ms=base + now)
    if command == "places":
        id_, place, index, limit = arguments
        return lambda store: store.read_places(
            id_, after_place=place, after_index=index, limit=limit
        )
    return lambda store: store.snapshot(arguments[0])


def move_of(
    id_: str,
    status: Status,
    batch: Any,
    now: int,
    idempotency: Any,
    stale: bool,
    due: Any,
    hasten: Any,
    *,
    base: int,
    record: Any,
) -> Step:
    revision = record.revision if record else 0
    return lambda store: store.transition(
        task(id_, status, at=base + now),
        batch,
        revision=revision + stale,
        epoch=record.epoch if record else "EPOCH999",
        now_ms=base + now,
        idempotency=idempotency,
        timers=at(base, due),
        hasten=at(base, hasten),
    )


def at(base: int, due: Any) -> Any:
    return {kind: when(base, time) for kind, time in due.items()}


def when(base: int, time: int | None) -> int | None:
    return time if time is None or time == PARKED_MS else base + time


def log_elsewhere(
    id_: str, status: Status, batch: Any, renewed: int, trimmed: list[int], *, epoch: str
) -> tuple[TaskRecord, list[Entry]]:
    """A log of another store. Its second epoch begins somewhere in it, the last of its events have
    ids of neither, its last indexes may be missing, and it was trimmed.
    """
    log = Log(TaskRecord(task(id_, status), revision=3, epoch="OTHER001", next_index=0), 0)
    log.append(batch, NOW)
    log.append(batch, NOW + 3)
    log.trim(trimmed)
    entries = [entry for entry in log.by_index if entry is not None]
    former = (Former("OTHER001", min(renewed, len(log.by_index))),)
    return replace(
        log.record,
        epoch=epoch,
        former=former if renewed else (),
        next_index=len(log.by_index) + renewed % 3,
        imported=renewed % 2 == 1,
    ), entries


def plain(answer: object) -> object:
    """What an answer says, in values that compare."""
    if isinstance(answer, list):
        return sorted((timer.task_id, timer.kind, timer.due_ms) for timer in answer)
    if isinstance(answer, Entry):
        return (answer.place, answer.event)
    if isinstance(answer, Page):
        return (answer.record, list(map(plain, answer.entries)), answer.more)
    if isinstance(answer, Snapshot):
        return (answer.record, {name: plain(value) for name, value in answer.values.items()})
    if isinstance(answer, Commit):
        marks = (answer.created, answer.deleted, answer.replaced, answer.repeated)
        known = {number: entry.event for number, entry in (answer.known or {}).items()}
        return (answer.record, list(map(plain, answer.entries)), known, *marks)
    return answer


async def outcome(step: Step, store: ShortTermStore) -> object:
    try:
        return plain(await step(store))
    except TaskcastError as refusal:
        return (type(refusal), str(refusal))


async def state(store: ShortTermStore) -> object:
    records = await store.list_tasks()
    assert await store.count() == len(records)
    logs = []
    for record in records:
        id_ = record.task.id
        assert await store.get(id_) == record
        page = await store.read(id_, after=-1, limit=1_000)
        for entry in page.entries:
            assert plain(await store.find(id_, entry.id)) == plain(entry)
        logs += [plain(page)[:2], plain(await store.snapshot(id_))]  # type: ignore[index]
        for epoch in (record.epoch, *(former.epoch for former in record.former)):
            for index in range(record.next_index + 1):
                logs.append(plain(await store.find(id_, event_id(NOW, epoch, index))))
        publishers = await store.publishers(id_)
        assert publishers.record == record
        logs.append(publishers.expected)
        notes = await store.task_notes(id_)
        assert notes.get("n") == await store.task_note(id_, "n")
        logs.append(notes)
    return records, logs, await store.next_due("a"), await store.next_due("b")


async def all_timers(store: ShortTermStore) -> list[object]:
    at_the_end = {"now_ms": PARKED_MS, "lease_ms": 1, "limit": 9}
    return [plain(await store.take_due(kind, **at_the_end)) for kind in ("a", "b")]


class World:
    """Both stores, each with who listens to it; the file is closed and opened again on the way."""

    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self._path = path
        self._stack = stack
        self._opened = AsyncExitStack()
        self.memory = MemoryBackend()
        self.memory_told, self.told = Announced(), Announced()

    async def open(self) -> SqliteBackend:
        await self._opened.aclose()
        self._opened = await self._stack.enter_async_context(AsyncExitStack())
        backend = await self._opened.enter_async_context(
            open_sqlite(self._path, synchronous="normal")
        )
        await self._listen(self._opened, backend, self.told)
        return backend

    async def _listen(self, stack: AsyncExitStack, backend: Any, sink: Announced) -> None:
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(backend.broadcast.run, sink)
        stack.callback(nursery.cancel_scope.cancel)

    async def play(self, script: list[tuple[Any, ...]]) -> None:
        await self._listen(self._stack, self.memory, self.memory_told)
        sqlite = await self.open()
        base = NOW
        for number, (command, *arguments) in enumerate(script):
            if command == "next day":
                base += DAY + 1_000
                continue
            if command == "reopen":
                sqlite = await self.open()
                continue
            record = await self.memory.store.get(arguments[0])
            if command == "move" and record and record.task.terminal:
                continue  # the engine lets none go on, and what is trimmed counts on that
            step = step_of(command, *arguments, number=number, base=base, record=record)
            expected = await outcome(step, self.memory.store)
            assert await outcome(step, sqlite.store) == expected, (number, command)
        expected_state = await state(self.memory.store)
        assert await state(sqlite.store) == expected_state
        sqlite = await self.open()
        assert await state(sqlite.store) == expected_state
        assert await all_timers(sqlite.store) == await all_timers(self.memory.store)
        told = [plain(commit) for commit in self.told.commits]
        assert told == [plain(commit) for commit in self.memory_told.commits]


@settings(max_examples=120, deadline=None)
@given(script=st.lists(commands, min_size=5, max_size=40))
def test_whatever_is_done_sqlite_answers_stores_and_announces_as_memory_does(script):
    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with AsyncExitStack() as stack:
                await World(Path(directory, "tasks.db"), stack).play(script)

    trio.run(main)
