"""The timers of the memory store: by kind, a dict and a heap that knows which is due next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from heapq import heapify, heappop, heappush, nsmallest

from .records import PARKED_MS, Timer, Timers


class _Kind:
    """The heap keeps the places of timers that were moved or cleared until most of it is theirs."""

    __slots__ = ("due", "heap")

    def __init__(self) -> None:
        self.due: dict[str, int] = {}
        self.heap: list[tuple[int, str]] = []

    def set(self, task_id: str, due_ms: int) -> None:
        self.due[task_id] = due_ms
        heappush(self.heap, (due_ms, task_id))
        if len(self.heap) > 2 * len(self.due) + 64:
            self.heap = [(due_ms, task_id) for task_id, due_ms in self.due.items()]
            heapify(self.heap)

    def next(self) -> tuple[int, str] | None:
        heap = self.heap
        while heap:
            due_ms, task_id = heap[0]
            if self.due.get(task_id) == due_ms:
                return heap[0]
            heappop(heap)
        return None


class MemoryTimers:
    """See :class:`TimerStore`; whether a task is there is not known here."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self._of: defaultdict[str, set[str]] = defaultdict(set)
        """The kinds that each task has or had."""

    def _kind(self, kind: str) -> _Kind:
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _Kind()
        return known

    def _set(self, task_id: str, kind: str, due_ms: int) -> None:
        self._kind(kind).set(task_id, due_ms)
        self._of[task_id].add(kind)

    def _clear(self, task_id: str, kind: str) -> None:
        known = self._kinds.get(kind)
        if known is not None:
            known.due.pop(task_id, None)
            if not known.due:
                del self._kinds[kind]

    def set(self, task_id: str, timers: Timers) -> None:
        for kind, due_ms in timers.items():
            if due_ms is None:
                self._clear(task_id, kind)
                self._of[task_id].discard(kind)
            else:
                self._set(task_id, kind, due_ms)

    def wake(self, task_id: str, timers: Mapping[str, int]) -> None:
        for kind, due_ms in timers.items():
            known = self.due(task_id, kind)
            if known is None or due_ms < known:
                self._set(task_id, kind, due_ms)

    def hasten(self, task_id: str, timers: Mapping[str, int]) -> None:
        for kind, due_ms in timers.items():
            if self.due(task_id, kind) == PARKED_MS:
                self._set(task_id, kind, due_ms)

    def due(self, task_id: str, kind: str) -> int | None:
        known = self._kinds.get(kind)
        return None if known is None else known.due.get(task_id)

    def forget(self, task_id: str) -> None:
        for kind in self._of.pop(task_id, ()):
            self._clear(task_id, kind)

    def next_due(self, kind: str) -> int | None:
        known = self._kinds.get(kind)
        first = None if known is None else known.next()
        return None if first is None else first[0]

    def list_due(self, kind: str, *, now_ms: int, limit: int) -> list[Timer]:
        known = self._kinds.get(kind)
        if known is None:
            return []
        due = ((due_ms, id_) for id_, due_ms in known.due.items() if due_ms <= now_ms)
        return [Timer(task_id, kind, due_ms) for due_ms, task_id in nsmallest(limit, due)]

    def take_due(self, kind: str, *, now_ms: int, lease_ms: int, limit: int) -> list[Timer]:
        timers = self._kinds.get(kind)
        if timers is None:
            return []
        taken: list[Timer] = []
        until_ms = now_ms + lease_ms
        while len(taken) < limit:
            first = timers.next()
            if first is None or first[0] > now_ms:
                break
            heappop(timers.heap)
            timers.set(first[1], until_ms)
            taken.append(Timer(first[1], kind, until_ms))
        return taken
