"""What the contract tests build their cases from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import trio
from msgspec import UNSET, Raw
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.model import Draft, Event, SeriesMode, Status, Task
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Commit, Idempotency

NOW = 1_700_000_000_000
DAY = 24 * 60 * 60 * 1000
PATIENCE_S = 10.0


def task(id_: str = "t", status: Status = "pending", *, at: int = NOW, **fields: Any) -> Task:
    return Task(id=id_, status=status, created_at=at, updated_at=at, **fields)


def draft(data: object = 0, series: str | None = None, mode: SeriesMode = "accumulate") -> Draft:
    return Draft(
        type="x",
        level="info",
        data=Raw(msgspec.json.encode(data)),
        series_id=series or UNSET,
        series_mode=mode if series else UNSET,
    )


def piece(text: str, series: str = "s") -> Draft:
    return draft({"delta": text}, series)


def latest(text: str, series: str = "s") -> Draft:
    return draft({"delta": text}, series, "latest")


def counted(seq: int, client_id: str = "me", *, data: object = 0) -> Draft:
    """An event of a publisher that counts."""
    return replace(draft(data), client_id=client_id, client_seq=seq)


def event(index: int, data: object = 0, *, id_: str | None = None, at: int = NOW) -> Event:
    """An event as an import brings it."""
    return Event(
        id=id_ or f"foreign-{index}",
        task_id="t",
        index=index,
        timestamp=at,
        type="x",
        level="info",
        data=Raw(msgspec.json.encode(data)),
    )


def key(name: str = "k", request: bytes = b"one") -> Idempotency:
    return Idempotency(name, request)


def value(entry: Entry) -> Any:
    return msgspec.json.decode(bytes(entry.event.data))  # type: ignore[arg-type]


def text(entry: Entry) -> str:
    delta: str = value(entry)["delta"]
    return delta


async def append(store: ShortTermStore, *drafts: Draft, id_: str = "t", at: int = NOW) -> Commit:
    return await store.append(id_, drafts, now_ms=at)


async def read_all(store: ShortTermStore, id_: str = "t", *, limit: int = 1000) -> list[Entry]:
    """The log in the order of indexes, page by page."""
    entries: list[Entry] = []
    after, more = -1, True
    while more:
        page = await store.read(id_, after=after, limit=limit)
        assert len(page.entries) <= limit
        assert page.entries or not page.more, "a page that says more but is empty never ends"
        entries += page.entries
        after, more = (page.entries[-1].index if page.entries else after), page.more
    return entries


async def read_all_places(
    store: ShortTermStore, id_: str = "t", *, limit: int = 1000
) -> list[Entry]:
    """The log in stored order, page by page."""
    entries: list[Entry] = []
    place, more = -1, True
    while more:
        page = await store.read_places(id_, after_place=place, after_index=-1, limit=limit)
        assert len(page.entries) <= limit
        assert page.entries or not page.more, "a page that says more but is empty never ends"
        entries += page.entries
        place, more = (page.entries[-1].place if page.entries else place), page.more
    return entries


def assert_dense(entries: Sequence[Entry]) -> None:
    """Contiguous indexes from 0, timestamps that do not go back, ids that sort like the log."""
    assert [entry.index for entry in entries] == list(range(len(entries)))
    for one, two in pairwise(entries):
        assert one.event.timestamp <= two.event.timestamp
        assert one.id < two.id


class Announced:
    """A sink that keeps what was announced."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self._changed = trio.Event()

    def committed(self, commit: Commit) -> None:
        self.commits.append(commit)
        self._changed.set()

    def interrupted(self, task_ids: Iterable[str] | None = None) -> None:
        raise AssertionError("nothing was lost in these tests")

    async def first(self, count: int) -> list[Commit]:
        """Wait for ``count`` announcements; they come with the step in memory, a little later
        elsewhere.
        """
        with trio.fail_after(PATIENCE_S):
            while len(self.commits) < count:
                self._changed = trio.Event()
                await self._changed.wait()
        assert len(self.commits) == count, "more was announced than was stored"
        return self.commits
