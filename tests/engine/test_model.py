"""The engine against a ten-line model, under random commands: hypothesis looks for a way to tell
them apart.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskcast_trio import TaskEngine
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import InvalidTransition, TaskEnded
from taskcast_trio.core.machine import MOVES
from taskcast_trio.core.model import TERMINAL, Draft, SeriesMode, Status, Transition
from taskcast_trio.engine import Follow, HistoryQuery, Subscription
from taskcast_trio.testing import open_test_runtime, run_with_seed

from ..follower import Client, check, draft, expected_texts, latest, piece, text_of
from .support import create, drain

Change: TypeAlias = tuple[str, str, str]


class Model:
    """What a task is, in ten lines: a status, a list of events, and a text for each series."""

    def __init__(self) -> None:
        self.status, self.events, self.texts = "pending", list[Change](), dict[str, str]()

    def publish(self, changes: list[Change]) -> bool:
        if self.status in TERMINAL:
            return False
        for mode, series, text in changes:
            kept = self.texts.get(series, "") if mode == "accumulate" else ""
            self.texts |= {series: kept + text} if mode != "keep-all" else {}
            self.events.append((mode, series, text))
        return True

    def move(self, status: str) -> bool:
        if status not in MOVES[self.status]:
            return False
        self.status = status
        self.events.append(("keep-all", "", status))
        return True


def to_draft(change: Change) -> Draft:
    mode, series, text = change
    make: dict[str, Any] = {"accumulate": piece, "latest": latest}
    return make[mode](text, series) if mode in make else draft({"delta": text})


@dataclass
class Follower:
    client: Client
    subscription: Subscription
    leave: AsyncExitStack


@dataclass
class World:
    """The engine and the model side by side, with the followers that are connected and those that
    left.
    """

    engine: TaskEngine
    model: Model = field(default_factory=Model)
    log: list[Entry] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
    away: list[Client] = field(default_factory=list)

    async def publish(self, changes: list[Change]) -> None:
        drafts = [to_draft(change) for change in changes]
        if self.model.publish(changes):
            self.log += await self.engine.publish("t", drafts)
        else:
            with pytest.raises(TaskEnded):
                await self.engine.publish("t", drafts)

    async def move(self, status: Status) -> None:
        change = Transition(status=status)
        if self.model.move(status):
            await self.engine.transition("t", change)
            page = await self.engine.store.read("t", after=len(self.log) - 1, limit=10)
            self.log += page.entries
        else:
            with pytest.raises(InvalidTransition):
                await self.engine.transition("t", change)

    async def join(self, accumulated: bool) -> None:
        await self._connect(Client(accumulated=accumulated))

    async def resume(self, which: int) -> None:
        if self.away:
            await self._connect(self.away.pop(which % len(self.away)))

    async def _connect(self, client: Client) -> None:
        client.connected()
        follow = Follow(accumulated=client.accumulated, last_event_id=client.last_event_id)
        leave = AsyncExitStack()
        subscription = await leave.enter_async_context(self.engine.subscribe("t", follow))
        self.followers.append(Follower(client, subscription, leave))

    async def receive(self, which: int) -> None:
        """One step of one follower, or none where nothing waits for it."""
        if self.followers:
            follower = self.followers[which % len(self.followers)]
            if follower.client.done is None and follower.client.cursor_index < len(self.log) - 1:
                follower.client.take(await follower.subscription.receive())

    async def drop(self, which: int) -> None:
        if self.followers:
            follower = self.followers.pop(which % len(self.followers))
            await follower.leave.aclose()
            self.away.append(follower.client)

    async def settle(self) -> None:
        """Everyone comes back and reads on, and all is as the model says."""
        while self.away:
            await self.resume(0)
        history = await self.engine.history("t", HistoryQuery())
        stored = [event.index async for page in history.pages() for event in page]
        assert len(self.log) == len(self.model.events)
        assert [text_of_event(entry) for entry in self.log] == [e[2] for e in self.model.events]
        assert (await self.engine.get("t")).status == self.model.status
        values = (await self.engine.snapshot("t")).values
        assert {series: text_of(entry) for series, entry in values.items()} == self.model.texts
        assert expected_texts(self.log) == self.model.texts
        replaced = {
            before.index
            for entry in self.log
            if entry.event.series_mode == "latest"
            for before in self.log[: entry.index]
            if before.place == entry.place
        }
        assert sorted(stored) == [e.index for e in self.log if e.index not in replaced]
        for follower in self.followers:
            follower.client.take(await drain(follower.subscription))
            check(follower.client, self.log, stored)
            ended = self.model.status if self.model.status in TERMINAL else None
            assert follower.client.done == ended
            await follower.leave.aclose()


def text_of_event(entry: Entry) -> str:
    data = msgspec.json.decode(bytes(entry.event.data))  # type: ignore[arg-type]
    text: str = data.get("delta", data.get("status"))
    return text


modes: list[SeriesMode] = ["keep-all", "accumulate", "latest"]
changes = st.tuples(st.sampled_from(modes), st.sampled_from("rs"), st.text("abc", max_size=2))
numbers = st.integers(0, 5)
commands = st.one_of(
    st.tuples(st.just("publish"), st.lists(changes, min_size=1, max_size=4)),
    st.tuples(st.just("publish"), st.lists(changes, min_size=1, max_size=2)),
    st.tuples(st.just("move"), st.sampled_from(["running", "paused", "completed", "failed"])),
    st.tuples(st.just("join"), st.booleans()),
    st.tuples(st.just("receive"), numbers),
    st.tuples(st.just("drop"), numbers),
    st.tuples(st.just("resume"), numbers),
)


async def play(script: list[tuple[str, Any]], inbox_commits: int) -> None:
    async with open_test_runtime(inbox_commits=inbox_commits) as runtime:
        world = World(runtime.engine)
        await create(world.engine)
        for command, argument in script:
            await getattr(world, command)(argument)
        await world.settle()


@settings(max_examples=150, deadline=None)
@given(script=st.lists(commands, max_size=30), inbox_commits=st.sampled_from([1, 2, 64]))
def test_whatever_is_done_the_engine_and_its_followers_agree_with_the_model(script, inbox_commits):
    run_with_seed(partial(play, script, inbox_commits), seed=0)
