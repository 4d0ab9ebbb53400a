"""Archives: a task with its events as one document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import UNSET, Raw, UnsetType

from . import validate
from .entry import Entry
from .errors import BadRequest
from .machine import MAX_WHOLE, expect_object, whole, whole_between
from .model import MAX_SEQ, ArchivedEvent, ArchivedTask, Event, ImportArchive, Task
from .series import series_of

NULL = Raw(b"null")


def compact(
    entries: Iterable[Entry], values: dict[str, Entry], seen: set[str], *, first_index: int
) -> Iterator[ArchivedEvent]:
    """The events of an archive: indexes counted anew, each accumulate or latest series as its value
    alone.

    A series stands at the place of its first stored event. An event without data is written with
    null and the mark ``noData``, since the format wants data in every event. ``seen`` remembers the
    series between the pages of one log; ``first_index`` is that of this page's first event.
    """
    index = first_index
    for entry in entries:
        event = entry.event
        series = series_of(event)
        if series is not None and event.series_mode != "keep-all" and series in values:
            if series in seen:
                continue
            seen.add(series)
            event = values[series].event
        fields = {name: getattr(event, name) for name in Event.__struct_fields__}
        fields["index"] = index
        if event.data is UNSET:
            fields.update(data=NULL, no_data=True)
        yield ArchivedEvent(**fields)
        index += 1


def restore(archive: ImportArchive) -> tuple[Task, list[Event]]:
    """The task and the events, in order, of an archive that is about to be stored.

    Raises:
        BadRequest: the archive breaks a rule of the format; the message names the place.
    """
    task = _restore_task(archive.task)
    ids: set[str] = set()
    events: dict[int, Event] = {}
    for number, event in enumerate(archive.events):
        where = f"$.archive.events[{number}]"
        if event.task_id != task.id:
            raise BadRequest(f"Expected the task's id - at `{where}.taskId`")
        if not event.id or event.id in ids:
            raise BadRequest(f"Expected an id that is not empty and unique - at `{where}.id`")
        ids.add(event.id)
        index = event.index
        if index != index // 1 or not 0 <= index < len(archive.events) or index in events:
            raise BadRequest(f"Indexes must be dense from 0 - at `{where}.index`")
        fields = {name: getattr(event, name) for name in Event.__struct_fields__}
        fields.update(index=int(index), timestamp=int(event.timestamp))
        fields["client_seq"] = _counted(event.client_id, event.client_seq, where)
        if event.data is UNSET:
            raise BadRequest(f"Object missing required field `data` - at `{where}`")
        if event.no_data and event.data == NULL:
            fields["data"] = UNSET
        if event.series_snapshot is not UNSET:
            raise BadRequest(f"A collapsed event can't be imported - at `{where}.seriesSnapshot`")
        events[int(index)] = Event(**fields)
    return task, [events[index] for index in range(len(events))]


def expected_seqs(archive: ImportArchive) -> dict[str, int]:
    """The seqs that the publishers of an archive are to send next.

    Raises:
        BadRequest: one can't be.
    """
    expected: dict[str, int] = {}
    for number, publisher in enumerate(archive.publishers or ()):
        where = f"archive.publishers[{number}]"
        validate.client_id(publisher.client_id, f".{where}.clientId")
        seq = whole_between(publisher.expected_seq, 1, MAX_SEQ + 1, f"{where}.expectedSeq")
        assert seq is not UNSET
        expected[publisher.client_id] = seq
    return expected


def _counted(client_id: str | UnsetType, seq: float | UnsetType, where: str) -> int | UnsetType:
    """The seq of an event; BadRequest where it is none, or without its publisher."""
    if (client_id is UNSET) != (seq is UNSET):
        missing = "clientId" if client_id is UNSET else "clientSeq"
        raise BadRequest(f"Object missing required field `{missing}` - at `{where}.{missing}`")
    if client_id is not UNSET:
        validate.client_id(client_id, f"{where[1:]}.clientId")
    return whole_between(seq, 0, MAX_SEQ, f"{where[2:]}.clientSeq")


def _restore_task(archived: ArchivedTask) -> Task:
    where = "archive.task"
    if not archived.id:
        raise BadRequest(f"Expected an id that is not empty - at `$.{where}.id`")
    expect_object(archived.params, f"{where}.params")
    expect_object(archived.metadata, f"{where}.metadata")
    expect_object(archived.auth_config, f"{where}.authConfig")
    if archived.error is not UNSET:
        expect_object(archived.error.details, f"{where}.error.details")
    if archived.result is not UNSET and bytes(archived.result)[:1] not in (b"{", b"["):
        raise BadRequest(f"Expected `object` - at `$.{where}.result`")
    fields = {name: getattr(archived, name) for name in Task.__struct_fields__}
    for name in ("created_at", "updated_at", "completed_at", "resume_at"):
        if fields[name] is not UNSET:
            fields[name] = int(fields[name])
    for name in ("ttl", "cost"):
        fields[name] = whole(fields[name], f"{where}.{name}")
    fields |= validate.work(archived, f"{where}.")
    for name in ("attempts", "fence"):
        fields[name] = whole_between(fields[name], 0, MAX_WHOLE, f"{where}.{name}")
    return Task(**fields)
