"""Redis against the memory store: hypothesis looks for steps that they answer differently."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from taskcast_trio.core.model import Draft
from taskcast_trio.storage.memory import MemoryBackend
from taskcast_trio.storage.redis import RedisBackend, open_redis

from ..support import DAY, NOW, Announced, latest, piece
from ..test_sqlite_model import all_timers, commands, outcome, plain, state, step_of, trims
from .server import new_prefix, redis_url


class World:
    """Both stores, each with who listens to it; the steps on Redis come from one process after
    another.
    """

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._prefix = new_prefix()
        self.memory = MemoryBackend()
        self.memory_told, self.told = Announced(), Announced()

    async def open(self) -> RedisBackend:
        return await self._stack.enter_async_context(open_redis(redis_url(), prefix=self._prefix))

    async def _listen(self, backend: Any, sink: Announced) -> None:
        nursery = await self._stack.enter_async_context(trio.open_nursery())
        backend.broadcast.attached(None)
        await nursery.start(backend.broadcast.run, sink)
        self._stack.callback(nursery.cancel_scope.cancel)

    async def play(self, script: list[tuple[Any, ...]]) -> None:
        redis = await self.open()
        await self._listen(self.memory, self.memory_told)
        await self._listen(redis, self.told)
        base = NOW
        for number, (command, *arguments) in enumerate(script):
            if command == "next day":
                base += DAY + 1_000
                continue
            if command == "reopen":
                redis = await self.open()
                continue
            record = await self.memory.store.get(arguments[0])
            if command == "move" and record and record.task.terminal:
                continue  # the engine lets none go on, and what is trimmed counts on that
            step = step_of(command, *arguments, number=number, base=base, record=record)
            expected = await outcome(step, self.memory.store)
            assert await outcome(step, redis.store) == expected, (number, command)
        expected_state = await state(self.memory.store)
        assert await state(redis.store) == expected_state
        assert await all_timers(redis.store) == await all_timers(self.memory.store)
        told = await self.told.first(len(self.memory_told.commits))
        for id_ in "tu":  # the order is that of each log
            mine, theirs = ([plain(c) for c in commits if c.record.task.id == id_]
                            for commits in (told, self.memory_told.commits))  # fmt: skip
            assert mine == theirs


def play(script: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            await World(stack).play(script)

    trio.run(main)


@settings(max_examples=120, deadline=None)
@given(script=st.lists(commands, min_size=5, max_size=40))
def test_whatever_is_done_redis_answers_stores_and_announces_as_memory_does(script):
    play(script)


def other_field(text: str) -> Draft:
    """A piece whose text is in another field, beside the usual one."""
    return Draft(**{**_fields(piece(text)), "series_acc_field": "type"})


def _fields(draft: Draft) -> dict[str, Any]:
    return {name: getattr(draft, name) for name in draft.__struct_fields__}


texts = st.text("ab", max_size=2)
mixed = st.lists(
    st.one_of(
        st.builds(piece, texts),
        st.builds(latest, texts),
        st.builds(other_field, texts),
        st.builds(lambda text: Draft(**{**_fields(latest(text)), "series_acc_field": "x"}), texts),
        st.just(Draft(type="x", level="info", series_id="s", series_mode="accumulate")),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(mixed, min_size=1, max_size=4), trimmed=st.lists(trims, max_size=3))
def test_the_value_of_a_series_that_changes_its_field_is_what_memory_says(batches, trimmed):
    steps: list[tuple[Any, ...]]
    steps = [("append", "t", batch, 0, None, None, {}, {}) for batch in batches]
    steps += [("snapshot", "t"), ("move", "t", "completed", [], 0, None, False, {}, {})]
    for indexes in trimmed:
        steps += [("trim", "t", indexes, False), ("snapshot", "t")]
    play([("create", "t", 0, None, {}), *steps])
