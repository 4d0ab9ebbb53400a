"""How much one caller, and all together, may ask of a server: requests per second, and streams.

The limits hold within one process. Callers are told apart by a key, see `key_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

import trio

from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import RateLimited

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

    def check(self, key: str) -> None:
        """Count a request; one that is refused does not count.

        Raises:
            RateLimited: there were too many within the last second.
        """
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
            raise RateLimited(
                f"The limit is {self._per_second} requests per second", retry_after_s=1
            )
        self._touched[key] = full_at

    def _turn(self, now_s: float) -> None:
        is_recent = self._turn_at is not None and now_s < self._turn_at + 1
        self._older = self._touched if is_recent else {}
        self._touched = {}
        self._turn_at = now_s + 1


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
