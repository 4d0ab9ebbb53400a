"""One connection that listens: its subscriptions, its own ping with a deadline, its messages.

redis-py's own pub/sub connects again without a word and never notices that nothing comes any more.
Here whoever listens is told of each confirmation, and a connection that is silent for too long is
cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection

from taskcast_trio.storage.bridge import Crossing

from .nodes import Nodes, Place, connect, cut

PING_S: Final = 2.0
SILENCE_S: Final = 6.0
YIELD_AFTER_S: Final = 0.005


class Ear:
    """Listens to some buckets on one server. ``heard`` and ``confirmed`` are called on the asyncio
    side and must not wait or raise.
    """

    def __init__(
        self,
        place: Place,
        nodes: Nodes,
        channels: list[str],
        *,
        sharded: bool,
        heard: Callable[[int, bytes], None],
        confirmed: Callable[[int], None],
    ) -> None:
        self.connected = False
        self.confirmed: set[int] = set()
        """The buckets that nothing can be missed of now."""
        self._place = place
        self._nodes = nodes
        self._channels = [channel.encode() for channel in channels]
        self._numbers = {channel: number for number, channel in enumerate(self._channels)}
        self._prefix = b"S" if sharded else b""
        self._heard = heard
        self._on_confirmed = confirmed
        self._wanted: set[int] = set()
        self._asked: set[int] = set()
        self._wake: asyncio.Event | None = None
        self._connection: AbstractConnection | None = None
        self._last = 0.0

    def want(self, buckets: set[int]) -> None:
        """Listen to these from now on, and to no others."""
        if buckets != self._wanted:
            self._wanted = buckets
            if self._wake is not None:
                self._wake.set()

    async def listen(self, crossing: Crossing) -> None:
        """Connect and listen until that fails, which raises, or until cancelled."""
        await crossing.run(self._listen, self.cut)

    def cut(self) -> None:
        if self._connection is not None:
            cut(self._connection)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        connection = self._nodes.connection(self._place)
        self._connection = connection
        self._wake = asyncio.Event()
        self._asked = set()
        keeper: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(SILENCE_S):
                await connect(connection)
            self._last = yielded = loop.time()
            self.connected = True
            keeper = loop.create_task(self._keep(connection, self._wake))
            while True:
                self._take(await connection.read_response(disable_decoding=True))
                self._last = loop.time()
                if self._last - yielded > YIELD_AFTER_S:
                    # What has arrived already is read without waiting: let others run.
                    await asyncio.sleep(0)
                    yielded = self._last
        finally:
            self.connected = False
            self.confirmed.clear()
            self._wake = self._connection = None
            cut(connection)
            if keeper is not None:
                keeper.cancel()
                await asyncio.wait({keeper})
                if not keeper.cancelled():
                    keeper.exception()

    def _take(self, told: Any) -> None:
        if not isinstance(told, list) or len(told) != 3:
            return  # an answer to a ping
        kind, channel, payload = told
        bucket = self._numbers.get(channel)
        if bucket is None:
            return
        if kind in (b"message", b"smessage"):
            self._heard(bucket, payload)
        elif kind in (b"subscribe", b"ssubscribe"):
            self.confirmed.add(bucket)
            self._on_confirmed(bucket)
        elif kind in (b"unsubscribe", b"sunsubscribe"):
            self.confirmed.discard(bucket)
            if self._prefix and bucket in self._asked:
                # A cluster has moved it to another node. (Elsewhere it was asked for once more.)
                raise ConnectionError("the bucket has moved")

    async def _keep(self, connection: AbstractConnection, wake: asyncio.Event) -> None:
        """Subscribe to what is wanted, and see that the connection lives; ends by cutting it."""
        loop = asyncio.get_running_loop()
        pinged = slept = loop.time()
        try:
            while True:
                if loop.time() - slept > PING_S:
                    self._last = loop.time()  # it was this process that stood still
                if loop.time() - self._last > SILENCE_S:
                    return
                wake.clear()
                await self._ask(connection, b"UNSUBSCRIBE", self._asked - self._wanted)
                await self._ask(connection, b"SUBSCRIBE", self._wanted - self._asked)
                if loop.time() - pinged >= PING_S:
                    pinged = loop.time()
                    await self._send(connection, b"PING")
                slept = loop.time()
                try:
                    async with asyncio.timeout(PING_S / 2):
                        await wake.wait()
                except TimeoutError:
                    continue
        finally:
            cut(connection)

    async def _ask(self, connection: AbstractConnection, what: bytes, buckets: set[int]) -> None:
        if not buckets:
            return
        if what == b"SUBSCRIBE":
            self._asked |= buckets
        else:
            self._asked -= buckets
        channels = [self._channels[bucket] for bucket in sorted(buckets)]
        # Those of one command have to be in one slot of a cluster.
        for group in [[channel] for channel in channels] if self._prefix else [channels]:
            await self._send(connection, self._prefix + what, *group)

    async def _send(self, connection: AbstractConnection, *values: bytes) -> None:
        async with asyncio.timeout(SILENCE_S):
            await connection.send_packed_command(
                connection.pack_command(*values), check_health=False
            )
