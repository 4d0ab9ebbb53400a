"""The webhooks of one task at work, side by side, under a lease that is renewed meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Final

import trio

from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.errors import StoreUnavailable, TaskNotFound
from taskcast_trio.core.webhook import Webhook
from taskcast_trio.storage.protocols import Audience, ShortTermStore
from taskcast_trio.storage.records import PARKED_MS, Page, TaskRecord

from .cursor import Cursor, LeaseLost, Tools
from .state import RETRY, WEBHOOK, definitions, kept

LEASE_MS: Final = 15_000
RENEW_S: Final = 5.0
LINGER_S: Final = 0.2
"""How long one waits for more before it parks: events often come one after the other."""
LAST_SAVE_S: Final = 1.0


class Worker:
    """Delivers what a task owes to its webhooks until nothing is left or all of them wait.

    It works under the lease of the task's timer: whatever it stores, it stores only while it has
    that.
    """

    def __init__(
        self,
        task_id: str,
        lease_ms: int,
        store: ShortTermStore,
        tools: Tools,
        *,
        audience: Audience,
        default_retry: Backoff,
        retry_at: Callable[[int], None],
    ) -> None:
        """``audience`` is told where :meth:`wake` must be called for what other processes commit.
        ``retry_at`` is called with the time that it has set for the next try.
        """
        self.task_id = task_id
        self.closing = False
        self.woken = False
        """Whether something came since it last looked, or began to let go of the task."""
        self.ended = trio.Event()
        self._lease_ms = lease_ms
        self._store = store
        self._tools = tools
        self._audience = audience
        self._listens = False
        self._clock = tools.clock
        self._default_retry = default_retry
        self._retry_at = retry_at
        self._record: TaskRecord
        self._cursors: dict[int, Cursor] = {}
        self._retry_is_set = False
        self._writes = trio.Lock()
        self._scope = trio.CancelScope()
        self._change = trio.Event()
        self._working = 0
        self._idle = trio.Event()
        self._asked = 0
        """How often somebody may have asked for a redelivery, of which nothing was read yet."""
        self._ending = False

    def wake(self) -> None:
        """The log has grown, or there is something else to be looked at."""
        self.woken = True
        self._change.set()
        self._change = trio.Event()

    def adopt(self, lease_ms: int) -> bool:
        """Go on under a new lease: somebody has set the timer and this process has taken it.

        False where it is about to end.
        """
        if self._ending:
            return False
        self._lease_ms = lease_ms
        self._asked += 1
        self._idle.set()
        self.wake()
        return True

    def close(self) -> None:
        """Begin no further try, and leave the rest to whoever comes next."""
        self.closing = True
        self.wake()

    def stop(self) -> None:
        """This life of the task is over."""
        self._ending = True
        self._scope.cancel()

    async def run(self) -> None:
        """Work until all is done that can be done now.

        Where the lease is lost or the store is away, it just ends: the timer comes again.
        Cancelled, it saves how far it is, for at most a second.
        """
        try:
            with self._scope:
                if await self._load():
                    await self._work()
        except* (LeaseLost, StoreUnavailable):
            pass
        finally:
            self._ending = True
            with trio.move_on_after(LAST_SAVE_S, shield=True):
                with suppress(LeaseLost, StoreUnavailable):
                    await self._save()
            if self._listens:
                self._audience.detached(self.task_id, counts=False)
            self.ended.set()

    async def _load(self) -> bool:
        record = await self._store.get(self.task_id)
        if record is None:
            return False
        self._record = record
        notes = await self._store.task_notes(self.task_id)
        for number, webhook in enumerate(definitions(record.task, self._default_retry)):
            if isinstance(webhook, Webhook):
                found = kept(notes, number, record)
                self._cursors[number] = Cursor(number, webhook, found, self._tools, self)
                self._retry_is_set |= found.state.next_try_ms is not None
        return True

    async def _work(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew_often)
            for cursor in self._cursors.values():
                self._working += 1
                nursery.start_soon(self._follow, cursor)
            while not await self._rest():
                pass
            nursery.cancel_scope.cancel()

    async def _follow(self, cursor: Cursor) -> None:
        while True:
            change = self._change
            try:
                await cursor.work()
            finally:
                self._working -= 1
            if not self._working:
                self._idle.set()
            if cursor.redelivery is None or self.closing:
                wait_s = inf
                if cursor.again_ms is not None:
                    wait_s = max((cursor.again_ms - self._clock()) / 1000, 0)
                with trio.move_on_after(wait_s):
                    await change.wait()
            async with self._writes:
                pass  # not while it lets go of the task, or has done so
            if self._ending:
                await trio.sleep_forever()
            self._working += 1

    async def _rest(self) -> bool:
        """When all wait, and nothing comes for a moment: let go of the task. False: go on."""
        while self._working or self._asked:
            if self._asked:
                await self._take_requests()
            else:
                await self._until_idle()
        if self._expects_more:
            change = self._change
            with trio.move_on_after(LINGER_S) as quiet:
                await change.wait()
            if not quiet.cancelled_caught or self._working:
                await trio.lowlevel.checkpoint()
                return False
        return await self._let_go()

    async def _until_idle(self) -> None:
        """Wait until no cursor is at work.

        Those that have nothing to do meanwhile must hear of what other processes publish: while
        this one has the lease, nobody else sees to it.
        """
        self._idle = trio.Event()
        with trio.move_on_after(inf if self._listens else LINGER_S):
            await self._idle.wait()
            return
        if self._working < len(self._cursors):
            self._listens = True
            self._audience.attached(self.task_id, counts=False)
            self.wake()

    @property
    def _expects_more(self) -> bool:
        ended = self._record.task.terminal
        return not (ended or self.closing) and any(
            cursor.seen is not None for cursor in self._cursors.values()
        )

    async def _take_requests(self) -> None:
        asked = self._asked
        notes = await self._store.task_notes(self.task_id)
        self._asked -= asked
        for number, cursor in self._cursors.items():
            redelivery = kept(notes, number, self._record).redelivery
            if redelivery is not None and redelivery.id != cursor.state.redelivery:
                cursor.redelivery = redelivery
        self.wake()

    async def _let_go(self) -> bool:
        """Park the timer, or clear it, where the log has not grown."""
        await self._save()
        if self._asked or self._working:
            return False
        left = [cursor for cursor in self._cursors.values() if not cursor.done]
        seen = [cursor.seen for cursor in left if cursor.seen is not None]
        waits = [cursor.again_ms for cursor in left if cursor.again_ms is not None]
        if self.closing:
            return await self._set_free(self._clock(), None)
        is_over = not left or (self._record.task.terminal and not waits)
        retry_ms = min(waits, default=None)
        if is_over or retry_ms is not None or self._retry_is_set:
            await self._store.set_timer(self.task_id, RETRY, retry_ms)
            self._retry_is_set = retry_ms is not None
        if not await self._set_free(None if is_over else PARKED_MS, min(seen, default=None)):
            return False
        if retry_ms is not None:
            self._retry_at(retry_ms)
        return True

    async def _set_free(self, due_ms: int | None, if_next: int | None) -> bool:
        async with self._writes:
            if self._working or self._asked or any(each.unsaved for each in self._cursors.values()):
                return False  # something came meanwhile
            self.woken = False
            lease_ms = self._lease_ms
            is_free = await self._store.set_timer(
                self.task_id, WEBHOOK, due_ms, if_due=lease_ms, if_next=if_next
            )
            if is_free and lease_ms == self._lease_ms:
                self._ending = True
                return True
        if not is_free:
            await self._renew()
        self.wake()
        await trio.lowlevel.checkpoint()
        return False

    async def _save(self) -> None:
        for cursor in self._cursors.values():
            await cursor.save()

    async def _renew_often(self) -> None:
        while True:
            await trio.sleep(RENEW_S)
            await self._renew()

    async def _renew(self) -> None:
        async with self._writes:
            lease_ms, due_ms = self._lease_ms, self._clock() + LEASE_MS
            if await self._store.set_timer(self.task_id, WEBHOOK, due_ms, if_due=lease_ms):
                self._lease_ms = due_ms
            elif lease_ms == self._lease_ms:
                raise self._lost()

    def _lost(self) -> LeaseLost:
        self._ending = True
        return LeaseLost(self.task_id)

    # For its cursors ------------------------------------------------------------------------------

    async def read(self, after: int, limit: int) -> Page:
        try:
            page = await self._store.read(self.task_id, after=after, limit=limit)
        except TaskNotFound:
            raise self._lost() from None
        if page.record.epoch != self._record.epoch:
            raise self._lost()
        self._record = page.record
        return page

    async def keep(self, name: str, value: bytes | None) -> None:
        async with self._writes:
            while True:
                lease_ms = self._lease_ms
                if await self._store.put_task_note(
                    self.task_id,
                    name,
                    value,
                    epoch=self._record.epoch,
                    if_due={WEBHOOK: lease_ms},
                ):
                    return
                if lease_ms == self._lease_ms:
                    raise self._lost()
