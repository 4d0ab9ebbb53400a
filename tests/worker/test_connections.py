"""Workers and their server: lost and found again, refused, away, and handed on."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
import trustme

from taskcast_trio.config import Auth, Config, Jwt, Secret, Workers
from taskcast_trio.core.errors import Forbidden, NotFound, Unauthorized
from taskcast_trio.core.model import CreateTask
from taskcast_trio.worker import Run, WorkerReplaced
from taskcast_trio.worker.api import Api

from ..http.conftest import start_server
from ..storage.redis.server import free_port
from ..waiting import until
from .support import (
    MODES,
    Relay,
    actions_of,
    becomes,
    config,
    events_of,
    row_of,
    worker_of,
    working,
)

SECRET = "a secret of the tests, of 32 bytes or more"


async def test_a_task_that_was_handed_on_is_stopped_and_its_late_words_are_refused(
    server: Any,
) -> None:
    """Its worker goes on in good faith: nobody has told it."""
    worker = worker_of(server.url, "pull", heartbeat_s=1000, worker_id="late")
    begun, go_on, ended = trio.Event(), trio.Event(), trio.Event()
    why: list[str | None] = []

    @worker.task()
    async def handler(run: Run) -> None:
        begun.set()
        try:
            await go_on.wait()
            await run.emit("late")
            await trio.sleep_forever()
        finally:
            why.append(run.cancelled)
            ended.set()

    async with working(worker):
        task = await server.task(assignMode="pull")
        await begun.wait()
        decline = {"workerId": "late", "blacklist": True}
        await server.client.post(f"/workers/tasks/{task}/decline", json=decline)
        await becomes(server, task, "pending")
        go_on.set()
        with trio.fail_after(30):
            await ended.wait()
        assert why == ["reassigned"]
        assert await events_of(server, task, "late") == []


async def test_of_a_task_that_comes_back_to_its_worker_only_the_former_run_is_stopped(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be stopped the server says by the task, and both runs are of the same."""
    worker = worker_of(server.url, "pull", heartbeat_s=2.0, worker_id="w")
    heartbeat, heard = Api.heartbeat, trio.Event()

    async def note(self: Api, *args: Any) -> Any:
        answer = await heartbeat(self, *args)
        heard.set()
        return answer

    monkeypatch.setattr(Api, "heartbeat", note)
    ends: list[str | None] = []
    begun, go_on = trio.Event(), trio.Event()

    @worker.task()
    async def handler(run: Run) -> None:
        begun.set()
        try:
            await go_on.wait()
        finally:
            ends.append(run.cancelled)

    async with working(worker):
        task = await server.task(assignMode="pull")
        await begun.wait()
        await server.client.post(f"/workers/tasks/{task}/decline", json={"workerId": "w"})
        begun = trio.Event()
        await begun.wait()
        heard = trio.Event()
        await heard.wait()
        go_on.set()
        await becomes(server, task, "completed")
    assert ends == ["reassigned", None]
    assert await actions_of(server, task) == ["assigned", "declined", "assigned"]


async def test_a_worker_that_the_server_forgot_comes_back_with_its_tasks(server: Any) -> None:
    worker = worker_of(server.url, "pull", worker_id="w")
    begun, go_on = trio.Event(), trio.Event()

    @worker.task()
    async def handler(run: Run) -> None:
        begun.set()
        await go_on.wait()

    async with working(worker):
        task = await server.task(assignMode="pull")
        await begun.wait()
        await server.client.delete("/workers/w")

        def is_back_with_its_task() -> bool:
            row = row_of(server, worker)
            return not row.gone and row.offline_ms is None and row.orphans == {}

        await until(is_back_with_its_task)
        assert list(row_of(server, worker).held) == [task]
        go_on.set()
        await becomes(server, task, "completed")
        assert await actions_of(server, task) == ["assigned"]


async def test_a_worker_whose_id_another_one_takes_ends_and_leaves_it_its_tasks(
    server: Any,
) -> None:
    one, two = (worker_of(server.url, worker_id="w") for _ in range(2))
    ran: list[int] = []
    replaced = trio.Event()

    async def handler(run: Run) -> None:
        ran.append(1)
        if len(ran) == 1:
            await trio.sleep_forever()
        await replaced.wait()

    one.task()(handler)
    two.task()(handler)
    async with trio.open_nursery() as nursery:

        async def first() -> None:
            with pytest.raises(WorkerReplaced):
                await one.run()
            replaced.set()

        nursery.start_soon(first)
        task = await server.task(assignMode="ws-offer")
        await becomes(server, task, "running")
        nursery.start_soon(two.run)
        await becomes(server, task, "completed")
        two.stop()
    assert await actions_of(server, task) == ["assigned", "lost", "assigned"]


async def test_handlers_are_stopped_when_the_server_is_away_for_longer_than_the_lease(
    server: Any,
) -> None:
    """A connection that is dead without a word, as behind a router that has lost it."""
    relay = Relay(server.port)
    begun, ended, why = trio.Event(), trio.Event(), []

    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        worker = worker_of(relay.url, lease_s=1.5)

        @worker.task()
        async def handler(run: Run) -> None:
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                why.append((run.cancelled, trio.current_time()))
                ended.set()

        await nursery.start(worker.run)
        task = await server.task(assignMode="ws-offer")
        await begun.wait()
        relay.through = False
        cut_at = trio.current_time()
        with trio.fail_after(30):
            await ended.wait()
        assert why[0][0] == "lease_ended"
        assert why[0][1] - cut_at < 15
        await becomes(server, task, "pending")
        nursery.cancel_scope.cancel()


async def test_a_block_that_is_given_up_while_the_server_is_away_does_not_fail_the_task() -> None:
    async with start_server(config()) as server, trio.open_nursery() as nursery:
        relay = Relay(server.port)
        await nursery.start(relay.run)
        worker = worker_of(relay.url, "pull", heartbeat_s=1000)
        given_up = trio.Event()

        @worker.task()
        async def handler(run: Run) -> dict[str, bool]:
            with trio.CancelScope() as asking:
                nursery.start_soon(give_up, run.task.id, asking)
                await run.block()
            given_up.set()
            return {"answered": not asking.cancelled_caught}

        async def give_up(task: str, asking: trio.CancelScope) -> None:
            await becomes(server, task, "blocked")
            relay.through = False
            asking.cancel()

        await nursery.start(worker.run)
        task = await server.task(assignMode="pull")
        await given_up.wait()
        relay.through = True
        assert (await becomes(server, task, "completed", 30))["result"] == {"answered": False}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lose", [b"/events ", b'"running"', b'"completed"', b"/workers/register"])
async def test_what_was_answered_and_not_heard_is_not_done_twice(server: Any, lose: bytes) -> None:
    relay = Relay(server.port)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        relay.lose = lose
        worker = worker_of(relay.url, "pull")

        @worker.task()
        async def handler(run: Run) -> None:
            for n in range(100):
                await run.emit("piece", {"n": n})
                await trio.lowlevel.checkpoint()

        await nursery.start(worker.run)
        task = await server.task(assignMode="pull")
        await becomes(server, task, "completed")
        worker.stop()
        nursery.cancel_scope.deadline = trio.current_time() + 1
    assert relay.lost == 1
    pieces = await events_of(server, task, "piece")
    assert [each["data"]["n"] for each in pieces] == list(range(100))
    assert len(await events_of(server, task, "taskcast:status")) == 2


async def test_a_task_that_a_worker_never_heard_of_is_handed_on_when_it_leaves(
    server: Any,
) -> None:
    relay = Relay(server.port)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        relay.lose = b"GET /workers/pull"
        worker = worker_of(relay.url, "pull")

        @worker.task()
        async def nothing(run: Run) -> None: ...

        await nursery.start(worker.run)
        task = await server.task(assignMode="pull")
        await becomes(server, task, "assigned")
        with trio.fail_after(30):
            await relay.has_lost.wait()
        worker.stop()
        await becomes(server, task, "pending", wait_s=2)
        nursery.cancel_scope.deadline = trio.current_time() + 1


async def test_a_worker_with_busy_handlers_stays_known(mode: str) -> None:
    """The server cuts who says nothing for 2.5 s."""
    defaults = {"heartbeat_interval_ms": 500, "heartbeat_timeout_ms": 2500}
    async with start_server(config(**defaults, disconnect_grace_ms=100)) as server:
        worker = worker_of(server.url, mode, heartbeat_s=None)

        @worker.task()
        async def handler(run: Run) -> None:
            began_ms = row_of(server, worker).heartbeat_ms
            while row_of(server, worker).heartbeat_ms < began_ms + 3000:
                await run.emit("tick")

        async with working(worker):
            tasks = [await server.task(assignMode=MODES[mode]) for _ in range(3)]
            for task in tasks:
                await becomes(server, task, "completed")
                assert await actions_of(server, task) == ["assigned"]


async def test_an_idle_worker_stays_known_where_only_the_timeout_was_made_shorter(
    mode: str,
) -> None:
    """The interval stays at its 30 s: nobody may have to keep silent for longer than is allowed."""
    async with start_server(config(heartbeat_timeout_ms=2500, disconnect_grace_ms=100)) as server:
        worker = worker_of(server.url, mode, heartbeat_s=None, worker_id="w")

        @worker.task()
        async def nothing(run: Run) -> None: ...

        async with working(worker):
            came = row_of(server, worker)

            def is_known_for_long() -> bool:
                row = row_of(server, worker)
                assert (row.status, row.connected_ms) == ("idle", came.connected_ms)
                return row.heartbeat_ms > came.heartbeat_ms + 3000

            await until(is_known_for_long)


async def test_a_worker_speaks_tls(mode: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(chain))
    issued.private_key_pem.write_to_path(str(key))
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    async with start_server(config(), certfile=str(chain), keyfile=str(key)) as server:
        worker = worker_of(server.url, mode, tls=tls)

        @worker.task()
        async def handler(run: Run) -> None:
            await run.emit("piece")

        async with working(worker):
            engine = server.runtime.engine
            task = await engine.create(CreateTask(assign_mode=MODES[mode]))  # type: ignore[arg-type]
            await becomes(server, task.id, "completed")


async def test_a_worker_whose_token_is_not_taken_raises(mode: str) -> None:
    auth = Auth(mode="jwt", jwt=Jwt(algorithm="HS256", secret=Secret(SECRET)))
    async with start_server(Config(auth=auth, workers=Workers(enabled=True))) as server:
        powerless = jwt.encode({"sub": "x", "scope": ["event:subscribe"]}, SECRET, "HS256")
        for token, error in ((None, Unauthorized), ("x.y.z", Unauthorized), (powerless, Forbidden)):
            worker = worker_of(server.url, mode, token=token)

            @worker.task()
            async def nothing(run: Run) -> None: ...

            with trio.fail_after(5), pytest.raises(error):
                await worker.run()
        scopes = ["worker:connect", "task:manage", "event:publish", "event:subscribe"]
        token = jwt.encode({"sub": "x", "scope": scopes, "workerId": "mine"}, SECRET, "HS256")
        maker = jwt.encode({"scope": ["task:create", "*"]}, SECRET, "HS256")
        server.client.headers["Authorization"] = f"Bearer {maker}"
        worker = worker_of(server.url, mode, token=token)

        @worker.task()
        async def answer(run: Run) -> dict[str, Any]:
            return {"answer": await run.block()}

        async with working(worker):
            task = await server.task(assignMode=MODES[mode])
            await becomes(server, task, "blocked")
            await server.client.post(f"/tasks/{task}/resolve", json={"data": 7})
            assert (await becomes(server, task, "completed"))["result"] == {"answer": 7}
            assert worker.id == "mine"


async def test_a_server_without_workers_is_told_apart_from_one_that_is_away(mode: str) -> None:
    async with start_server() as server:
        worker = worker_of(server.url, mode)

        @worker.task()
        async def nothing(run: Run) -> None: ...

        with trio.fail_after(5), pytest.raises(NotFound) as refused:
            await worker.run()
        assert server.url in str(refused.value)
        assert "--workers-api" in str(refused.value)


async def test_a_server_that_is_away_at_the_start_is_waited_for(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    worker = worker_of(f"http://127.0.0.1:{port}", mode)

    @worker.task()
    async def nothing(run: Run) -> None: ...

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await until(lambda: "waits for its server" in caplog.text)
        assert worker.id is None
        async with start_server(config(), port=port) as server:
            task = await server.task(assignMode=MODES[mode])
            await becomes(server, task, "completed")
            worker.stop()


@pytest.mark.parametrize("listens", [False, True])
async def test_a_worker_that_never_met_its_server_can_be_stopped(
    mode: str, listens: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is there, or somebody who never says a word."""
    relay = Relay(free_port())
    relay.through = False
    with trio.fail_after(3):
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            url = relay.url if listens else f"http://127.0.0.1:{free_port()}"
            worker = worker_of(url, mode)

            @worker.task()
            async def nothing(run: Run) -> None: ...

            async def stop() -> None:
                await until(lambda: relay.met.is_set() or "waits for its server" in caplog.text)
                worker.stop()

            async with trio.open_nursery() as inner:
                inner.start_soon(stop)
                await inner.start(worker.run)
            nursery.cancel_scope.cancel()
