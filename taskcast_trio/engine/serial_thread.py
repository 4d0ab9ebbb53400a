"""A thread for what would hold up the loop: the streams have the processor beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


class SerialThread:
    """Runs functions one after the other: side by side they would only share the processor, and
    each may take much memory. Servers in other threads of the process have theirs beside it.
    """

    def __init__(self, name: str) -> None:
        # A limiter belongs to one loop.
        self._limiter = trio.lowlevel.RunVar[trio.CapacityLimiter](name)

    async def run(self, function: Callable[[], T]) -> T:
        """What it returns or raises. Cancelled, this ends when the function has."""
        try:
            limiter = self._limiter.get()
        except LookupError:
            limiter = trio.CapacityLimiter(1)
            self._limiter.set(limiter)
        return await trio.to_thread.run_sync(function, limiter=limiter)
