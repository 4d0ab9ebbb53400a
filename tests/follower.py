"""A client of the stream, and what it is owed: shared by the engine and the concurrency tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, Raw

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.model import Draft, SeriesMode
from taskcast_trio.engine import Delivery, Done, Gap
from taskcast_trio.engine.items import Item


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


def text_of(entry: Entry) -> str:
    delta: str = msgspec.json.decode(bytes(entry.event.data))["delta"]  # type: ignore[arg-type]
    return delta


def series_of(entry: Entry) -> str | None:
    series = entry.event.series_id
    return series if isinstance(series, str) else None


@dataclass
class Client:
    """Keeps what a good client keeps: a cursor, and the text of each series."""

    accumulated: bool = False
    cursor: Entry | None = None
    seen: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    covered: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    done: str | None = None
    connections: int = 0
    _next_number: int = 0

    @property
    def last_event_id(self) -> str | None:
        """What it resumes with: the id of the highest raw index."""
        return self.cursor.id if self.cursor else None

    @property
    def cursor_index(self) -> int:
        return self.cursor.index if self.cursor else -1

    def connected(self) -> None:
        self.connections += 1
        self.done = None
        self._next_number = 0

    def take(self, items: Iterable[Item]) -> None:
        for item in items:
            assert self.done is None, "nothing follows done"
            match item:
                case Done(reason):
                    self.done = reason
                case Gap():
                    self.gaps.append(item)
                    self._start_anew()
                case Delivery(entry, number):
                    assert number == self._next_number, "filtered indexes count without gaps"
                    self._next_number += 1
                    self._take(entry)

    def _start_anew(self) -> None:
        self.seen, self.ids, self.covered, self.texts, self.cursor = [], [], {}, {}, None
        self._next_number = 0

    def _take(self, entry: Entry) -> None:
        self.seen.append(entry.index)
        self.ids.append(entry.id)
        if self.cursor is None or entry.index > self.cursor.index:
            self.cursor = entry
        series, event = series_of(entry), entry.event
        if series is None:
            return
        if event.series_snapshot is True:
            self.covered[series] = entry.index
        whole = event.series_snapshot is True or event.series_mode == "latest" or self.accumulated
        self.texts[series] = ("" if whole else self.texts.get(series, "")) + text_of(entry)


def expected_texts(log: Iterable[Entry]) -> dict[str, str]:
    """The value of each series of a log, by the definition: latest replaces, accumulate joins."""
    texts: dict[str, str] = {}
    for entry in log:
        series = series_of(entry)
        if series is not None:
            kept = "" if entry.event.series_mode == "latest" else texts.get(series, "")
            texts[series] = kept + text_of(entry)
    return texts


def check(client: Client, log: Sequence[Entry], stored: Iterable[int]) -> None:
    """Hold a client that is up to date to the promise: each event once and in order, nothing
    missing.

    ``log`` is everything that was committed, ``stored`` the indexes that no ``latest`` event
    replaced: those are owed, unless a snapshot of their series stands for them. Only events of a
    ``latest`` series may come out of order, since a replay has them at the place of the first one.
    """
    assert len(set(client.seen)) == len(client.seen), "an event came twice"
    ids = {entry.index: entry.id for entry in log}
    assert client.ids == list(map(ids.get, client.seen)), "an event of another log came"
    in_order = [index for index in client.seen if log[index].event.series_mode != "latest"]
    assert in_order == sorted(in_order), "events came out of order"
    owed = set(stored)
    for series, index in client.covered.items():
        owed -= {entry.index for entry in log[: index + 1] if series_of(entry) == series}
    missing = owed - set(client.seen)
    assert not missing, f"events never came: {sorted(missing)}"
    assert client.texts == expected_texts(log), "the text of a series is not what was published"
