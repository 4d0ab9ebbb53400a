"""Publishers that count their events: what comes early is held, within limits, and in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgspec
import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from taskcast_trio import TaskEngine
from taskcast_trio.config import Config
from taskcast_trio.config.schema import Publish
from taskcast_trio.core.errors import (
    BadRequest,
    Draining,
    Forbidden,
    RateLimited,
    SeqGap,
    TaskcastError,
    TaskEnded,
    TaskFull,
    TaskNotFound,
)
from taskcast_trio.core.model import (
    CreateTask,
    Draft,
    ImportArchive,
    ImportTask,
)
from taskcast_trio.engine import open_runtime
from taskcast_trio.testing import cancelled_after, open_test_runtime, trio_clock_ms

from ..follower import draft
from .support import create, move


def counted(seq: int, client_id: str = "me", **fields: Any) -> Draft:
    return replace(draft({"n": seq}), client_id=client_id, client_seq=seq, **fields)


class Sent:
    """Publishes in the background, and what came of each when."""

    def __init__(self, engine: TaskEngine, nursery: trio.Nursery) -> None:
        self._engine, self._nursery = engine, nursery
        self.came: list[tuple[float, int | str, Any]] = []

    def publish(self, *drafts: Draft, name: int | str | None = None, **options: Any) -> None:
        seq = drafts[0].client_seq if name is None else name
        self._nursery.start_soon(self._publish, seq, drafts, options)

    async def _publish(self, name: Any, drafts: Any, options: Any) -> None:
        try:
            entries = await self._engine.publish("t", drafts, **options)
        except TaskcastError as error:
            self.came.append((trio.current_time(), name, error.code))
        else:
            self.came.append((trio.current_time(), name, [entry.index for entry in entries]))


@pytest.fixture
async def sent(engine: TaskEngine, nursery: trio.Nursery) -> Sent:
    await create(engine)
    return Sent(engine, nursery)


@asynccontextmanager
async def configured(**fields: Any) -> AsyncIterator[TaskEngine]:
    config = Config(publish=Publish(**fields))
    async with open_runtime(config, clock=trio_clock_ms()) as runtime:
        await create(runtime.engine)
        yield runtime.engine


async def stored(engine: TaskEngine, id_: str = "t") -> list[tuple[Any, Any]]:
    history = await engine.history(id_)
    return [(e.client_id, e.client_seq) async for page in history.pages() for e in page]


def left_over(engine: TaskEngine) -> list[object]:
    """What is kept of publishes that wait: nothing once none does."""
    holds = engine._publishing._holds
    return [engine.fanout._by_task, engine.fanout._uncounted, holds._tasks, holds._count]


NOTHING = [{}, {}, {}, 0]


async def test_what_comes_early_is_stored_in_the_moment_in_which_it_can_be(
    engine, sent, autojump_clock
):
    for seq in (3, 1, 2):
        sent.publish(counted(seq))
    await trio.sleep(2)
    assert sent.came == []
    sent.publish(counted(0))
    await wait_all_tasks_blocked()
    assert sorted(sent.came) == [(2, 0, [0]), (2, 1, [1]), (2, 2, [2]), (2, 3, [3])]
    assert left_over(engine) == NOTHING


async def test_many_that_are_held_are_stored_in_their_order(engine, sent, autojump_clock):
    for seq in range(99, 0, -1):
        sent.publish(counted(seq))
    await wait_all_tasks_blocked()
    sent.publish(counted(0))
    await wait_all_tasks_blocked()
    assert await stored(engine) == [("me", seq) for seq in range(100)]
    assert len(sent.came) == 100


async def test_a_gap_that_nobody_fills_ends_when_its_time_is_out(engine, sent, autojump_clock):
    sent.publish(counted(5))
    await trio.sleep(3)
    await engine.publish("t", [counted(0), counted(1)])
    await trio.sleep(1.5)
    assert sent.came == []
    await trio.sleep(1)
    assert sent.came == [(5, 5, "seq_gap")]
    with pytest.raises(SeqGap) as caught:
        await engine.publish("t", [counted(9)])
    assert caught.value.facts == {"expectedSeq": 2}
    assert trio.current_time() == 10.5
    assert left_over(engine) == NOTHING


async def test_the_expected_seq_is_that_of_the_end_of_the_wait(engine, autojump_clock, nursery):
    await create(engine)

    async def later() -> None:
        for seq in (0, 1):
            await trio.sleep(1)
            await engine.publish("t", [counted(seq)])

    nursery.start_soon(later)
    with pytest.raises(SeqGap) as caught:
        await engine.publish("t", [counted(5)])
    assert caught.value.facts == {"expectedSeq": 2}
    assert trio.current_time() == 5


async def test_fast_fail_waits_for_nothing(engine, autojump_clock):
    await create(engine)
    with pytest.raises(SeqGap):
        await engine.publish("t", [counted(1, seq_mode="fast-fail")])
    with pytest.raises(SeqGap):
        await engine.publish("t", [counted(1)], hold=False)
    assert trio.current_time() == 0


async def test_a_server_that_holds_nothing_fails_fast(autojump_clock):
    async with configured(seq_hold_ms=0) as engine:
        with pytest.raises(SeqGap):
            await engine.publish("t", [counted(1)])
    assert trio.current_time() == 0


async def test_the_end_of_the_task_is_the_end_of_the_wait(engine, sent, autojump_clock):
    sent.publish(counted(1))
    await trio.sleep(1)
    await move(engine, "cancelled")
    await wait_all_tasks_blocked()
    assert sent.came == [(1, 1, TaskEnded.code)]
    await engine.create(CreateTask(id="other"))
    sent.publish(counted(3))
    await wait_all_tasks_blocked()
    assert sent.came[1:] == [(1, 3, TaskEnded.code)], "it waits for nothing"


async def test_deleting_the_task_is_the_end_of_the_wait(engine, sent, autojump_clock):
    sent.publish(counted(1))
    await trio.sleep(1)
    await engine.delete("t")
    await wait_all_tasks_blocked()
    assert sent.came == [(1, 1, TaskNotFound.code)]


async def test_a_drain_is_the_end_of_the_wait(runtime, engine, sent, autojump_clock):
    sent.publish(counted(1))
    await trio.sleep(1)
    runtime.drain.set()
    await wait_all_tasks_blocked()
    assert sent.came == [(1, 1, Draining.code)]
    with pytest.raises(Draining):
        await engine.publish("t", [counted(1)])
    await engine.publish("t", [counted(0)])
    assert left_over(engine) == NOTHING


@pytest.mark.parametrize("steps", range(2))
async def test_a_wait_that_begins_with_the_drain_ends_with_it(
    steps, engine, runtime, sent, schedule_seed, autojump_clock
):
    """Also where another one, which the drain has woken, has not left yet."""
    sent.publish(counted(1))
    await trio.sleep(1)
    runtime.drain.set()
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    sent.publish(counted(2))
    await trio.sleep(10)
    assert sorted(sent.came) == [(1, 1, Draining.code), (1, 2, Draining.code)]
    assert left_over(engine) == NOTHING


async def test_a_wait_survives_announcements_that_were_lost(engine, sent, autojump_clock):
    sent.publish(counted(1))
    await wait_all_tasks_blocked()
    announce = engine.store._announce
    engine.store._announce = lambda commit: None
    await engine.publish("t", [counted(0)])
    engine.store._announce = announce
    await trio.sleep(1)
    assert sent.came == []
    engine.fanout.interrupted()
    await wait_all_tasks_blocked()
    assert sent.came == [(1, 1, [1])]
    sent.publish(counted(3))
    await wait_all_tasks_blocked()
    await engine.publish("t", [counted(2)])
    await wait_all_tasks_blocked()
    assert sent.came[1:] == [(1, 3, [3])]


async def test_a_wait_is_not_disturbed_by_other_events_and_no_subscriber(
    engine, sent, autojump_clock, monkeypatch
):
    sent.publish(counted(1))
    await wait_all_tasks_blocked()
    appends = 0
    append = engine.store.append

    async def counting(*args: Any, **options: Any) -> Any:
        nonlocal appends
        appends += 1
        return await append(*args, **options)

    monkeypatch.setattr(engine.store, "append", counting)
    await engine.publish("t", [draft()])
    await wait_all_tasks_blocked()
    before = appends
    for seq in range(100):
        await engine.publish("t", [draft(), counted(seq, "you")])
        await wait_all_tasks_blocked()
    assert appends - before == 100
    assert (await engine.get("t")).subscriber_count == 0
    assert sent.came == []


async def test_a_wait_that_is_given_up_leaves_nothing_and_stores_nothing(engine, autojump_clock):
    await create(engine)
    with pytest.raises(SeqGap):  # when every checkpoint has been tried
        for steps in count():
            assert await cancelled_after(steps, lambda: engine.publish("t", [counted(1)]))
            assert left_over(engine) == NOTHING
    assert steps > 2
    assert await stored(engine) == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.publish, "t", [counted(1)])
        await wait_all_tasks_blocked()
        assert left_over(engine) != NOTHING
        nursery.cancel_scope.cancel()
    assert left_over(engine) == NOTHING
    await engine.publish("t", [counted(0)])
    assert await stored(engine) == [("me", 0)]


async def test_how_many_wait_is_bounded_per_task_and_in_all(autojump_clock, nursery):
    async with configured(held_per_task=2, held=3) as engine:
        await engine.create(CreateTask(id="u"))
        for seq in (1, 2):
            nursery.start_soon(_late, engine, "t", seq)
        await wait_all_tasks_blocked()
        with pytest.raises(RateLimited, match="to task t"):
            await engine.publish("t", [counted(3)])
        nursery.start_soon(_late, engine, "u", 1)
        await wait_all_tasks_blocked()
        with pytest.raises(RateLimited):
            await engine.publish("u", [counted(2)])
        await engine.publish("t", [counted(0)])
        await wait_all_tasks_blocked()
        nursery.start_soon(_late, engine, "t", 4)
        await wait_all_tasks_blocked()
        for id_, seq in (("t", 3), ("u", 0)):
            await engine.publish(id_, [counted(seq)])
        await wait_all_tasks_blocked()
        assert await stored(engine) == [("me", seq) for seq in range(5)]
        assert left_over(engine) == NOTHING


async def _late(engine: TaskEngine, id_: str, seq: int) -> None:
    await engine.publish(id_, [counted(seq)])


async def test_publishers_of_a_task_are_bounded(autojump_clock):
    async with configured(publishers_per_task=2) as engine:
        for name in ("a", "b"):
            await engine.publish("t", [counted(0, name)])
        with pytest.raises(TaskFull, match="2 publishers"):
            await engine.publish("t", [counted(0, "c")])
        await engine.publish("t", [draft()])


async def test_a_batch_half_of_which_was_stored_can_simply_be_sent_again(engine, autojump_clock):
    await create(engine)
    first = await engine.publish("t", [counted(0), counted(1)])
    again = await engine.publish("t", [counted(0), counted(1), counted(2), draft(), counted(2)])
    assert [entry.event for entry in again[:2]] == [entry.event for entry in first]
    assert [entry.index for entry in again] == [0, 1, 2, 3, 2]
    assert [e for e, _ in await stored(engine)][:3] == ["me"] * 3
    assert len(await stored(engine)) == 4


async def test_a_batch_in_any_order_is_stored_in_that_of_its_publisher(engine, autojump_clock):
    """Nobody else would send what it would wait for."""
    await create(engine)
    entries = await engine.publish("t", [counted(2), counted(0), counted(1)])
    assert [entry.event.client_seq for entry in entries] == [2, 0, 1]
    assert [entry.index for entry in entries] == [2, 0, 1]
    assert await stored(engine) == [("me", 0), ("me", 1), ("me", 2)]
    assert trio.current_time() == 0


async def test_a_gap_within_a_batch_is_refused_whole(engine, autojump_clock):
    await create(engine)
    with pytest.raises(BadRequest, match=r"missing - at `\$\[2\]\.clientSeq`"):
        await engine.publish("t", [counted(0), counted(0, "you"), counted(2)])
    assert await stored(engine) == []
    assert trio.current_time() == 0


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"client_id": "me"}, "clientSeq"),
        ({"client_seq": 0}, "clientId"),
        ({"client_id": "", "client_seq": 0}, "clientId"),
        ({"client_id": "x" * 256, "client_seq": 0}, "clientId"),
        ({"client_id": "a\n", "client_seq": 0}, "clientId"),
        ({"client_id": "me", "client_seq": -1}, "clientSeq"),
        ({"client_id": "me", "client_seq": 2**53}, "clientSeq"),
    ],
)
async def test_what_is_counted_by_halves_is_refused(engine, autojump_clock, fields, place):
    await create(engine)
    with pytest.raises(BadRequest, match=rf"`\$\[0\]\.{place}`"):
        await engine.publish("t", [replace(draft(), **fields)])


async def test_a_mode_without_a_publisher_means_nothing(engine, autojump_clock):
    await create(engine)
    (entry,) = await engine.publish("t", [replace(draft(), seq_mode="hold")])
    assert entry.index == 0


async def test_a_key_goes_with_events_that_all_count(engine, autojump_clock):
    await create(engine)
    first = await engine.publish("t", [counted(0), counted(1)], key="k")
    assert await engine.publish("t", [counted(0), counted(1)], key="k") == first
    again = await engine.publish("t", [counted(1), counted(2)], key="other")
    assert [entry.index for entry in again] == [1, 2]
    assert await engine.publish("t", [counted(1), counted(2)], key="other") == again
    with pytest.raises(BadRequest, match="Idempotency-Key"):
        await engine.publish("t", [counted(3), draft()], key="mixed")
    assert len(await stored(engine)) == 3


async def test_where_a_publisher_stands(engine, autojump_clock):
    await create(engine)
    assert await engine.expected_seq("t", "me") == 0
    await engine.publish("t", [counted(0), counted(1)])
    assert await engine.expected_seq("t", "me") == 2
    with pytest.raises(TaskNotFound):
        await engine.expected_seq("u", "me")
    with pytest.raises(BadRequest):
        await engine.expected_seq("t", "a\n")


async def test_an_export_and_its_import_go_on_where_each_publisher_stands(engine, autojump_clock):
    await create(engine)
    piece = {"series_id": "s", "series_mode": "accumulate"}
    for seq in range(3):
        await engine.publish("t", [counted(seq, **piece), counted(seq, "you", **piece)])
    text = b"".join([part async for part in await engine.archive("t")])
    archive = msgspec.json.decode(text, type=ImportArchive)
    assert len(archive.events) == 1, "pieces of a series are put together"
    await engine.import_task(ImportTask(archive=archive, overwrite=True))
    for name in ("me", "you"):
        assert await engine.expected_seq("t", name) == 3
        await engine.publish("t", [counted(3, name)])
    again = b"".join([part async for part in await engine.archive("t")])
    expected = msgspec.json.decode(again, type=ImportArchive).publishers
    assert {each.client_id: each.expected_seq for each in expected or ()} == {"me": 4, "you": 4}


async def test_a_task_that_replaced_the_one_waited_for_may_be_hidden(
    engine, autojump_clock, nursery
):
    await engine.create(CreateTask(id="t", type="mine"))
    sent = Sent(engine, nursery)
    sent.publish(counted(1), visible=lambda task: task.type == "mine")
    await wait_all_tasks_blocked()
    text = b"".join([part async for part in await engine.archive("t")])
    archive = msgspec.json.decode(text, type=ImportArchive)
    archive = replace(archive, task=replace(archive.task, type="theirs"))
    await engine.import_task(ImportTask(archive=archive, overwrite=True))
    await engine.publish("t", [counted(0)])
    await wait_all_tasks_blocked()
    assert sent.came == [(0, 1, Forbidden.code)]


async def test_of_two_publishers_with_one_name_each_event_is_stored_once(
    schedule_seed, autojump_clock
):
    """Both send everything, with repeats, in orders of their own; some give up in the middle."""
    async with open_test_runtime(inbox_commits=1, seed=schedule_seed) as runtime:
        engine = runtime.engine
        await create(engine)
        answers: dict[int, set[str]] = {}

        async def send(seq: int, patience_s: float) -> None:
            with trio.move_on_after(patience_s):
                (entry,) = await engine.publish("t", [counted(seq)])
                answers.setdefault(seq, set()).add(entry.id)

        async with trio.open_nursery() as nursery:
            for seq in (4, 2, 0, 3, 1):
                for patience_s in (0.0, 100.0, 100.0):
                    nursery.start_soon(send, seq, patience_s)
        assert await stored(engine) == [("me", seq) for seq in range(5)]
        assert {seq: len(ids) for seq, ids in answers.items()} == dict.fromkeys(range(5), 1)
        assert trio.current_time() == 0, "nobody waited for what was there"
        assert left_over(engine) == NOTHING
