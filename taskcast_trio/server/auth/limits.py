"""How much one caller, and all together, may ask of a server: requests per second, and streams.

Streams are counted within one process; requests over all that share a store. Callers are told apart
by a key, see `key_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final, Protocol

import trio

from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import RateLimited, StoreUnavailable
from taskcast_trio.engine import Runtime
from taskcast_trio.storage.protocols import Peers

SHARES: Final = 20
REFUSED: Final = -1
STREAM_RETRY_S: Final = 5
"""When to try again for a stream: others end when they end, and nobody is told."""


def key_of(caller: Caller, address: str | None) -> str:
    """What a caller's requests are counted by: its service, its subject, or else its address.

    An IPv6 address counts by its /64, which is what one customer gets (RFC 6177).
    """
    if caller.service is not None:
        return f"service:{caller.service}"
    if caller.sub:
        return f"sub:{caller.sub}"
    return _address_key(address or "")


@lru_cache(maxsize=4096)
def _address_key(address: str) -> str:
    if ":" not in address:
        return f"addr:{address}"
    try:
        parsed = IPv6Address(address)
    except ValueError:
        return f"addr:{address}"
    if parsed.ipv4_mapped is not None:  # all of IPv4 is in one /64
        return f"addr:{parsed.ipv4_mapped}"
    return f"addr:{IPv6Address(int(parsed) >> 64 << 64)}/64"


class Limiter(Protocol):
    """Counts requests by their caller's key."""

    def check(self, key: str) -> bool:
        """Count a request, one that is refused does not count; False, and nothing counted, where
        :meth:`fetch` has to be called first.

        Raises:
            RateLimited: there were too many within the last second.
        """

    async def fetch(self, key: str) -> None:
        """Ask for what :meth:`check` needs.

        Raises:
            RateLimited: as there.
        """


async def count(limiter: Limiter, key: str) -> None:
    """Count a request.

    Raises:
        RateLimited: there were too many within the last second.
    """
    while not limiter.check(key):
        await limiter.fetch(key)


def too_many(per_second: int) -> RateLimited:
    return RateLimited(f"The limit is {per_second} requests per second", retry_after_s=1)


class SharedRateLimiter:
    """A limit over all processes of a store: each takes some of it at a time, for a second.

    So what a second allows can be asked for at one process or at many; around the turn of a second
    up to a twentieth of it more, for each process.
    """

    def __init__(
        self,
        name: str,
        per_second: int,
        peers: Peers,
        *,
        clock_s: Callable[[], float] = trio.current_time,
    ) -> None:
        """``name`` tells limits apart. ``clock_s`` does not go back."""
        self._name = name
        self._per_second = per_second
        self._share = max(per_second // SHARES, 1)
        self._peers = peers
        self._clock_s = clock_s
        self._held: dict[str, tuple[int, float]] = {}
        """How many requests may still be made, or REFUSED, and until when that holds."""
        self._fetching: dict[str, trio.Event] = {}
        self._swept_at = 0.0

    def check(self, key: str) -> bool:
        """See :meth:`Limiter.check`."""
        left, until = self._held.get(key, (0, 0.0))
        if left == 0 or self._clock_s() >= until:
            return False
        if left == REFUSED:
            raise too_many(self._per_second)
        self._held[key] = (left - 1, until)
        return True

    async def fetch(self, key: str) -> None:
        """See :meth:`Limiter.fetch`. Where the store is away, each process counts for itself: what
        is asked of it then says so.

        Of those who ask for a key at once one fetches: more would take what others may need.
        """
        if (fetching := self._fetching.get(key)) is not None:
            await fetching.wait()
            return
        self._fetching[key] = trio.Event()
        try:
            await self._fetch(key)
        finally:
            self._fetching.pop(key).set()

    async def _fetch(self, key: str) -> None:
        try:
            granted = await self._peers.take_tokens(
                f"{self._name}:{key}", want=self._share, per_second=self._per_second
            )
        except StoreUnavailable:
            granted = self._share
        now_s = self._clock_s()
        self._sweep(now_s)
        if granted == 0:
            # Who goes on asking is a burden to this process only.
            self._held[key] = (REFUSED, now_s + 1 / SHARES)
            raise too_many(self._per_second)
        self._held[key] = (granted, now_s + 1)

    def _sweep(self, now_s: float) -> None:
        if now_s >= self._swept_at + 1:
            self._swept_at = now_s
            self._held = {key: held for key, held in self._held.items() if held[1] > now_s}


class RateLimiter:
    """A token bucket for each key; a full one holds what comes in within one second.

    Of a bucket one number is kept: the time at which it will be full, counted in tokens, so that a
    request adds exactly 1. A bucket that nobody touched for a second is full, and as good as none.
    """

    def __init__(
        self, per_second: int, *, clock_s: Callable[[], float] = trio.current_time
    ) -> None:
        """``clock_s`` does not go back."""
        self._per_second = per_second
        self._clock_s = clock_s
        self._touched: dict[str, float] = {}
        """Since the last turn. Two generations forget at no cost for the single request."""
        self._older: dict[str, float] = {}
        self._turn_at: float | None = None

    @property
    def keys(self) -> int:
        """How many buckets are kept: at most those of the last two seconds."""
        return len(self._touched.keys() | self._older.keys())

    def check(self, key: str) -> bool:
        """See :meth:`Limiter.check`; True, as nobody else has to be asked."""
        now_s = self._clock_s()
        if self._turn_at is None or now_s >= self._turn_at:
            self._turn(now_s)
        now = now_s * self._per_second
        full_at = self._touched.get(key)
        if full_at is None:
            full_at = self._older.get(key, now)
        if full_at < now:
            full_at = now
        full_at += 1
        if full_at - now > self._per_second:
            raise too_many(self._per_second)
        self._touched[key] = full_at
        return True

    async def fetch(self, key: str) -> None:
        """See :meth:`Limiter.fetch`."""

    def _turn(self, now_s: float) -> None:
        is_recent = self._turn_at is not None and now_s < self._turn_at + 1
        self._older = self._touched if is_recent else {}
        self._touched = {}
        self._turn_at = now_s + 1


def limiter_of(runtime: Runtime, name: str, per_second: int) -> Limiter:
    """Counts over all processes of the store, where there are several."""
    if runtime.backend.peers is None:
        return RateLimiter(per_second)
    return SharedRateLimiter(name, per_second, runtime.backend.peers)


class Slot:
    """A stream's place among those that are open."""

    __slots__ = ("_key", "_slots")

    def __init__(self, slots: StreamSlots, key: str) -> None:
        self._slots: StreamSlots | None = slots
        self._key = key

    def close(self) -> None:
        """Give the place free. Idempotent."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots._give_back(self._key)


class StreamSlots:
    """Bounds the streams that are open at once: of all callers, and of each."""

    def __init__(self, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        self._open = 0
        self._by_key: dict[str, int] = {}

    @property
    def open_streams(self) -> int:
        return self._open

    @property
    def keys(self) -> int:
        """How many callers have a stream."""
        return len(self._by_key)

    def open(self, key: str) -> Slot:
        """Take a place, which is the caller's to close.

        Raises:
            RateLimited: one of the limits is reached; the message says which.
        """
        own = self._by_key.get(key, 0)
        if own >= self._per_caller:
            raise RateLimited(
                f"The limit is {self._per_caller} open streams of one caller",
                retry_after_s=STREAM_RETRY_S,
            )
        if self._open >= self._total:
            raise RateLimited(
                f"The limit is {self._total} open streams on this server",
                retry_after_s=STREAM_RETRY_S,
            )
        self._open += 1
        self._by_key[key] = own + 1
        return Slot(self, key)

    def _give_back(self, key: str) -> None:
        self._open -= 1
        left = self._by_key[key] - 1
        if left:
            self._by_key[key] = left
        else:
            del self._by_key[key]
