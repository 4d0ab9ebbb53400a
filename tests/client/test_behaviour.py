"""What the clients promise, each of them: on Trio, on asyncio, and without an event loop, against a
real server.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx
import jwt
import pytest
from msgspec import Raw

from taskcast_trio.client import (
    AsyncTaskcastClient,
    BadRequest,
    Conflict,
    EventsLost,
    Gap,
    InvalidTransition,
    ServerUnavailable,
    TaskEnded,
    TaskExists,
    TaskNotFound,
    Unauthorized,
    draft,
    value,
)
from taskcast_trio.core.errors import (
    NotBlocked,
    RequestNotFound,
    SeqGap,
    TokenRevoked,
    WebhookNotFound,
    WorkerNotFound,
)
from taskcast_trio.core.model import BlockedRequest

from .fault_proxy import Fault, fault_proxy
from .flavours import NAMES, Flavour, assembled
from .real_server import running_server

SECRET = "a secret of the tests, and long enough"
EPOCH = datetime.fromtimestamp(0, UTC)
ADMIN = "the admin token of the tests"


@pytest.fixture(params=NAMES)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return Flavour(request.param)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server("--workers-api", "--sse-retry-ms", "1") as url:
        yield url


def json_of(data: Any) -> Raw:
    """JSON text with halves of an emoji, as senders in JavaScript write them."""
    return Raw(json.dumps(data).encode())


def test_a_task_from_its_creation_to_its_removal(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create(type="llm", params={"a": 1}, tags=["x"], ttl=60)
        assert (task.status, value(task.params), task.tags) == ("pending", {"a": 1}, ["x"])
        await client.transition(task.id, "running")
        event = await client.publish(task.id, "note", {"n": 1})
        assert (event.type, value(event.data)) == ("note", {"n": 1})
        many = await client.publish_many(task.id, [draft("a"), draft("b", None, level="warn")])
        assert [each.index for each in many] == [event.index + 1, event.index + 2]
        ended = await client.transition(task.id, "completed", result={"ok": True})
        assert ended.terminal
        view = await client.get(task.id)
        assert (view.status, value(view.result)) == ("completed", {"ok": True})
        log = await client.history(task.id)
        status = "taskcast:status"
        assert [each.type for each in log] == [status, "note", "a", "b", status]
        await client.delete(task.id)
        with pytest.raises(TaskNotFound):
            await client.get(task.id)

    flavour.play(url, scenario)


def test_refusals_say_what_the_server_said(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create()
        with pytest.raises(TaskExists) as exists:
            await client.create(id=task.id)
        assert (exists.value.status, exists.value.code) == (409, "task_exists")
        assert json.loads(exists.value.body) == {"error": str(exists.value), "code": "task_exists"}
        with pytest.raises(Conflict):
            await client.transition(task.id, "completed")
        with pytest.raises(BadRequest):
            await client.create(ttl=-1)
        await client.transition(task.id, "cancelled")
        with pytest.raises(TaskEnded):
            await client.publish(task.id, "late")
        with pytest.raises(InvalidTransition):
            await client.transition(task.id, "running")
        with pytest.raises(TaskNotFound) as missing:
            async with client.subscribe("no-such-task"):
                pass
        assert missing.value.task_id == "no-such-task"

    flavour.play(url, scenario)


def test_lists_by_status_and_type_page_by_page(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        kind = f"list.{flavour.name}"
        made = [await client.create(type=kind) for _ in range(5)]
        await client.transition(made[0].id, "running")
        await client.transition(made[1].id, "cancelled")
        ids = [task.id for task in made]
        assert [task.id for task in await client.list(type=kind)] == ids
        page = await client.list(type=kind, after=ids[1], limit=2)
        assert [task.id for task in page] == ids[2:4]
        found = await client.list(type=kind, status=["running", "cancelled"])
        assert [task.id for task in found] == ids[:2]
        assert [task.id for task in await client.list(type=kind, status="running")] == ids[:1]

    flavour.play(url, scenario)


def test_history_from_any_place_and_snapshots(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create()
        pieces = [
            draft("d", {"delta": text}, series="s", mode="accumulate") for text in ("a", "b", "c")
        ]
        stored = await client.publish_many(task.id, [draft("x", level="error"), *pieces])
        assert await client.history(task.id, since=stored[1].id) == stored[2:]
        assert await client.history(task.id, since=1) == stored[2:]
        assert await client.history(task.id, since=0, limit=1) == stored[1:2]
        assert await client.history(task.id, since=datetime.now(UTC)) == []
        assert await client.history(task.id, levels=["error"]) == stored[:1]
        assert await client.history(task.id, types=["d"]) == stored[1:]
        snapshot = await client.snapshot(task.id)
        assert [value(each.data) for each in snapshot[1:]] == [{"delta": "abc"}]

    flavour.play(url, scenario)


def test_an_archive_can_be_stored_again(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create(type="kept")
        await client.publish(task.id, "note", {"n": 1})
        archive = await client.archive(task.id)
        with pytest.raises(TaskExists):
            await client.restore(archive)
        await client.delete(task.id)
        imported = await client.restore(archive)
        assert (imported.task_id, imported.event_count) == (task.id, 1)
        assert [each.type for each in await client.history(task.id)] == ["note"]
        assert (await client.restore(archive, overwrite=True)).overwritten

    flavour.play(url, scenario)


def test_a_blocked_task_is_asked_and_answered(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create()
        with pytest.raises(RequestNotFound):
            await client.request(task.id)
        with pytest.raises(NotBlocked):
            await client.resolve(task.id, True)
        await client.transition(task.id, "running")
        asked = BlockedRequest(type="approval", data=draft("", {"cost": 3}).data)
        await client.transition(task.id, "blocked", blocked_request=asked)
        request = await client.request(task.id, wait_s=5)
        assert (request.type, value(request.data)) == ("approval", {"cost": 3})
        assert (await client.resolve(task.id, {"ok": True})).status == "running"

    flavour.play(url, scenario)


def test_webhooks_workers_tickets_and_the_server_itself(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create(webhooks=[{"url": "https://192.0.2.1/hook"}])
        (webhook,) = await client.webhooks(task.id)
        assert webhook.number == 0
        assert (await client.deliveries(task.id)).dead_letters == []
        await client.redeliver(task.id, from_index=0)
        with pytest.raises(WebhookNotFound):
            await client.deliveries(task.id, 1)
        assert await client.workers() == []
        for ask in (client.worker, client.delete_worker):
            with pytest.raises(WorkerNotFound):
                await ask("nobody")
        with pytest.raises(WorkerNotFound):
            await client.set_worker_status("nobody", "draining")
        ticket = await client.ticket([task.id], ttl_s=30)
        assert ticket.ticket.startswith("tkt_")
        assert (await client.ping()).name == "taskcast-trio"
        assert (await client.health()).ok
        assert (await client.ready()).ok

    flavour.play(url, scenario)


def test_a_subscription_brings_what_was_asked_for_and_ends(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create()
        await client.transition(task.id, "running")
        for number in range(4):
            await client.publish(task.id, f"n.{number % 2}", number)
        await client.transition(task.id, "completed")
        async with client.subscribe(task.id, types=["n.1"]) as stream:
            items = [item async for item in stream]
            assert stream.done == "completed"
        assert [value(item.data) for item in items] == [1, 3]
        first = items[0].event_id
        for place in ("since", "last_event_id"):
            options: Any = {place: first}
            async with client.subscribe(task.id, types=["n.*"], **options) as stream:
                rest = [value(item.data) async for item in stream]
            assert rest == [2, 3]
        async with client.subscribe(task.id, since=datetime.now(UTC)) as stream:
            assert [item async for item in stream] == []

    flavour.play(url, scenario)


def test_a_subscription_is_iterated_inside_of_its_context(flavour: Flavour, url: str) -> None:
    """Elsewhere nobody would close its connections."""

    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create()
        stream = client.subscribe(task.id)
        with pytest.raises(RuntimeError, match=r"async with client\.subscribe"):
            await anext(stream)
        async with stream:
            with pytest.raises(RuntimeError, match="once"):
                await stream.__aenter__()
        with pytest.raises(RuntimeError, match="inside of its context"):
            await anext(stream)

    flavour.play(url, scenario)


def test_texts_are_assembled_whatever_the_format(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        async with client.run(type="llm") as run:
            for piece in ("Hello", ", ", "world", " \ud83d", "\ude00"):
                await run.emit("d", json_of({"delta": piece}), series="a", mode="accumulate")
            await run.emit("p", {"delta": "50 %"}, series="progress", mode="latest")
            await run.emit("p", {"delta": "99 %"}, series="progress", mode="latest")
        whole = {"a": "Hello, world \U0001f600", "progress": "99 %"}
        every: list[dict[str, Any]] = [{}, {"series_format": "accumulated"}, {"since": EPOCH}]
        for options in every:
            async with client.subscribe(run.id, **options) as stream:
                assembly = assembled(stream)
                printed = "".join(
                    [update.added async for update in assembly if update.series == "a"]
                )
            assert printed == whole["a"]
            assert dict(assembly.texts.all) == whole

    flavour.play(url, scenario)


def test_a_run_is_running_then_completed_with_its_result(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create(type="work")
        async with client.run(task.id) as run:
            assert (await client.get(task.id)).status == "running"
            for number in range(1200):
                await run.emit("n", number)
            await run.flush()
            assert len(await client.history(task.id, types=["n"])) == 1200
            await run.emit("n", 1200)
            run.result = {"n": 1201}
        view = await client.get(task.id)
        assert (view.status, value(view.result)) == ("completed", {"n": 1201})
        log = await client.history(task.id, types=["n"])
        assert [value(event.data) for event in log] == list(range(1201))
        with pytest.raises(RuntimeError):
            await run.emit("late")

    flavour.play(url, scenario)


def test_a_run_that_raises_is_failed_with_what_it_emitted(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        with pytest.raises(ZeroDivisionError):
            async with client.run(type="work") as run:
                await run.emit("before")
                raise ZeroDivisionError("by nothing")
        view = await client.get(run.id)
        assert (view.status, view.error.code, view.error.message) == (  # type: ignore[union-attr]
            "failed",
            "ZeroDivisionError",
            "by nothing",
        )
        assert [e.type for e in await client.history(run.id, include_status=False)] == ["before"]

    flavour.play(url, scenario)


def test_a_run_that_is_interrupted_is_cancelled(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        if flavour.is_async:
            with anyio.CancelScope() as scope:
                async with client.run(type="work") as run:
                    await run.emit("before")
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
        else:
            with pytest.raises(KeyboardInterrupt):
                async with client.run(type="work") as run:
                    await run.emit("before")
                    raise KeyboardInterrupt
        assert (await client.get(run.id)).status == "cancelled"
        assert [e.type for e in await client.history(run.id, include_status=False)] == ["before"]

    flavour.play(url, scenario)


def test_a_run_learns_that_somebody_else_has_ended_its_task(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        with pytest.raises(TaskEnded):
            async with client.run(type="work") as run:
                await client.transition(run.id, "cancelled", reason="by hand")
                await run.emit("too late")
                await run.flush()
        assert (await client.get(run.id)).status == "cancelled"
        with pytest.raises(InvalidTransition):
            async with client.run(run.id):
                pass

    flavour.play(url, scenario)


def test_no_server_is_told_after_a_few_tries(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        with pytest.raises(ServerUnavailable) as caught:
            await client.ping()
        assert not caught.value.sent

    flavour.play("http://127.0.0.1:9", scenario)


def test_a_lost_answer_does_not_write_twice(flavour: Flavour, url: str) -> None:
    """The client makes the key with which the second try is known."""

    def plan(number: int) -> Fault:
        """Each connection brings one answer, and loses the next: so each is lost once."""
        return Fault(swallow=min(number, 1))

    async def scenario(client: AsyncTaskcastClient) -> None:
        kind = f"lost.{flavour.name}"
        task = await client.create(type=kind)
        assert [each.id for each in await client.list(type=kind)] == [task.id]
        await client.publish(task.id, "once")
        await client.publish_many(task.id, [draft("a"), draft("b")])
        await client.transition(task.id, "running")
        types = [event.type for event in await client.history(task.id)]
        assert types == ["once", "a", "b", "taskcast:status"]
        await client.delete(task.id)

    with fault_proxy(url, plan) as proxy:
        flavour.play(proxy.url, scenario)
        assert proxy.cuts == 7


@pytest.fixture(scope="module")
def brisk() -> Iterator[str]:
    """A server that is never silent for longer than half a second."""
    with running_server("--sse-keepalive-seconds", "0.5", "--sse-retry-ms", "1") as url:
        yield url


@pytest.mark.parametrize("asked", [{"stall_s": 0.1}, {}], ids=["asked", "told"])
def test_a_silent_connection_is_replaced(
    flavour: Flavour, brisk: str, asked: dict[str, Any]
) -> None:
    """After the time that was asked for, or after two of the keepalives that the server tells of:
    a second, not thirty.
    """

    def plan(number: int) -> Fault:
        return Fault(silent_after=700) if number == 0 else Fault()

    made: list[str] = []

    async def publish(client: AsyncTaskcastClient) -> None:
        async with client.run(type="work") as run:
            for number in range(20):
                await run.emit("n", number)
        made.append(run.id)

    async def scenario(client: AsyncTaskcastClient) -> None:
        began = time.monotonic()
        async with client.subscribe(made[0], types=["n"], **asked) as stream:
            assert [value(i.data) async for i in stream] == list(range(20))
            assert stream.reconnects >= 1
        assert time.monotonic() - began < 20

    flavour.play(brisk, publish)
    with fault_proxy(brisk, plan) as proxy:
        flavour.play(proxy.url, scenario)


def test_a_log_that_was_lost_is_raised_and_assembled_anew(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create()
        piece: Any = {"series": "a", "mode": "accumulate"}
        lost = await client.publish(task.id, "d", {"delta": "old"}, **piece)
        await client.delete(task.id)
        await client.create(id=task.id)
        await client.publish(task.id, "d", {"delta": "new"}, **piece)
        await client.transition(task.id, "cancelled")

        async with client.subscribe(task.id, types=["d"], last_event_id=lost.id) as stream:
            with pytest.raises(EventsLost) as told:
                await anext(stream)
            assert (told.value.reason, told.value.replayed_from) == ("unknown_cursor", 0)
            assert (told.value.last_event_id, told.value.task_id) == (lost.id, task.id)
            assert [value(item.data) async for item in stream] == [{"delta": "new"}]
            assert stream.done == "cancelled"

        both = client.subscribe(task.id, types=["d"], last_event_id=lost.id, gaps="deliver")
        async with both as stream:
            items = [item async for item in stream]
        assert items[0] == Gap(reason="unknown_cursor", replayed_from=0)
        assert len(items) == 2

        async with client.subscribe(task.id, last_event_id=lost.id) as stream:
            assembly = assembled(stream)
            assert [update.text async for update in assembly] == ["new"]
            assert [gap.reason for gap in stream.gaps] == ["unknown_cursor"]

    flavour.play(url, scenario)


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """A server that wants tokens."""
    options = ["--auth-mode", "jwt", "--auth-jwt-secret", SECRET, "--sse-retry-ms", "1"]
    with running_server(*options, "--admin-api", "--admin-token", ADMIN) as url:
        yield url


class Tokens:
    """Gives a token after the other, and takes them back."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.given: list[str] = []

    def __call__(self) -> str:
        self.given.append(secrets.token_hex(8))  # the server outlives this, and keeps what it took
        claims = {"sub": "tests", "jti": self.given[-1], "scope": ["*"], "taskIds": "*"}
        return jwt.encode(claims, SECRET, "HS256")

    def revoke(self) -> None:
        """Make the newest token one that the server takes no more."""
        body = {"adminToken": ADMIN, "jti": self.given[-1]}
        httpx.post(f"{self.url}/admin/revoke", json=body).raise_for_status()


def test_a_token_that_is_over_is_renewed(flavour: Flavour, guarded: str) -> None:
    tokens = Tokens(guarded)

    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create()
        await client.publish(task.id, "n", 0)
        async with client.subscribe(task.id) as stream:
            await anext(stream)
            tokens.revoke()
            await client.publish(task.id, "n", 1)
            await client.transition(task.id, "cancelled")
            rest = [item.type async for item in stream]
        assert rest == ["n", "taskcast:status"]
        assert len(tokens.given) == 2

    flavour.play(guarded, scenario, token=tokens)


def test_a_token_that_cannot_be_renewed_is_raised(flavour: Flavour, guarded: str) -> None:
    tokens = Tokens(guarded)

    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create()
        await client.publish(task.id, "n", 0)
        async with client.subscribe(task.id) as stream:
            await anext(stream)
            tokens.revoke()
            with pytest.raises(TokenRevoked):
                await anext(stream)
        with pytest.raises(Unauthorized):
            await client.get(task.id)

    flavour.play(guarded, scenario, token=tokens())


def test_a_publisher_goes_on_where_it_stopped(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        task = await client.create()
        async with client.publisher(task.id) as first:
            await first.emit("n", 0)
            await first.emit("n", 1)
        async with client.publisher(task.id, client_id=first.client_id) as second:
            await second.emit("n", 2)
        state = await client.expected_seq(task.id, first.client_id)
        assert (state.client_id, state.expected_seq) == (first.client_id, 3)
        log = await client.history(task.id)
        assert [(value(e.data), e.client_seq) for e in log] == [(0, 0), (1, 1), (2, 2)]
        again = await client.publish(task.id, "n", 2, client_id=first.client_id, client_seq=2)
        assert again == log[2]
        ahead = {"client_id": first.client_id, "client_seq": 9, "seq_mode": "fast-fail"}
        with pytest.raises(SeqGap) as gap:
            await client.publish(task.id, "n", 9, **ahead)  # type: ignore[arg-type]
        assert gap.value.facts == {"expectedSeq": 3}

    flavour.play(url, scenario)


def test_all_tasks_are_followed(flavour: Flavour, url: str) -> None:
    async def scenario(client: AsyncTaskcastClient) -> None:
        kind = f"all.{flavour.name}"
        before = await client.create()
        async with client.subscribe_all(types=[kind]) as stream:
            after = await client.create()
            await client.publish(before.id, kind, 1)
            await client.publish(after.id, kind, 2)
            items = [await anext(stream), await anext(stream)]
        told = [(item.task_id, value(item.data)) for item in items]
        assert told == [(before.id, 1), (after.id, 2)]

    flavour.play(url, scenario)
