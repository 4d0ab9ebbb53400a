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

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(
    tuple[str, set[str], set[str], dict[str, str], dict[str, str]]
).decode

log = structlog.get_logger(__name__)


class Hints:
    """``heard`` is called with the queues that got something elsewhere, with the workers that
    changed there, with tasks and the workers to be asked for them, and with tasks and the workers
    that declined them; it must not wait.
    """

    def __init__(
        self,
        bulletin: Bulletin,
        *,
        name: str,
        others: Callable[[], bool],
        heard: Callable[[set[str], set[str], dict[str, str], dict[str, str]], None],
    ) -> None:
        self._bulletin = bulletin
        self._name = name
        self._others = others
        self._heard = heard
        self._kinds: set[str] = set()
        self._workers: set[str] = set()
        self._tasks: dict[str, str] = {}
        self._declined: dict[str, str] = {}
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

    def ask(self, task_id: str, worker_id: str) -> bool:
        """Have the process that has this worker ask it; False where that can't be told now."""
        if not self._others() or len(self._tasks) >= MAX_HINTS:
            return False
        self._tasks[task_id] = worker_id
        self._some.set()
        return True

    def declined(self, task_id: str, worker_id: str) -> None:
        if self._others() and len(self._declined) < MAX_HINTS:
            self._declined[task_id] = worker_id
            self._some.set()

    def _hear(self, message: bytes) -> None:
        name, kinds, workers, tasks, declined = _decode(message)
        if name != self._name:
            self._heard(kinds, workers, tasks, declined)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell, until cancelled."""
        task_status.started()
        while True:
            await self._some.wait()
            await trio.sleep(FLUSH_S)
            self._some = trio.Event()
            told = (self._name, self._kinds, self._workers, self._tasks, self._declined)
            message = _encode(told)
            self._kinds, self._workers, self._tasks, self._declined = set(), set(), {}, {}
            try:
                await self._bulletin.tell(TOPIC, message)
            except StoreUnavailable:
                log.warning("worker_hint_lost")  # others look by themselves soon
