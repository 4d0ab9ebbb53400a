"""What a person who watches is told while the server is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from taskcast_trio.client import Subscription

PATIENT_S: Final = 1.0
"""A connection that is back by then was never gone, to a person."""
TICK_S: Final = 0.1
AWAY: Final = "the connection is lost: trying again"


class Outages:
    """Tells of each outage once, and of its end.

    Args:
        note: takes what is to be told.
        back: what is told at the end; None where something else tells that.
    """

    def __init__(self, note: Callable[[str], None], *, back: str | None) -> None:
        self._note = note
        self._back = back
        self._stream: Subscription[Any] | None = None
        self.told = 0
        """The number of the reconnect that was told of last."""

    def of(self, stream: Subscription[Any]) -> None:
        """Take it that this is what is watched."""
        self._stream = stream

    async def tell(self) -> None:
        """Tell of them, until cancelled."""
        while True:
            await self._until(connected=False)
            with trio.move_on_after(PATIENT_S) as patience:
                await self._until(connected=True)
            if not patience.cancelled_caught:
                continue
            self._note(AWAY)
            await self._until(connected=True)
            if self._stream is not None and self._back is not None:
                self.told = self._stream.reconnects
                self._note(self._back)

    async def _until(self, *, connected: bool) -> None:
        while self._stream is None or self._stream.connected is not connected:  # noqa: ASYNC110
            await trio.sleep(TICK_S)
