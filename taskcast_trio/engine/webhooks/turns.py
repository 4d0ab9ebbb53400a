"""Turns: so many at once overall, and so many of one host, first come, first served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class _Host:
    __slots__ = ("turns", "users")

    def __init__(self, turns: int) -> None:
        self.turns = trio.CapacityLimiter(turns)
        self.users = 0


class Turns:
    """At most ``total`` turns at once, of which one host has at most ``per_host``.

    Who waits for its host is not yet in the line for a turn. So however many wait for one host,
    they take ``per_host`` places of that line, and another host's next is served after those.
    """

    def __init__(self, total: int, per_host: int) -> None:
        self._total = trio.CapacityLimiter(total)
        self._per_host = per_host
        self._hosts: dict[str, _Host] = {}

    @property
    def taken(self) -> int:
        return self._total.borrowed_tokens

    @property
    def hosts(self) -> int:
        """How many hosts have a turn or wait for one; of others nothing is kept."""
        return len(self._hosts)

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Cancelled while waiting, nothing is held."""
        holder = object()
        await self.acquire(host, holder)
        try:
            yield
        finally:
            self.release(host, holder)

    async def acquire(self, host: str, holder: object) -> None:
        """Wait for a turn in the name of ``holder``, who must `release` it."""
        mine = self._hosts.setdefault(host, _Host(self._per_host))
        mine.users += 1
        try:
            await mine.turns.acquire_on_behalf_of(holder)
            try:
                await self._total.acquire_on_behalf_of(holder)
            except BaseException:
                mine.turns.release_on_behalf_of(holder)
                raise
        except BaseException:
            self._leave(host, mine)
            raise

    def release(self, host: str, holder: object) -> None:
        mine = self._hosts[host]
        self._total.release_on_behalf_of(holder)
        mine.turns.release_on_behalf_of(holder)
        self._leave(host, mine)

    def _leave(self, host: str, mine: _Host) -> None:
        mine.users -= 1
        if not mine.users:
            del self._hosts[host]
