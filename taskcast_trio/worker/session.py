"""One connection of a worker: what is heard on it, and what is said."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio
from msgspec import UNSET
from trio_websocket import ConnectionClosed, WebSocketConnection

from taskcast_trio.client import ServerUnavailable

from .link import Take
from .roster import Roster
from .wire import Cancel, Say, Summary, Told

ROOM_S: Final = 1.0
"""How long an offer may wait for slots that handlers are about to free: nobody else has it then."""
RACE_S: Final = 10.0
"""How long a task that anybody may claim is remembered: it is not announced again at once."""
MAX_CONSIDERED: Final = 1000
OUTBOX: Final = 4096

log = logging.getLogger(__name__)


def read(text: str | bytes) -> Told | None:
    """A message of the server; None for one that is none of those known here."""
    try:
        return msgspec.json.decode(text, type=Told)
    except msgspec.MsgspecError:
        return None


class Session:
    """What is heard is dealt with at once and never waits, so that a ping is answered in time
    whatever the handlers do.
    """

    def __init__(self, socket: WebSocketConnection, roster: Roster, take: Take) -> None:
        self._socket = socket
        self._roster = roster
        self._take = take
        self._asked: dict[str, Summary] = {}
        """The tasks that were accepted or claimed, and not answered yet."""
        self._told = roster.held()
        self._outbox, self._to_send = trio.open_memory_channel[Say](OUTBOX)
        self._scope = trio.CancelScope()
        self._failure: Exception | None = None
        self._draining = False
        self._nursery: trio.Nursery | None = None

    async def run(self, leaving: trio.Event) -> None:
        """Serve the connection until ``leaving``.

        Raises:
            ConnectionClosed, TooSlowError, ServerUnavailable: it has ended.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    for part in (self._read, self._write, self._ping):
                        self._nursery.start_soon(self._noting, part)
                    await leaving.wait()
                    self._nursery.cancel_scope.cancel()
        finally:
            self._outbox.close()
            self._to_send.close()
            for task_id in self._asked:
                self._roster.unreserve(task_id)
        if self._failure is not None:
            raise self._failure

    async def _noting(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except (ConnectionClosed, trio.TooSlowError, trio.ClosedResourceError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._scope.cancel()

    def say(self, message: Say) -> None:
        """Send a message, as soon as those before it are sent."""
        self._draining |= message.type == "drain"
        try:
            self._outbox.send_nowait(message)
        except trio.WouldBlock:
            self._fail(ServerUnavailable("The server does not read"))

    def pong(self) -> None:
        self._told = self._roster.held()
        self.say(Say(type="pong", tasks=self._told))

    async def _write(self) -> None:
        async for message in self._to_send:
            with trio.fail_after(self._roster.lease_s / 3):
                await self._socket.send_message(msgspec.json.encode(message).decode())

    async def _ping(self) -> None:
        """Find out in time that the connection is dead: nothing else may be said for long."""
        every_s = self._roster.lease_s / 3
        while True:
            with trio.fail_after(every_s):
                await self._socket.ping()
            self._roster.heard()
            await trio.sleep(every_s)

    async def _read(self) -> None:
        while True:
            told = read(await self._socket.get_message())
            if told is not None:
                self._hear(told)

    def _hear(self, told: Told) -> None:
        match told.type:
            case "ping":
                self.pong()
            case "offer" | "available":
                assert self._nursery is not None
                if len(self._nursery.child_tasks) < MAX_CONSIDERED:
                    self._nursery.start_soon(self._consider, told)
            case "assigned":
                self._begin(told)
            case "claimed" if told.success:
                self._begin(told)
            case "cancel" if told.fence is not UNSET:
                self._roster.lose(told.task_id, told.fence, told.reason)
            case "cancel":
                cancel = Cancel(task_id=told.task_id, reason=told.reason)
                self._roster.cancel([cancel], self._told)
            case "claimed" | "error":
                if self._asked.pop(told.task_id, None) is not None:
                    self._roster.unreserve(told.task_id)
                elif told.type == "error":
                    log.warning("The server refused a message: %r", told.code)

    async def _consider(self, told: Told) -> None:
        task_id, cost = told.task_id, told.task.cost
        offered = told.type == "offer"
        if not self._draining:
            with trio.move_on_after(ROOM_S if offered else RACE_S):
                await self._roster.room(cost)
        if self._draining or self._roster.free < cost:
            if offered:
                self.say(Say(type="decline", task_id=task_id))
        elif task_id not in self._asked:
            self._asked[task_id] = told.task
            self._roster.reserve(task_id, cost)
            self.say(Say(type="accept" if offered else "claim", task_id=task_id))

    def _begin(self, told: Told) -> None:
        asked = self._asked.pop(told.task_id, Summary())
        self._roster.unreserve(told.task_id)
        type_ = None if asked.type is UNSET else asked.type
        fence = 0 if told.fence is UNSET else told.fence
        self._take(told.task_id, fence, asked.cost, type_)
