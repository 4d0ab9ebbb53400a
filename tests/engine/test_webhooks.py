"""Deliveries: in order, at least once, retried at exact times, and nothing left in the end."""

from __future__ import annotations

import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Cleanup, Webhook, Workers
from taskcast_trio.core.errors import BadRequest, WebhookNotFound
from taskcast_trio.core.model import CreateTask, ImportArchive, ImportTask
from taskcast_trio.core.webhook import Unusable
from taskcast_trio.engine.webhooks import cursor
from taskcast_trio.engine.webhooks.state import WEBHOOK, State, encode, state_name
from taskcast_trio.engine.workers.asked import Registration
from taskcast_trio.storage.records import PARKED_MS, Page
from tests.receiver import Received, Script, Wire, answering, hanging, saying

from .support import move, raw
from .webhook_support import (
    CLEARED,
    PARKED,
    START_MS,
    clock,
    create,
    definition,
    delivering,
    hook,
    look,
    looks,
    publish,
    timers,
)

MANY = Config(webhook=Webhook(per_host=100))


async def test_events_come_in_order_and_an_idle_webhook_is_parked(
    autojump_clock: MockClock,
) -> None:
    live = hook()
    async with delivering({"10.0.0.1": live}) as runtime:
        await create(runtime, definition())
        assert await timers(runtime) == PARKED
        for number in range(5):
            await publish(runtime, f"a{number}", "b", "c")
        await trio.sleep(1)
        assert live.indexes == list(range(15))
        assert {when for when, _ in live.tries} == {0.0}
        assert runtime.webhooks.workers == 0
        assert await timers(runtime) == PARKED
        await publish(runtime, "late")
        await trio.sleep(1)
        assert live.tries[15:] == [(1.0, 15)]
        state = (await look(runtime)).state
        assert (state.cursor, state.delivered, state.tries) == (15, 16, 0)


async def test_what_a_worker_takes_and_gives_back_is_told_at_once(
    autojump_clock: MockClock,
) -> None:
    live = hook()
    config = Config(workers=Workers(enabled=True))
    async with delivering({"10.0.0.1": live}, config) as runtime:
        workers = runtime.workers
        assert workers is not None
        task = CreateTask(id="t", assign_mode="pull", webhooks=[definition()])
        await runtime.engine.create(task)
        await workers.register(Registration(worker_id="w"), mode="pull", owner=None)
        assert await workers.pull("w", owner=None, may=lambda task: True, wait_s=1) is not None
        await trio.sleep(1)
        taken = len(live.indexes)
        assert taken > 0
        await workers.decline("w", "t", blacklist=True)
        await trio.sleep(1)
        record = await runtime.engine.record("t")
        assert live.indexes == list(range(record.next_index))
        assert record.next_index > taken
        assert await timers(runtime) == PARKED


async def test_a_task_that_has_ended_and_is_delivered_whole_owes_nothing(
    autojump_clock: MockClock,
) -> None:
    live = hook()
    async with delivering({"10.0.0.1": live}) as runtime:
        await create(runtime, definition())
        await move(runtime.engine, "running", "completed")
        await trio.sleep(1)
        assert live.indexes == [0, 1]
        assert await timers(runtime) == CLEARED


async def test_a_failing_receiver_is_tried_again_at_the_times_of_its_schedule(
    autojump_clock: MockClock,
) -> None:
    flaky = hook(*[answering(500)] * 3, answering(204))
    async with delivering({"10.0.0.1": flaky}) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a", "b")
        await trio.sleep(20)
        assert flaky.tries == [(0, 0), (1, 0), (3, 0), (7, 0), (7, 1)]
        assert await timers(runtime) == PARKED
        recent = (await look(runtime)).state.recent
        assert [(one.number, one.outcome, one.status) for one in recent] == [
            (1, "failed", 500),
            (2, "failed", 500),
            (3, "failed", 500),
            (4, "delivered", 204),
            (1, "delivered", 204),
        ]


async def test_jitter_takes_its_share_off_each_wait(autojump_clock: MockClock) -> None:
    flaky = hook(*[answering(503)] * 3, answering(204))
    async with delivering({"10.0.0.1": flaky}, jitter=lambda: 0.5) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a")
        await trio.sleep(20)
        assert flaky.tries == [(0, 0), (0.9, 0), (2.7, 0), (6.3, 0)]


@pytest.mark.parametrize(
    ("script", "lasts", "status", "error"),
    [
        (answering(500), 0, 500, "status"),
        (answering(302, Location="http://10.0.0.2/"), 0, 302, "redirect"),
        (saying(), 0, None, "closed"),
        (saying(b"HTTP/1.1 20"), 0, None, "closed"),
        (saying(b"nonsense\r\n\r\n"), 0, None, "protocol"),
        (hanging, 5, None, "timeout"),
    ],
)
async def test_what_fails_to_the_end_is_a_dead_letter_and_the_next_event_follows(
    autojump_clock: MockClock, script: Script, lasts: int, status: int | None, error: str
) -> None:
    """Four tries, 1, 2 and 4 s apart, and no event overtakes another."""
    dead = hook(*[script] * 4, answering(204))
    elsewhere = hook()
    async with delivering({"10.0.0.1": dead, "10.0.0.2": elsewhere}) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a", "b")
        await trio.sleep(60)
        starts = [0, 1 + lasts, 3 + 2 * lasts, 7 + 3 * lasts, 7 + 4 * lasts]
        assert dead.tries == list(zip(starts, [0, 0, 0, 0, 1], strict=True))
        assert elsewhere.tries == []
        found = await look(runtime)
        assert found.state.cursor == 1
        (letter,) = found.dead.values()
        assert (letter.index, letter.tries) == (0, 4)
        assert (letter.status, letter.error) == (status, error)
        assert await timers(runtime) == PARKED


async def test_an_answer_of_2xx_that_breaks_off_is_a_delivery(autojump_clock: MockClock) -> None:
    broken = hook(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"))
    async with delivering({"10.0.0.1": broken}) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a", "b")
        await trio.sleep(60)
        assert broken.indexes == [0, 1]


@pytest.mark.parametrize(
    ("status", "asked", "wait"),
    [(429, "20", 20), (503, "20", 20), (429, "0", 1), (429, "99999", 3600), (500, "20", 1)],
)
async def test_a_receiver_may_ask_for_more_time(
    autojump_clock: MockClock, status: int, asked: str, wait: int
) -> None:
    busy = hook(answering(status, Retry_After=asked), answering(204))
    async with delivering({"10.0.0.1": busy}) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a")
        await trio.sleep(4000)
        assert busy.tries == [(0, 0), (wait, 0)]


async def test_a_receiver_that_is_gone_gets_nothing_more_until_it_is_asked_for(
    autojump_clock: MockClock,
) -> None:
    gone = hook(answering(204), answering(410), answering(204))
    async with delivering({"10.0.0.1": gone}) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a", "b", "c")
        await trio.sleep(60)
        assert gone.indexes == [0, 1]
        assert (await look(runtime)).state.disabled is not None
        assert await timers(runtime) == CLEARED
        await publish(runtime, "d")
        await trio.sleep(60)
        assert gone.indexes == [0, 1]
        await runtime.webhooks.redeliver("t", 0)
        await trio.sleep(60)
        assert gone.indexes == [0, 1, 1, 2, 3]
        assert (await look(runtime)).state.disabled is None
        assert await timers(runtime) == PARKED


async def test_one_that_cannot_be_used_is_said_once_when_it_comes(
    autojump_clock: MockClock,
) -> None:
    live, secret = hook(), "hush-4711"
    mistaken = [
        raw({"uri": f"http://{secret}/"}),
        raw({"url": f"ftp://{secret}/"}),
        definition(secret=f"whsec_{secret}"),
    ]
    async with delivering({"10.0.0.1": live}) as runtime:
        with capture_logs() as logs:
            await create(runtime, definition(), *mistaken)
            await publish(runtime, "a")
            await trio.sleep(60)
            await publish(runtime, "b")
            await trio.sleep(60)
        assert live.indexes == [0, 1]
        said = [entry for entry in logs if entry["event"] == "webhook_unusable"]
        assert [(entry["task"], entry["number"]) for entry in said] == [("t", n) for n in (1, 2, 3)]
        assert "required field `url` - at `$.webhooks[1]`" in said[0]["reason"]
        assert secret not in repr(logs)


async def test_one_that_fails_does_not_hold_up_another_of_the_same_task(
    autojump_clock: MockClock,
) -> None:
    dead, live = hook(answering(500)), hook()
    async with delivering({"10.0.0.1": dead, "10.0.0.2": live}) as runtime:
        patient = {"retries": 9, "backoff": "fixed", "initialDelayMs": 10_000}
        await create(runtime, definition(retry=patient), definition("10.0.0.2"))
        for _ in range(6):
            await publish(runtime, "a")
            await trio.sleep(4)
        assert live.tries == [(4 * n, n) for n in range(6)]
        assert dead.tries == [(0, 0), (10, 0), (20, 0)]


async def test_the_retries_of_one_keep_their_times_while_another_is_busy(
    autojump_clock: MockClock,
) -> None:
    async def slow(_: Received, wire: Wire) -> None:
        await trio.sleep(0.75)
        await wire.answer(204)

    flaky, busy = hook(*[answering(500)] * 3, answering(204)), hook(slow)
    async with delivering({"10.0.0.1": flaky, "10.0.0.2": busy}) as runtime:
        await create(runtime, definition(), definition("10.0.0.2"))
        await publish(runtime, *"abcdefghijklmnopqrst")
        await trio.sleep(60)
        assert flaky.tries[:5] == [(0, 0), (1, 0), (3, 0), (7, 0), (7, 1)]
        assert busy.indexes == flaky.indexes[3:] == list(range(20))


async def test_a_filter_and_the_number_in_the_envelope(autojump_clock: MockClock) -> None:
    live = hook(answering(500), answering(204))
    async with delivering({"10.0.0.1": live}) as runtime:
        await create(runtime, definition(wrap=True, filter={"types": ["b.*"]}))
        await publish(runtime, "a", "b.x", "a", "b.y", "a")
        await trio.sleep(5)
        await publish(runtime, "a", "b.z")
        await trio.sleep(5)
        bodies = [msgspec.json.decode(request.body) for request in live.requests]
        numbers = [(body["filteredIndex"], body["rawIndex"]) for body in bodies]
        assert numbers == [(0, 1), (0, 1), (1, 3), (2, 6)]
        assert (await look(runtime)).state.cursor == 6


async def test_replaced_events_are_not_owed_and_hold_nothing_up(autojump_clock: MockClock) -> None:
    live = hook(answering(500), answering(204))
    async with delivering({"10.0.0.1": live}) as runtime:
        await create(runtime, definition())
        for _ in range(4):
            await publish(runtime, "p", series_id="p", series_mode="latest")
            await trio.sleep(0.2)
        await publish(runtime, "end")
        await trio.sleep(5)
        assert live.indexes == [0, 3, 4]
        assert [one.number for one in (await look(runtime)).state.recent] == [1, 1, 1]
        assert await timers(runtime) == PARKED


async def test_ids_are_the_same_in_all_tries_and_others_for_each_webhook(
    autojump_clock: MockClock,
) -> None:
    one, other = hook(answering(500), answering(204)), hook()
    async with delivering({"10.0.0.1": one, "10.0.0.2": other}) as runtime:
        await create(runtime, definition(secret="s" * 24), definition("10.0.0.2"))
        await publish(runtime, "a", "b")
        await trio.sleep(5)
        ids = [request.headers["x-taskcast-delivery"] for request in one.requests]
        assert ids[0] == ids[1] != ids[2]
        assert ids[0] == one.requests[0].headers["webhook-id"]
        assert ids[0] not in [r.headers["x-taskcast-delivery"] for r in other.requests]
        stamps = [request.headers["x-taskcast-timestamp"] for request in one.requests]
        assert int(stamps[1]) == int(stamps[0]) + 1


# Dead letters, and redelivery


async def test_dead_letters_are_delivered_again_before_what_is_new(
    autojump_clock: MockClock,
) -> None:
    once = {"retries": 0}
    flaky = hook(answering(500), answering(204), answering(500), answering(204))
    async with delivering({"10.0.0.1": flaky}) as runtime:
        await create(runtime, definition(retry=once, wrap=True))
        await publish(runtime, "a", "b", "c", "d")
        await trio.sleep(5)
        assert list((await look(runtime)).dead) == [0, 2]
        await runtime.webhooks.redeliver("t", 0)
        await publish(runtime, "e")
        await trio.sleep(5)
        assert flaky.indexes == [0, 1, 2, 3, 0, 2, 4]
        bodies = [msgspec.json.decode(request.body) for request in flaky.requests]
        assert [body["filteredIndex"] for body in bodies] == [0, 1, 2, 3, 0, 2, 4]
        ids = [request.headers["x-taskcast-delivery"] for request in flaky.requests]
        assert (ids[0], ids[2]) == (ids[4], ids[5])
        found = await look(runtime)
        assert (found.dead, found.redelivery) == ({}, None)
        assert await timers(runtime) == PARKED


async def test_a_dead_letter_that_fails_again_stays_one(autojump_clock: MockClock) -> None:
    dead = hook(answering(500))
    async with delivering({"10.0.0.1": dead}) as runtime:
        await create(runtime, definition(retry={"retries": 1}))
        await move(runtime.engine, "running")
        await trio.sleep(30)
        await runtime.webhooks.redeliver("t", 0)
        await trio.sleep(30)
        assert dead.tries == [(0, 0), (1, 0), (30.001, 0), (31.001, 0)]
        (letter,) = (await look(runtime)).dead.values()
        assert letter.at_ms == START_MS + 31_001
        await move(runtime.engine, "cancelled")
        await trio.sleep(30)
        assert await timers(runtime) == CLEARED
        dead.receiver.scripts[:] = [answering(204)]
        await runtime.webhooks.redeliver("t", 0)
        await trio.sleep(30)
        assert (await look(runtime)).dead == {}
        assert await timers(runtime) == CLEARED


async def test_everything_from_an_index_on_is_delivered_again(autojump_clock: MockClock) -> None:
    live = hook(*[answering(204)] * 3, answering(500), answering(204))
    async with delivering({"10.0.0.1": live}) as runtime:
        wants = {"types": ["b", "taskcast:status"]}
        await create(runtime, definition(wrap=True, filter=wants, retry={"retries": 0}))
        await publish(runtime, "b", "a", "b", "b")
        await move(runtime.engine, "running", "completed")
        await trio.sleep(5)
        assert live.indexes == [0, 2, 3, 4, 5]
        assert list((await look(runtime)).dead) == [4]
        await runtime.webhooks.redeliver("t", 0, from_index=2)
        await trio.sleep(5)
        assert live.indexes[5:] == [2, 3, 4, 5]
        bodies = [msgspec.json.decode(request.body) for request in live.requests[5:]]
        assert [body["filteredIndex"] for body in bodies] == [1, 2, 3, 4]
        assert (await look(runtime)).dead == {}
        assert await timers(runtime) == CLEARED
        with pytest.raises(BadRequest, match="index 5"):
            await runtime.webhooks.redeliver("t", 0, from_index=7)


async def test_a_redelivery_that_is_asked_for_during_a_try_is_not_forgotten(
    autojump_clock: MockClock,
) -> None:
    async def slow(_: Received, wire: Wire) -> None:
        await trio.sleep(1)
        await wire.answer(204)

    live = hook(slow)
    async with delivering({"10.0.0.1": live}) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a", "b", "c")
        await trio.sleep(1.5)
        await runtime.webhooks.redeliver("t", 0, from_index=0)
        await runtime.webhooks.redeliver("t", 0, from_index=1)
        await trio.sleep(30)
        assert live.indexes[-2:] == [1, 2]
        assert live.indexes[:2] == [0, 1]
        assert (await look(runtime)).redelivery is None
        assert await timers(runtime) == PARKED


async def test_dead_letters_are_bounded_and_the_dropped_counted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "MAX_DEAD", 3)
    dead = hook(answering(500))
    async with delivering({"10.0.0.1": dead}) as runtime:
        await create(runtime, definition(retry={"retries": 0}))
        await publish(runtime, *"abcde")
        await trio.sleep(5)
        found = await look(runtime)
        assert (list(found.dead), found.state.dropped) == ([2, 3, 4], 2)
        assert len(await runtime.backend.store.task_notes("t")) == 4


# Lives of tasks


async def test_deleting_a_task_ends_its_deliveries(autojump_clock: MockClock) -> None:
    slow, dead = hook(hanging), hook(answering(500))
    async with delivering({"10.0.0.1": slow, "10.0.0.2": dead}) as runtime:
        await create(runtime, definition(), definition("10.0.0.2"))
        await publish(runtime, "a")
        await trio.sleep(0.5)
        await runtime.engine.delete("t")
        await trio.sleep(0.5)
        assert runtime.webhooks.workers == 0
        assert slow.receiver.open == 0
        await trio.sleep(100)
        assert (slow.tries, dead.tries) == ([(0, 0)], [(0, 0)])
        assert await timers(runtime) == CLEARED


async def test_a_cleanup_waits_for_what_a_webhook_is_still_to_have(
    autojump_clock: MockClock,
) -> None:
    flaky = hook(*[answering(500)] * 3, answering(204))
    rules = ({"trigger": {"afterMs": 0}, "target": "all"},)
    config = Config(cleanup=Cleanup(rules=rules))
    async with delivering({"10.0.0.1": flaky}, config) as runtime:
        await create(runtime, definition())
        await move(runtime.engine, "running", "completed")
        await trio.sleep(9)
        assert flaky.tries == [(0, 0), (1, 0), (3, 0), (7, 0), (7, 1)]
        assert await runtime.backend.store.get("t") is not None
        await trio.sleep(2)
        assert await runtime.backend.store.get("t") is None


async def test_an_import_over_a_task_starts_anew(autojump_clock: MockClock) -> None:
    live = hook(answering(204), hanging, answering(204))
    async with delivering({"10.0.0.1": live}) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a", "b")
        await trio.sleep(0.5)
        archive = b"".join([part async for part in await runtime.engine.archive("t")])
        request = ImportTask(
            archive=msgspec.json.decode(archive, type=ImportArchive), overwrite=True
        )
        await runtime.engine.import_task(request)
        await trio.sleep(0.5)
        assert live.indexes == [0, 1, 0, 1]
        ids = [request.headers["x-taskcast-delivery"] for request in live.requests]
        assert ids[:2] == ids[2:], "whoever drops repeats drops these"
        assert await timers(runtime) == PARKED


async def test_definitions_that_can_not_be_used_are_shown_as_such(
    autojump_clock: MockClock,
) -> None:
    live = hook()
    async with delivering({"10.0.0.1": live}) as runtime:
        wrong = [
            raw(None),
            raw("text"),
            raw({"url": "ftp://h"}),
            raw({"url": "http://h", "retry": 3}),
        ]
        await create(runtime, *wrong, definition(), *[raw({})] * 60)
        await publish(runtime, "a")
        await trio.sleep(1)
        assert live.indexes == [0]
        reasons = [look.webhook for look in await looks(runtime)]
        assert [isinstance(reason, Unusable) for reason in reasons] == [
            number != 4 for number in range(65)
        ]
        assert "32 webhooks" in reasons[64].reason  # type: ignore[union-attr]
        await create(runtime, *wrong, id_="none")
        await publish(runtime, "a", id_="none")
        await trio.sleep(1)
        assert await runtime.backend.store.next_due(WEBHOOK) == PARKED_MS  # of the first task
        with pytest.raises(BadRequest, match="http or https"):
            await runtime.webhooks.redeliver("none", 2)
        with pytest.raises(WebhookNotFound):
            await runtime.webhooks.redeliver("none", 4)


async def test_a_drain_lets_tries_end_and_begins_no_more(autojump_clock: MockClock) -> None:
    async def slow(_: Received, wire: Wire) -> None:
        await trio.sleep(2)
        await wire.answer(204)

    live = hook(slow)
    async with delivering({"10.0.0.1": live}) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a", "b", "c")
        await trio.sleep(1)
        runtime.drain.set()
        await trio.sleep(5)
        assert live.indexes == [0]
        assert (await look(runtime)).state.cursor == 0
        due_ms = await runtime.backend.store.next_due(WEBHOOK)
        assert due_ms == START_MS + 2_000, "whoever comes next may go on at once"


async def test_a_try_that_outlasts_the_end_is_cut(autojump_clock: MockClock) -> None:
    dead = hook(hanging)
    async with delivering({"10.0.0.1": dead}) as runtime:
        await create(runtime, definition())
        await publish(runtime, "a")
        await trio.sleep(1)
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(3, abs=0.1)


# Many


async def test_a_thousand_webhooks_to_a_dead_host_delay_no_other(
    autojump_clock: MockClock,
) -> None:
    dead, live = hook(hanging), hook()
    async with delivering({"10.0.0.1": dead, "10.0.0.2": live}) as runtime:
        for number in range(1000):
            await create(runtime, definition(), id_=f"dead{number}")
            await publish(runtime, "a", id_=f"dead{number}")
        await create(runtime, definition("10.0.0.2"), id_="live")
        for _ in range(50):
            await publish(runtime, "a", id_="live")
            await trio.sleep(1)
        assert [(when, index) for when, index in live.tries] == [(n, n) for n in range(50)]
        assert dead.receiver.most_open <= 8
        assert runtime.webhooks.workers < 50


async def test_two_hundred_dead_hosts_delay_no_host_that_answers(
    autojump_clock: MockClock,
) -> None:
    dead = {f"10.1.0.{number}": hook(hanging) for number in range(200)}
    live, new = hook(), hook()
    async with delivering({**dead, "10.0.0.1": live, "10.0.0.2": new}) as runtime:
        await create(runtime, definition(), id_="live")
        await publish(runtime, "a", id_="live")
        await trio.sleep(1)
        for at in dead:
            for number in range(5):
                await create(runtime, definition(at), id_=f"{at}/{number}")
                await publish(runtime, "a", id_=f"{at}/{number}")
        await create(runtime, definition("10.0.0.2"), id_="new")
        await publish(runtime, "a", id_="new")
        for _ in range(20):
            await publish(runtime, "a", id_="live")
            await trio.sleep(1)
        assert live.tries[1:] == [(1 + n, 1 + n) for n in range(20)]
        assert new.tries[0][0] <= 1 + 10, "two rounds of tries that time out"
        await publish(runtime, "a", id_="new")
        await trio.sleep(1)
        assert new.tries[-1] == (21, 1)


async def test_a_host_that_comes_back_gets_all_that_waited_for_it(
    autojump_clock: MockClock,
) -> None:
    """Each try counts: whoever was only sent away has lost none."""
    host = hook(hanging)
    async with delivering({"10.0.0.1": host}) as runtime:
        for number in range(100):
            await create(runtime, definition(), id_=f"t{number}")
            await publish(runtime, "a", id_=f"t{number}")
        await trio.sleep(12)
        assert len(host.tries) < 20
        host.receiver.scripts[:] = [answering(204)]
        host.receiver.requests.clear()
        await trio.sleep(60)
        ids = {request.headers["x-taskcast-delivery"] for request in host.requests}
        assert len(ids) == len(host.requests) == 100
        assert await timers(runtime) == PARKED
        assert runtime.webhooks.workers == 0


async def test_what_is_too_much_at_once_waits_its_turn(autojump_clock: MockClock) -> None:
    async def slow(_: Received, wire: Wire) -> None:
        await trio.sleep(1)
        await wire.answer(204)

    host = hook(slow)
    async with delivering({"10.0.0.1": host}, MANY) as runtime:
        runtime.webhooks._slots = trio.Semaphore(10)
        for number in range(100):
            await create(runtime, definition(), id_=f"t{number}")
            await publish(runtime, "a", id_=f"t{number}")
        most = 0
        for _ in range(60):
            await trio.sleep(0.5)
            most = max(most, runtime.webhooks.workers)
        assert most == 10
        assert len(host.tries) == 100
        assert await timers(runtime) == PARKED


async def test_who_has_lost_the_lease_stores_nothing_and_stops(autojump_clock: MockClock) -> None:
    async def slow(_: Received, wire: Wire) -> None:
        await trio.sleep(2)
        await wire.answer(204)

    live = hook(slow)
    async with delivering({"10.0.0.1": live}) as runtime:
        store = runtime.backend.store
        await create(runtime, definition())
        await publish(runtime, "a", "b", "c")
        await trio.sleep(1)
        record = await store.get("t")
        assert record is not None
        another = clock() + 3_600_000
        await store.set_timer("t", WEBHOOK, another)
        kept = encode(State(cursor=1))
        await store.put_task_note(
            "t", state_name(0), kept, epoch=record.epoch, if_due={WEBHOOK: another}
        )
        await trio.sleep(60)
        assert live.indexes in ([0], [0, 1]), "at most the one that had begun"
        assert runtime.webhooks.workers == 0
        assert await store.task_notes("t") == {state_name(0): kept}
        assert await store.next_due(WEBHOOK) == another


async def test_large_events_are_not_read_ahead_in_great_numbers(autojump_clock: MockClock) -> None:
    live = hook()
    async with delivering({"10.0.0.1": live}) as runtime:
        store, pages = runtime.backend.store, []
        read = store.read

        async def noting(task_id: str, *, after: int, limit: int) -> Page:
            page = await read(task_id, after=after, limit=limit)
            pages.append(len(page.entries))
            return page

        store.read = noting  # type: ignore[method-assign]
        await create(runtime, definition())
        await publish(runtime, *["a"] * 40, data=raw("x" * 500_000))
        await trio.sleep(5)
        assert live.indexes == list(range(40))
        assert max(pages) <= 4
        assert pages.count(1) >= 30
