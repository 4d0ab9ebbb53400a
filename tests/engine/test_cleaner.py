"""Cleanup rules on Trio's clock: what goes, and to the millisecond when."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio
from msgspec import Raw
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from taskcast_trio.client import draft
from taskcast_trio.config import Config
from taskcast_trio.config.schema import Cleanup as CleanupConfig
from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.model import Cleanup, CreateTask, ImportArchive, ImportTask, Transition
from taskcast_trio.engine import Done, cleaner, open_runtime
from taskcast_trio.engine.cleanup_tally import Tally
from taskcast_trio.testing.clock import START_MS, trio_clock_ms

from .support import brief, drain, entries, move, value

DAY_S = 86_400


@asynccontextmanager
async def opened(*rules: dict[str, Any]):
    config = Config(cleanup=CleanupConfig(rules=rules))
    async with open_runtime(config, clock=trio_clock_ms()) as runtime:
        yield runtime


def rule(target="all", after_ms=0, **fields):
    return {"target": target, "trigger": {"afterMs": after_ms}, **fields}


def own(*rules: object) -> Cleanup:
    return Cleanup(rules=[Raw(msgspec.json.encode(rule)) for rule in rules])


async def ended(engine, id_="t", *drafts, status="completed", **fields):
    await engine.create(CreateTask(id=id_, **fields))
    await move(engine, "running", id_=id_)
    if drafts:
        await engine.publish(id_, drafts)
    await move(engine, status, id_=id_)


async def is_there(engine, id_="t"):
    return await engine.store.get(id_) is not None


async def indexes(engine, id_="t"):
    page = await engine.store.read(id_, after=-1, limit=100_000)
    return [entry.index for entry in page.entries]


async def settled(seconds: float = 0.0) -> None:
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("target", ["all", "task"])
async def test_a_task_goes_when_its_time_has_come_and_not_before(autojump_clock, target):
    async with opened(rule(target, 5000)) as runtime:
        engine = runtime.engine
        await trio.sleep(1)
        await ended(engine)
        await settled(4.999)
        assert await is_there(engine)
        await settled(0.001)
        assert not await is_there(engine)
        assert trio.current_time() == 6.0
        assert runtime.metrics.registry.get_sample_value("taskcast_cleanup_tasks_total") == 1


async def test_a_living_task_is_never_touched(autojump_clock):
    async with opened(rule()) as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="t"))
        await move(engine, "running", "paused", "running")
        await engine.publish("t", [draft("x", 1)])
        await settled(30 * DAY_S)
        assert await is_there(engine)
        await move(engine, "failed")
        await settled()
        assert not await is_there(engine)


async def test_rules_go_by_type_and_status(autojump_clock):
    rules = (
        rule("all", 1000, match={"taskTypes": ["llm.*"], "status": "completed"}),
        rule("events", 2000, match={"status": ["failed", "timeout"]}),
    )
    async with opened(*rules) as runtime:
        engine = runtime.engine
        await ended(engine, "gone", type="llm.chat")
        await ended(engine, "other", type="job")
        await ended(engine, "failed", status="failed", type="llm.chat")
        await settled(1)
        assert [task.id for task in await engine.list_tasks()] == ["other", "failed"]
        await settled(1)
        assert await indexes(engine, "failed") == []
        assert await indexes(engine, "other") == [0, 1]


async def test_events_go_by_type_level_mode_and_age_at_exact_times(autojump_clock):
    chatter = {"types": ["log.*"], "levels": ["debug"], "olderThanMs": 10_000}
    rules = (rule("events", 1000, eventFilter=chatter, name="chatter"),)
    async with opened(*rules) as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="t"))
        await move(engine, "running")
        await engine.publish("t", [draft("log.a", 1, level="debug")])  # 1, at 0 s
        await trio.sleep(9.5)
        late = [
            draft("log.b", 2, level="debug"),
            draft("log.c", 3, level="info"),
            draft("x", 4, level="debug"),
        ]
        await engine.publish("t", late)  # 2, 3, 4 at 9.5 s
        await move(engine, "completed")  # 5
        await settled(0.999)
        assert await indexes(engine) == [0, 1, 2, 3, 4, 5]
        await settled(0.001)
        assert await indexes(engine) == [0, 2, 3, 4, 5], "old enough at 10.5 s"
        await settled(8.999)
        assert await indexes(engine) == [0, 2, 3, 4, 5]
        await settled(0.001)
        assert trio.current_time() == pytest.approx(19.5)
        assert await indexes(engine) == [0, 3, 4, 5]
        assert await runtime.backend.store.next_due("cleanup") is None
        assert runtime.metrics.registry.get_sample_value("taskcast_cleanup_events_total") == 2


async def test_a_series_loses_its_pieces_and_whoever_comes_late_its_whole_text(autojump_clock):
    only_old = {"seriesMode": "accumulate", "olderThanMs": 2000}
    async with opened(rule("events", eventFilter=only_old), rule("all", 60_000)) as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="t"))
        await move(engine, "running")
        for letter in "abc":
            await engine.publish(
                "t", [draft("d", {"delta": letter}, series="s", mode="accumulate")]
            )
            await trio.sleep(1)
        await move(engine, "completed")
        await settled()
        assert await indexes(engine) == [0, 3, 4], "at 3 s: two pieces are old enough"
        async with engine.subscribe("t") as subscription:
            items = await drain(subscription)
        assert brief(items)[:-1] == [0, 3, 4]
        assert value(entries(items)[1]) == {"delta": "abc"}
        await settled(10)
        assert await indexes(engine) == [0, 4]
        await settled(60)
        assert not await is_there(engine)


async def test_a_task_has_rules_of_its_own(autojump_clock):
    async with opened(rule("all", 60_000)) as runtime:
        engine = runtime.engine
        await ended(engine, cleanup=own(rule("events", 2000), rule("task", 4000)))
        await ended(engine, "u")
        await settled(2)
        assert await indexes(engine) == []
        await settled(2)
        assert not await is_there(engine)
        assert await is_there(engine, "u")
        await settled(56)
        assert not await is_there(engine, "u")


async def test_rules_that_cannot_be_used_are_passed_over_and_said_once(autojump_clock):
    secret = "hush-4711"
    junk: list[object] = [
        secret,
        None,
        {"target": secret, "trigger": {}},
        {"target": "all", "trigger": {}, secret: 1},
        {"target": "all", "trigger": {"afterMs": -1}},
        {"target": "all", "trigger": {}, "match": {"status": [secret]}},
        [secret] * 3,
    ]
    async with opened() as runtime:
        engine = runtime.engine
        with capture_logs() as logs:
            await ended(engine, cleanup=own(*junk, rule("task", 1000)))
            await engine.get("t")
            await settled(1)
        assert not await is_there(engine), "the good one holds"
        said = [entry for entry in logs if entry["event"] == "cleanup_rule_ignored"]
        assert [entry["task"] for entry in said] == ["t"] * 7
        assert [entry["reason"].partition(":")[0] for entry in said] == [
            "cleanup.rules[0]",
            "cleanup.rules[1]",
            "cleanup.rules[2].target",
            "cleanup.rules[3]",
            "cleanup.rules[4].trigger.afterMs",
            "cleanup.rules[5].match.status[0]",
            "cleanup.rules[6]",
        ]
        assert secret not in repr(logs)


async def test_a_task_may_have_only_so_many_rules(autojump_clock):
    async with opened() as runtime:
        with capture_logs() as logs:
            await ended(runtime.engine, cleanup=own(*[rule("all", 9000)] * 64, rule("task", 1000)))
            await settled(1)
        assert await is_there(runtime.engine)
        assert [entry["reason"] for entry in logs] == ["cleanup.rules[64]: too many rules"]


async def test_a_wrong_rule_of_the_configuration_refuses_the_start(autojump_clock):
    with pytest.raises(BadRequest, match=r"^cleanup\.rules\[1\]\.target: Invalid enum value$"):
        async with opened(rule(), rule("everything")):
            raise AssertionError("it started")


def an_import(at_ms: int, *, overwrite=False, status="completed", **fields) -> ImportTask:
    text = msgspec.json.encode(
        {
            "schema": "taskcast.taskArchive",
            "version": 1,
            "exportedAt": at_ms,
            "task": {
                "id": "t", "status": status, "createdAt": at_ms, "updatedAt": at_ms, **fields,
            },
            "events": [
                {"id": f"e{n}", "taskId": "t", "index": n, "timestamp": at_ms, "type": "x",
                 "level": "info", "data": n}
                for n in range(3)
            ],
        }
    )  # fmt: skip
    archive = msgspec.json.decode(text, type=ImportArchive)
    return ImportTask(archive=archive, overwrite=overwrite)


async def test_an_import_counts_from_when_it_ended(autojump_clock):
    async with opened(rule("all", 10_000)) as runtime:
        engine = runtime.engine
        await engine.import_task(an_import(START_MS, completedAt=START_MS - 4000))
        await settled(5.999)
        assert await is_there(engine)
        await settled(0.001)
        assert not await is_there(engine)
        await engine.import_task(an_import(START_MS - DAY_S * 1000))
        await settled()
        assert not await is_there(engine), "it ended long ago, and does not say when else"


async def test_an_import_over_a_task_that_is_due_lives_on(autojump_clock):
    async with opened(rule("all", 1000)) as runtime:
        engine = runtime.engine
        await ended(engine)
        await trio.sleep(0.9)
        await engine.import_task(an_import(START_MS, overwrite=True, status="running"))
        await settled(60)
        assert await is_there(engine)
        assert await runtime.backend.store.next_due("cleanup") is None


async def test_subscribers_are_told_that_the_task_is_gone(autojump_clock):
    async with opened(rule("task", 1000)) as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="t"))
        async with engine.follow_all() as _, engine.subscribe("t") as subscription:
            await move(engine, "cancelled")
            assert (await drain(subscription))[-1] == Done("cancelled")
        await settled(1)
        async with engine.subscribe("t") as late:
            assert await drain(late) == [Done("deleted")]


async def test_ten_thousand_ended_tasks_wait_without_a_step(autojump_clock):
    async with opened(rule("all", 30 * DAY_S * 1000)) as runtime:
        store = runtime.backend.store
        for n in range(1000):
            await ended(runtime.engine, f"t{n}")
        await settled()
        taken = []
        take_due = store.take_due

        async def counted(kind, **options):
            taken.append(kind)
            return await take_due(kind, **options)

        store.take_due = counted
        await settled(600)
        assert taken.count("cleanup") <= 12, "it looks once a minute for what others set"


@pytest.fixture
def rounds(monkeypatch):
    """How many pages the cleaner read; every page is a place where others get their turn."""
    counted: list[int] = []
    taker = cleaner._taker

    def count(rules, entry, now_ms):
        counted.append(entry.index)
        return taker(rules, entry, now_ms)

    monkeypatch.setattr(cleaner, "_taker", count)
    return counted


async def test_publishing_and_subscribing_go_on_between_the_pages_of_a_cleanup(
    autojump_clock, rounds
):
    """Between two publishes, and two items of a subscriber, lies never more than a page or two."""
    async with opened(rule("events", 1000)) as runtime:
        engine = runtime.engine
        await ended(engine, "big", *(draft("x", n) for n in range(50_000)))
        await engine.create(CreateTask(id="live"))
        seen: list[int] = []
        async with engine.subscribe("live") as subscription, trio.open_nursery() as nursery:

            async def receive():
                async for _ in subscription:
                    seen.append(len(rounds))

            nursery.start_soon(receive)
            await trio.sleep(1)
            published: list[int] = []
            while len(rounds) < 50_002:
                await engine.publish("live", [draft("x", 1)])
                published.append(len(rounds))
            nursery.cancel_scope.cancel()
        for times in (published, seen):
            steps = [later - earlier for earlier, later in pairwise(times)]
            assert max(steps) <= 2 * cleaner.PAGE_EVENTS
            assert len(times) >= 25
        await settled()
        assert await indexes(engine, "big") == []


async def test_a_subscriber_of_the_log_that_is_being_cleaned_up_is_told(autojump_clock):
    async with opened(rule("events", 1000, eventFilter={"types": ["x"]})) as runtime:
        engine = runtime.engine
        await ended(engine, "t", *(draft("x", n) for n in range(5000)))
        async with engine.subscribe("t") as subscription:
            first = await subscription.receive()
            await settled(1)
            rest = await drain(subscription)
        assert len(first) > 1
        reasons = [item.reason for item in rest if not hasattr(item, "entry")]
        assert reasons == ["events_expired", "completed"]
        assert brief(rest)[1:3] == [0, 5001]


@pytest.mark.parametrize("over", ["delete", "import"])
async def test_who_deletes_or_imports_over_a_task_in_the_middle_wins(autojump_clock, rounds, over):
    async with opened(rule("events", 1000)) as runtime:
        engine = runtime.engine
        await ended(engine, "t", *(draft("x", n) for n in range(20_000)))
        await trio.sleep(1)
        while len(rounds) < 5000:
            await trio.lowlevel.checkpoint()
        if over == "delete":
            await engine.delete("t")
        else:
            await engine.import_task(an_import(START_MS + 1000, overwrite=True, status="running"))
        await settled(120)
        assert len(rounds) < 10_000
        if over == "import":
            assert await indexes(engine) == [0, 1, 2]
            assert (await engine.record("t")).trims == 0


async def test_an_import_that_comes_right_before_a_delete_lives_on(autojump_clock, monkeypatch):
    async with opened(rule("all", 1000)) as runtime:
        engine = runtime.engine
        await ended(engine)
        work = runtime.cleaner._work

        async def and_then_an_import(record, now_ms):
            found = await work(record, now_ms)
            monkeypatch.undo()
            await engine.import_task(an_import(START_MS, overwrite=True, status="running"))
            return found

        monkeypatch.setattr(runtime.cleaner, "_work", and_then_an_import)
        await settled(120)
        assert (await engine.get("t")).status == "running"


async def report(runtime, *, dry_run, **options):
    tally = Tally()
    if dry_run:
        await runtime.cleaner.preview(tally, **options)
    else:
        await runtime.cleaner.run_due(tally)
    rules = sorted((of.label, of.target, of.tasks, of.events) for of in tally.rules)
    return rules, sorted(tally.tasks), tally.more


async def test_what_a_look_ahead_says_is_what_then_goes(autojump_clock):
    rules = (
        rule("events", 1000, name="chatter", eventFilter={"levels": ["debug"]}),
        rule("events", 1000, eventFilter={"types": ["x"]}),
        rule("all", 5000, match={"taskTypes": ["old"]}, name="old"),
    )
    async with opened(*rules) as runtime:
        engine = runtime.engine
        drafts = [draft("x", 1, level="debug"), draft("x", 2), draft("y", 3, level="debug")]
        await ended(engine, "a", *drafts, type="old")
        await ended(engine, "b", *drafts)
        await ended(engine, "c", cleanup=own(rule("task", 500)))
        assert await report(runtime, dry_run=True) == ([], [], False)
        soon = await report(runtime, dry_run=True, within_ms=1000)
        assert soon == (
            [
                ("chatter", "events", 2, 4),
                ("cleanup.rules[1]", "events", 2, 2),
                ("the task's own", "task", 1, 2),
            ],
            ["a", "b", "c"],
            False,
        )
        later = await report(runtime, dry_run=True, within_ms=5000)
        assert ("old", "all", 1, 5) in later[0]
        autojump_clock.jump(1)  # nobody but this task has run since
        assert await report(runtime, dry_run=False) == soon
        assert await report(runtime, dry_run=False) == ([], [], False)
        assert [task.id for task in await engine.list_tasks()] == ["a", "b"]
        assert await indexes(engine, "a") == [0, 4]


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_run_that_was_asked_for_ends_and_says_that_there_is_more(
    autojump_clock, monkeypatch, dry_run
):
    monkeypatch.setattr(cleaner, "RUN_S", -1.0)
    monkeypatch.setattr(cleaner, "RUN_TASKS", 1)
    async with opened(rule("all", 1000)) as runtime:
        for n in range(3):
            await ended(runtime.engine, f"t{n}")
        autojump_clock.jump(1)
        _, tasks, more = await report(runtime, dry_run=dry_run)
        assert (len(tasks), more) == (0 if dry_run else 1, True)


async def test_a_transition_that_is_cut_leaves_its_timer_to_be_found(autojump_clock):
    async with opened(rule("all", 1000)) as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="t"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await engine.transition("t", Transition(status="cancelled"))
        await move(engine, "cancelled")
        await settled(1)
        assert not await is_there(engine)
