"""Tasks that were decoded lately: what Redis says of a task need not carry its body again. Of those
that are followed, where the log stood when it was first read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from taskcast_trio.core.model import Task

from ..recent import Recent
from ..records import TaskRecord
from .rows import unpack_body, unpack_former

_MAX_BYTES: Final = 32 * 1024 * 1024
_OVERHEAD: Final = 1024
_NOT_FOLLOWED: Final = ("", 0)

Held: TypeAlias = tuple[str, int, Task]
"""Epoch, revision and the task as of it."""

Position: TypeAlias = tuple[str, int]
"""Epoch and next index."""


class Known:
    """The bodies that are kept, at most about 32 MiB of them."""

    def __init__(self) -> None:
        self._recent: Recent[str, Held] = Recent(_MAX_BYTES)
        self._followed: dict[str, Position | None] = {}

    def get(self, task_id: str) -> Held | None:
        return self._recent.get(task_id)

    def follow(self, task_id: str) -> None:
        """Note where the log stands when it is read for the next time: who follows it has read it
        then, or does so later.
        """
        self._followed[task_id] = None

    def unfollow(self, task_id: str) -> None:
        self._followed.pop(task_id, None)

    def first_read(self, task_id: str) -> Position | None:
        return self._followed.get(task_id)

    def was_read(self, record: TaskRecord) -> None:
        task_id = record.task.id
        if self._followed.get(task_id, _NOT_FOLLOWED) is None:
            self._followed[task_id] = (record.epoch, record.next_index)

    def record(self, task_id: str, told: Sequence[Any], held: Held | None) -> TaskRecord | None:
        """The record that was told; None where its body was neither told nor held."""
        epoch, revision, next_index, imported, former, trimmed, trims, body = told
        if body is not None:
            task = unpack_body(body)
            self._recent.put(task_id, (epoch, revision, task), len(body) + _OVERHEAD)
        elif held is not None and held[:2] == (epoch, revision):
            task = held[2]
        else:
            return None
        return TaskRecord(
            task,
            revision,
            epoch,
            next_index,
            imported == "1",
            unpack_former(former),
            trimmed,
            trims,
        )


def version_of(held: Held | None) -> str:
    """How a script is told of what its caller has."""
    return "" if held is None else f"{held[0]}:{held[1]}"
