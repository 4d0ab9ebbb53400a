"""Ways to follow an engine in a test, and shorthands for what a test reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import trio
from msgspec import UNSET, Raw

from taskcast_trio import TaskEngine
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.model import CreateTask, Status, Task, Transition
from taskcast_trio.engine import Delivery, Done, FollowAll, Gap, Subscription
from taskcast_trio.engine.items import Item


def raw(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))


def value(entry: Entry) -> Any:
    data = entry.event.data
    return UNSET if data is UNSET else msgspec.json.decode(bytes(data))


async def create(engine: TaskEngine, id_: str = "t") -> Task:
    return await engine.create(CreateTask(id=id_))


async def move(engine: TaskEngine, *statuses: Status, id_: str = "t") -> Task:
    for status in statuses:
        task = await engine.transition(id_, Transition(status=status))
    return task


async def drain(subscription: Subscription) -> list[Item]:
    """Everything that comes until nothing more does; an autojump clock makes it take no time."""
    items: list[Item] = []
    with trio.move_on_after(1):
        while True:
            try:
                items += await subscription.receive()
            except trio.EndOfChannel:
                break
    return items


async def drain_all(events: FollowAll) -> list[Entry]:
    entries: list[Entry] = []
    with trio.move_on_after(1):
        while True:
            entries += await events.receive()
    return entries


async def follow(engine: TaskEngine, follow_: Any = None, id_: str = "t") -> list[Item]:
    """What a subscription that joins now gets, up to the present."""
    async with engine.subscribe(id_, follow_) as subscription:
        return await drain(subscription)


def brief(items: Sequence[Item]) -> list[Any]:
    """A list to compare: the raw index of each delivery, and what is no delivery as it is."""
    return [item.entry.index if isinstance(item, Delivery) else item for item in items]


def entries(items: Sequence[Item]) -> list[Entry]:
    return [item.entry for item in items if isinstance(item, Delivery)]


def numbers(items: Sequence[Item]) -> list[int]:
    return [item.filtered_index for item in items if isinstance(item, Delivery)]


__all__ = [
    "Delivery",
    "Done",
    "Gap",
    "brief",
    "create",
    "drain",
    "drain_all",
    "entries",
    "follow",
    "move",
    "numbers",
    "raw",
    "value",
]
