"""What steps and looks have in common: how they are asked, and what their replies say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import UNSET

from taskcast_trio.core.errors import KeyReused
from taskcast_trio.core.model import Task

from ..records import Commit, Idempotency, TaskRecord, Timers
from .commands import Commands
from .known import Held, Known, version_of
from .resp import Value
from .rows import entries_of, pack, unpack
from .scripts import script

NO_KEY: Final[tuple[Value, ...]] = ("", "", "")


class Steps:
    """A store's way to Redis."""

    def __init__(self, commands: Commands, known: Known, publish: str) -> None:
        self._commands = commands
        self._known = known
        self._keys = commands.keys
        self._publish = publish

    async def _step(self, name: str, task_id: str, *values: Value) -> list[Any]:
        """Run a script that changes the task; its first two arguments are the same for all."""
        remember_ms = self._commands.remember_ms
        step = self._commands.on_task(
            script(name), task_id, task_id, remember_ms, *values, step=True
        )
        reply: list[Any] = unpack(await self._commands.do(step))
        return reply

    async def _look(self, name: str, task_id: str, *values: Value) -> list[Any]:
        """Run a script that changes nothing."""
        look = self._commands.on_task(script(name), task_id, *values)
        reply: list[Any] = unpack(await self._commands.do(look))
        return reply

    async def _told(
        self, name: str, task_id: str, *values: Value
    ) -> tuple[TaskRecord, list[Any]] | None:
        """A look whose reply begins with the task's record: that, and the rest; None where there is
        no task.
        """
        held = self._known.get(task_id)
        reply = await self._look(name, task_id, version_of(held), *values)
        if reply[0] == "gone":
            return None
        record = self._record(task_id, reply[1], held)
        self._known.was_read(record)
        return record, reply[2:]

    def _record(self, task_id: str, told: Sequence[Any], held: Held | None) -> TaskRecord:
        record = self._known.record(task_id, told, held)
        assert record is not None, "a script leaves out what it was told that the caller has"
        return record

    def _repeated(self, task_id: str, reply: Sequence[Any]) -> Commit:
        """The answer that an idempotency key brought before."""
        if reply[0] == "reused":
            raise KeyReused(task_id)
        _, ts, moved, rows, told, aside = reply
        record = self._record(task_id, told, None)
        entries = entries_of(
            rows,
            task_id=task_id,
            epoch=record.epoch,
            first=record.next_index - len(rows),
            ts=ts,
            moved=moved,
        )
        return Commit(record, entries, repeated=True, aside=aside)


def key_values(idempotency: Idempotency | None, now_ms: int) -> tuple[Value, ...]:
    if idempotency is None:
        return NO_KEY
    # An empty key is one too: the scripts take no key for an empty text.
    return (f"={idempotency.key}", idempotency.fingerprint, now_ms + idempotency.ttl_ms)


def timer_values(timers: Timers | Mapping[str, int]) -> bytes:
    """Kind and due time in turn, false to clear."""
    flat: list[str | int | bool] = []
    for kind, due_ms in timers.items():
        flat += [kind, False if due_ms is None else due_ms]
    return pack(flat)


def type_value(task: Task) -> str:
    return "" if task.type is UNSET else f"={task.type}"


def fence_value(task: Task) -> Value:
    return "" if task.fence is UNSET else task.fence


def ended_value(task: Task) -> str:
    return task.status if task.terminal else ""
