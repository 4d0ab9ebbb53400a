"""The contract of what workers need: fences that a store holds, and rows that are swapped."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from taskcast_trio.core.errors import StaleFence, TaskEnded

from .support import NOW, append, draft, key, read_all, task


async def assigned(store, fence: int = 1, **fields):
    await store.create(task(), epoch="E", now_ms=NOW)
    await store.transition(
        task(status="assigned", fence=fence, **fields), (), revision=0, epoch="E", now_ms=NOW
    )


async def test_an_append_with_the_fence_of_the_task_is_stored(store):
    await assigned(store)
    await store.append("t", [draft(1)], now_ms=NOW, fence=1)
    assert len(await read_all(store)) == 1


@pytest.mark.parametrize("fence", [0, 2, 10**15])
async def test_an_append_with_another_fence_stores_nothing(store, fence):
    await assigned(store)
    with pytest.raises(StaleFence):
        await store.append("t", [draft(1)], now_ms=NOW, fence=fence)
    assert await read_all(store) == []


async def test_a_task_that_was_never_assigned_has_no_fence(store):
    await store.create(task(), epoch="E", now_ms=NOW)
    with pytest.raises(StaleFence):
        await store.append("t", [draft(1)], now_ms=NOW, fence=0)
    await append(store, draft(1))


async def test_a_transition_changes_the_fence_that_appends_are_held_to(store):
    await assigned(store)
    record = await store.get("t")
    await store.transition(
        replace(record.task, fence=2), (), revision=record.revision, epoch="E", now_ms=NOW
    )
    with pytest.raises(StaleFence):
        await store.append("t", [draft(1)], now_ms=NOW, fence=1)
    await store.append("t", [draft(1)], now_ms=NOW, fence=2)


async def test_the_fence_of_an_ended_task_is_looked_at_before_its_end(store):
    await store.create(task(), epoch="E", now_ms=NOW)
    ended = task(status="completed", fence=2)
    await store.transition(ended, (), revision=0, epoch="E", now_ms=NOW)
    with pytest.raises(StaleFence):
        await store.append("t", [draft(1)], now_ms=NOW, fence=1)
    with pytest.raises(TaskEnded):
        await store.append("t", [draft(1)], now_ms=NOW, fence=2)


async def test_a_repeat_by_key_is_answered_though_the_fence_is_stale_by_now(store):
    await assigned(store)
    await store.append("t", [draft(1)], now_ms=NOW, fence=1, idempotency=key())
    await store.transition(task(status="pending", fence=2), (), revision=1, epoch="E", now_ms=NOW)
    again = await store.append("t", [draft(1)], now_ms=NOW, fence=1, idempotency=key())
    assert again.repeated


async def test_the_fence_comes_back_with_the_task_and_with_an_import(store):
    await assigned(store, fence=7, priority=-3, run_at=NOW, max_attempts=2, attempts=1)
    found = (await store.get("t")).task
    assert (found.fence, found.priority, found.run_at) == (7, -3, NOW)
    assert (found.max_attempts, found.attempts) == (2, 1)
    await store.import_task(found, [], epoch="F", overwrite=True)
    await store.append("t", [draft(1)], now_ms=NOW, fence=7)
    with pytest.raises(StaleFence):
        await store.append("t", [draft(1)], now_ms=NOW, fence=6)


async def test_a_row_is_swapped_where_it_is_as_it_was_known(store):
    assert await store.swap_row("a", "k", b"1", known=None) == b"1"
    assert await store.swap_row("a", "k", b"2", known=None) == b"1", "it was there already"
    assert await store.swap_row("a", "k", b"2", known=b"0") == b"1"
    assert await store.swap_row("a", "k", b"2", known=b"1") == b"2"
    assert await store.row("a", "k") == b"2"
    assert await store.swap_row("a", "k", None, known=b"1") == b"2"
    assert await store.swap_row("a", "k", None, known=b"2") is None
    assert await store.row("a", "k") is None
    assert await store.swap_row("a", "k", b"", known=None) == b"", "an empty value is one"
    assert await store.swap_row("a", "k", b"x", known=None) == b""


async def test_a_table_takes_no_new_row_where_it_has_as_many_as_it_may(store):
    for name in ("k", "l"):
        await store.swap_row("a", name, b"1", known=None, most=2)
    await store.swap_row("b", "k", b"1", known=None, most=1)
    assert await store.swap_row("a", "m", b"1", known=None, most=2) is None
    assert await store.row("a", "m") is None
    assert await store.swap_row("a", "k", b"2", known=b"1", most=2) == b"2", "it is no new one"
    assert await store.swap_row("a", "k", b"x", known=None, most=2) == b"2"
    await store.swap_row("a", "k", None, known=b"2", most=2)
    assert await store.swap_row("a", "m", b"1", known=None, most=2) == b"1"
    assert await store.swap_row("a", "n", b"1", known=None) == b"1"


async def test_tables_are_apart_and_no_notes(store):
    await store.put_note("workers", b"note", expires_ms=None, now_ms=NOW)
    names = ["", ":", ";", "w", "é\n", "x" * 1000]
    for name in names:
        await store.swap_row("a", name, name.encode(), known=None)
        await store.swap_row("aa", name, b"other", known=None)
    assert await store.rows("a") == {name: name.encode() for name in names}
    assert set((await store.rows("aa")).values()) == {b"other"}
    assert await store.rows("b") == {}
    assert await store.note("workers", now_ms=NOW) == b"note"


async def test_of_many_that_swap_one_row_one_is_first(store):
    won: list[int] = []

    async def swap(n: int) -> None:
        if await store.swap_row("a", "k", b"%d" % n, known=None) == b"%d" % n:
            won.append(n)

    async with trio.open_nursery() as nursery:
        for n in range(20):
            nursery.start_soon(swap, n)
    assert len(won) == 1
    assert await store.row("a", "k") == b"%d" % won[0]
