"""What a log knows of its publishers that count their events, and how stores go by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import UNSET

from taskcast_trio.core.entry import Entry, commit
from taskcast_trio.core.errors import SeqGap, SeqStale, TaskFull
from taskcast_trio.core.model import Draft

from .records import CountLimits, TaskRecord


class Publisher:
    """One of them: ``expected`` is the seq of its next event, ``places`` has the index and the time
    of its latest ones, by seq.
    """

    __slots__ = ("expected", "places")

    def __init__(self, expected: int = 0) -> None:
        self.expected = expected
        self.places: dict[int, tuple[int, int]] = {}

    def take(self, entry: Entry, kept: int) -> None:
        event = entry.event
        assert event.client_seq is not UNSET, "the caller has looked"
        seq = event.client_seq
        self.expected = max(self.expected, seq + 1)
        self.places[seq] = (entry.index, event.timestamp)
        self.places.pop(seq - kept, None)


def publishers_of(
    entries: Iterable[Entry], expected: Mapping[str, int], *, kept: int = CountLimits().kept
) -> dict[str, Publisher]:
    """Those of a log that comes from elsewhere, where the next seqs were ``expected``."""
    found = {client_id: Publisher(seq) for client_id, seq in expected.items()}
    for entry in entries:
        client_id = entry.event.client_id
        if client_id is not UNSET:
            found.setdefault(client_id, Publisher()).take(entry, kept)
    for publisher in found.values():
        first = publisher.expected - kept
        publisher.places = {seq: at for seq, at in publisher.places.items() if seq >= first}
    return found


def stored_before(
    task_id: str,
    drafts: Sequence[Draft],
    expected: Callable[[str], int],
    place: Callable[[str, int], tuple[int, int] | None],
) -> dict[int, tuple[int, int]]:
    """The drafts that were, by their number: each one's index and time.

    Raises:
        SeqStale: of one these are not known any more.
    """
    found: dict[int, tuple[int, int]] = {}
    for number, draft in enumerate(drafts):
        client_id, seq = draft.client_id, draft.client_seq
        if client_id is UNSET or seq is UNSET:
            continue
        due = expected(client_id)
        if seq < due:
            at = place(client_id, seq)
            if at is None:
                raise SeqStale(task_id, client_id, seq, expected=due)
            found[number] = at
    return found


def counted_on(
    task_id: str,
    drafts: Sequence[Draft],
    expected: Callable[[str], int],
    limits: CountLimits,
    stored: int,
) -> dict[str, int]:
    """What is expected next of each publisher of the drafts, none of which was stored before.

    ``stored`` is how many publishers the log has.

    Raises:
        SeqGap: one comes before its time.
        TaskFull: there would be too many publishers.
    """
    after: dict[str, int] = {}
    new = 0
    for draft in drafts:
        client_id, seq = draft.client_id, draft.client_seq
        if client_id is UNSET or seq is UNSET:
            continue
        due = after.get(client_id)
        if due is None:
            due = expected(client_id)
            new += due == 0
        if seq != due:
            held = draft.seq_mode != "fast-fail"
            raise SeqGap(task_id, client_id, seq, expected=due, held=held)
        after[client_id] = due + 1
    if new and stored + new > limits.publishers:
        raise TaskFull(task_id, "publishers", limit=limits.publishers, stored=stored)
    return after


def again(draft: Draft, record: TaskRecord, at: tuple[int, int], stored: Entry | None) -> Entry:
    """What a draft that comes again became: as it is stored, or as it was, where another event has
    taken its place or it was trimmed.
    """
    if stored is not None:
        return stored
    index, timestamp = at
    return commit(
        draft,
        task_id=record.task.id,
        epoch=record.epoch_at(index),
        index=index,
        place=index,
        now_ms=timestamp,
    )
