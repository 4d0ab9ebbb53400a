"""The contract of the steps as such: announced as stored, whole or not at all, and linear in what
they add.
"""

from __future__ import annotations

import sys
import tracemalloc
from functools import partial
from itertools import count

import pytest
import trio
import trio.testing

from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.storage.records import Commit
from taskcast_trio.testing import cancelled_after

from .support import (
    NOW,
    Announced,
    append,
    assert_dense,
    draft,
    event,
    key,
    latest,
    piece,
    read_all,
    task,
    text,
    value,
)


def essence(commit: Commit) -> tuple[object, ...]:
    marks = (commit.created, commit.deleted, commit.replaced, commit.repeated)
    return (commit.record, [entry.event for entry in commit.entries], commit.first_index, *marks)


async def test_a_delete_of_one_life_leaves_another_alone(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    assert not await store.delete("t", epoch="EPOCH002")
    assert await store.get("t") is not None
    assert await store.delete("t", epoch="EPOCH001")
    assert await store.get("t") is None


async def test_exactly_what_was_stored_is_announced_in_the_order_of_the_log(store, announced):
    done = [await store.create(task(), epoch="EPOCH001", now_ms=NOW)]
    done.append(await append(store, draft(1), latest("a")))
    done.append(await append(store, latest("b")))
    done.append(await store.append("t", [draft(2)], now_ms=NOW, idempotency=key()))
    await store.append("t", [draft(2)], now_ms=NOW, idempotency=key())
    ended = task(status="completed")
    move = partial(store.transition, ended, [draft("end")], epoch="EPOCH001", now_ms=NOW)
    done.append(await move(revision=0))
    refused = [
        partial(store.create, task(), epoch="EPOCH002", now_ms=NOW),
        partial(append, store, draft()),
        partial(move, revision=0),
        partial(store.import_task, task(), [], epoch="EPOCH002", overwrite=False),
        partial(append, store, draft(), id_="nope"),
    ]
    for step in refused:
        with pytest.raises(TaskcastError):
            await step()
    imported = [event(0), event(1)]
    done.append(await store.import_task(task(), imported, epoch="EPOCH002", overwrite=True))
    last = await append(store, draft(3))
    done.append(last)
    assert await store.delete("t")
    assert not await store.delete("t")

    told = await announced.first(len(done) + 1)
    assert [essence(commit) for commit in told[:-1]] == [essence(commit) for commit in done]
    assert essence(told[-1]) == essence(Commit(last.record, deleted=True))


async def test_parallel_steps_are_announced_in_the_order_of_their_indexes(store, announced):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)

    async def publish(name: int) -> None:
        for number in range(4):
            await append(store, *[draft([name, number])] * (1 + name % 3))

    async with trio.open_nursery() as nursery:
        for name in range(10):
            nursery.start_soon(publish, name)
    told = (await announced.first(41))[1:]
    entries = [entry for commit in told for entry in commit.entries]
    assert_dense(entries)
    assert [entry.id for entry in entries] == [entry.id for entry in await read_all(store)]
    for commit in told:
        assert commit.entries[0].index == commit.first_index


async def test_a_step_announces_before_it_returns_or_soon_after_and_only_once(store, announced):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    await append(store, draft())
    await announced.first(2)
    await trio.testing.wait_all_tasks_blocked()
    assert len(announced.commits) == 2


@pytest.mark.parametrize("name", ["create", "append", "transition", "import_task", "delete"])
async def test_a_cancelled_step_is_done_or_not_done(open_backend, name):
    """Cancelled at each of its checkpoints, a step stored all and announced it, or did neither."""
    for cancel_after in count():
        async with open_backend() as backend, trio.open_nursery() as nursery:
            announced = Announced()
            backend.broadcast.attached(None)
            await nursery.start(backend.broadcast.run, announced)
            cancelled = await _cancel(name, cancel_after, backend.store, announced)
            nursery.cancel_scope.cancel()
        if not cancelled:
            break
    assert cancel_after > 0, "every step is a checkpoint"


async def _cancel(name: str, cancel_after: int, store, announced: Announced) -> bool:
    steps = {
        "create": partial(
            store.create, task("new"), epoch="EPOCH002", now_ms=NOW, idempotency=key()
        ),
        "append": partial(
            store.append, "t", [draft(1), latest("b")], now_ms=NOW, idempotency=key()
        ),
        "transition": partial(
            store.transition,
            task(status="completed"),
            [draft(1)],
            revision=0,
            epoch="EPOCH001",
            now_ms=NOW,
            idempotency=key(),
        ),
        "import_task": partial(
            store.import_task, task(), [event(0)], epoch="EPOCH002", overwrite=True
        ),
        "delete": partial(store.delete, "t"),
    }
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    await append(store, latest("a"))
    before = await _state(store)
    cancelled = await cancelled_after(cancel_after, steps[name])
    stored = await _state(store) != before
    await announced.first(3 if stored else 2)
    assert stored or cancelled
    answer = await steps[name]()
    assert await _state(store) != before
    if name in ("create", "append", "transition"):
        assert answer.repeated == stored, "the key is stored with the step, or not at all"
        await announced.first(3)
    return cancelled


async def _state(store):
    records = await store.list_tasks()
    logs = []
    for record in records:
        entries = await read_all(store, record.task.id)
        snapshot = await store.snapshot(record.task.id)
        assert len(entries) <= record.next_index
        values = {series: value(entry) for series, entry in snapshot.values.items()}
        logs.append(([entry.event for entry in entries], values))
    return records, logs


async def _calls_of(pieces: int, store, id_: str) -> int:
    """How many Python functions run while ``pieces`` are accumulated: a measure of work that no
    clock disturbs.
    """
    await store.create(task(id_), epoch="EPOCH001", now_ms=NOW)
    batch = [piece("0123456789")] * 50
    calls = 0

    def profile(_frame: object, what: str, _arg: object) -> None:
        nonlocal calls
        calls += what in ("call", "c_call")

    sys.setprofile(profile)
    try:
        for _ in range(pieces // len(batch)):
            await append(store, *batch, id_=id_)
    finally:
        sys.setprofile(None)
    return calls


async def test_accumulating_pieces_costs_linear_work(store):
    few, many = [await _calls_of(pieces, store, f"t{pieces}") for pieces in (2_500, 5_000)]
    assert many < 2.2 * few


async def test_20_000_pieces_take_linear_memory_and_come_back_whole(store):
    async def peak(pieces: int) -> int:
        id_ = f"t{pieces}"
        await store.create(task(id_), epoch="EPOCH001", now_ms=NOW)
        batch = [piece("0123456789")] * 100
        tracemalloc.start()
        for _ in range(pieces // len(batch)):
            await append(store, *batch, id_=id_)
        snapshot = await store.snapshot(id_)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert text(snapshot.values["s"]) == "0123456789" * pieces
        return size

    few, many = await peak(10_000), await peak(20_000)
    assert many < 2.5 * few
    assert len(await read_all(store, "t20000")) == 20_000
