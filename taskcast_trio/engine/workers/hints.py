"""What the processes of one store tell each other of workers: hints, each of which may be lost.

Whoever hears one looks into the store. What is told within a moment goes out as one message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import structlog
import trio

from taskcast_trio.core.errors import StoreUnavailable

from ..bulletin import Bulletin

TOPIC: Final = "workers"
FLUSH_S: Final = 0.005
MAX_HINTS: Final = 200

log = structlog.get_logger(__name__)


class Hints:
    """``heard`` is called with the queues that got something elsewhere, and with the workers that
    changed there; it must not wait.
    """

    def __init__(
        self,
        bulletin: Bulletin,
        *,
        name: str,
        others: Callable[[], bool],
        heard: Callable[[set[str], set[str]], None],
    ) -> None:
        self._bulletin = bulletin
        self._name = name
        self._others = others
        self._heard = heard
        self._kinds: set[str] = set()
        self._workers: set[str] = set()
        self._some = trio.Event()
        bulletin.listen(TOPIC, self._hear)

    def queue(self, kind: str) -> None:
        if self._others() and len(self._kinds) < MAX_HINTS:
            self._kinds.add(kind)
            self._some.set()

    def worker(self, worker_id: str) -> None:
        if self._others() and len(self._workers) < MAX_HINTS:
            self._workers.add(worker_id)
            self._some.set()

    def _hear(self, message: bytes) -> None:
        name, kinds, workers = msgspec.msgpack.decode(message, type=tuple[str, set[str], set[str]])
        if name != self._name:
            self._heard(kinds, workers)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell, until cancelled."""
        task_status.started()
        while True:
            await self._some.wait()
            await trio.sleep(FLUSH_S)
            self._some = trio.Event()
            message = msgspec.msgpack.encode((self._name, self._kinds, self._workers))
            self._kinds, self._workers = set(), set()
            try:
                await self._bulletin.tell(TOPIC, message)
            except StoreUnavailable:
                log.warning("worker_hint_lost")  # others look by themselves soon
