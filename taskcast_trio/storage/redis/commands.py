"""Commands on their way to Redis: those that wait at the same moment cross the bridge together.

Each server has a lane: a queue, and a few workers that take all that waits and send it over one
connection. A reply that is lost with its connection is asked for again: every step carries a name
under which the script remembers its reply.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any, Final

import trio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, BusyLoadingError, NoScriptError, ResponseError

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.storage.bridge import Bridge

from .errors import CONNECTION_ERRORS, is_passing, unavailable
from .keys import BUCKETS, TASK_KEY_COUNT, Keys
from .nodes import Cluster, Nodes, Place, connect, cut
from .resp import Value, bulk, command
from .scripts import Script

MAX_BATCH: Final = 256
MAX_BATCH_BYTES: Final = 1024 * 1024
CONNECTIONS: Final = 2
"""How many batches are on their way to one server at once: more would make them smaller."""
MAX_TRIES: Final = 4
MAX_CONNECTS: Final = 2
RETRY_S: Final = 0.05
CLOSED: Final = "The Redis store is closed"


class Command:
    """One command, and its reply when that is there."""

    __slots__ = (
        "_bytes",
        "_script",
        "abandoned",
        "ask",
        "bucket",
        "connects",
        "done",
        "reply",
        "tries",
    )

    def __init__(self, bucket: int, data: bytes, script: tuple[Script, int] | None = None) -> None:
        self.bucket = bucket
        self._bytes = data
        self._script = script
        """The script, and of how many values the command then is; its beginning is not in data."""
        self.done = trio.Event()
        self.reply: Any = None
        self.abandoned = False
        self.ask: Place | None = None
        self.tries = 0
        self.connects = 0

    def data(self, *, text: bool = False) -> bytes:
        """What is sent; with the ``text`` of the script, where the server does not know it."""
        if self._script is None:
            return self._bytes
        script, length = self._script
        start = script.by_text if text else script.by_digest
        return b"*%d\r\n%b%b" % (length, start, self._bytes)

    @property
    def has_script(self) -> bool:
        return self._script is not None

    def settle(self, reply: Any) -> None:
        self.reply = reply
        self.done.set()


class _Lane:
    """What waits for one server."""

    def __init__(self) -> None:
        self.queue: deque[Command] = deque()
        self.workers = 0
        self.starting = False
        self.idle: list[AbstractConnection] = []

    def take(self) -> list[Command]:
        batch: list[Command] = []
        size = 0
        while self.queue and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            step = self.queue.popleft()
            if not step.abandoned:
                batch.append(step)
                size += len(step.data())
        return batch

    def drop_idle(self) -> None:
        while self.idle:
            cut(self.idle.pop())


class Commands:
    """Sends commands; see :func:`run` for who does the work."""

    def __init__(
        self,
        bridge: Bridge,
        nodes: Nodes,
        keys: Keys,
        *,
        timeout_s: float,
        connections: int = CONNECTIONS,
    ) -> None:
        self.timeout_s = timeout_s
        self._connections = connections
        self.up = True
        """Whether the last connection that was tried worked."""
        self.keys = keys
        self.nodes = nodes
        self.crossing = bridge.crossing(CLOSED)
        self.remember_ms = int(max(10.0, 2 * timeout_s) * 1000)
        """How long a script remembers a reply: longer than anybody asks for it again."""
        self._attempt_s = timeout_s / 2
        self._lanes: dict[Place, _Lane] = {}
        self._nursery: trio.Nursery | None = None
        self._prefix = secrets.token_bytes(8)
        self._numbers = count()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry commands until cancelled; what waits then is told that the store is closed."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # while its workers end, it takes no more
        finally:
            for lane in self._lanes.values():
                lane.drop_idle()
                while lane.queue:
                    lane.queue.popleft().settle(StoreUnavailable(CLOSED))

    def request(self) -> bytes:
        """A name for a step that nothing else has."""
        return self._prefix + next(self._numbers).to_bytes(6, "big")

    def on_task(self, script: Script, task_id: str, *values: Value, step: bool = False) -> Command:
        """The script for one task; a ``step`` changes something."""
        bucket, names = self.keys.of_task(task_id)
        remembered = self.keys.step(bucket, self.request() if step else b"")
        arguments = b"".join(map(bulk, values))
        data = b"%b%b%b%b" % (_KEY_COUNT, names, bulk(remembered), arguments)
        return Command(bucket, data, (script, 3 + TASK_KEY_COUNT + len(values)))

    def on_keys(
        self, script: Script, bucket: int, keys: Sequence[Value], *values: Value
    ) -> Command:
        data = bulk(len(keys)) + b"".join(map(bulk, (*keys, *values)))
        return Command(bucket, data, (script, 3 + len(keys) + len(values)))

    @property
    def undivided(self) -> bool:
        """Whether one server has all buckets, so that one script may look at all of them."""
        return not isinstance(self.nodes, Cluster)

    def on_all(self, script: Script, name: str, *values: Value, step: bool = False) -> Command:
        """The script for the keys of that name in all buckets; a ``step`` changes something."""
        remembered = [self.keys.step(0, self.request())] if step else []
        count = BUCKETS + len(remembered)
        others = b"".join(map(bulk, (*remembered, *values)))
        data = b"%b%b%b" % (bulk(count), self.keys.everywhere(name), others)
        return Command(0, data, (script, 3 + count + len(values)))

    def plain(self, bucket: int, *values: Value) -> Command:
        return Command(bucket, command(*values))

    async def do(self, step: Command) -> Any:
        """Send the command and return its reply.

        Raises:
            StoreUnavailable: Redis is away, refuses, or gave no answer within the timeout. What was
                to be done may have been.

        Cancelling leaves it done or not done.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._submit(step)
        return await self._reply(step, trio.current_time() + self.timeout_s)

    async def do_all(self, steps: Sequence[Command]) -> list[Any]:
        """As :meth:`do` with many at once."""
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_time() + self.timeout_s
        try:
            for step in steps:
                self._submit(step)
            return [await self._reply(step, deadline) for step in steps]
        finally:
            for step in steps:
                step.abandoned = True

    async def _reply(self, step: Command, deadline: float) -> Any:
        try:
            with trio.CancelScope(deadline=deadline):
                await step.done.wait()
        finally:
            step.abandoned = True
        if not step.done.is_set():
            raise StoreUnavailable(f"Redis gave no answer in {self.timeout_s:g} s")
        if isinstance(step.reply, BaseException):
            raise unavailable(step.reply)
        return step.reply

    def _submit(self, step: Command) -> None:
        if self._nursery is None:
            step.settle(StoreUnavailable(CLOSED))
            return
        place = self.nodes.place_of(step.bucket) if step.ask is None else step.ask
        lane = self._lanes.get(place)
        if lane is None:
            lane = self._lanes[place] = _Lane()
        lane.queue.append(step)
        if not lane.starting and lane.workers < self._connections:
            lane.starting = True
            lane.workers += 1
            self._nursery.start_soon(self._work, place, lane)

    async def _work(self, place: Place, lane: _Lane) -> None:
        try:
            while True:
                lane.starting = False
                batch = lane.take()
                if not batch:
                    return
                await self._flush(place, lane, batch)
        finally:
            lane.workers -= 1

    async def _flush(self, place: Place, lane: _Lane, batch: list[Command]) -> None:
        exchange = _Exchange(place, lane, batch, self.nodes)
        error: BaseException = StoreUnavailable(f"Redis gave no answer in {self.timeout_s:g} s")
        ended = False
        try:
            with trio.move_on_after(self._attempt_s):
                try:
                    await self.crossing.run(exchange.run, exchange.cut)
                except (*CONNECTION_ERRORS, StoreUnavailable) as problem:
                    error = problem
            ended = True
        finally:
            if not ended:
                _closed(batch)
        self.up = exchange.connected
        again = [step for step in batch if not step.done.is_set()]
        if not again:
            return
        if exchange.passing or not exchange.complete:
            lane.drop_idle()
        for step in again:
            step.tries += 1
            step.connects += not exchange.connected
            if step.tries >= MAX_TRIES or step.connects >= MAX_CONNECTS:
                step.settle(exchange.passing.get(step, error))
        again = [step for step in again if not step.done.is_set() and not step.abandoned]
        if again:
            if self._nursery is None:
                _closed(again)
            else:
                self._nursery.start_soon(self._again, again, exchange)

    async def _again(self, steps: list[Command], exchange: _Exchange) -> None:
        """Send once more what did not come to its end; at once where a connection just died."""
        try:
            if exchange.passing or not exchange.connected:
                await trio.sleep(RETRY_S)
                if any(step.ask is None for step in steps):
                    await self.refresh()
        except trio.Cancelled:
            _closed(steps)
            raise
        for step in steps:
            self._submit(step)

    async def refresh(self) -> None:
        """Ask anew which server has which bucket; as it was where nobody answers."""
        with trio.move_on_after(self._attempt_s):
            try:
                await self.crossing.run(self.nodes.refresh, _nothing)
            except (*CONNECTION_ERRORS, StoreUnavailable):
                return  # who asks for a bucket is told what is wrong

    def close(self) -> None:
        self.crossing.close()


class _Exchange:
    """One batch over one connection; runs on the asyncio side."""

    def __init__(self, place: Place, lane: _Lane, batch: list[Command], nodes: Nodes) -> None:
        self._place = place
        self._lane = lane
        self._batch = batch
        self._nodes = nodes
        self._connection: AbstractConnection | None = None
        self.connected = False
        self.complete = False
        self.passing: dict[Command, Exception] = {}

    def cut(self) -> None:
        if self._connection is not None:
            cut(self._connection)

    async def run(self) -> None:
        lane = self._lane
        connection = lane.idle.pop() if lane.idle else self._nodes.connection(self._place)
        self._connection = connection
        try:
            if not connection.is_connected:
                await connect(connection)
            self.connected = True
            unknown = await self._send(connection, self._batch, text=False)
            if unknown:
                await self._send(connection, unknown, text=True)
            self.complete = True
        finally:
            if self.complete:
                lane.idle.append(connection)
            else:
                cut(connection)
            self._connection = None

    async def _send(
        self, connection: AbstractConnection, steps: list[Command], *, text: bool
    ) -> list[Command]:
        """Send the steps and take their replies; return those whose script is not known there."""
        data = []
        for step in steps:
            if step.ask is not None:
                data.append(command("ASKING"))
            data.append(step.data(text=text))
        await connection.send_packed_command(b"".join(data), check_health=False)
        unknown: list[Command] = []
        for step in steps:
            if step.ask is not None:
                await connection.read_response(disable_decoding=True)
                step.ask = None
            try:
                reply = await connection.read_response(disable_decoding=True)
            except NoScriptError:
                unknown.append(step)
            except BusyLoadingError as problem:
                self.passing[step] = problem
            except ResponseError as problem:
                if not is_passing(problem):
                    step.settle(problem)
                    continue
                self.passing[step] = problem
                if isinstance(self._nodes, Cluster) and type(problem) is AskError:
                    step.ask = self._nodes.asked_to(problem.host, problem.port)
            else:
                step.settle(reply)
        return unknown


def _closed(steps: Iterable[Command]) -> None:
    for step in steps:
        if not step.done.is_set():
            step.settle(StoreUnavailable(CLOSED))


_KEY_COUNT: Final = bulk(TASK_KEY_COUNT)


def _nothing() -> None:
    """What refreshing has to cut: its connections are redis-py's own."""
