"""Tasks over HTTP alone: a long poll for the next one, and heartbeats beside it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio
from msgspec import UNSET

from taskcast_trio.core.errors import TaskcastError, WorkerNotFound

from .api import Api
from .link import Describe, Take
from .pauses import pause_s
from .roster import Roster

WAIT_S: Final = 25.0
"""Of one poll."""
SOON_S: Final = 1.0
"""Nothing sooner than this is the answer to a worker that the server does not know."""
LEAVE_S: Final = 3.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class PullLink:
    """See :class:`Link`. ``heartbeat_s`` is the time between two heartbeats, if not what the server
    wants and the lease needs.
    """

    def __init__(
        self, api: Api, roster: Roster, describe: Describe, take: Take, *, heartbeat_s: float | None
    ) -> None:
        self._api = api
        self._roster = roster
        self._describe = describe
        self._take = take
        self._heartbeat_s = heartbeat_s
        self._every_s = heartbeat_s or roster.lease_s / 3
        self._registering = trio.Lock()
        self._known = False
        self._serving = False
        self._draining = False
        self._poll = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._failure: TaskcastError | None = None
        self._leaving = trio.Event()
        self._beat_now = trio.Event()

    async def run(self) -> None:
        with self._scope:
            await self._noting(self._serve)
        if self._failure is not None:
            raise self._failure

    def drain(self) -> None:
        self._draining = True
        self._poll.cancel()

    def leave(self) -> None:
        self._leaving.set()
        if not self._serving:
            self._scope.cancel()

    def ask(self) -> None:
        beat, self._beat_now = self._beat_now, trio.Event()
        beat.set()

    async def _noting(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except TaskcastError as error:
            self._failure = error
            self._scope.cancel()

    async def _serve(self) -> None:
        await self._register()
        self._serving = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._noting, self._beat)
            await self._pull()
            with trio.move_on_after(LEAVE_S):
                # An answer that was on its way is a task that nobody here knows of.
                self._known = False
                await self._register()
            await self._leaving.wait()
            nursery.cancel_scope.cancel()

    async def _register(self) -> None:
        async with self._registering:
            if self._known:
                return
            worker_id = await self._patiently(lambda: self._api.register(self._describe()))
            self._roster.worker_id = worker_id
            self._roster.heard()
            self._known = True
            log.info("Worker %s is registered, and pulls", worker_id)

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        tries = 0
        while True:
            try:
                return await step()
            except TaskcastError as error:
                if not error.retryable:
                    raise
                tries += 1
                if tries == 1:
                    log.warning("Worker %s waits for its server: %s", self._roster.worker_id, error)
                await trio.sleep(pause_s(tries, error))

    @property
    def _id(self) -> str:
        assert self._roster.worker_id is not None
        return self._roster.worker_id

    async def _beat(self) -> None:
        # At once: a registration is not answered with what is to be stopped.
        while True:
            beat_now = self._beat_now
            await self._patiently(self._beat_once)
            with trio.move_on_after(self._every_s):
                await beat_now.wait()

    async def _beat_once(self) -> None:
        told = self._roster.held()
        try:
            cancels, interval_s = await self._api.heartbeat(self._id, told)
        except WorkerNotFound:
            self._known = False
            await self._register()
            told = self._roster.held()
            cancels, interval_s = await self._api.heartbeat(self._id, told)
        self._every_s = self._heartbeat_s or min(interval_s, self._roster.lease_s / 3)
        self._roster.heard()
        self._roster.cancel(cancels, told)

    async def _pull(self) -> None:
        while not self._draining:
            with trio.CancelScope() as self._poll:
                await self._roster.room()
                await self._pull_once()

    async def _pull_once(self) -> None:
        asked_at = trio.current_time()
        task = await self._patiently(lambda: self._api.pull(self._id, WAIT_S))
        if task is not None:
            fence = 0 if task.fence is UNSET else task.fence
            cost = 1 if task.cost is UNSET else task.cost
            self._take(task.id, fence, cost, None if task.type is UNSET else task.type)
        elif trio.current_time() < asked_at + SOON_S:
            self.ask()
            await trio.sleep(SOON_S)
