"""What this worker holds: its slots, and how long its leases last while the server is away."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Final

import trio
from msgspec import UNSET, UnsetType

from .hold import Hold
from .wire import Cancel, Holding

MAX_TOLD: Final = 1000
"""As many tasks as a server listens to at once."""

log = logging.getLogger(__name__)


class Roster:
    """``lease_s`` is how long tasks are worked on after the last sign of the server."""

    def __init__(self, capacity: int, lease_s: float) -> None:
        self.worker_id: str | None = None
        self.capacity = capacity
        self.lease_s = lease_s
        self.known = trio.Event()
        self._holds: dict[tuple[str, int], Hold] = {}
        self._reserved: dict[str, int] = {}
        self._heard_at = math.inf
        self._changed = trio.Event()

    # Slots ---------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Free slots."""
        used = sum(hold.cost for hold in self._holds.values())
        return self.capacity - used - sum(self._reserved.values())

    def reserve(self, task_id: str, cost: int) -> None:
        """Keep slots for a task that was asked for."""
        self._reserved[task_id] = cost

    def unreserve(self, task_id: str) -> None:
        self._reserved.pop(task_id, None)
        self.change()

    def change(self) -> None:
        """Wake who waits for a change of what is held."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def room(self, cost: int = 1) -> None:
        """Wait until there are so many free slots."""
        while self.free < cost:
            await self._changed.wait()

    async def empty(self) -> None:
        """Wait until nothing is held, or about to be."""
        while self._holds or self._reserved:
            await self._changed.wait()

    # Holds ---------------------------------------------------------------------------------------

    def add(self, hold: Hold) -> bool:
        """Enter an assignment; False where it is known already."""
        key = (hold.task_id, hold.fence)
        if key in self._holds:
            return False
        self._holds[key] = hold
        return True

    def remove(self, hold: Hold) -> None:
        del self._holds[hold.task_id, hold.fence]
        self.change()

    def is_latest(self, hold: Hold) -> bool:
        """Whether the task was not assigned to this worker anew since."""
        return not any(
            other.task_id == hold.task_id and other.fence > hold.fence
            for other in self._holds.values()
        )

    def stop(self) -> None:
        """Stop every handler, to give the tasks back."""
        for hold in self._holds.values():
            hold.stop()

    def held(self) -> list[Holding] | UnsetType:
        """What the server is told: nothing where it would be too much to hear."""
        held = [hold.holding for hold in self._holds.values() if hold.lost is None]
        return held if len(held) <= MAX_TOLD else UNSET

    def cancel(self, cancels: Iterable[Cancel], told: list[Holding] | UnsetType) -> None:
        """Stop what the server says is to be stopped, of what it was ``told`` to be held: it knows
        no more of it.
        """
        known = set() if told is UNSET else {(each.task_id, each.fence) for each in told}
        for cancel in cancels:
            for key in known:
                if key[0] == cancel.task_id and key in self._holds:
                    self._holds[key].lose(cancel.reason)

    def lose(self, task_id: str, fence: int, reason: str) -> None:
        """An assignment is over."""
        hold = self._holds.get((task_id, fence))
        if hold is not None:
            hold.lose(reason)

    def lose_all(self, reason: str) -> None:
        for hold in self._holds.values():
            hold.lose(reason)

    # Leases --------------------------------------------------------------------------------------

    def heard(self) -> None:
        """The server is there, and knows what is held."""
        self._heard_at = trio.current_time()
        self.known.set()

    async def watch_leases(self) -> None:
        """Stop the handlers when the server was away for too long: by then it has handed their
        tasks on. Runs until cancelled.

        What a handler that is over has left to say is kept: the fence decides whether it counts.
        """
        while True:
            await trio.sleep(min(self.lease_s / 10, 1.0))
            if trio.current_time() < self._heard_at + self.lease_s:
                continue
            ended = [hold for hold in self._holds.values() if hold.busy and hold.lost is None]
            if ended:
                log.warning(
                    "Worker %s was without its server for too long: it stops %d tasks",
                    self.worker_id,
                    len(ended),
                )
            for hold in ended:
                hold.lose("lease_ended")
