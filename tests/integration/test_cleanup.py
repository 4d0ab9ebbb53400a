"""Cleanup on real stores: the same promises on SQLite and Redis, with an archive in PostgreSQL and
without, over restarts, cuts in the middle, and with several processes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import replace

from taskcast_trio.client import draft
from taskcast_trio.config import Config
from taskcast_trio.config.schema import Cleanup, Postgres, Redis, StorageLifecycle
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.core.model import CreateTask, Transition
from taskcast_trio.engine import Delivery, Follow, Gap, Runtime, cleaner, open_runtime
from taskcast_trio.engine.cleanup_tally import Tally

from ..storage.postgres.server import psql
from ..storage.redis.server import new_prefix, redis_url

PATIENCE_S = 60
NOW = 1_700_000_000_000
CHATTER = {
    "name": "chatter",
    "target": "events",
    "trigger": {"afterMs": 1000},
    "eventFilter": {"types": ["log", "delta"]},
}
OLD = {"name": "old", "target": "all", "trigger": {"afterMs": 5000}}


class Clock:
    def __init__(self) -> None:
        self.ms = NOW

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


def on_redis(config: Config) -> Config:
    redis = Redis(url=SecretUrl(redis_url()), prefix=new_prefix())
    return replace(config, storage="redis", redis=redis)


@pytest.fixture(params=["sqlite", "redis", "memory+postgres", "sqlite+postgres", "redis+postgres"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    config = Config(cleanup=Cleanup(rules=(CHATTER, OLD)))
    if "redis" in request.param:
        config = on_redis(config)
    if "sqlite" in request.param:
        config = replace(config, storage="sqlite", db_path=str(tmp_path / "tasks.db"))
    if "postgres" in request.param:
        config = with_archive(config, request.getfixturevalue("postgres_url"))
    return config


def with_archive(config: Config, url: str, *, keep_s: float = 86_400.0) -> Config:
    return replace(
        config,
        postgres=Postgres(url=SecretUrl(url)),
        storage_lifecycle=StorageLifecycle(hot_retention_terminal_seconds=keep_s),
    )


@asynccontextmanager
async def opened(config: Config, clock: Clock) -> AsyncIterator[Runtime]:
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(config, clock=clock) as runtime:
            yield runtime


async def ended(
    runtime: Runtime, id_: str, *, logs: int = 10, type_: str | UnsetType = UNSET
) -> None:
    engine = runtime.engine
    await engine.create(CreateTask(id=id_, type=type_))
    await engine.transition(id_, Transition(status="running"))
    pieces = [draft("delta", {"delta": c}, series="s", mode="accumulate") for c in "abc"]
    keeps = draft("kept", {"delta": "d"}, series="s", mode="accumulate")
    for start in range(0, logs, 5000):
        await engine.publish(id_, [draft("log", n) for n in range(start, min(logs, start + 5000))])
    await engine.publish(id_, [*pieces, keeps])
    await engine.transition(id_, Transition(status="completed"))


async def left(runtime: Runtime, id_: str = "t") -> list[int]:
    page = await runtime.engine.store.read(id_, after=-1, limit=100_000)
    return [entry.index for entry in page.entries]


async def text(runtime: Runtime) -> bytes:
    """The value of the series."""
    data = (await runtime.engine.snapshot("t")).values["s"].event.data
    assert data is not UNSET
    return bytes(data)


async def archived(runtime: Runtime) -> None:
    while await runtime.backend.store.next_due("archive") is not None:
        await trio.lowlevel.checkpoint()


async def until_gone(runtime: Runtime, id_: str = "t") -> None:
    runtime.cleaner.notify(0)
    while await runtime.engine.store.get(id_) is not None:
        await trio.lowlevel.checkpoint()


async def until_trimmed(runtime: Runtime, count: int, id_: str = "t") -> None:
    runtime.cleaner.notify(0)
    while (await runtime.engine.record(id_)).trims < count:
        await trio.lowlevel.checkpoint()


async def test_events_and_then_the_task_go_when_their_times_have_come(config, clock):
    async with opened(config, clock) as runtime:
        await ended(runtime, "t")
        history = await runtime.engine.history("t")
        ids = [event.id async for page in history.pages() for event in page]
        await archived(runtime)
        clock.ms += 999
        tally = Tally()
        await runtime.cleaner.run_due(tally)
        assert tally.rules == []
        await runtime.cleaner.preview(tally, within_ms=1)
        assert [(of.label, of.tasks, of.events) for of in tally.rules] == [("chatter", 1, 13)]
        clock.ms += 1
        await until_trimmed(runtime, 13)
        assert await left(runtime) == [0, 14, 15]
        assert await text(runtime) == b'{"delta":"abcd"}'
        async with runtime.engine.subscribe("t", Follow(last_event_id=ids[5])) as subscription:
            items = [item async for item in subscription]
        assert items[0] == Gap("events_expired", 0)
        assert isinstance(items[2], Delivery)
        assert items[2].entry.event.data == Raw(b'{"delta":"abcd"}')
        clock.ms += 3999
        tally = Tally()
        await runtime.cleaner.run_due(tally)
        assert tally.rules == []
        clock.ms += 1
        await until_gone(runtime)
    async with opened(config, clock) as runtime:
        assert await runtime.engine.list_tasks() == []


async def test_what_fell_due_while_nothing_ran_is_done_at_the_start(config, clock):
    async with opened(config, clock) as runtime:
        await ended(runtime, "t")
        await archived(runtime)
    clock.ms += 1000
    async with opened(config, clock) as runtime:
        await until_trimmed(runtime, 13)
        assert await left(runtime) == [0, 14, 15]
    clock.ms += 120_000
    async with opened(config, clock) as runtime:
        await until_gone(runtime)


async def test_new_rules_hold_for_what_was_there_before(config, clock):
    async with opened(replace(config, cleanup=Cleanup()), clock) as runtime:
        for n in range(5):
            await ended(runtime, f"t{n}")
        await runtime.engine.create(CreateTask(id="living"))
        await archived(runtime)
        clock.ms += 10_000
        await runtime.cleaner.run_due(tally := Tally())
        assert tally.rules == []
    async with opened(config, clock) as runtime:
        for n in range(5):
            await until_gone(runtime, f"t{n}")
        assert [task.id for task in await runtime.engine.list_tasks()] == ["living"]


async def test_a_cleanup_that_was_cut_between_two_pages_goes_on(config, clock, monkeypatch):
    async with opened(config, clock) as runtime:
        await ended(runtime, "t", logs=5000)
        await archived(runtime)
        clock.ms += 1000
        store, trim = runtime.cleaner._store, runtime.cleaner._store.trim
        cut = trio.Event()
        trims: list[int] = []

        async def two_pages(task_id, indexes, *, epoch):
            if len(trims) == 2:
                cut.set()
                await trio.sleep_forever()
            trims.append(await trim(task_id, indexes, epoch=epoch))
            return trims[-1]

        monkeypatch.setattr(store, "trim", two_pages, raising=False)
        runtime.cleaner.notify(0)
        await cut.wait()
    assert trims == [999, 1000]
    monkeypatch.undo()
    clock.ms += cleaner.LEASE_MS
    config = replace(config, cleanup=Cleanup(rules=(CHATTER,)))
    async with opened(config, clock) as runtime:
        await until_trimmed(runtime, 5003)
        assert await left(runtime) == [0, 5004, 5005]


async def test_a_log_is_not_trimmed_before_it_is_archived(postgres_url, clock):
    rules = ({**CHATTER, "trigger": {}},)
    config = with_archive(Config(cleanup=Cleanup(rules=rules)), postgres_url)
    async with opened(config, clock) as runtime:
        await ended(runtime, "t", logs=3000)
        await archived(runtime)
        clock.ms += cleaner.WAIT_MS
        await until_trimmed(runtime, 3003)
        await archived(runtime)
        kept = await left(runtime)
    async with opened(config, clock) as runtime:
        assert await runtime.backend.store.count() == 0
        assert await left(runtime) == kept == [0, 3004, 3005]
        assert await text(runtime) == b'{"delta":"abcd"}'
    rows = psql(postgres_url, "SELECT count(*) FROM taskcast_events WHERE task_id = 't'")
    assert rows == "3"


async def test_a_page_that_the_archiver_holds_brings_nothing_back(postgres_url, clock, monkeypatch):
    config = with_archive(Config(cleanup=Cleanup(rules=(CHATTER,))), postgres_url)
    async with opened(config, clock) as runtime:
        archive = runtime.archive
        assert archive is not None
        save = archive.save
        held, go_on = trio.Event(), trio.Event()

        async def late(record, entries, **options):
            if entries and record.task.terminal:
                held.set()
                await go_on.wait()
            return await save(record, entries, **options)

        monkeypatch.setattr(archive, "save", late)
        await ended(runtime, "t")
        await held.wait()
        clock.ms += 1000
        await runtime.cleaner.run_due(Tally())
        assert len(await left(runtime)) == 16
        go_on.set()
        await archived(runtime)
        clock.ms += cleaner.WAIT_MS
        await until_trimmed(runtime, 13)
        await archived(runtime)
        kept = await archive.read("t", after=-1, limit=99)
        assert [entry.index for entry in kept.entries] == [0, 14, 15]


async def test_an_archive_that_comes_later_has_what_was_left_and_the_whole_text(
    postgres_url, clock, tmp_path
):
    config = Config(
        storage="sqlite",
        db_path=str(tmp_path / "tasks.db"),
        cleanup=Cleanup(rules=(CHATTER,)),
    )
    async with opened(config, clock) as runtime:
        await ended(runtime, "t")
        clock.ms += 1000
        await until_trimmed(runtime, 13)
    async with opened(with_archive(config, postgres_url), clock) as runtime:
        assert runtime.archive is not None
        while (await runtime.archive.extents(["t"])) == {}:
            await trio.lowlevel.checkpoint()
        await archived(runtime)
    async with opened(
        with_archive(replace(config, storage="memory"), postgres_url), clock
    ) as runtime:
        assert await left(runtime) == [0, 14, 15]
        assert (await runtime.engine.record("t")).trimmed == 13
        assert await text(runtime) == b'{"delta":"abcd"}'


async def test_a_task_that_was_released_is_cleaned_up_by_the_archive_alone(postgres_url, clock):
    config = with_archive(Config(cleanup=Cleanup(rules=(CHATTER, OLD))), postgres_url, keep_s=0.5)
    async with opened(config, clock) as runtime:
        await ended(runtime, "t")
        await archived(runtime)
        clock.ms += 500
        assert runtime.archiver is not None
        assert runtime.archive is not None
        runtime.archiver._releases.notify(0)
        while await runtime.backend.store.count():
            await trio.lowlevel.checkpoint()
        clock.ms += 500
        await until_trimmed(runtime, 13)
        clock.ms += 4000
        await until_gone(runtime)
        assert await runtime.archive.next_due("cleanup") is None


@pytest.fixture(params=["redis", "memory+postgres", "redis+postgres"])
def shared(request: pytest.FixtureRequest) -> Config:
    """What several processes can have in common."""
    config = Config(cleanup=Cleanup(rules=(CHATTER, OLD)))
    if "redis" in request.param:
        config = on_redis(config)
    if "postgres" in request.param:
        config = with_archive(config, request.getfixturevalue("postgres_url"))
    return config


def total(runtimes: list[Runtime], name: str) -> float:
    return sum(r.metrics.registry.get_sample_value(name) or 0 for r in runtimes)


async def test_of_several_processes_each_task_is_removed_by_one(shared, clock):
    config = replace(shared, cleanup=Cleanup(rules=(OLD,)))
    async with opened(config, clock) as runtime:
        for n in range(100):
            await ended(runtime, f"t{n}", logs=1)
        await archived(runtime)
    clock.ms += 5000
    async with opened(config, clock) as one, opened(config, clock) as other:
        while total([one, other], "taskcast_cleanup_tasks_total") < 100:
            await trio.lowlevel.checkpoint()
        for runtime in (one, other):
            assert await runtime.engine.list_tasks() == []
            await runtime.cleaner.run_due(Tally())
    assert total([one, other], "taskcast_cleanup_tasks_total") == 100


async def test_a_task_in_both_stores_is_for_whoever_has_it_from_the_short_terms_list(
    postgres_url, clock
):
    """Each store has a list of what is due: two processes that go by one each would meet."""
    config = with_archive(on_redis(Config(cleanup=Cleanup(rules=(OLD,)))), postgres_url)
    async with opened(config, clock) as one, opened(config, clock) as other:
        await ended(one, "t")
        await archived(one)
        clock.ms += 5000
        (taken,) = await one.backend.store.take_due(
            "cleanup", now_ms=clock.ms, lease_ms=60_000, limit=9
        )
        await other.cleaner.run_due(Tally())
        assert [task.id for task in await other.engine.list_tasks()] == [taken.task_id]
        clock.ms += 60_000
        for runtime in (one, other):
            await runtime.cleaner.run_due(Tally())
        assert await other.engine.list_tasks() == []
    assert total([one, other], "taskcast_cleanup_tasks_total") == 1


async def test_of_several_processes_one_trims_and_who_follows_at_the_other_is_told(shared, clock):
    async with opened(shared, clock) as one:
        ids = {}
        for n in range(20):
            await ended(one, f"t{n}")
            history = await one.engine.history(f"t{n}")
            ids[f"t{n}"] = [event.id async for page in history.pages() for event in page]
        await archived(one)
    clock.ms += 1000
    async with opened(shared, clock) as one, opened(shared, clock) as other:
        for runtime in (one, other):
            runtime.cleaner.notify(0)
        while total([one, other], "taskcast_cleanup_events_total") < 13 * 20:
            await trio.lowlevel.checkpoint()
        for id_ in ids:
            assert await left(other, id_) == [0, 14, 15]
            follow = Follow(last_event_id=ids[id_][5])
            async with other.engine.subscribe(id_, follow) as subscription:
                items = [item async for item in subscription]
            assert items[0] == Gap("events_expired", 0)
        for runtime in (one, other):
            await runtime.cleaner.run_due(Tally())
    assert total([one, other], "taskcast_cleanup_events_total") == 13 * 20


async def test_an_old_task_in_the_archive_and_a_new_one_of_its_id_are_not_confused(
    postgres_url, clock
):
    config = with_archive(Config(cleanup=Cleanup(rules=(OLD,))), postgres_url)
    async with opened(config, clock) as runtime:
        await ended(runtime, "t")
        await archived(runtime)
    async with opened(config, clock) as runtime:
        await runtime.engine.delete("t")
        await runtime.engine.create(CreateTask(id="t"))
        clock.ms += 5000
        await runtime.cleaner.run_due(Tally())
        assert (await runtime.engine.get("t")).status == "pending"
        old = await runtime.engine.store.get("t")
        assert old is not None
        assert not await runtime.engine.store.delete("t", epoch="OTHER001")
        await archived(runtime)
    async with opened(config, clock) as runtime:
        assert not await runtime.engine.store.delete("t", epoch="OTHER001")
        assert (await runtime.engine.get("t")).status == "pending"
        assert await runtime.engine.store.delete("t", epoch=old.epoch)
        assert await runtime.engine.store.get("t") is None
