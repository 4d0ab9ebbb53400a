"""An engine whose webhooks go to receivers in memory, for the autojump clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio
from msgspec import Raw

from taskcast_trio.config import Config
from taskcast_trio.core.addresses import AddressPolicy
from taskcast_trio.core.model import CreateTask, Draft
from taskcast_trio.engine import Runtime, open_runtime
from taskcast_trio.engine.webhooks import Dialer, Look
from taskcast_trio.engine.webhooks.state import RETRY, WEBHOOK, Kept
from taskcast_trio.storage.records import PARKED_MS
from tests.receiver import MemoryNetwork, Received, Receiver, Script, Wire, answering

from .support import raw

START_MS = 1_700_000_000_000
EVERYWHERE = AddressPolicy(allow_private=True)


def clock() -> int:
    """Unix ms on Trio's clock."""
    return START_MS + round(trio.current_time() * 1000)


async def resolve(host: str, port: int) -> list[str]:
    await trio.lowlevel.checkpoint()
    return [host] if host[0].isdigit() else ["10.0.0.9"]


@dataclass
class Hook:
    """A receiver at an address of its own, and what it was sent, with the times in s."""

    receiver: Receiver
    tries: list[tuple[float, int]] = field(default_factory=list)
    """When the index of which event was sent."""

    @property
    def indexes(self) -> list[int]:
        return [index for _, index in self.tries]

    @property
    def requests(self) -> list[Received]:
        return self.receiver.requests


def hook(*scripts: Script) -> Hook:
    """The first script answers the first request, and the last one all that come after."""
    made = Hook(Receiver([]))

    def noting(script: Script) -> Script:
        async def note(request: Received, wire: Wire) -> bool | None:
            body = msgspec.json.decode(request.body)
            index = body["rawIndex"] if "rawIndex" in body else body["index"]
            made.tries.append((round(trio.current_time(), 3), index))
            return await script(request, wire)

        return note

    made.receiver.scripts += [noting(script) for script in scripts or (answering(204),)]
    return made


class Held:
    """Holds back the answer of the next call of a step that ``is_meant``, once it was done."""

    def __init__(self, store: Any, step: str, is_meant: Callable[..., bool]) -> None:
        self.reached = trio.Event()
        self.go_on = trio.Event()
        real = getattr(store, step)

        async def held(*args: Any, **options: Any) -> Any:
            answer = await real(*args, **options)
            if is_meant(*args, **options) and not self.reached.is_set():
                self.reached.set()
                await self.go_on.wait()
            return answer

        setattr(store, step, held)


@asynccontextmanager
async def delivering(
    hooks: dict[str, Hook],
    config: Config | None = None,
    *,
    jitter: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Runtime]:
    """A runtime on the memory store; hooks by their addresses."""
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(nursery, {at: hook.receiver for at, hook in hooks.items()})
        dialer = Dialer(EVERYWHERE, resolve=resolve, network=network)
        async with open_runtime(config, clock=clock, jitter=jitter, dialer=dialer) as runtime:
            yield runtime
        nursery.cancel_scope.cancel()


def definition(at: str = "10.0.0.1", **fields: Any) -> Raw:
    return raw({"url": f"http://{at}/hook", **fields})


async def create(runtime: Runtime, *webhooks: Raw, id_: str = "t") -> None:
    await runtime.engine.create(CreateTask(id=id_, webhooks=list(webhooks)))


async def publish(runtime: Runtime, *types: str, id_: str = "t", **fields: Any) -> None:
    drafts = [Draft(type=type_, level="info", **fields) for type_ in types]
    await runtime.engine.publish(id_, drafts)


async def looks(runtime: Runtime, id_: str = "t") -> list[Look]:
    return await runtime.webhooks.look(await runtime.engine.record(id_))


async def look(runtime: Runtime, number: int = 0) -> Kept:
    found = (await looks(runtime))[number].kept
    assert found is not None
    return found


async def timers(runtime: Runtime) -> dict[str, int | str | None]:
    """When the first timer of each kind of webhooks is due, in s."""
    found: dict[str, int | str | None] = {}
    for kind in (WEBHOOK, RETRY):
        due_ms = await runtime.backend.store.next_due(kind)
        found[kind] = "parked" if due_ms == PARKED_MS else due_ms
    return found


PARKED = {WEBHOOK: "parked", RETRY: None}
CLEARED = {WEBHOOK: None, RETRY: None}
