"""One task's log in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from msgspec import UNSET
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry, commit
from taskcast_trio.core.errors import TaskFull
from taskcast_trio.core.ids import parse_event_id
from taskcast_trio.core.model import Draft, Event
from taskcast_trio.core.series import SeriesValues, fold, keeps_value

from .publishers import Publisher, again, counted_on, stored_before
from .records import Commit, CountLimits, Idempotency, LogLimits, TaskRecord


class Log:
    """One task and one life of its log.

    ``by_index`` has a hole where a ``latest`` event was replaced or an event was trimmed; ``moved``
    maps the place of a replaced event to the index of the event that stands there now. No event is
    before the index ``first``.
    """

    __slots__ = (
        "answers",
        "by_index",
        "data_bytes",
        "first",
        "foreign",
        "holes",
        "moved",
        "notes",
        "number",
        "of_series",
        "publishers",
        "record",
        "timestamp",
        "values",
    )

    def __init__(self, record: TaskRecord, number: int) -> None:
        self.record = record
        self.number = number
        self.by_index: list[Entry | None] = []
        self.holes = 0
        self.first = 0
        self.data_bytes = 0
        """Of the data of the events that are stored."""
        self.moved: dict[int, int] = {}
        self.values: SeriesValues = {}
        self.of_series: dict[str, int] = {}
        """How many of the events that are stored the value of each series is of."""
        self.foreign: dict[str, int] = {}
        self.timestamp = record.task.created_at
        self.answers: OrderedDict[str, tuple[int, Idempotency, Commit]] = OrderedDict()
        self.notes: dict[str, bytes] = {}
        self.publishers: dict[str, Publisher] = {}

    def append(self, drafts: Sequence[Draft], now_ms: int) -> list[Entry]:
        self.timestamp = now_ms = max(now_ms, self.timestamp)
        task_id, epoch = self.record.task.id, self.record.epoch
        entries = []
        for draft in drafts:
            index = len(self.by_index)
            entry = commit(
                draft,
                task_id=task_id,
                epoch=epoch,
                index=index,
                place=self._place(draft, index),
                now_ms=now_ms,
            )
            self.keep(entry)
            entries.append(entry)
        return entries

    def known(self, drafts: Sequence[Draft]) -> dict[int, Entry]:
        """Those of the drafts that were stored before, by their number.

        Raises:
            SeqStale: of one nobody knows any more where it is.
        """
        record, publishers = self.record, self.publishers
        found = stored_before(
            record.task.id,
            drafts,
            self._expected,
            lambda client_id, seq: publishers[client_id].places.get(seq),
        )
        return {
            number: again(drafts[number], record, at, self.by_index[at[0]])
            for number, at in found.items()
        }

    def require_order(self, drafts: Sequence[Draft], limits: CountLimits) -> None:
        """Refuse (SeqGap, TaskFull) drafts that come before their time, or of too many."""
        stored = len(self.publishers)
        counted_on(self.record.task.id, drafts, self._expected, limits, stored)

    def count(self, entries: Sequence[Entry], limits: CountLimits) -> None:
        """Know the entries, which were appended, by their publishers."""
        for entry in entries:
            client_id = entry.event.client_id
            if client_id is not UNSET:
                publisher = self.publishers.get(client_id)
                if publisher is None:
                    publisher = self.publishers[client_id] = Publisher()
                publisher.take(entry, limits.kept)

    def _expected(self, client_id: str) -> int:
        publisher = self.publishers.get(client_id)
        return publisher.expected if publisher else 0

    def _place(self, draft: Draft, index: int) -> int:
        """Where the draft will stand; a ``latest`` draft vacates the slot of its series' value."""
        if draft.series_mode != "latest" or not draft.series_id:
            return index
        value = self.values.get(draft.series_id)
        old = self.by_index[value.index] if value else None
        if old is None:
            return index
        self._remove(old)
        return old.place

    def _remove(self, entry: Entry) -> None:
        self.by_index[entry.index] = None
        self.holes += 1
        self.data_bytes -= _size(entry.event)
        if keeps_value(entry.event):
            self.of_series[entry.event.series_id or ""] -= 1

    def trim(self, indexes: Sequence[int]) -> int:
        """Remove events, and the values of series of which none is left; how many there were."""
        count, highest = 0, -1
        for index in indexes:
            entry = self.by_index[index] if 0 <= index < len(self.by_index) else None
            if entry is None:
                continue
            self._remove(entry)
            self.foreign.pop(entry.id, None)
            series = entry.event.series_id or ""
            if self.of_series.get(series) == 0:
                del self.of_series[series], self.values[series]
            count, highest = count + 1, max(highest, index)
        while self.first < len(self.by_index) and self.by_index[self.first] is None:
            self.first += 1
        record = self.record
        if count:
            self.record = replace(
                record, trimmed=max(record.trimmed, highest), trims=record.trims + count
            )
        return count

    def keep(self, entry: Entry) -> None:
        if entry.place != entry.index:
            self.moved[entry.place] = entry.index
        self.by_index.append(entry)
        self.data_bytes += _size(entry.event)
        if fold(self.values, entry) is not None:
            series = entry.event.series_id or ""
            self.of_series[series] = self.of_series.get(series, 0) + 1

    def restore(self, entries: Sequence[Entry]) -> None:
        """Take in the log as another store has it."""
        record = self.record
        for entry in entries:
            self._leave_holes(entry.index)
            position = parse_event_id(entry.id)
            index = entry.index
            if (
                position is None
                or position.index != index
                or not record.holds(position.epoch, index)
            ):
                self.foreign[entry.id] = index
            self.timestamp = max(self.timestamp, entry.event.timestamp)
            self.keep(entry)
        self._leave_holes(record.next_index)

    def _leave_holes(self, index: int) -> None:
        missing = index - len(self.by_index)
        self.by_index += [None] * missing
        self.holes += missing

    def require_room(self, drafts: Sequence[Draft], limits: LogLimits) -> None:
        """Refuse (TaskFull) drafts that would leave the log over the limits."""
        stored, stored_bytes = len(self.by_index) - self.holes, self.data_bytes
        events, size = stored + len(drafts), stored_bytes
        for draft in drafts:
            size += _size(draft)
        if events <= limits.events and size <= limits.bytes:
            return
        vacated, vacated_bytes = self._vacated(drafts)
        task_id = self.record.task.id
        if events - vacated > limits.events:
            raise TaskFull(task_id, "events", limit=limits.events, stored=stored)
        if size - vacated_bytes > limits.bytes:
            raise TaskFull(task_id, "bytes of data", limit=limits.bytes, stored=stored_bytes)

    def _vacated(self, drafts: Sequence[Draft]) -> tuple[int, int]:
        """How many events the drafts would replace, among themselves too, and their bytes."""
        count = size = 0
        newest: dict[str, Event | Draft] = {}
        for draft in drafts:
            series = draft.series_id
            if not series or draft.series_mode is UNSET or draft.series_mode == "keep-all":
                continue
            if draft.series_mode == "latest":
                old = newest.get(series) or self._stored_value(series)
                if old is not None:
                    count += 1
                    size += _size(old)
            newest[series] = draft
        return count, size

    def _stored_value(self, series: str) -> Event | None:
        """The stored event of which a ``latest`` event of the series would take the place."""
        value = self.values.get(series)
        entry = self.by_index[value.index] if value else None
        return entry.event if entry else None

    def from_place(self, after_place: int) -> Iterator[Entry]:
        """The entries in stored order, from behind ``after_place``."""
        for place in range(after_place + 1, len(self.by_index)):
            moved = self.moved.get(place)
            entry = self.by_index[place if moved is None else moved]
            if entry is not None and entry.place == place:
                yield entry

    def behind(self, after_place: int, after_index: int) -> Iterator[Entry]:
        """Those of :meth:`from_place` with an index above ``after_index``, without walking what
        lies before.
        """
        if after_place < after_index:
            places = sorted(
                place
                for place, index in self.moved.items()
                if after_place < place <= after_index and index > after_index
            )
            for place in places:
                entry = self.by_index[self.moved[place]]
                if entry is not None:
                    yield entry
        yield from self.from_place(max(after_place, after_index))

    def find(self, event_id: str) -> Entry | None:
        index = self.foreign.get(event_id)
        if index is None:
            position = parse_event_id(event_id)
            if position is None or not self.record.holds(position.epoch, position.index):
                return None
            index = position.index
        entry = self.by_index[index] if index < len(self.by_index) else None
        return entry if entry is not None and entry.id == event_id else None


def _size(event: Event | Draft) -> int:
    return 0 if event.data is UNSET else len(event.data)
