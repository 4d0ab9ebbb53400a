"""The running values of series, kept for the logs whose snapshot was asked for lately.

They are read from the rows once, on a worker thread, and kept up by what is committed, on the Trio
side: a step that was undone leaves no mark. Commits that come while the rows are read are put by,
and what the rows already had of them is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from msgspec import UNSET

from taskcast_trio.core.series import SeriesValues, accumulates, fold

from ..recent import Recent
from ..records import Commit, Snapshot, TaskRecord

_MAX_BYTES: Final = 64 * 1024 * 1024
_OVERHEAD: Final = 1024


class LogValues:
    """The values of one life of a log, as of ``record``."""

    def __init__(self, record: TaskRecord, values: SeriesValues, weight: int) -> None:
        self.record = record
        self.weight = weight + _OVERHEAD
        self._values = values

    def snapshot(self) -> Snapshot:
        values = {series: value.entry for series, value in self._values.items()}
        return Snapshot(self.record, values)

    def take(self, commit: Commit) -> bool:
        """Come up to the commit, if it is not known already; False where this log is no more."""
        if commit.deleted or commit.record.epoch != self.record.epoch:
            return False
        known = self.record.next_index
        for entry in commit.entries:
            if entry.index >= known:
                fold(self._values, entry)
                if accumulates(entry.event) and entry.event.data is not UNSET:
                    self.weight += len(entry.event.data)
        if _age(commit.record) > _age(self.record):
            self.record = commit.record
        return True


def _age(record: TaskRecord) -> tuple[int, int]:
    return (record.revision, record.next_index)


class ValuesCache:
    """The values that are kept, at most about 64 MiB of them and the log that was used last."""

    def __init__(self) -> None:
        self._recent: Recent[str, LogValues] = Recent(_MAX_BYTES)
        self._loading: dict[str, list[list[Commit]]] = {}

    def get(self, task_id: str) -> LogValues | None:
        return self._recent.get(task_id)

    def take(self, commit: Commit) -> None:
        """Bring what is kept up to the commit."""
        task_id = commit.record.task.id
        for put_by in self._loading.get(task_id, ()):
            put_by.append(commit)
        values = self._recent.get(task_id)
        if values is not None:
            self._keep(task_id, values, values.take(commit))

    def clear(self) -> None:
        self._recent.clear()

    @contextmanager
    def loading(self, task_id: str) -> Iterator[list[Commit]]:
        """While the log's rows are read: the list of what is committed meanwhile."""
        put_by: list[Commit] = []
        loads = self._loading.setdefault(task_id, [])
        loads.append(put_by)
        try:
            yield put_by
        finally:
            loads[:] = [other for other in loads if other is not put_by]
            if not loads:
                del self._loading[task_id]

    def install(self, values: LogValues, put_by: list[Commit]) -> None:
        """Keep values that were just read, brought up to what was committed meanwhile."""
        self._keep(values.record.task.id, values, all(map(values.take, put_by)))

    def _keep(self, task_id: str, values: LogValues, alive: bool) -> None:
        if alive:
            self._recent.put(task_id, values, values.weight)
        else:
            self._recent.drop(task_id)
