"""The contract of publishers that count their events: each is stored once, and in its order."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from msgspec.structs import replace

from taskcast_trio.core.errors import (
    KeyReused,
    SeqGap,
    SeqStale,
    StaleFence,
    TaskEnded,
    TaskFull,
    TaskNotFound,
)
from taskcast_trio.core.model import MAX_SEQ
from taskcast_trio.storage.records import CountLimits, Former, LogLimits, Publishers

from .support import (
    NOW,
    assert_dense,
    counted,
    draft,
    event,
    key,
    latest,
    piece,
    read_all,
    task,
    value,
)

LIMITS = CountLimits(publishers=3, kept=4)


async def publish(store, *drafts, at: int = NOW, **options: Any):
    return await store.append("t", drafts, now_ms=at, counting=LIMITS, **options)


async def expected(store, id_: str = "t") -> dict[str, int]:
    return dict((await store.publishers(id_)).expected)


@pytest.fixture
async def t(store):
    return await begun(store)


async def begun(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    return store


async def test_events_are_stored_in_the_order_of_their_seqs_and_carry_them(store, announced):
    t = await begun(store)
    commit = await publish(t, counted(0), counted(1), draft("plain"), counted(0, "you"))
    assert commit.known is None
    found = [(e.event.client_id, e.event.client_seq) for e in commit.entries]
    assert found[0] == ("me", 0)
    assert found[3] == ("you", 0)
    assert [e.event for e in await read_all(t)] == [e.event for e in commit.entries]
    told = (await announced.first(2))[1]
    assert [e.event for e in told.entries] == [e.event for e in commit.entries]
    assert await t.publishers("t") == Publishers(commit.record, {"me": 2, "you": 1})


async def test_what_comes_again_is_answered_as_it_is_stored_and_nothing_is_stored(store, announced):
    t = await begun(store)
    first = await publish(t, counted(0, data="a"), counted(1, data="b"), at=NOW + 3)
    second = await publish(t, counted(0, data="other"), counted(1), at=NOW + 9)
    assert {n: e.event for n, e in second.known.items()} == {
        n: e.event for n, e in enumerate(first.entries)
    }
    assert second.entries == ()
    assert len(await read_all(t)) == 2
    assert (await announced.first(2))[1].entries[0].event == first.entries[0].event


async def test_a_batch_of_which_some_was_stored_stores_nothing_and_tells_which(t):
    first = await publish(t, counted(0), counted(1))
    again = await publish(t, counted(1), draft(), counted(2))
    assert [(n, e.id) for n, e in again.known.items()] == [(0, first.entries[1].id)]
    assert len(await read_all(t)) == 2
    assert (await publish(t, draft(), counted(2))).first_index == 2


async def test_a_gap_is_refused_whole_and_tells_what_is_expected(t):
    await publish(t, counted(0))
    for drafts in ((counted(2),), (counted(1), counted(3)), (counted(1), counted(1, "you"))):
        with pytest.raises(SeqGap) as caught:
            await publish(t, *drafts)
        due = {2: 1, 3: 2, 1: 0}[caught.value.seq]
        assert caught.value.facts == {"expectedSeq": due}
        assert caught.value.held
    with pytest.raises(SeqGap) as caught:
        await publish(t, replace(counted(7), seq_mode="fast-fail"))
    assert not caught.value.held
    assert len(await read_all(t)) == 1
    assert await expected(t) == {"me": 1}


async def test_the_first_event_of_a_publisher_is_0(t):
    with pytest.raises(SeqGap):
        await publish(t, counted(1))
    assert await expected(t) == {}


async def test_the_highest_seq_is_exact(store):
    record = replace(await made(store, "elsewhere"), next_index=0)
    restored = replace(record, task=task("t"), epoch="EPOCH002")
    await store.restore(restored, [], publishers={"me": MAX_SEQ - 1})
    with pytest.raises(SeqGap):
        await publish(store, counted(MAX_SEQ))
    await publish(store, counted(MAX_SEQ - 1), counted(MAX_SEQ))
    assert await expected(store) == {"me": MAX_SEQ + 1}
    again = await publish(store, counted(MAX_SEQ))
    assert [e.index for e in again.known.values()] == [1]
    assert again.known[0].event.client_seq == MAX_SEQ


async def made(store, id_):
    return (await store.create(task(id_), epoch="EPOCH001", now_ms=NOW)).record


async def test_only_the_latest_are_known_and_older_ones_are_stale(t):
    for seq in range(10):
        await publish(t, counted(seq))
    for seq in range(6, 10):
        assert (await publish(t, counted(seq))).known[0].index == seq
    for drafts in ((counted(5),), (counted(9), counted(0)), (counted(5), counted(10))):
        with pytest.raises(SeqStale) as caught:
            await publish(t, *drafts)
        assert caught.value.facts == {"expectedSeq": 10}
    assert len(await read_all(t)) == 10


async def test_a_batch_larger_than_what_is_known_is_stored(t):
    await publish(t, *map(counted, range(9)))
    assert (await publish(t, counted(8))).known[0].index == 8
    with pytest.raises(SeqStale):
        await publish(t, counted(4))


async def test_an_event_that_another_has_replaced_is_answered_as_it_was(t):
    first = await publish(
        t,
        replace(latest("1"), client_id="me", client_seq=0),
        replace(latest("2"), client_id="me", client_seq=1),
        at=NOW + 5,
    )
    again = await publish(
        t,
        replace(latest("1"), client_id="me", client_seq=0),
        replace(latest("2"), client_id="me", client_seq=1),
        at=NOW + 9,
    )
    assert [e.event for e in again.known.values()] == [e.event for e in first.entries]
    await publish(t, latest("3"))
    again = await publish(t, replace(latest("2"), client_id="me", client_seq=1), at=NOW + 9)
    assert again.known[0].event == first.entries[1].event


async def test_a_piece_is_answered_as_the_piece_that_it_was(t):
    first = await publish(t, replace(piece("a"), client_id="me", client_seq=0))
    await publish(t, replace(piece("b"), client_id="me", client_seq=1))
    again = await publish(t, replace(piece("a"), client_id="me", client_seq=0))
    assert again.known[0].event == first.entries[0].event


async def test_publishers_of_one_log_are_bounded(t):
    await publish(t, counted(0, "a"), counted(0, "b"), draft())
    with pytest.raises(TaskFull, match="3 publishers and holds 2"):
        await publish(t, counted(0, "c"), counted(0, "d"))
    await publish(t, counted(0, "c"), counted(1, "a"))
    with pytest.raises(TaskFull, match="3 publishers and holds 3"):
        await publish(t, counted(0, "d"))
    await publish(t, counted(1, "c"))
    await publish(t, draft())
    assert await expected(t) == {"a": 2, "b": 1, "c": 2}


async def test_what_was_refused_leaves_the_publisher_as_it_was(t):
    with pytest.raises(TaskFull, match="events"):
        await publish(t, counted(0), counted(1), limits=LogLimits(1, 1000))
    with pytest.raises(StaleFence):
        await publish(t, counted(0), fence=7)
    assert await expected(t) == {}
    assert not (await publish(t, counted(0))).known


async def test_a_repeat_is_answered_where_the_task_has_ended_the_fence_is_stale_or_it_is_full(t):
    first = await publish(t, counted(0))
    await t.transition(task(status="completed"), [], revision=0, epoch="EPOCH001", now_ms=NOW)
    again = await publish(t, counted(0), fence=7, limits=LogLimits(1, 1))
    assert again.known[0].event == first.entries[0].event
    with pytest.raises(TaskEnded):
        await publish(t, counted(5))  # rather than to be held
    with pytest.raises(TaskEnded):
        await publish(t, counted(1))


async def test_a_key_is_looked_at_first(t):
    await publish(t, counted(0), idempotency=key())
    again = await publish(t, counted(0), idempotency=key())
    assert again.repeated
    assert again.known is None
    with pytest.raises(KeyReused):
        await publish(t, counted(0), idempotency=key(request=b"other"))
    assert (await publish(t, counted(0), idempotency=key("new"))).known
    assert await t.repeated("t", key("new"), now_ms=NOW) is None, "it brought nothing"


async def test_without_counting_nobody_counts(t):
    await t.append("t", [counted(5), counted(5)], now_ms=NOW)
    assert await expected(t) == {}


async def test_expected_seqs_stay_where_events_are_trimmed(t):
    first = await publish(t, counted(0), counted(1, data="b"))
    await t.transition(task(status="completed"), [], revision=0, epoch="EPOCH001", now_ms=NOW)
    assert await t.trim("t", [0, 1], epoch="EPOCH001") == 2
    assert await expected(t) == {"me": 2}
    again = await publish(t, counted(0), counted(1, data="b"))
    assert [e.event for e in again.known.values()] == [e.event for e in first.entries]


async def test_nothing_of_a_publisher_is_left_of_a_deleted_task(t):
    await publish(t, counted(0))
    assert await t.delete("t")
    with pytest.raises(TaskNotFound):
        await t.publishers("t")
    await t.create(task(), epoch="EPOCH002", now_ms=NOW)
    assert await expected(t) == {}
    assert not (await publish(t, counted(0))).known


async def test_a_restored_log_goes_on_with_its_publishers(open_backend, store):
    async with open_backend() as other:
        await other.store.create(task(status="running"), epoch="EPOCH001", now_ms=NOW)
        for seq in range(3):
            await publish(other.store, counted(seq))
        await publish(other.store, replace(latest("x"), client_id="you", client_seq=0))
        await publish(other.store, latest("y"))
        record = await other.store.get("t")
        entries, publishers = await read_all(other.store), await expected(other.store)
    assert publishers == {"me": 3, "you": 1}
    former = (Former("EPOCH001", record.next_index),)
    record = replace(record, epoch="EPOCH002", former=former)
    await store.restore(record, entries, publishers=publishers)
    assert await expected(store) == publishers
    again = await publish(store, counted(2))
    assert again.known[0].event == entries[2].event
    with pytest.raises(SeqStale):  # its event was gone before
        await publish(store, counted(0, "you"))
    assert (await publish(store, counted(3), counted(1, "you"))).first_index == 5


async def test_an_imported_log_goes_on_behind_its_events_or_behind_what_it_says(store):
    events = [replace(event(n), client_id="me", client_seq=7 + n) for n in range(2)]
    await store.import_task(
        task(), events, epoch="EPOCH001", overwrite=False, publishers={"me": 3, "you": 5}
    )
    assert await expected(store) == {"me": 9, "you": 5}
    again = await publish(store, counted(8))
    assert again.known[0].event == events[1]
    await publish(store, counted(9), counted(5, "you"))
    await store.import_task(task(), [], epoch="EPOCH002", overwrite=True)
    assert await expected(store) == {}


async def test_of_the_same_events_at_once_each_is_stored_once(t):
    found = []

    async def send(seq: int) -> None:
        while True:
            try:
                commit = await publish(t, counted(seq, data=seq))
            except SeqGap:
                await trio.lowlevel.checkpoint()
                continue
            found.append((commit.known or commit.entries)[0].event)
            return

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            for seq in reversed(range(4)):
                nursery.start_soon(send, seq)
    entries = await read_all(t)
    assert_dense(entries)
    assert [value(entry) for entry in entries] == [0, 1, 2, 3]
    for entry in entries:
        assert found.count(entry.event) == 3


async def test_a_task_that_is_not_there_has_no_publishers(store):
    with pytest.raises(TaskNotFound):
        await store.publishers("t")
    with pytest.raises(TaskNotFound):
        await publish(store, counted(0))
