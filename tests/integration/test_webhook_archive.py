"""Webhooks of tasks that move to the archive and back: nothing that is owed is lost by it."""

from __future__ import annotations

import msgspec
import pytest
import trio

from taskcast_trio.core.errors import TaskArchived
from taskcast_trio.core.model import CreateTask, Draft, Transition
from taskcast_trio.engine import Runtime
from taskcast_trio.engine.webhooks.state import WEBHOOK
from taskcast_trio.storage.records import PARKED_MS
from tests.receiver import Received, Wire, answering, receiving

from ..engine.support import raw
from ..engine.webhook_support import Held
from .test_archive import archived, config, opened


async def end(runtime: Runtime, id_: str) -> None:
    await runtime.engine.transition(id_, Transition(status="cancelled"))


async def released(runtime: Runtime, id_: str) -> None:
    while await runtime.backend.store.get(id_) is not None:
        await trio.lowlevel.checkpoint()


async def test_a_task_that_owes_something_does_not_leave(postgres_url: str) -> None:
    may_end = trio.Event()

    async def slow(_: Received, wire: Wire) -> None:
        await may_end.wait()
        await wire.answer(204)

    async with (
        receiving(slow) as receiver,
        receiving() as fast,
        opened(config(postgres_url, keep_s=0.05)) as runtime,
    ):
        for id_, to in (("owing", receiver.url()), ("paid", fast.url(host="localhost"))):
            await runtime.engine.create(CreateTask(id=id_, webhooks=[raw({"url": to})]))
            await end(runtime, id_)
        await archived(runtime)
        while runtime.webhooks.workers > 1:
            await trio.lowlevel.checkpoint()
        store = runtime.backend.store
        await store.set_timer("paid", "release", 0)
        runtime.archiver._releases.notify(0)  # type: ignore[union-attr]
        await released(runtime, "paid")
        release = Held(store, "release", lambda *_, **__: True)
        await store.set_timer("owing", "release", 0)
        runtime.archiver._releases.notify(0)  # type: ignore[union-attr]
        await release.reached.wait()
        release.go_on.set()
        assert await store.get("owing") is not None
        may_end.set()
        while await store.next_due(WEBHOOK) is not None:
            await trio.lowlevel.checkpoint()
        await store.set_timer("owing", "release", 0)
        runtime.archiver._releases.notify(0)  # type: ignore[union-attr]
        await released(runtime, "owing")
        assert len(receiver.requests) == 1
        (look,) = await runtime.webhooks.look(await runtime.engine.record("owing"))
        assert look.kept is None
        with pytest.raises(TaskArchived):
            await runtime.webhooks.redeliver("owing", 0)


async def test_a_task_of_before_goes_on_behind_what_was_archived(postgres_url: str) -> None:
    async with receiving(answering(204)) as receiver:
        webhook = raw({"url": receiver.url(), "wrap": True, "filter": {"types": ["a"]}})
        events = [Draft(type=type_, level="info") for type_ in "aba"]
        async with opened(config(postgres_url)) as runtime:
            await runtime.engine.create(CreateTask(id="t", webhooks=[webhook]))
            await runtime.engine.publish("t", events)
            await archived(runtime)
            while len(receiver.requests) < 2:
                await trio.lowlevel.checkpoint()
        async with opened(config(postgres_url)) as runtime:
            await runtime.engine.publish("t", events)
            while await runtime.backend.store.next_due(WEBHOOK) != PARKED_MS:
                await trio.lowlevel.checkpoint()
        bodies = [msgspec.json.decode(request.body) for request in receiver.requests]
        numbers = [(body["rawIndex"], body["filteredIndex"]) for body in bodies]
        assert numbers == [(0, 0), (2, 1), (3, 2), (5, 3)]
