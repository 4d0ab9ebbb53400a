"""The archive in PostgreSQL behind a short-term store: what only it has reads the same and goes on,
an outage of it loses nothing, and what was deleted stays so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from msgspec import UNSET, Raw
from msgspec.structs import replace

from taskcast_trio.client import draft
from taskcast_trio.config import Config
from taskcast_trio.config.schema import Postgres, StorageLifecycle, WorkerDefaults, Workers
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import (
    InvalidTransition,
    KeyReused,
    SeqStale,
    StoreUnavailable,
    TaskEnded,
    TaskExists,
    TaskNotFound,
)
from taskcast_trio.core.model import (
    CreateTask,
    Draft,
    ImportArchive,
    ImportTask,
    Task,
    Transition,
)
from taskcast_trio.engine import Delivery, Follow, FollowAllOptions, Gap, Runtime, open_runtime
from taskcast_trio.engine.history import HistoryQuery
from taskcast_trio.engine.items import Done, Run
from taskcast_trio.engine.workers.asked import Registration
from taskcast_trio.storage.postgres import open_postgres
from taskcast_trio.storage.records import StoreRefused

from ..storage.postgres.server import LocalServer, migrated_on, new_database, psql, url_of

PATIENCE_S = 60


@asynccontextmanager
async def opened(config: Config, **options) -> AsyncIterator[Runtime]:
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(config, **options) as runtime:
            yield runtime


def config(url: str, *, keep_s: float = 86_400.0, **postgres) -> Config:
    return Config(
        postgres=Postgres(url=SecretUrl(url), **postgres),
        storage_lifecycle=StorageLifecycle(hot_retention_terminal_seconds=keep_s),
    )


async def archived(runtime: Runtime) -> None:
    """Return when there is nothing left to be archived."""
    assert runtime.archiver is not None
    while await runtime.backend.store.next_due("archive") is not None:
        await trio.lowlevel.checkpoint()


async def test_tasks_for_workers_outlive_a_memory_store_that_is_archived(postgres_url):
    workers = Workers(enabled=True, defaults=WorkerDefaults(disconnect_grace_ms=500))
    on_memory = replace(config(postgres_url), workers=workers)
    worker = Registration(worker_id="w")

    async def pull(runtime: Runtime) -> str | None:
        assert runtime.workers is not None
        task = await runtime.workers.pull("w", owner=None, may=lambda task: True, wait_s=10)
        return None if task is None else task.id

    async with opened(on_memory) as runtime:
        assert runtime.workers is not None
        for name in ("held", "waiting"):
            await runtime.engine.create(CreateTask(id=name, assign_mode="pull"))
        await runtime.engine.create(CreateTask(id="other"))
        await runtime.workers.register(worker, mode="pull", owner=None)
        assert await pull(runtime) == "held"
        await archived(runtime)
    async with opened(on_memory) as runtime:
        assert runtime.workers is not None
        await runtime.workers.register(worker, mode="pull", owner=None)
        assert {await pull(runtime), await pull(runtime)} == {"held", "waiting"}
        assert await runtime.backend.store.get("other") is None, "nobody asked for it"


def piece(text: str) -> Draft:
    return draft("llm.delta", {"delta": text}, series="text", mode="accumulate")


def decoded(entry: Entry) -> object:
    assert entry.event.data is not UNSET
    return msgspec.json.decode(entry.event.data)


async def run_task(runtime: Runtime, id_: str, *, pieces: int = 5, ends: bool = True) -> None:
    engine = runtime.engine
    await engine.create(CreateTask(id=id_, type="llm", params=Raw(b'{"a" : 1.0}')))
    await engine.transition(id_, Transition(status="running"))
    for n in range(pieces):
        await engine.publish(
            id_,
            [piece(f"{n} "), draft("progress", {"pct": n}, series="bar", mode="latest")],
        )
    if ends:
        await engine.transition(id_, Transition(status="completed", result=Raw(b'{"ok":true}')))


async def answers(runtime: Runtime, id_: str) -> list[object]:
    """Everything that can be read of a task."""
    engine = runtime.engine
    history = await engine.history(id_)
    events = [event async for page in history.pages() for event in page]
    collapsed = await engine.history(id_, HistoryQuery(accumulated=True))
    values = (await engine.snapshot(id_)).values
    streams = []
    for follow in (Follow(), Follow(since_index=2), Follow(last_event_id=events[1].id)):
        async with engine.subscribe(id_, follow) as subscription:
            streams.append(await replayed(subscription))
    archive = [part async for part in await engine.archive(id_)]
    return [
        await engine.get(id_),
        events,
        [event async for page in collapsed.pages() for event in page],
        {series: value.event for series, value in values.items()},
        streams,
        b"".join(archive).partition(b'"task"')[2],
        [task for task in await engine.list_tasks() if task.id == id_],
    ]


async def replayed(subscription):
    """All that is behind, and the end where there is one."""
    seen = []
    while items := await subscription.replay():
        for item in items:
            if isinstance(item, Run):
                seen += [(item.filtered_index + n, e.event) for n, e in enumerate(item.entries)]
            elif isinstance(item, Delivery):
                seen.append((item.filtered_index, item.entry.event))
            else:
                seen.append(item)
    return seen


@pytest.mark.parametrize("ends", [True, False], ids=["ended", "living"])
async def test_what_only_the_archive_has_reads_the_same(postgres_url, ends):
    async with opened(config(postgres_url)) as runtime:
        await run_task(runtime, "t", ends=ends)
        before = await answers(runtime, "t")
    async with opened(config(postgres_url)) as runtime:
        assert await runtime.backend.store.count() == 0
        assert await answers(runtime, "t") == before
        assert await runtime.backend.store.count() == 0, "a look changes nothing"


async def test_a_log_goes_on_where_its_archive_ends(postgres_url):
    async with opened(config(postgres_url)) as runtime:
        await run_task(runtime, "t", ends=False)
        last = await runtime.engine.store.get("t")
        assert last is not None
    async with opened(config(postgres_url)) as runtime:
        entries = await runtime.engine.publish("t", [piece("more")])
        assert [entry.index for entry in entries] == [last.next_index]
        values = (await runtime.engine.snapshot("t")).values
        assert decoded(values["text"]) == {"delta": "0 1 2 3 4 more"}
        latest = await runtime.engine.publish(
            "t", [draft("progress", {"pct": 99}, series="bar", mode="latest")]
        )
        history = await runtime.engine.history("t")
        events = [event async for page in history.pages() for event in page]
        assert [e.index for e in events if e.type == "progress"] == [latest[0].index]
        await archived(runtime)
    async with opened(config(postgres_url)) as runtime:
        again = await runtime.engine.history("t")
        assert [event async for page in again.pages() for event in page] == events


def counted(seq: int, client_id: str = "me", **fields: Any) -> Draft:
    return replace(draft("note", {"n": seq}, **fields), client_id=client_id, client_seq=seq)


async def test_publishers_go_on_where_their_archive_ends(postgres_url):
    """Also one whose only event was replaced by another's, and so is in no archive."""
    latest: Any = {"series": "bar", "mode": "latest"}
    async with opened(config(postgres_url)) as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="t"))
        stored = [*await engine.publish("t", [counted(0), counted(1)])]
        stored += await engine.publish("t", [counted(0, "you", **latest)])
        await engine.publish("t", [draft("progress", {"pct": 99}, **latest)])
        await engine.create(CreateTask(id="ended"))
        await engine.publish("ended", [counted(0)])
        await engine.transition("ended", Transition(status="cancelled"))
        before = await answers(runtime, "t")
    async with opened(config(postgres_url)) as runtime:
        engine = runtime.engine
        assert await answers(runtime, "t") == before
        for client_id, expected in (("me", 2), ("you", 1), ("new", 0)):
            assert await engine.expected_seq("t", client_id) == expected
        assert await engine.expected_seq("ended", "me") == 1
        assert await runtime.backend.store.count() == 0, "a look changes nothing"
        again = await engine.publish("t", [counted(1), counted(2)])
        assert [entry.index for entry in again] == [1, 4]
        assert again[0].event == stored[1].event
        with pytest.raises(SeqStale):
            await engine.publish("t", [counted(0, "you")])
        await engine.publish("t", [counted(1, "you")])
        await archived(runtime)
    async with opened(config(postgres_url)) as runtime:
        for client_id, expected in (("me", 3), ("you", 2)):
            assert await runtime.engine.expected_seq("t", client_id) == expected
        text = b"".join([part async for part in await runtime.engine.archive("t")])
        archive = msgspec.json.decode(text, type=ImportArchive)
        told = {each.client_id: each.expected_seq for each in archive.publishers or ()}
        assert told == {"me": 3, "you": 2}
        await runtime.engine.delete("t")
        await runtime.engine.create(CreateTask(id="t"))
        assert await runtime.engine.expected_seq("t", "me") == 0


async def test_a_publisher_is_expected_to_send_again_what_the_archive_lost(
    postgres_url, monkeypatch
):
    """What is archived of it never says more than the events that are: a memory store may end in
    the middle of a log.
    """
    monkeypatch.setattr("taskcast_trio.engine.archiver.BATCH_EVENTS", 2)
    async with opened(config(postgres_url)) as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="t"))
        await archived(runtime)
        assert runtime.archive is not None
        save = runtime.archive.save
        saves = 0

        async def save_one(*arguments, **options):
            nonlocal saves
            saves += 1
            if saves > 1:
                raise StoreUnavailable("away")
            return await save(*arguments, **options)

        monkeypatch.setattr(runtime.archive, "save", save_one)
        await engine.publish("t", [counted(seq) for seq in range(5)])
        while saves < 2:
            await trio.lowlevel.checkpoint()
        archiver = runtime.archiver
        monkeypatch.setattr(archiver, "finish", trio.lowlevel.checkpoint)
    async with opened(config(postgres_url)) as runtime:
        assert await runtime.engine.expected_seq("t", "me") == 2
        entries = await runtime.engine.publish("t", [counted(seq) for seq in range(5)])
        assert [entry.index for entry in entries] == [0, 1, 2, 3, 4]
        history = await runtime.engine.history("t")
        found = [event.client_seq async for page in history.pages() for event in page]
        assert found == [0, 1, 2, 3, 4]


async def test_a_transition_of_an_archived_task_takes_it_in(postgres_url):
    async with opened(config(postgres_url)) as runtime:
        await run_task(runtime, "t", ends=False)
        await run_task(runtime, "ended")
    async with opened(config(postgres_url)) as runtime:
        with pytest.raises(InvalidTransition):
            await runtime.engine.transition("t", Transition(status="pending"))
        with pytest.raises(InvalidTransition):
            await runtime.engine.transition("ended", Transition(status="running"))
        with pytest.raises(TaskEnded):
            await runtime.engine.publish("ended", [piece("late")])
        assert await runtime.backend.store.count() == 0
        task = await runtime.engine.transition("t", Transition(status="completed"))
        assert task.status == "completed"
        with pytest.raises(TaskEnded):
            await runtime.engine.publish("t", [piece("late")])


async def test_a_subscriber_goes_on_without_a_gap_when_an_archived_log_does(postgres_url):
    async with opened(config(postgres_url)) as runtime:
        await run_task(runtime, "t", ends=False)
        history = await runtime.engine.history("t")
        known = [event async for page in history.pages() for event in page]
    async with opened(config(postgres_url)) as runtime:
        engine = runtime.engine
        cursor = Follow(last_event_id=known[1].id)
        async with (
            engine.subscribe("t") as whole,
            engine.subscribe("t", cursor) as resumed,
            engine.follow_all(FollowAllOptions(existing=True)) as everything,
        ):
            await replayed(whole)
            behind = await replayed(resumed)
            await engine.publish("t", [piece("first")])
            await engine.publish("t", [piece("second")])
            await engine.transition("t", Transition(status="cancelled"))
            live = [item async for item in whole]
            resumed_live = [item async for item in resumed]
            (first, *_) = await everything.receive()
        newest = max(event.index for event in known)
        assert {event.index for _, event in behind} == {e.index for e in known} - {0, 1}
        for items in (live, resumed_live):
            *events, end = items
            indexes = [item.entry.index for item in events if isinstance(item, Delivery)]
            assert indexes == [newest + n for n in (1, 2, 3)]
            assert end == Done("cancelled")
        assert first.index == newest + 1


async def test_indexes_that_were_lost_are_not_given_twice_in_one_epoch(postgres_url):
    """A crash of a memory store: the archive has less than was answered."""
    async with opened(config(postgres_url)) as runtime:
        await run_task(runtime, "t", ends=False)
        await archived(runtime)
        record = await runtime.engine.store.get("t")
        assert record is not None
        async with open_postgres(postgres_url) as archive:
            lost = (await runtime.engine.publish("t", [piece("lost")]))[0]
            await archived(runtime)
            psql(
                postgres_url,
                f"DELETE FROM taskcast_events WHERE idx = {lost.index};"
                f"UPDATE taskcast_tasks SET next_index = {lost.index}",
            )
            assert await archive.archived_index("t", record.epoch) == lost.index - 1
    async with opened(config(postgres_url)) as runtime:
        engine = runtime.engine
        new = (await engine.publish("t", [piece("new")]))[0]
        assert new.index == lost.index
        assert new.id[10:18] != lost.id[10:18], "the epoch"
        async with engine.subscribe("t", Follow(last_event_id=lost.id)) as subscription:
            assert await subscription.__anext__() == Gap("unknown_cursor", 0)


async def test_both_stores_are_listed_as_one_page_by_page(postgres_url):
    now = [1_700_000_000_000]

    def clock() -> int:
        now[0] += 1
        return now[0]

    async with opened(config(postgres_url), clock=clock) as runtime:
        for n in range(6):
            await runtime.engine.create(CreateTask(id=f"old-{n}", type="even" if n % 2 else "odd"))
    async with opened(config(postgres_url), clock=clock) as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="new-0", type="odd"))
        await engine.publish("old-3", [piece("x")])  # taken in: in both now
        await engine.create(CreateTask(id="new-1", type="even"))
        await archived(runtime)
        order = [*(f"old-{n}" for n in range(6)), "new-0", "new-1"]
        assert [task.id for task in await engine.list_tasks()] == order
        for size in (1, 2, 3, 7):
            seen: list[str] = []
            after = None
            while page := await engine.list_tasks(after=after, limit=size):
                assert len(page) <= size
                seen += [task.id for task in page]
                after = seen[-1]
            assert seen == order
        odd = [task.id for task in await engine.list_tasks(type_="odd", limit=3)]
        assert odd == ["old-0", "old-2", "old-4"]
        await engine.transition("old-3", Transition(status="running"))
        pending = await engine.list_tasks(statuses=frozenset({"pending"}))
        assert "old-3" not in [task.id for task in pending], "the archive is behind"


async def test_a_deleted_task_stays_deleted(postgres_url):
    async with opened(config(postgres_url)) as runtime:
        engine = runtime.engine
        for id_ in ("here", "unarchived", "gone"):
            await run_task(runtime, id_)
        await archived(runtime)
        await engine.delete("gone")
    async with opened(config(postgres_url)) as runtime:
        engine = runtime.engine
        await engine.delete("here")
        for id_ in ("here", "gone"):
            with pytest.raises(TaskNotFound):
                await engine.get(id_)
            with pytest.raises(TaskNotFound):
                await engine.publish(id_, [piece("x")])
            with pytest.raises(TaskNotFound):
                await engine.delete(id_)
        assert [task.id for task in await engine.list_tasks()] == ["unarchived"]
        await engine.create(CreateTask(id="gone"))
        await archived(runtime)
    async with opened(config(postgres_url)) as runtime:
        assert (await runtime.engine.get("gone")).status == "pending"
        history = await runtime.engine.history("gone")
        assert [page async for page in history.pages()] == []


async def test_an_id_is_taken_in_both_stores(postgres_url):
    async with opened(config(postgres_url)) as runtime:
        await run_task(runtime, "t")
        exported = b"".join([part async for part in await runtime.engine.archive("t")])
    imported = ImportTask(archive=msgspec.json.decode(exported, type=ImportArchive))
    async with opened(config(postgres_url)) as runtime:
        engine = runtime.engine
        with pytest.raises(TaskExists):
            await engine.create(CreateTask(id="t"))
        with pytest.raises(TaskExists):
            await engine.import_task(imported)
        done = await engine.import_task(replace(imported, overwrite=True))
        assert done.overwritten
        await archived(runtime)
        old = await answers(runtime, "t")
    async with opened(config(postgres_url)) as runtime:
        assert (await answers(runtime, "t"))[1] == old[1]


async def test_a_repeated_create_gets_the_first_answer_also_once_it_is_archived(postgres_url):
    named = CreateTask(id="t", type="a")
    async with opened(config(postgres_url)) as runtime:
        engine = runtime.engine
        first = await engine.create(named, key="k")
        await archived(runtime)
        assert await engine.create(named, key="k") == first
        with pytest.raises(KeyReused):
            await engine.create(replace(named, type="b"), key="k")
        with pytest.raises(TaskExists):
            await engine.create(named, key="another")


async def test_a_repeated_create_replaces_nothing_where_the_key_is_known_by_the_archive_only(
    postgres_url,
):
    request = CreateTask(type="a", params=Raw(b'{"n": 1}'))
    async with opened(config(postgres_url)) as runtime:
        first = await runtime.engine.create(request, key="k")
        await runtime.engine.transition(first.id, Transition(status="running"))
        await runtime.engine.publish(first.id, [draft("x", 1)])
        await archived(runtime)
        old = await answers(runtime, first.id)
    async with opened(config(postgres_url)) as runtime:
        again = await runtime.engine.create(request, key="k")
        assert (again.id, again.status) == (first.id, "running")
        with pytest.raises(KeyReused):
            await runtime.engine.create(replace(request, type="b"), key="k")
        await archived(runtime)
        assert await answers(runtime, first.id) == old


async def test_a_create_does_not_wait_for_long_for_an_archive_that_is_away(
    postgres_server: LocalServer,
):
    async with opened(config(migrated_on(postgres_server), timeout_seconds=30)) as runtime:
        with postgres_server.frozen():
            began = trio.current_time()
            await runtime.engine.create(CreateTask(), key="k")
            assert trio.current_time() - began < 10


async def test_a_task_that_ended_leaves_after_its_time_and_reads_the_same(postgres_url):
    async with opened(config(postgres_url, keep_s=0.05)) as runtime:
        await run_task(runtime, "living", ends=False)
        await run_task(runtime, "t")
        before = await answers(runtime, "t")
        await runtime.engine.create(CreateTask(), key="k")
        while await runtime.backend.store.get("t") is not None:
            await trio.lowlevel.checkpoint()
        assert await answers(runtime, "t") == before
        assert await runtime.backend.store.count() == 2
        assert runtime.metrics.registry.get_sample_value("taskcast_tasks_released_total") == 1


async def test_events_that_no_row_can_hold_are_set_aside_and_the_rest_is_archived(postgres_url):
    psql(postgres_url, "ALTER TABLE taskcast_events ADD CHECK (1 / (idx - 4) IS NOT NULL)")
    async with opened(config(postgres_url)) as runtime:
        await run_task(runtime, "t", pieces=0, ends=False)
        await runtime.engine.publish("t", [draft("x", n) for n in range(6)])
        await archived(runtime)
        count = runtime.metrics.registry.get_sample_value("taskcast_archive_unwritable_rows_total")
        assert count == 1
    async with opened(config(postgres_url)) as runtime:
        history = await runtime.engine.history("t")
        events = [event.index async for page in history.pages() for event in page]
        assert events == [0, 1, 2, 3, 5, 6]
        assert (await runtime.engine.publish("t", [draft("x")]))[0].index == 7


async def test_a_task_that_no_row_can_hold_is_set_aside_and_not_tried_for_ever(postgres_url):
    psql(
        postgres_url,
        "ALTER TABLE taskcast_tasks ADD CHECK (id <> 'bad' OR 1 / (ttl - 7) IS NOT NULL)",
    )
    async with opened(config(postgres_url, keep_s=0.01)) as runtime:
        await runtime.engine.create(CreateTask(id="bad", ttl=7))
        await runtime.engine.transition("bad", Transition(status="cancelled"))
        await run_task(runtime, "good")
        await archived(runtime)
        assert await runtime.backend.store.next_due("release") is not None
        assert (await runtime.engine.get("bad")).status == "cancelled"
    async with opened(config(postgres_url)) as runtime:
        assert [task.id for task in await runtime.engine.list_tasks()] == ["good"]


async def test_a_database_without_its_schema_is_refused_and_migrated_where_that_is_asked(
    postgres_server: LocalServer,
):
    url = url_of(new_database())
    with pytest.raises(StoreRefused, match=r"lacks 0001_initial.* --auto-migrate"):
        async with opened(config(url)):
            pass
    async with opened(replace(config(url), auto_migrate=True)) as runtime:
        await run_task(runtime, "t")
    async with opened(config(url)) as runtime:
        assert (await runtime.engine.get("t")).status == "completed"
    nowhere = config("postgresql://someone:hush@127.0.0.1:1/x")
    with pytest.raises(StoreRefused, match="away") as refused:
        async with opened(nowhere):
            pass
    assert "hush" not in str(refused.value)


async def test_tasks_of_the_original_are_taken_over(postgres_server: LocalServer):
    url = url_of(new_database())
    schema = await trio.Path("migrations/postgres/0001_initial.sql").read_text()
    psql(
        url,
        schema
        + """
        INSERT INTO taskcast_tasks (id, type, status, params, created_at, updated_at, ttl)
        VALUES ('old', 'llm', 'running', '{"a": 1}', 5, 6, 60);
        INSERT INTO taskcast_events (id, task_id, idx, timestamp, type, level, data, series_id,
            series_mode)
        VALUES ('E0', 'old', 0, 6, 'taskcast:status', 'info', '{"status": "running"}', NULL, NULL),
            ('E1', 'old', 1, 7, 'llm.delta', 'info', '{"delta": "Hel"}', 's', 'accumulate');
        """,
    )
    async with opened(replace(config(url), auto_migrate=True)) as runtime:
        engine = runtime.engine
        assert isinstance(await engine.get("old"), Task)
        async with engine.subscribe("old", Follow(last_event_id="E0")) as subscription:
            await engine.publish("old", [draft("llm.delta", {"delta": "lo"}, series="s",
                                               mode="accumulate")])  # fmt: skip
            await engine.transition("old", Transition(status="completed"))
            items = [item async for item in subscription]
        assert not any(isinstance(item, Gap) for item in items)
        assert [i.entry.index for i in items if isinstance(i, Delivery)] == [1, 2, 3]
        values = (await engine.snapshot("old")).values
        assert decoded(values["s"]) == {"delta": "Hello"}


# Outages ------------------------------------------------------------------------------------------


@pytest.fixture
def url_of_server(postgres_server: LocalServer) -> str:
    """A migrated database on the server that outages are tried on."""
    return migrated_on(postgres_server)


async def test_an_outage_stops_no_publisher_and_nothing_is_lost(postgres_server, url_of_server):
    async with opened(config(url_of_server, timeout_seconds=2.0)) as runtime:
        engine, archiver = runtime.engine, runtime.archiver
        assert archiver is not None
        await run_task(runtime, "before")
        await archived(runtime)
        with postgres_server.stopped():
            task = await engine.create()
            await engine.publish(task.id, [piece("a")])
            await engine.transition(task.id, Transition(status="running"))
            while not archiver.away:
                await trio.lowlevel.checkpoint()
            assert (await engine.get("before")).status == "completed"
            for refused in (
                engine.get("unknown"),
                engine.create(CreateTask(id="chosen")),
                engine.delete("before"),
            ):
                with pytest.raises(StoreUnavailable):
                    await refused
            assert (await engine.get("before")).status == "completed", "it was deleted by halves"
        await archived(runtime)
        while archiver.away:
            await trio.lowlevel.checkpoint()
        async with open_postgres(url_of_server) as archive:
            assert (await archive.read(task.id, after=-1, limit=9)).record.next_index == 2
        await engine.create(CreateTask(id="chosen"))


async def test_the_archive_equals_the_log_after_ten_restarts_under_load(
    postgres_server, url_of_server
):
    tasks = [f"t{n}" for n in range(6)]
    async with opened(config(url_of_server, timeout_seconds=2.0)) as runtime:
        engine = runtime.engine
        done = trio.Event()

        async def publish(id_: str) -> None:
            number = 0
            while not done.is_set():
                await engine.publish(
                    id_,
                    [piece(f"{number} "), draft("p", number, series="bar", mode="latest")],
                )
                number += 1
                await trio.sleep(0.001)  # a publisher's own pace

        for id_ in tasks:
            await engine.create(CreateTask(id=id_))
        async with trio.open_nursery() as nursery:
            for id_ in tasks:
                nursery.start_soon(publish, id_)
            for _ in range(10):
                await trio.to_thread.run_sync(postgres_server.stop)
                await trio.to_thread.run_sync(postgres_server.start)
            done.set()
        before = [await answers(runtime, id_) for id_ in tasks]
        await archived(runtime)
    async with opened(config(url_of_server)) as runtime:
        assert await runtime.backend.store.count() == 0
        assert [await answers(runtime, id_) for id_ in tasks] == before


async def test_a_frozen_database_holds_no_one_beyond_the_deadline(postgres_server, url_of_server):
    async with opened(config(url_of_server, timeout_seconds=1.0)) as runtime:
        engine = runtime.engine
        await run_task(runtime, "archived")
        await archived(runtime)
        task = await engine.create()
        with postgres_server.frozen():
            waits: list[float] = []

            async def ask(id_: str) -> None:
                begun = trio.current_time()
                with pytest.raises(StoreUnavailable):
                    await engine.get(id_)
                waits.append(trio.current_time() - begun)

            async with trio.open_nursery() as nursery:
                for n in range(30):
                    nursery.start_soon(ask, f"unknown-{n}")
                for _ in range(200):
                    begun = trio.current_time()
                    await engine.publish(task.id, [piece("x")])
                    assert trio.current_time() - begun < 0.5, "a publish waited for the archive"
            assert max(waits) < 2.0
        await archived(runtime)
        with pytest.raises(TaskNotFound):
            await engine.get("unknown-1")
