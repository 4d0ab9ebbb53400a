"""Timers, by bucket and kind a sorted set; and the small values of tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from ..records import NO_TIMERS, Timer, Timers
from .keys import BUCKETS, bucket_of
from .rows import pack, unpack
from .scripts import script
from .steps import Steps, timer_values

_Due: TypeAlias = tuple[int, str]
"""When a timer is due, and of which task."""


class TaskTimers(Steps):
    """A look at all buckets is one script. In a cluster it is one crossing, after which only those
    run a script that have something due.
    """

    async def take_due(self, kind: str, *, now_ms: int, lease_ms: int, limit: int) -> list[Timer]:
        until_ms = now_ms + lease_ms
        if self._commands.undivided:
            remember_ms = self._commands.remember_ms
            values = (now_ms, until_ms, limit, remember_ms)
            step = self._commands.on_all(script("take_due_all"), f"due:{kind}", *values, step=True)
            ids = unpack(await self._commands.do(step))
            return [Timer(task_id, kind, until_ms) for task_id in ids]
        while True:
            wanted = sorted(await self._due(kind, now_ms, limit))[:limit]
            by_bucket: dict[int, list[str | int]] = {}
            for due_ms, task_id in wanted:
                by_bucket.setdefault(bucket_of(task_id), []).extend((task_id, due_ms))
            commands = self._commands
            steps = [
                commands.on_keys(
                    script("take_due"),
                    bucket,
                    (self._keys.due(bucket, kind), self._keys.step(bucket, commands.request())),
                    until_ms,
                    commands.remember_ms,
                    pack(flat),
                )
                for bucket, flat in by_bucket.items()
            ]
            taken = {task_id for reply in await commands.do_all(steps) for task_id in unpack(reply)}
            if taken or not wanted:
                return [Timer(id_, kind, until_ms) for _, id_ in wanted if id_ in taken]
            # Others took all of them: there may be more.

    async def list_due(self, kind: str, *, now_ms: int, limit: int) -> list[Timer]:
        # For people who look, not for a loop: a crossing or two will do.
        few = min(limit, 4 + limit // 64)
        due = sorted(await self._due(kind, now_ms, few))
        wanted = Counter(bucket_of(task_id) for _, task_id in due[:limit])
        # Where all that a bucket gave are wanted, it may have more that are.
        short = {bucket for bucket, count in wanted.items() if count == few < limit}
        if short:
            due = [pair for pair in due if bucket_of(pair[1]) not in short]
            due = sorted(due + await self._due(kind, now_ms, limit, short))
        return [Timer(task_id, kind, due_ms) for due_ms, task_id in due[:limit]]

    async def _due(
        self, kind: str, now_ms: int, limit: int, buckets: Iterable[int] = range(BUCKETS)
    ) -> list[_Due]:
        looks = [
            self._commands.plain(
                bucket,
                *("ZRANGEBYSCORE", self._keys.due(bucket, kind), "-inf", now_ms),
                *("WITHSCORES", "LIMIT", 0, limit),
            )
            for bucket in buckets
        ]
        due: list[_Due] = []
        for flat in await self._commands.do_all(looks):
            due += _pairs(flat)
        return due

    async def next_due(self, kind: str) -> int | None:
        if self._commands.undivided:
            look = self._commands.on_all(script("next_due_all"), f"due:{kind}")
            due_ms: int | None = await self._commands.do(look)
            return due_ms
        looks = [
            self._commands.plain(bucket, "ZRANGE", self._keys.due(bucket, kind), 0, 0, "WITHSCORES")
            for bucket in range(BUCKETS)
        ]
        firsts = [pair for flat in await self._commands.do_all(looks) for pair in _pairs(flat)]
        return min(firsts)[0] if firsts else None

    async def set_timer(
        self,
        task_id: str,
        kind: str,
        due_ms: int | None,
        *,
        if_due: int | None = None,
        if_next: int | None = None,
    ) -> bool:
        reply = await self._step(
            "set_timer",
            task_id,
            timer_values({kind: due_ms}),
            timer_values({} if if_due is None else {kind: if_due}),
            "" if if_next is None else if_next,
        )
        return bool(reply[0] == "done")

    async def put_task_note(
        self,
        task_id: str,
        name: str,
        value: bytes | None,
        *,
        epoch: str,
        timers: Timers = NO_TIMERS,
        if_due: Mapping[str, int] = NO_TIMERS,
    ) -> bool:
        reply = await self._step(
            "put_task_note",
            task_id,
            epoch,
            name,
            b"" if value is None else b"=" + value,
            timer_values(timers),
            timer_values(if_due),
        )
        return bool(reply[0] == "done")

    async def task_note(self, task_id: str, name: str) -> bytes | None:
        key = self._keys.notes(task_id)
        value: bytes | None = await self._commands.do(
            self._commands.plain(bucket_of(task_id), "HGET", key, name)
        )
        return value

    async def task_notes(self, task_id: str) -> dict[str, bytes]:
        flat: list[bytes] = await self._commands.do(
            self._commands.plain(bucket_of(task_id), "HGETALL", self._keys.notes(task_id))
        )
        names = (name.decode() for name in flat[::2])
        return dict(zip(names, flat[1::2], strict=True))


def _pairs(flat: list[bytes]) -> list[_Due]:
    return [
        (int(float(due)), task_id.decode())
        for task_id, due in zip(flat[::2], flat[1::2], strict=True)
    ]
