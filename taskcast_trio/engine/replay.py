"""The first replay of a subscription, in stored order: what it puts together or leaves out."""

from __future__ import annotations

from operator import attrgetter

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.series import accumulates, as_snapshot, series_of
from taskcast_trio.storage.records import Page, Snapshot

from .cursor import Cursor
from .items import Item, Pumped


class Replay:
    """Brings ``cursor`` up to ``high_water``, the end of the log at the ``snapshot``.

    ``collapse`` says that an accumulate series is sent as its value. Only what was stored behind
    ``cut_place``, and after ``since_ms``, is delivered.
    """

    __slots__ = (
        "_collapse",
        "_collapsed",
        "_cursor",
        "_cut_place",
        "_left",
        "_owed",
        "_since_ms",
        "_values",
        "after_place",
        "high_water",
        "over",
    )

    def __init__(
        self,
        cursor: Cursor,
        snapshot: Snapshot,
        *,
        collapse: bool = True,
        cut_place: int = -1,
        since_ms: float | None = None,
    ) -> None:
        self.high_water = snapshot.record.next_index - 1
        # Running values are made of all pieces, those before the cut too.
        self.after_place = -1 if cursor.follow.accumulated else cut_place
        """Behind which place the next page begins."""
        self.over = False
        self._cursor = cursor
        self._values = snapshot.values
        self._collapse = collapse
        self._cut_place = cut_place
        self._since_ms = since_ms
        self._left = cursor.follow.limit
        self._collapsed: set[str] = set()
        self._owed: dict[str, None] = {}
        """The series of which pieces are behind, and the snapshot that has them is still to come.
        """

    def read(self, page: Page, *, runs: bool) -> list[Pumped]:
        """A page from behind ``after_place``. Where there may be ``runs``, the page is one if all
        of it is delivered.
        """
        if runs and self._cursor.whole and self._is_whole(page):
            run = self._cursor.run(page.entries)
            self._cursor.had(page.entries, self.high_water)
            if page.entries:
                self.after_place = page.entries[-1].place
            if not page.more:
                self._end()
            return run
        items: list[Item] = []
        for entry in page.entries:
            self.after_place = entry.place
            if entry.index > self.high_water:
                value = self._replaced_value(entry)
                if value is None:
                    continue
                entry = value
            if self._left is not None and self._passed_cut(entry):
                if self._left == 0:
                    break
                self._left -= 1
            self._read_one(entry, items)
        self._cursor.had(page.entries, self.high_water)
        if not page.more or self._left == 0:
            for value in self._left_over():
                self._cursor.deliver(as_snapshot(value), items, resumable=False)
            self._end()
        return [*items]

    def _end(self) -> None:
        self.over = True
        self._cursor.caught_up(self.high_water, self._values)

    def _is_whole(self, page: Page) -> bool:
        """Whether nothing of the page is to be left out or put together."""
        if self._left is not None or self._since_ms is not None:
            return False
        if self._collapse and any(accumulates(value.event) for value in self._values.values()):
            return False
        return max((entry.index for entry in page.entries), default=-1) <= self.high_water

    def _read_one(self, entry: Entry, items: list[Item]) -> None:
        cursor, series, value = self._cursor, series_of(entry.event), self._value_of(entry)
        if series is None or value is None:
            if cursor.follow.accumulated and not self._collapse:
                entry = cursor.running(entry)
            if self._passed_cut(entry):
                cursor.deliver(entry, items, resumable=not self._owed)
        elif cursor.follow.limit is not None:
            if series not in self._collapsed:
                self._collapsed.add(series)
                cursor.deliver(as_snapshot(value), items)
        elif entry.index == value.index:
            self._owed.pop(series, None)
            cursor.deliver(as_snapshot(value), items, resumable=not self._owed)
        elif cursor.follow.filter.matches(value.type, value.level):
            self._owed[series] = None

    def _passed_cut(self, entry: Entry) -> bool:
        """Whether the entry is one that the replay was asked for."""
        after = self._since_ms is None or entry.event.timestamp > self._since_ms
        return after and entry.place > self._cut_place

    def _value_of(self, entry: Entry) -> Entry | None:
        """The value that stands for this piece; None where it stands for itself."""
        series = series_of(entry.event)
        if not self._collapse or series is None or not accumulates(entry.event):
            return None
        value = self._values.get(series)
        return value if value is not None and accumulates(value.event) else None

    def _replaced_value(self, later: Entry) -> Entry | None:
        """The value whose newest piece stood where a ``latest`` event from beyond the high-water
        mark stands now: the pieces before it have nothing else to stand for them.
        """
        value = self._values.get(series_of(later.event) or "")
        if value is None or value.place != later.place:
            return None
        return self._value_of(value)

    def _left_over(self) -> list[Entry]:
        """The values that are owed at the end: the events that they would stand at are gone."""
        return sorted((self._values[series] for series in self._owed), key=attrgetter("index"))
