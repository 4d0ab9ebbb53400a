"""The processes that share this store: who is there, who follows what, and what they tell each
other.

Each process has a hash of its own, which Redis forgets soon after the process is gone: how many
follow each task there. Messages stand in one short list that every process looks at when it is told
that there is one, and once a second, so that none is lost with a connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import trio

from taskcast_trio.core.errors import StoreUnavailable

from .commands import Commands
from .keys import bucket_of
from .resp import Value
from .scripts import script

FLUSH_S: Final = 0.05
"""How long the first change of an audience waits for others, unless it is waited for."""
BEAT_S: Final = 1.0
LIFE_MS: Final = 15_000
"""How long after its last sign a process counts as there: it may be slow."""
MESSAGES: Final = 1000
NAME_BYTES: Final = 14


class RedisPeers:
    """See :class:`Peers`."""

    def __init__(
        self,
        commands: Commands,
        *,
        followed: Callable[[], Iterable[str]],
        count: Callable[[str], int],
        publish: str = "PUBLISH",
    ) -> None:
        """``followed`` are the tasks that somebody follows in this process, ``count`` says how
        many do.
        """
        self._commands = commands
        self._followed = followed
        self._count = count
        self._publish = publish
        self._nudged = trio.Event()
        self._name = commands.request().hex()
        keys = commands.keys
        self._all, self._messages = keys.peers, keys.messages
        self._mine = keys.peer(self._name)
        self._bucket = bucket_of(self._name)
        self._changed: set[str] = set()
        self._change = trio.Event()
        self._hurry = trio.Event()
        self._batch = trio.Event()
        """Set once the changes are written that are not begun to be yet, or can't be."""
        self._writing = trio.Event()
        """Likewise of those before."""
        self._can_wait = False
        """Whether they are written, and could be the last time."""
        self._others: list[str] = []
        self._heard: int | None = None
        """The number of the newest message that is known; those before the first look are not for
        this process.
        """

    def changed(self, task_id: str) -> None:
        """More or fewer follow this task here than before. Never waits."""
        self._changed.add(task_id)
        self._change.set()

    async def audience_told(self) -> None:
        """See :meth:`Peers.audience_told`."""
        if self._can_wait and self._changed:
            self._hurry.set()
            await self._batch.wait()
        elif self._can_wait:
            await self._writing.wait()

    async def run(
        self,
        hear: Callable[[bytes], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See :meth:`Peers.run`."""
        with suppress(StoreUnavailable):  # it comes back, and the next beat with it
            await self._beat(hear)
        self._can_wait = True
        self._writing.set()
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep, hear, name="redis: peers")
                nursery.start_soon(self._flush, name="redis: audience")
        finally:
            self._wait_for_none()
            with (
                trio.CancelScope(shield=True, deadline=trio.current_time() + 1),
                suppress(StoreUnavailable),  # it is forgotten in a while
            ):
                await self._leave()

    def nudge(self) -> None:
        """There is a message, or may be: look at once. Never waits."""
        self._nudged.set()

    async def _keep(self, hear: Callable[[bytes], None]) -> None:
        next_beat = trio.current_time() + BEAT_S
        while True:
            with trio.move_on_at(next_beat):
                await self._nudged.wait()
            self._nudged = trio.Event()
            try:
                if trio.current_time() >= next_beat:
                    next_beat = trio.current_time() + BEAT_S
                    await self._beat(hear)
                elif self._heard is not None:
                    await self._listen(hear)
            except StoreUnavailable:
                continue

    async def _beat(self, hear: Callable[[bytes], None]) -> None:
        """Show that this process is there, and see who else is, and what they say."""
        plain, name = self._commands.plain, self._name
        (seconds, micros), is_known = await self._commands.do_all(
            [plain(0, "TIME"), plain(self._bucket, "PEXPIRE", self._mine, LIFE_MS)]
        )
        if not is_known:  # it was empty, or Redis has lost it
            self._changed.update(self._followed())
            self._change.set()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        _, _, names, newest = await self._commands.do_all(
            [
                plain(0, "ZADD", self._all, now_ms, name),
                plain(0, "ZREMRANGEBYSCORE", self._all, "-inf", f"({now_ms - LIFE_MS}"),
                plain(0, "ZRANGE", self._all, 0, -1),
                plain(0, "ZRANGE", self._messages, -1, -1, "WITHSCORES"),
            ]
        )
        self._others = [each for raw in names if (each := raw.decode()) != name]
        last = int(float(newest[1])) if newest else 0
        if self._heard is None:
            self._heard = last
        elif last < self._heard:  # Redis has lost them: what there is now is new
            self._heard = 0
        if last > self._heard:
            await self._listen(hear)

    async def _listen(self, hear: Callable[[bytes], None]) -> None:
        messages = await self._commands.do(
            self._commands.plain(
                0, "ZRANGEBYSCORE", self._messages, f"({self._heard}", "+inf", "WITHSCORES"
            )
        )
        for message, number in zip(messages[::2], messages[1::2], strict=True):
            self._heard = int(float(number))
            hear(message[NAME_BYTES:])

    async def _flush(self) -> None:
        """Write how many follow what has changed."""
        while True:
            await self._change.wait()
            with trio.move_on_after(FLUSH_S):
                await self._hurry.wait()
            self._change, self._hurry = trio.Event(), trio.Event()
            changed, self._changed = self._changed, set()
            self._writing, self._batch = self._batch, trio.Event()
            try:
                await self._write(changed)
            except StoreUnavailable:
                self._changed |= changed
                self._change.set()
                self._wait_for_none()
                await trio.sleep(BEAT_S)
            else:
                self._can_wait = True
                self._writing.set()

    def _wait_for_none(self) -> None:
        self._can_wait = False
        self._writing.set()
        self._batch.set()

    async def _write(self, task_ids: set[str]) -> None:
        counts = {task_id: self._count(task_id) for task_id in task_ids}
        plain = self._commands.plain
        steps = [plain(self._bucket, "PEXPIRE", self._mine, LIFE_MS)]
        some: list[Value] = [v for pair in counts.items() if pair[1] for v in pair]
        none: list[Value] = [task_id for task_id, count in counts.items() if not count]
        if none:
            steps.insert(0, plain(self._bucket, "HDEL", self._mine, *none))
        if some:
            steps.insert(0, plain(self._bucket, "HSET", self._mine, *some))
        await self._commands.do_all(steps)

    async def _leave(self) -> None:
        plain = self._commands.plain
        await self._commands.do_all(
            [plain(0, "ZREM", self._all, self._name), plain(self._bucket, "DEL", self._mine)]
        )

    @property
    def count(self) -> int:
        """How many processes there are, this one included, as of the last second."""
        return 1 + len(self._others)

    async def audience(self, task_ids: Sequence[str]) -> list[int]:
        """See :meth:`Peers.audience`."""
        if not self._others or not task_ids:
            return [0] * len(task_ids)
        keys = self._commands.keys
        replies: list[list[Any]] = await self._commands.do_all(
            [
                self._commands.plain(bucket_of(name), "HMGET", keys.peer(name), *task_ids)
                for name in self._others
            ]
        )
        return [sum(int(count or 0) for count in each) for each in zip(*replies, strict=True)]

    async def tell(self, message: bytes) -> None:
        """See :meth:`Peers.tell`."""
        name = self._commands.request()
        await self._commands.do(
            self._commands.on_keys(
                script("tell"),
                0,
                (self._messages, self._commands.keys.told),
                message,
                MESSAGES,
                name,
                time.time_ns() // 1000,
                self._publish,
            )
        )

    async def take_tokens(self, key: str, *, want: int, per_second: int) -> int:
        """See :meth:`Peers.take_tokens`."""
        bucket = bucket_of(key)
        granted: int = await self._commands.do(
            self._commands.on_keys(
                script("take_tokens"),
                bucket,
                (self._commands.keys.tokens(key),),
                want,
                per_second,
            )
        )
        return granted
