"""What a handler emits, on its way to the server.

One batch is under way at a time, and what is emitted meanwhile is the next one: so the first event
goes at once, order is kept, and the faster they come the more of them share a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from msgspec import UNSET

from taskcast_trio.core.errors import BadRequest, PayloadTooLarge, TaskcastError
from taskcast_trio.core.model import Draft

BATCH_EVENTS: Final = 200
BATCH_BYTES: Final = 256 * 1024
WAITING_EVENTS: Final = 1000
WAITING_BYTES: Final = 1024 * 1024
OVERHEAD_BYTES: Final = 128
"""Of an event beside its data."""


class Emitter:
    """``send`` stores a batch, or raises what is final: it is then raised to whoever emits, and
    nothing more is sent. A batch that the server refuses as it stands is halved first, so that only
    the event that is at fault is lost.
    """

    def __init__(self, send: Callable[[list[Draft]], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: deque[Draft] = deque()
        self._bytes = 0
        self._most = BATCH_EVENTS
        self._error: TaskcastError | None = None
        self._moved = trio.Event()

    async def put(self, draft: Draft) -> None:
        """Hand over an event; waits while too many wait. Cancelled, it hands over nothing.

        Raises:
            TaskcastError: what ended the sending.
        """
        await trio.lowlevel.checkpoint()
        size = _size(draft)
        while self._error is None and self._is_full(size):
            await self._moved.wait()
        if self._error is not None:
            raise self._error
        self._waiting.append(draft)
        self._bytes += size
        self._move()

    async def flush(self) -> None:
        """Wait until all that was handed over is stored.

        Raises:
            TaskcastError: what ended the sending.
        """
        await trio.lowlevel.checkpoint()
        while self._error is None and self._waiting:
            await self._moved.wait()
        if self._error is not None:
            raise self._error

    async def run(self) -> None:
        """Send until cancelled, or until that can't go on."""
        while True:
            while not self._waiting:
                await self._moved.wait()
            batch = self._batch()
            try:
                await self._send(batch)
            except (BadRequest, PayloadTooLarge) as error:
                if len(batch) == 1:
                    self._fail(error)
                    return
                self._most = len(batch) // 2
            except TaskcastError as error:
                self._fail(error)
                return
            else:
                for draft in batch:
                    self._waiting.popleft()
                    self._bytes -= _size(draft)
                self._move()

    def _is_full(self, size: int) -> bool:
        if not self._waiting:
            return False
        return len(self._waiting) >= WAITING_EVENTS or self._bytes + size > WAITING_BYTES

    def _batch(self) -> list[Draft]:
        batch: list[Draft] = []
        size = 0
        for draft in self._waiting:
            size += _size(draft)
            if batch and (len(batch) >= self._most or size > BATCH_BYTES):
                break
            batch.append(draft)
        return batch

    def _fail(self, error: TaskcastError) -> None:
        self._error = error
        self._waiting.clear()
        self._bytes = 0
        self._move()

    def _move(self) -> None:
        moved, self._moved = self._moved, trio.Event()
        moved.set()


def _size(draft: Draft) -> int:
    return OVERHEAD_BYTES + (0 if draft.data is UNSET else len(bytes(draft.data)))
