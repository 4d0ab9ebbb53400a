"""Publishers that count, in a file: they go on after a restart, share a commit, are swept up."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from taskcast_trio.core.errors import SeqGap, SeqStale, StoreUnavailable
from taskcast_trio.storage.records import CountLimits
from taskcast_trio.storage.sqlite import open_sqlite

from .sqlite_support import Gate, rows_of, statements
from .support import NOW, PATIENCE_S, append, counted, draft, read_all, task, value

LIMITS = CountLimits(kept=3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tasks.db"


async def publish(store, *drafts, id_="t"):
    return await store.append(id_, drafts, now_ms=NOW, counting=LIMITS)


async def test_a_publisher_goes_on_after_a_restart(path):
    async with open_sqlite(path) as backend:
        await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        for seq in range(5):
            await publish(backend.store, counted(seq, data=seq))
    async with open_sqlite(path) as backend:
        store = backend.store
        assert (await store.publishers("t")).expected == {"me": 5}
        again = await publish(store, counted(3), counted(4))
        assert [value(entry) for entry in again.known.values()] == [3, 4]
        with pytest.raises(SeqStale):
            await publish(store, counted(1))
        with pytest.raises(SeqGap):
            await publish(store, counted(6))
        await append(store, draft("plain"))
        assert (await store.publishers("t")).expected == {"me": 5}
        await publish(store, counted(5), counted(0, "you"))
    async with open_sqlite(path) as backend:
        assert (await backend.store.publishers("t")).expected == {"me": 6, "you": 1}
        entries = await read_all(backend.store)
        found = [(e.event.client_id, e.event.client_seq) for e in entries if e.event.client_id]
        assert found == [*(("me", seq) for seq in range(6)), ("you", 0)]


async def test_steps_of_one_transaction_see_each_others_publishers(path):
    async with open_sqlite(path) as backend:
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        await publish(store, counted(0))
        gate = Gate(backend)
        known, stale = [], []

        async def send(seq: int) -> None:
            commit = await publish(store, counted(seq, data=seq))
            known.append((seq, commit.known is not None))

        async def send_late(seq: int) -> None:
            try:
                await publish(store, counted(seq))
            except SeqStale:
                stale.append(seq)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(append, store, draft())
                await gate.reached()  # what comes now shares the next transaction, in this order
                for step, seq in (
                    (send, 0), (send, 1), (send, 1), (send, 2), (send, 3), (send_late, 0),
                    (send, 4), (send_late, 1),
                ):  # fmt: skip
                    nursery.start_soon(step, seq)
                    await trio.testing.wait_all_tasks_blocked()
                gate.open()
        counts = [(0, True), (1, False), (1, True), (2, False), (3, False), (4, False)]
        assert sorted(known) == counts
        assert sorted(stale) == [0, 1]
        assert rows_of(path, "seqs") == 3


async def test_a_publish_that_is_not_counted_asks_nothing_of_publishers(path):
    async with open_sqlite(path) as backend:
        await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        with statements(backend) as told:
            await append(backend.store, draft())
        assert not [each for each in told if "publishers" in each or "seqs" in each]


async def test_what_the_disk_did_not_take_was_not_counted(path):
    async with open_sqlite(path, max_pages=60) as backend:
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        seq = 0
        with pytest.raises(StoreUnavailable):
            while True:
                await publish(store, counted(seq, data="x" * 8000))
                seq += 1
        assert (await store.publishers("t")).expected == {"me": seq}
        assert len(await read_all(store)) == seq


async def test_publishers_of_dropped_logs_are_swept_up(path):
    async with open_sqlite(path) as backend:
        store = backend.store
        for id_ in ("t", "u"):
            await store.create(task(id_), epoch="EPOCH001", now_ms=NOW)
            await publish(store, counted(0), counted(0, "you"), id_=id_)
        await store.delete("t")
        with trio.fail_after(PATIENCE_S):
            while rows_of(path, "dropped"):
                await append(store, draft(), id_="u")
    assert (rows_of(path, "publishers"), rows_of(path, "seqs")) == (2, 2)
