"""What a type checker knows of the clients: mypy reads the functions, which nobody runs; and what
help() shows.
"""

from __future__ import annotations

from inspect import signature
from typing import assert_type

from taskcast_trio.client import (
    AsyncTaskcastClient,
    Received,
    Run,
    Subscription,
    SyncRun,
    SyncSubscription,
    TaskcastClient,
    Update,
    assemble,
)
from taskcast_trio.core.model import BlockedRequest, Envelope, Event, Task, TaskView
from taskcast_trio.core.views import Health, Ticket, WebhookView, Worker


async def asynchronous(client: AsyncTaskcastClient) -> None:
    assert_type(await client.create(type="x", ttl=3), Task)
    assert_type(await client.get("t"), TaskView)
    assert_type(await client.list(status="running"), list[TaskView])
    assert_type(await client.publish("t", "n", level="warn"), Event)
    assert_type(await client.history("t", since=3), list[Event])
    assert_type(await client.request("t", wait_s=1), BlockedRequest)
    assert_type(await client.workers(), list[Worker])
    assert_type(await client.webhooks("t"), list[WebhookView])
    assert_type(await client.ticket(["t"]), Ticket)
    assert_type(await client.ping(), Health)
    assert_type(client.subscribe("t", types=["a"]), Subscription[Envelope])
    assert_type(client.subscribe("t", gaps="deliver"), Subscription[Received])
    assert_type(client.subscribe_all(gaps="raise"), Subscription[Envelope])
    assert_type(client.run(type="x"), Run)
    async with client.subscribe("t") as stream:
        assert_type(await anext(stream), Envelope)
        assert_type(await stream.receive(), Received | None)
        async for update in assemble(stream):
            assert_type(update, Update)
    await client.get()  # type: ignore[call-arg]
    await client.publish("t", "n", level="loud")  # type: ignore[arg-type]


def synchronous(client: TaskcastClient) -> None:
    assert_type(client.create(type="x", ttl=3), Task)
    assert_type(client.list(), list[TaskView])
    assert_type(client.publish("t", "n"), Event)
    assert_type(client.subscribe("t"), SyncSubscription[Envelope])
    assert_type(client.subscribe_all(gaps="deliver"), SyncSubscription[Received])
    assert_type(client.run("t"), SyncRun)
    with client.subscribe("t") as stream:
        for item in stream:
            assert_type(item, Envelope)
        for update in assemble(stream):
            assert_type(update, Update)


def test_help_shows_what_a_method_takes_and_gives() -> None:
    def told(method: object) -> str:
        return str(signature(method).return_annotation)  # type: ignore[arg-type]

    assert told(AsyncTaskcastClient.list) == told(TaskcastClient.list) == "list[TaskView]"
    assert told(AsyncTaskcastClient.run) == "Run"
    assert told(TaskcastClient.run) == "SyncRun"
    assert told(AsyncTaskcastClient.publisher) == "Publisher"
    assert told(TaskcastClient.subscribe) == "SyncSubscription"
    assert [*signature(TaskcastClient.get).parameters] == ["self", "task_id"]


def test_both_have_the_same_methods() -> None:
    def methods(client: type) -> set[str]:
        return {name for name in vars(client) if not name.startswith("_")}

    assert methods(AsyncTaskcastClient) == methods(TaskcastClient)
