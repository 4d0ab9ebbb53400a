"""The bridge to asyncpg: nothing leaks, nobody waits for ever, and nothing ends the process."""

from __future__ import annotations

import asyncio
import gc
import signal
import traceback
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.storage.bridge import open_bridge
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.storage.postgres import PostgresStore, migrate, open_postgres

from ..support import NOW, append, draft, task
from .server import LocalServer, psql
from .support import archive, assert_alike, record_of

PATIENCE_S = 30.0
DEADLINE_S = 0.25
LATE_S = 5.0
"""How much later than its deadline a call may end on a busy machine."""


@pytest.fixture
def own_url(server: LocalServer) -> str:
    """An empty database on the server that outages are tried on."""
    return server.url(server.new_database())


@asynccontextmanager
async def migrated(url: str, **options: Any) -> AsyncIterator[PostgresStore]:
    with trio.fail_after(PATIENCE_S):
        async with open_postgres(url, **options) as store:
            await migrate(store.pool)
            yield store


async def assert_all_usable(store: PostgresStore, size: int) -> None:
    """``size`` units of work can run at once: each waits, with its connection, for the others."""
    inside, peak, everyone = 0, 0, asyncio.Event()

    async def work(connection: Any) -> int:
        nonlocal inside, peak
        inside += 1
        peak = max(peak, inside)
        if inside == size:
            everyone.set()
        await everyone.wait()
        value: int = await connection.fetchval("SELECT 1")
        inside -= 1
        return value

    async with trio.open_nursery() as nursery:
        for _ in range(3 * size):
            nursery.start_soon(store.pool.run, work)
    assert peak == size, "no more than there is room for"


async def test_two_hundred_cancelled_calls_leave_all_three_connections_usable(own_url):
    """Each is cut at another moment: while it waits for room, connects, asks, or commits."""
    async with migrated(own_url, max_connections=3, timeout_s=PATIENCE_S) as store:
        hot = MemoryStore()
        await hot.create(task(), epoch="EPOCH001", now_ms=NOW)
        commit = await append(hot, *[draft(n) for n in range(5)])

        async def pause(connection: Any) -> None:
            await connection.execute("BEGIN")
            await connection.execute("SELECT pg_sleep(0.02)")
            await connection.execute("COMMIT")

        calls = (
            partial(store.pool.run, pause),
            partial(store.save, commit.record, commit.entries),
            partial(store.read, "t", after=-1, limit=3),
            partial(store.load, "t"),
        )
        cut = 0

        async def cancelled(number: int) -> None:
            nonlocal cut
            async with trio.open_nursery() as nursery:
                nursery.start_soon(calls[number % len(calls)])
                for _ in range(number % 50):
                    await trio.lowlevel.checkpoint()
                cut += len(nursery.child_tasks)
                nursery.cancel_scope.cancel()

        await store.save(commit.record, commit.entries)
        for start in range(0, 200, 20):
            async with trio.open_nursery() as nursery:
                for number in range(start, start + 20):
                    nursery.start_soon(cancelled, number)
        assert cut > 150, "most were still running"
        await assert_all_usable(store, 3)
        await store.save(commit.record, commit.entries)
        await archive(hot, store)
        await assert_alike(hot, store)
        assert store.pool.bridge.faults == 0


async def test_a_frozen_server_holds_nobody_beyond_the_deadline(server, own_url):
    """Connections that were open, new ones, and those who wait for one; then all is well again."""
    async with migrated(own_url, max_connections=3, timeout_s=PATIENCE_S) as store:
        await store.save(record_of(task()), ())
        store.pool.timeout_s = DEADLINE_S
        started = trio.current_time()
        answers = []

        async def ask(number: int) -> None:
            with pytest.raises(StoreUnavailable, match=r"gave no answer in 0\.25 s"):
                await (store.load("t") if number % 2 else store.save(record_of(task()), ()))
            answers.append(trio.current_time() - started)

        with server.frozen():
            for _ in range(2):
                started = trio.current_time()
                async with trio.open_nursery() as nursery:
                    for number in range(8):
                        nursery.start_soon(ask, number)
        assert len(answers) == 16
        assert max(answers) < DEADLINE_S + LATE_S
        store.pool.timeout_s = PATIENCE_S
        assert await store.exists("t")
        await assert_all_usable(store, 3)


async def test_a_call_to_a_frozen_server_can_be_cancelled_and_closed_at_once(server, own_url):
    async with migrated(own_url, max_connections=3, timeout_s=PATIENCE_S) as store:
        await assert_all_usable(store, 3)
        with server.frozen():
            started = trio.current_time()
            for call in (store.load, store.delete, store.snapshot, store.exists):
                with trio.move_on_after(0.05) as scope:
                    await call("t")
                assert scope.cancelled_caught
                assert not asyncio.all_tasks(store.pool.bridge.loop), "nothing is left behind"
            assert trio.current_time() - started < LATE_S
        assert not await store.exists("t")


async def test_a_cancelled_unit_of_work_gets_no_last_word_from_a_frozen_server(server, own_url):
    inside = trio.Event()

    async def work(connection: Any) -> None:
        async with connection.transaction():  # its end rolls back, and waits for that
            inside.set()
            await asyncio.Event().wait()

    async with migrated(own_url, timeout_s=PATIENCE_S) as store:
        with ExitStack() as stack:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.pool.run, work)
                await inside.wait()
                stack.enter_context(server.frozen())
                started = trio.current_time()
                nursery.cancel_scope.cancel()
            assert trio.current_time() - started < LATE_S
        await store.ping()


async def test_closing_waits_for_no_frozen_server_and_ends_what_still_runs(server, own_url):
    async with migrated(own_url) as store:
        await store.ping()
    ended = []

    async def ask(store: PostgresStore) -> None:
        with pytest.raises(StoreUnavailable, match=r"closed|away"):
            await store.load("t")
        ended.append(store)

    async def close_under(nursery: trio.Nursery) -> PostgresStore:
        async with open_postgres(own_url, timeout_s=PATIENCE_S) as store:
            await store.ping()
            with server.frozen():
                nursery.start_soon(ask, store)
                nursery.start_soon(ask, store)
                await trio.testing.wait_all_tasks_blocked(0.01)
                started = trio.current_time()
                store.pool.close()
        assert trio.current_time() - started < LATE_S
        return store

    async with trio.open_nursery() as nursery:
        store = await close_under(nursery)
    assert len(ended) == 2
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.load("t")


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGINT], ids=["crash", "in order"])
async def test_a_server_that_went_away_is_said_so_and_used_again_when_it_is_back(
    server, own_url, how
):
    async with migrated(own_url, max_connections=2, timeout_s=10) as store:
        await store.save(record_of(task()), ())
        await assert_all_usable(store, 2)
        server.stop(how)
        try:
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match=r"PostgreSQL is away|refused"):
                    await store.load("t")
        finally:
            server.start()
        assert await store.exists("t")
        await assert_all_usable(store, 2)
        server.stop(how)
        server.start()
        assert await store.exists("t"), "dead connections that nobody had used are no one's error"
        await assert_all_usable(store, 2)


async def test_ten_restarts_under_load_lose_nothing_of_what_is_written_again(server, own_url):
    hot = MemoryStore()
    await hot.create(task(), epoch="EPOCH001", now_ms=NOW)
    refused = 0
    done, written = trio.Event(), trio.Event()

    async def write(store: PostgresStore) -> None:
        nonlocal refused
        while not done.is_set():
            await append(hot, *[draft(n) for n in range(20)])
            try:
                await archive(hot, store)
                written.set()
            except StoreUnavailable:
                refused += 1

    async with migrated(own_url, max_connections=2, timeout_s=5) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, store)
            for _ in range(10):
                before = await hot.get("t")
                while (
                    (now := await hot.get("t")) and before and now.next_index == before.next_index
                ):
                    await trio.lowlevel.checkpoint()
                await trio.to_thread.run_sync(server.stop)
                await trio.to_thread.run_sync(server.start)
            done.set()
        await archive(hot, store)
        record = await hot.get("t")
        assert record is not None
        assert await store.archived_index("t", "EPOCH001") == record.next_index - 1
        assert psql(own_url, "SELECT count(*), max(idx) + 1 FROM taskcast_events") == (
            f"{record.next_index}|{record.next_index}"
        )
    assert refused


async def test_an_error_in_an_asyncio_callback_or_task_ends_nothing(url, caplog):
    async with migrated(url) as store:
        loop = store.pool.bridge.loop

        def fail() -> None:
            raise RuntimeError("in a callback")

        async def fail_later() -> None:
            raise RuntimeError("in a task")

        loop.call_soon(fail)
        task_ = loop.create_task(fail_later())
        await store.ping()
        del task_
        gc.collect()
        await store.ping()
        assert store.pool.bridge.faults == 2


async def test_an_error_of_the_server_keeps_the_connection_and_names_no_row(url):
    async with migrated(url, max_connections=1) as store:
        psql(url, "ALTER TABLE taskcast_tasks ADD CHECK (type <> 'hush-hush')")
        with pytest.raises(StoreUnavailable) as caught:
            await store.save(record_of(task(type="hush-hush")), ())
        assert str(caught.value) == "PostgreSQL refused: CheckViolationError, SQLSTATE 23514"
        assert "Failing row" not in shown(caught.value)
        assert await store.save(record_of(task(type="x")), ())
        assert await store.pool.run(_backend) == await store.pool.run(_backend)


async def _backend(connection: Any) -> Any:
    return await connection.fetchval("SELECT pg_backend_pid()")


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


async def test_a_missing_schema_is_a_hint(empty_url):
    async with open_postgres(empty_url) as store:
        with pytest.raises(StoreUnavailable, match="taskcast-trio migrate"):
            await store.load("t")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hush-hush@127.0.0.1:1/db",
        "postgresql://u:hush-hush@127.0.0.1:x/db",
        "postgresql://u:hush-hush@/db?host=/nowhere",
        "postgresql://u:hush-hush@127.0.0.1:1/db?sslmode=hush-hush",
        "postgresql://u:hush-hush@nowhere.invalid/db",
    ],
)
async def test_a_server_that_cannot_be_reached_is_said_so_without_the_password(url, caplog, capsys):
    with trio.fail_after(PATIENCE_S):
        async with open_postgres(url) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.load("t")
    assert "hush-hush" not in shown(caught.value).replace('"' + url, "")
    assert "hush-hush" not in caplog.text + "".join(capsys.readouterr()) + repr(store.__dict__)


async def test_only_a_url_of_postgresql_is_opened():
    with pytest.raises(ValueError, match="begins with postgresql://") as caught:
        async with open_postgres("mysql://u:hush-hush@h/db"):
            pass
    assert "hush-hush" not in str(caught.value)


async def test_the_bodys_own_exception_comes_out_as_it_is(url):
    with pytest.raises(KeyError):
        async with migrated(url):
            raise KeyError


async def test_stores_that_share_a_bridge_end_each_for_itself(server, own_url):
    async with open_bridge() as bridge, migrated(own_url, bridge=bridge) as other:
        async with open_postgres(own_url, bridge=bridge, timeout_s=PATIENCE_S) as store:
            await store.ping()
            ended = trio.Event()

            async def ask() -> None:
                with pytest.raises(StoreUnavailable, match=r"closed|away"):
                    await store.load("t")
                ended.set()

            async with trio.open_nursery() as nursery:
                with server.frozen():
                    nursery.start_soon(ask)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    store.pool.close()
                    with trio.fail_after(LATE_S):
                        await ended.wait()
        await other.ping()
        assert bridge.faults == 0


async def test_a_call_works_from_a_task_that_does_not_descend_from_the_one_that_opened(url):
    """Tasks of HTTP handlers don't: the asyncio loop is none of their context."""
    send, receive = trio.open_memory_channel[PostgresStore](1)
    async with trio.open_nursery() as nursery:

        async def handler() -> None:
            store = await receive.receive()
            assert not await store.exists("t")
            nursery.cancel_scope.cancel()

        async def owner() -> None:
            async with migrated(url) as store:
                await send.send(store)
                await trio.sleep_forever()

        nursery.start_soon(handler)
        nursery.start_soon(owner)


async def test_loopback_with_a_password_works_too(server):
    database = server.new_database()
    async with migrated(server.tcp_url(database)) as store:
        assert await store.save(record_of(task()), ())
        assert await store.exists("t")
