"""Lists of tasks: in order of creation, over all buckets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from taskcast_trio.core.errors import no_page_after

from ..records import TaskRecord
from .keys import BUCKETS, bucket_of
from .known import version_of
from .rows import pack, unpack
from .scripts import script
from .steps import Steps

PAGE: Final = 500
"""How many tasks of a bucket, or bodies of tasks, are asked for at once."""


class Listing(Steps):
    """Every bucket gives its first few, and goes on where these did not reach."""

    async def list_tasks(
        self,
        *,
        statuses: frozenset[str] | None = None,
        type_: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[TaskRecord]:
        start = 0 if after is None else await self._number_of(after)
        wanted = b"" if statuses is None else pack(sorted(statuses))
        type_value = "" if type_ is None else f"={type_}"
        found: list[tuple[int, str]] = []
        quota = PAGE if limit is None else min(PAGE, 4 + limit // 64)
        behind = dict.fromkeys(range(BUCKETS), start)
        while behind and limit != 0:
            replies = await self._first(behind, quota, wanted, type_value)
            reached: dict[int, int] = {}
            for bucket, (flat, more) in replies:
                ids = list(zip(map(int, flat[::2]), flat[1::2], strict=True))
                found += ids
                if more:
                    reached[bucket] = ids[-1][0]
            found.sort()
            if limit is not None and len(found) >= limit:
                # What comes behind the last one that is wanted is of no interest.
                last = found[limit - 1][0]
                reached = {bucket: number for bucket, number in reached.items() if number < last}
            behind = reached
            quota = PAGE
        return await self._records([task_id for _, task_id in found[:limit]])

    async def _number_of(self, task_id: str) -> int:
        bucket = bucket_of(task_id)
        number = await self._commands.do(
            self._commands.plain(bucket, "ZSCORE", self._keys.order[bucket], task_id)
        )
        if number is None:
            raise no_page_after(task_id)
        return int(float(number))

    async def _first(
        self, behind: dict[int, int], quota: int, statuses: bytes, type_: str
    ) -> Iterable[tuple[int, Any]]:
        starts = set(behind.values())
        is_short = len(behind) == BUCKETS and len(starts) == 1 and quota < PAGE
        if is_short and not statuses and not type_ and self._commands.undivided:
            # Others may have to look at every task, which is no work for one script.
            look = self._commands.on_all(script("list_all"), "order", starts.pop(), quota)
            return enumerate(unpack(await self._commands.do(look)))
        steps = [
            self._commands.on_keys(
                script("list"),
                bucket,
                (self._keys.order[bucket], f"{self._keys.stems[bucket]}head:"),
                start,
                quota,
                statuses,
                type_,
            )
            for bucket, start in behind.items()
        ]
        return zip(behind, map(unpack, await self._commands.do_all(steps)), strict=True)

    async def _records(self, ids: list[str]) -> list[TaskRecord]:
        """Those of the tasks that are still there."""
        records = []
        for start in range(0, len(ids), PAGE):
            page = [(task_id, self._known.get(task_id)) for task_id in ids[start : start + PAGE]]
            replies = await self._commands.do_all(
                [
                    self._commands.on_task(script("get"), task_id, version_of(held))
                    for task_id, held in page
                ]
            )
            for (task_id, held), reply in zip(page, replies, strict=True):
                word, *told = unpack(reply)
                if word == "done":
                    records.append(self._record(task_id, told[0], held))
        return records

    async def count(self) -> int:
        if self._commands.undivided:
            look = self._commands.on_all(script("count_all"), "order")
            count: int = await self._commands.do(look)
            return count
        steps = [
            self._commands.plain(bucket, "ZCARD", key)
            for bucket, key in enumerate(self._keys.order)
        ]
        return sum(await self._commands.do_all(steps))
