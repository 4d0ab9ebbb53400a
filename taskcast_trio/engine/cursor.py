"""A cursor: where a subscriber stands in one task's log, and what it gets of what comes.

It is given pages and commits, and itself neither reads nor waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.series import SeriesValue, SeriesValues, accumulates, fold
from taskcast_trio.storage.records import Commit, Page, TaskRecord

from .items import Delivery, Done, Follow, Item, Pumped, Run
from .resume import end_cursor


class Cursor:
    """``last`` is the highest index that is behind it, delivered or filtered out. It is ``live``
    where what it takes next is what is committed, and has ``ended`` where nothing comes any more.
    """

    __slots__ = (
        "_anchor",
        "_anchor_id",
        "_epoch",
        "_filtered",
        "_plain",
        "_silent_until",
        "_since_index",
        "_told",
        "_trims",
        "_values",
        "ended",
        "follow",
        "last",
        "live",
    )

    def __init__(self, follow: Follow) -> None:
        self.follow = follow
        self.last = -1
        self.live = False
        self.ended = False
        self._epoch = ""
        self._anchor, self._anchor_id = -1, ""
        """The newest event that it has had: read again, it shows whether the log still has it."""
        self._silent_until = -1
        """Events up to this index only bring the running values up to the cursor."""
        self._filtered = 0
        self._since_index = follow.since_index if follow.last_event_id is None else None
        self._plain = follow.filter.passes_all and not follow.accumulated
        """Whether every event passes as it is."""
        self._values: SeriesValues = {}
        self._trims = 0
        """How often the log had been trimmed when this cursor last looked."""
        self._told = False
        """Whether it was said that events may be gone: once is enough, it holds of later ones too.
        """

    # Where it stands -----------------------------------------------------------------------------

    @property
    def known(self) -> int:
        """The highest index of which it knows that the log had it."""
        return max(self.last, self._silent_until)

    @property
    def read_after(self) -> int:
        """Behind which index the next page begins."""
        return self.last if self._anchor < 0 else min(self.last, self._anchor - 1)

    @property
    def whole(self) -> bool:
        """Whether every event from here on is delivered, as it is."""
        return self._plain and self._since_index is None

    def start(self, record: TaskRecord, after: int = -1, event_id: str | None = None) -> None:
        """Stand in this log, behind the index ``after``, which is that of ``event_id``."""
        if event_id is not None and not record.trims:  # else it may be the made-up one of the end
            self._anchor, self._anchor_id = after, event_id
        self._epoch, self._trims = record.epoch, record.trims
        if self.follow.accumulated:
            self._silent_until = after
        else:
            self.last = after

    def start_anew(self, record: TaskRecord, *, told: bool) -> None:
        """Forget what is behind, and stand at the start of this log. ``told``: it was said that
        events of it are gone.
        """
        self.last = self._silent_until = -1
        self.live = False
        self._anchor = -1
        self._filtered = 0
        self._since_index = None
        self._values = {}
        self._told = told
        self.start(record)

    def goes_on(self, record: TaskRecord, index: int) -> bool:
        """Whether the log is still the one that is followed, which was known up to ``index``; it
        may have gone on from its archive in another epoch. One that has lost its end (the store's
        machine ended between two fsyncs, or a replica took over) gives its indexes anew.
        """
        if not record.holds(self._epoch, index):
            return False
        self._epoch = record.epoch
        return True

    def has_another(self, entries: Sequence[Entry]) -> bool:
        """Whether the log has another event in the place of the newest that was had: it has lost
        its end, and has grown past it since.
        """
        there = next((entry for entry in entries if entry.index >= self._anchor), None)
        return there is not None and there.index == self._anchor and there.id != self._anchor_id

    def had(self, entries: Sequence[Entry], up_to: int) -> None:
        """What was read or taken is behind now."""
        if entries and self._anchor < entries[-1].index <= up_to:
            self._anchor, self._anchor_id = entries[-1].index, entries[-1].id

    def was_trimmed(self, record: TaskRecord, last: int) -> bool:
        """Whether the log was trimmed behind ``last`` since this cursor looked, and nobody said so:
        then start anew.
        """
        if record.trims == self._trims:
            return False
        self._trims = record.trims
        # Running values are made of the events before the cursor too.
        return not self._told and (record.trimmed > last or self.follow.accumulated)

    def caught_up(self, index: int, values: dict[str, Entry]) -> None:
        """All up to ``index`` has been replayed; ``values`` are those of the series there."""
        self.last = index
        if self.follow.accumulated:
            self._values = {series: SeriesValue(entry) for series, entry in values.items()}

    def end(self, reason: str, cursor: str | None = None) -> Done:
        self.live = False
        self.ended = True
        return Done(reason, cursor)

    # What it is given ----------------------------------------------------------------------------

    def read(self, page: Page, *, runs: bool) -> list[Pumped]:
        """A page in the order of indexes, from behind ``read_after``; at the end of the log, go
        live or end. Where there may be ``runs``, the page is one if all of it is delivered.
        """
        items: list[Pumped]
        entries = [entry for entry in page.entries if entry.index > self.last]
        if runs and self.whole and entries:
            items = self.run(entries)
            self.last = entries[-1].index
        else:
            delivered: list[Item] = []
            self._advance(entries, delivered)
            items = [*delivered]
        self.had(page.entries, self.last)
        if not page.more:
            record = page.record
            self.last = max(self.last, record.next_index - 1)
            self.live = True
            if record.task.terminal:
                items.append(self.end(record.task.status, end_cursor(record)))
        return items

    def take(self, commits: Sequence[Commit]) -> list[Item]:
        """What the commits bring; where one leaves a gap, the cursor is live no more."""
        items: list[Item] = []
        for commit in commits:
            record = commit.record
            if record.epoch != self._epoch or commit.first_index > self.last + 1:
                self.live = False
                break
            if commit.deleted:
                items.append(self.end("deleted"))
                break
            self._advance(commit.entries, items)
            self.had(commit.entries, self.last)
            self.last = max(self.last, record.next_index - 1)
            if record.task.terminal:
                items.append(self.end(record.task.status))
                break
        return items

    def take_runs(self, commits: Sequence[Commit]) -> list[Pumped]:
        """As :meth:`take`, with whole commits as runs where everything passes."""
        items: list[Pumped] = []
        for commit in commits:
            record = commit.record
            whole = record.epoch == self._epoch and commit.first_index == self.last + 1
            if self._since_index is not None and self._filtered <= self._since_index:
                whole = False
            if self._plain and whole and commit.entries and not commit.deleted:
                items.append(Run(commit.entries, self._filtered, commit.shared))
                self._filtered += len(commit.entries)
                self.last = record.next_index - 1
                self._anchor, self._anchor_id = self.last, commit.entries[-1].id
                if record.task.terminal:
                    items.append(self.end(record.task.status))
            else:
                items += self.take([commit])
            if not self.live:
                break
        return items

    # What it delivers ----------------------------------------------------------------------------

    def run(self, entries: Sequence[Entry]) -> list[Pumped]:
        """The entries as they are."""
        if not entries:
            return []
        run = Run(entries, self._filtered)
        self._filtered += len(entries)
        return [run]

    def deliver(self, entry: Entry, items: list[Item], *, resumable: bool = True) -> None:
        """Add the entry to the items, if it passes."""
        if not self.follow.filter.matches(entry.type, entry.level):
            return
        number = self._filtered
        self._filtered += 1
        if self._since_index is None or number > self._since_index:
            items.append(Delivery(entry, number, resumable))

    def running(self, entry: Entry) -> Entry:
        """The entry with its series' running value in place of the piece."""
        value = fold(self._values, entry)
        return value.entry if value is not None and accumulates(entry.event) else entry

    def _advance(self, entries: Sequence[Entry], items: list[Item]) -> None:
        for entry in entries:
            if entry.index <= self.last:
                continue
            self.last = entry.index
            if self.follow.accumulated:
                entry = self.running(entry)
            if entry.index > self._silent_until:
                self.deliver(entry, items)
