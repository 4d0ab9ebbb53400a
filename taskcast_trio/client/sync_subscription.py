"""The events of a task, or of all, as an iterator; it reads the connection itself, in the thread of
its caller.
"""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Generic, Self

from .following import Follow, Following, Gap, Item, Received
from .sync_port import Port


class SyncSubscription(Generic[Item]):
    """As `Subscription`, without ``async``; made by ``TaskcastClient.subscribe``.

    It belongs to one thread at a time and is entered once.
    """

    def __init__(self, follow: Follow[Item], port: Port) -> None:
        self._following = Following(follow, time.monotonic)
        self._port = port

    @property
    def last_event_id(self) -> str | None:
        """The cursor: pass it to another subscription to go on from here. None while there is
        none.
        """
        return self._following.cursor.last_event_id

    @property
    def done(self) -> str | None:
        """The reason of the end, None before."""
        return self._following.done

    @property
    def gaps(self) -> deque[Gap]:
        """The newest gaps, each of which was also raised, or was an item."""
        return self._following.gaps

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known; False while it is being replaced."""
        return self._following.connected

    @property
    def reconnects(self) -> int:
        """How many connections were made after the first."""
        return self._following.reconnects

    @property
    def follow(self) -> Follow[Item]:
        """What is followed."""
        return self._following.follow

    def __enter__(self) -> Self:
        """Connect. Raises: as `Subscription`."""
        self._port.run(self._following.enter())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._following.leave()
        self._port.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        """The next event (or gap, where those are items). Raises: as `Subscription`."""
        item = self.receive()
        if item is None:
            raise StopIteration
        return self._following.handed_out(item)

    def receive(self) -> Received | None:
        """As `Subscription`'s."""
        item = self._following.ready()
        if item is None:
            item = self._port.run(self._following.next())
        return item
