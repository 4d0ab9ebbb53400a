"""Lanes: who may try now, so that hosts that do not answer hold nothing that others need.

A host has answered, or not yet, or fails. One that has answered may have all turns that a host may
have. One that has not yet gets one until it has, and all of those together half of all turns. One
that fails gets one at a time too, all of those together a quarter, and who finds none free does not
wait here: it is told when to come again, each a little later than the one before.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final, Literal, TypeAlias

import trio

Standing: TypeAlias = Literal["answers", "new", "fails"]

MISSES: Final = 3
"""In a row, after which a host that has answered before counts as one that fails."""
WAITING_PER_HOST: Final = 128
WAITING_FOR_NEW: Final = 512
"""For all hosts together that have not answered yet."""
HOSTS: Final = 10_000
"""That are remembered; forgotten first is what was used longest ago."""
LEAST_S: Final = 0.5
MOST_S: Final = 30.0
"""How long one is told to stay away; between them, as long as the tries of those before take, if
each takes what the last one took."""
GOLDEN: Final = 0.6180339887498949


class HostBusy(Exception):
    """There is no turn, and no place to wait for one; come again after ``wait_s``."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"no turn within {wait_s:.1f} s")
        self.wait_s = wait_s


class Turn:
    """A turn that was given. Its holder says whether the host has ``answered``, if it knows."""

    __slots__ = ("answered", "since", "standing")

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.since = trio.current_time()
        self.answered: bool | None = None


class _Waiter:
    __slots__ = ("called", "turn")

    def __init__(self) -> None:
        self.called = trio.Event()
        self.turn: Turn | None = None
        """What it was called for; None: to be sent away."""


class _Host:
    __slots__ = ("answered", "lasted_s", "misses", "next_s", "spread", "taken", "waiting")

    def __init__(self) -> None:
        self.taken = 0
        self.waiting: deque[_Waiter] = deque()
        self.answered = False
        self.misses = 0
        self.lasted_s = 0.0
        self.next_s = 0.0
        self.spread = 0.0

    @property
    def standing(self) -> Standing:
        if self.answered:
            return "answers" if self.misses < MISSES else "fails"
        return "fails" if self.misses else "new"


class Lanes:
    """``total`` turns, of which a host that answers has at most ``per_host``."""

    def __init__(self, total: int, per_host: int) -> None:
        self._total = total
        self._per_host = per_host
        self._most: dict[Standing, int] = {
            "answers": total,
            "new": max(total // 2, 1),
            "fails": max(total // 4, 1),
        }
        self._taken: dict[Standing, int] = {"answers": 0, "new": 0, "fails": 0}
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._queues: OrderedDict[str, _Host] = OrderedDict()
        """Hosts for which somebody waits, the one first that was served longest ago."""
        self._waiting_for_new = 0

    @property
    def taken(self) -> int:
        return sum(self._taken.values())

    @property
    def hosts(self) -> int:
        """How many are remembered."""
        return len(self._hosts)

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[Turn]:
        """Wait for a turn and hold it. Cancelled while waiting, nothing is held.

        Raises:
            HostBusy: there is no place to wait.
        """
        host = self._host(name)
        if not host.waiting and self._free(host):
            turn = self._give(host)
        else:
            turn = await self._wait(name, host)
        try:
            yield turn
        finally:
            self._take_back(host, turn)

    def _host(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            for oldest in list(islice(self._hosts, max(len(self._hosts) - HOSTS + 1, 0))):
                if not self._hosts[oldest].taken and oldest not in self._queues:
                    del self._hosts[oldest]
            host = self._hosts[name] = _Host()
        self._hosts.move_to_end(name)
        return host

    def _free(self, host: _Host) -> bool:
        standing = host.standing
        return (
            host.taken < (self._per_host if standing == "answers" else 1)
            and self._taken[standing] < self._most[standing]
            and self.taken < self._total
        )

    def _give(self, host: _Host) -> Turn:
        turn = Turn(host.standing)
        host.taken += 1
        self._taken[turn.standing] += 1
        return turn

    def _take_back(self, host: _Host, turn: Turn) -> None:
        host.taken -= 1
        self._taken[turn.standing] -= 1
        if turn.answered is not None:
            host.misses = 0 if turn.answered else host.misses + 1
            host.answered = host.answered or turn.answered
            host.lasted_s = trio.current_time() - turn.since
        self._call()

    async def _wait(self, name: str, host: _Host) -> Turn:
        new = host.standing == "new"
        if (
            host.standing == "fails"
            or len(host.waiting) >= WAITING_PER_HOST
            or (new and self._waiting_for_new >= WAITING_FOR_NEW)
        ):
            raise HostBusy(self._put_off(host))
        waiter = _Waiter()
        host.waiting.append(waiter)
        self._queues[name] = host
        self._waiting_for_new += new
        try:
            await waiter.called.wait()
        except BaseException:
            if waiter.turn is not None:
                self._take_back(host, waiter.turn)
            elif not waiter.called.is_set():
                host.waiting.remove(waiter)
                if not host.waiting:
                    del self._queues[name]
            raise
        finally:
            self._waiting_for_new -= new
        if waiter.turn is None:
            raise HostBusy(self._put_off(host))
        return waiter.turn

    def _put_off(self, host: _Host) -> float:
        """How long the next one who is sent away should stay away."""
        now = trio.current_time()
        host.next_s = max(host.next_s, now) + max(host.lasted_s, LEAST_S)
        if host.next_s - now <= MOST_S:
            return host.next_s - now
        # So many that they would all come at once: spread evenly over the last half.
        host.next_s = now + MOST_S
        host.spread = (host.spread + GOLDEN) % 1
        return MOST_S * (1 - host.spread / 2)

    def _call(self) -> None:
        """Call those for whom there is a turn now, and those who would wait for nothing."""
        more = True
        while more and self.taken < self._total:
            more = False
            for name, host in list(self._queues.items()):
                if host.standing == "fails":
                    while host.waiting:
                        host.waiting.popleft().called.set()
                elif self._free(host):
                    waiter = host.waiting.popleft()
                    waiter.turn = self._give(host)
                    waiter.called.set()
                    self._queues.move_to_end(name)
                    more = True
                if not host.waiting:
                    del self._queues[name]
