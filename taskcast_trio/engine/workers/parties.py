"""Who can be given a task in this process: connections of workers, and pulls that wait."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import trio
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.model import Task, Wire

MAX_ANNOUNCED: Final = 1000

Message: TypeAlias = dict[str, Any]


class Summary(Wire, frozen=True, kw_only=True):
    """What a worker is told of a task that it may take."""

    id: str
    type: str | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    cost: int | UnsetType = UNSET
    params: Raw | UnsetType = UNSET


def summary_of(task: Task) -> Summary:
    return Summary(id=task.id, type=task.type, tags=task.tags, cost=task.cost, params=task.params)


class Session:
    """A connection of a worker. ``send`` and ``close`` never wait; ``may`` says whether the
    worker's token lets it have a task, ``lags`` whether much waits to be read by it.
    """

    def __init__(
        self,
        worker_id: str,
        name: str,
        *,
        send: Callable[[Message], None],
        close: Callable[[str], None],
        may: Callable[[Task], bool],
        lags: Callable[[], bool] = lambda: False,
    ) -> None:
        self.worker_id = worker_id
        self.name = name
        self.send = send
        self.close = close
        self.may = may
        self.lags = lags
        self.offers: dict[str, tuple[int, int]] = {}
        """By task: what it costs, and until when the offer stands."""
        self.taking: dict[str, list[Message]] = {}
        """The tasks that it is about to get, and what it is to be told of them after that."""
        self.declining: dict[str, list[Message]] = {}
        """Those that it is giving back, likewise."""
        self._announced: OrderedDict[str, int] = OrderedDict()
        """By task: until when it is not told again."""

    def offered(self, now_ms: int) -> int:
        """The slots that open offers may take."""
        for task_id, (_, until_ms) in list(self.offers.items()):
            if until_ms <= now_ms:
                del self.offers[task_id]
        return sum(cost for cost, _ in self.offers.values())

    def offer(self, task: Task, cost: int, until_ms: int) -> None:
        self.offers[task.id] = (cost, until_ms)
        self._tell("offer", task)

    def knows(self, task_id: str, now_ms: int) -> bool:
        """Whether it was told lately of a task that several may claim."""
        return self._announced.get(task_id, 0) > now_ms

    def announce(self, task: Task, until_ms: int) -> None:
        """Tell of a task that several may claim; who lags is told once it has caught up."""
        if self.lags():
            return
        self._announced[task.id] = until_ms
        self._announced.move_to_end(task.id)
        if len(self._announced) > MAX_ANNOUNCED:
            self._announced.popitem(last=False)
        self._tell("available", task)

    def forget(self, task_id: str) -> None:
        """It may be told again of a task that several may claim."""
        self._announced.pop(task_id, None)

    def _tell(self, type_: Literal["offer", "available"], task: Task) -> None:
        message = {"type": type_, "taskId": task.id, "task": summary_of(task)}
        waiting = self.declining.get(task.id)
        if waiting is None:
            self.send(message)
        else:
            waiting.append(message)


class Waiter:
    """A pull that waits."""

    def __init__(self, worker_id: str, may: Callable[[Task], bool]) -> None:
        self.worker_id = worker_id
        self.may = may
        self.since = trio.current_time()
        self.given: str | None = None
        """A task that is its to take."""
        self.woken = trio.Event()

    def give(self, task_id: str) -> None:
        self.given = task_id
        self.woken.set()

    def wake(self) -> None:
        """There may be something in the queues."""
        self.woken.set()
