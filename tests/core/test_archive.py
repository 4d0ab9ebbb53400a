"""Archives: what export gives is what import takes, and nothing else gets in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.archive import compact, expected_seqs, restore
from taskcast_trio.core.entry import Entry, commit
from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.jsontext import parse
from taskcast_trio.core.model import (
    Archive,
    ArchivedEvent,
    BlockedRequest,
    Cleanup,
    Draft,
    Event,
    ImportArchive,
    ImportTask,
    SeriesMode,
    Task,
    TaskError,
)
from taskcast_trio.core.series import SeriesValues, fold

FULL_TASK = Task(
    id="a/b é",
    status="blocked",
    created_at=10,
    updated_at=20,
    type="t",
    params=Raw(rb'{"a":1,"a":"\ud83d"}'),
    metadata=Raw(b"{}"),
    ttl=60,
    webhooks=[Raw(b"{}"), Raw(b"1")],
    cleanup=Cleanup(rules=[Raw(b"null")]),
    auth_config=Raw(b"{}"),
    tags=["x", "x"],
    assign_mode="pull",
    cost=2,
    disconnect_policy="mark",
    result=Raw(b"[18446744073709551616]"),
    error=TaskError(message="m", code="c", details=Raw(b"{}")),
    reason="why",
    resume_at=30,
    blocked_request=BlockedRequest(type="approve", data=Raw(b"null")),
    assigned_worker="w",
)


class Log:
    """A log in a list; a ``latest`` event takes its series' older event away."""

    def __init__(self) -> None:
        self.entries: list[Entry | None] = []
        self.values: SeriesValues = {}

    def append(self, draft: Draft) -> None:
        index = len(self.entries)
        entry = commit(
            draft,
            task_id=FULL_TASK.id,
            epoch="0000000E",
            index=index,
            place=index,
            now_ms=100 + index // 2,
        )
        value = self.values.get(draft.series_id or "")
        if draft.series_mode == "latest" and value is not None:
            self.entries[value.index] = None
        self.keep(entry)

    def keep(self, entry: Entry) -> None:
        self.entries.append(entry)
        fold(self.values, entry)

    def export(self, task: Task, *, page: int = 1000) -> bytes:
        entries = [entry for entry in self.entries if entry is not None]
        values = {name: value.entry for name, value in self.values.items()}
        seen: set[str] = set()
        events: list[ArchivedEvent] = []
        for start in range(0, len(entries), page):
            part = entries[start : start + page]
            events += compact(part, values, seen, first_index=len(events))
        archive = Archive(
            schema="taskcast.taskArchive", version=1, exported_at=99, task=task, events=events
        )
        return msgspec.json.encode(archive)


def imported(archive: bytes) -> tuple[Task, list[Event]]:
    request = parse(b'{"archive":%b}' % archive, ImportTask)
    return restore(request.archive)


def log_of(events: Sequence[Event]) -> Log:
    log = Log()
    for event in events:
        log.keep(Entry(event, event.index))
    return log


# The round trip

_data: st.SearchStrategy[Raw | UnsetType] = st.sampled_from(
    [UNSET, *map(Raw, (b"null", b"1", rb'{"delta":"\ud83d"}', b'{"delta":"b","n":1}', b"[1]"))]
)
_series: st.SearchStrategy[tuple[str | UnsetType, SeriesMode | UnsetType]] = st.sampled_from(
    [
        (UNSET, UNSET),
        ("", "accumulate"),
        ("s", UNSET),
        ("s", "keep-all"),
        ("s", "accumulate"),
        ("s", "latest"),
        ("r", "accumulate"),
        ("r", "latest"),
    ]
)
_drafts = st.builds(
    lambda type_, data, series: Draft(
        type=type_, level="info", data=data, series_id=series[0], series_mode=series[1]
    ),
    st.sampled_from(["", "llm.delta", "a\nb"]),
    _data,
    _series,
)


@given(st.lists(_drafts, max_size=10), st.integers(1, 4))
def test_export_of_an_import_is_the_export(drafts: list[Draft], page: int) -> None:
    log = Log()
    for draft in drafts:
        log.append(draft)
    archive = log.export(FULL_TASK)
    task, events = imported(archive)
    assert task == FULL_TASK
    assert log_of(events).export(task) == archive
    assert log.export(FULL_TASK, page=page) == archive


@given(st.lists(_drafts, max_size=10))
def test_series_go_on_after_an_import_as_they_would_have_without(drafts: list[Draft]) -> None:
    log = Log()
    for draft in drafts:
        log.append(draft)
    _, events = imported(log.export(FULL_TASK))
    again = log_of(events)
    for name, value in log.values.items():
        assert again.values[name].entry.event.data == value.entry.event.data
        assert again.values[name].entry.id == value.entry.id


def test_a_series_is_one_event_at_the_place_of_its_first_with_indexes_counted_anew() -> None:
    log = Log()
    for series_id, mode, data in (
        (UNSET, UNSET, b"0"),
        ("s", "accumulate", b'{"delta":"a"}'),
        ("l", "latest", b"1"),
        (UNSET, UNSET, b"1"),
        ("s", "accumulate", b'{"delta":"b"}'),
        ("l", "latest", b"2"),
        ("k", "keep-all", b"1"),
        ("k", "keep-all", b"2"),
    ):
        log.append(
            msgspec.structs.replace(
                Draft(type="t", level="info", data=Raw(data)), series_id=series_id, series_mode=mode
            )
        )
    events = json.loads(log.export(FULL_TASK))["events"]
    assert [(event["index"], event["data"]) for event in events] == [
        (0, 0),
        (1, {"delta": "ab"}),
        (2, 1),
        (3, 2),
        (4, 1),
        (5, 2),
    ]
    newest = log.entries[4]
    assert newest is not None
    assert (events[1]["id"], events[1]["timestamp"]) == (newest.id, newest.event.timestamp)
    assert not any("seriesSnapshot" in event for event in events)


def test_an_event_without_data_survives_and_is_null_to_those_who_know_no_better() -> None:
    log = Log()
    log.append(Draft(type="a", level="info"))
    log.append(Draft(type="a", level="info", data=Raw(b"null")))
    archive = log.export(FULL_TASK)
    first, second = json.loads(archive)["events"]
    assert first["data"] is None
    assert first["noData"] is True
    assert "noData" not in second
    _, events = imported(archive)
    assert [event.data for event in events] == [UNSET, Raw(b"null")]


# What import takes

TASK = {"id": "t", "status": "running", "createdAt": 1, "updatedAt": 2}
EVENT = {
    "id": "e0",
    "taskId": "t",
    "index": 0,
    "timestamp": 11,
    "type": "a",
    "level": "info",
    "data": 1,
}


def archive_with(
    *events: Any, task: Any = TASK, without: Sequence[str] = (), **head: Any
) -> dict[str, Any]:
    archive = {
        "schema": "taskcast.taskArchive",
        "version": 1,
        "exportedAt": 1000,
        "task": task,
        "events": list(events),
        **head,
    }
    return {name: value for name, value in archive.items() if name not in without}


def take(archive: Any) -> tuple[Task, list[Event]]:
    return imported(json.dumps(archive).encode())


def test_events_are_taken_in_any_order_and_stored_by_index() -> None:
    events = [{**EVENT, "id": f"e{index}", "index": index} for index in (2, 0, 1)]
    _, stored = take(archive_with(*events))
    assert [(event.id, event.index) for event in stored] == [("e0", 0), ("e1", 1), ("e2", 2)]


def test_numbers_may_be_spelled_as_floats_and_times_are_stored_as_given() -> None:
    task = {**TASK, "createdAt": 1e1, "updatedAt": 2.0, "completedAt": 5.0, "ttl": 1e2, "cost": 3.0}
    stored, [event] = take(archive_with({**EVENT, "index": 0.0, "timestamp": 1.1e1}, task=task))
    assert msgspec.json.encode(stored) == (
        b'{"id":"t","status":"running","createdAt":10,"updatedAt":2,"ttl":100,"cost":3,'
        b'"completedAt":5}'
    )
    assert (event.index, event.timestamp) == (0, 11)
    assert isinstance(event.timestamp, int)


def test_an_archive_may_be_empty_and_hold_unknown_fields() -> None:
    task, events = take(archive_with(task={**TASK, "custom": 1, "hot": True}, extra=1))
    assert (task.id, events) == ("t", [])
    _, [event] = take(archive_with({**EVENT, "extra": {"a": 1}}))
    assert event.id == "e0"


def test_an_array_may_be_a_result_since_an_answer_may_be_one() -> None:
    task, _ = take(archive_with(task={**TASK, "result": [1]}))
    assert task.result == Raw(b"[1]")


def test_a_mark_of_no_data_beside_data_loses_none() -> None:
    """The field is unknown to the archives of others, who may use it as they like."""
    _, [event] = take(archive_with({**EVENT, "data": 5, "noData": True}))
    assert event.data == Raw(b"5")


def other(**fields: Any) -> dict[str, Any]:
    return {**EVENT, **fields}


@pytest.mark.parametrize(
    ("event", "place"),
    [
        (other(taskId="other"), "taskId"),
        (other(taskId=5), "taskId"),
        (other(id=""), "id"),
        (other(id=5), "id"),
        (other(index=1), "index"),
        (other(index=-1), "index"),
        (other(index=0.5), "index"),
        (other(index="0"), "index"),
        (other(index=1e300), "index"),
        (other(timestamp="now"), "timestamp"),
        (other(timestamp=None), "timestamp"),
        (other(type=5), "type"),
        (other(level="loud"), "level"),
        (other(seriesMode="newest"), "seriesMode"),
        (other(seriesId=5), "seriesId"),
        (other(seriesAccField=5), "seriesAccField"),
        (other(seriesSnapshot=True), "seriesSnapshot"),
        (other(seriesSnapshot=False), "seriesSnapshot"),
        (other(noData="x"), "noData"),
    ],
)
def test_a_bad_event_is_refused_at_its_place(event: Any, place: str) -> None:
    with pytest.raises(BadRequest, match=rf"\$\.archive\.events\[0\]\.{place}`"):
        take(archive_with(event))


@pytest.mark.parametrize("field", list(EVENT))
def test_an_event_lacks_nothing(field: str) -> None:
    event = {name: value for name, value in EVENT.items() if name != field}
    place = rf"`{field}` - at `\$\.archive\.events\[0\]`"
    with pytest.raises(BadRequest, match=place):
        take(archive_with(event))


@pytest.mark.parametrize("event", [5, None, "e", []])
def test_an_event_is_an_object(event: Any) -> None:
    with pytest.raises(BadRequest, match=r"\$\.archive\.events\[0\]"):
        take(archive_with(event))


@pytest.mark.parametrize(
    ("second", "place"),
    [
        (other(index=1), "id"),
        (other(id="e1"), "index"),
        (other(id="e1", index=2), "index"),
        (other(id="e1", index=1, taskId="T"), "taskId"),
    ],
)
def test_ids_are_unique_and_indexes_dense(second: Any, place: str) -> None:
    with pytest.raises(BadRequest, match=rf"at `\$\.archive\.events\[1\]\.{place}`"):
        take(archive_with(EVENT, second))


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"id": ""}, "id"),
        ({"id": 5}, "id"),
        ({"status": "bogus"}, "status"),
        ({"createdAt": "x"}, "createdAt"),
        ({"updatedAt": None}, "updatedAt"),
        ({"completedAt": "x"}, "completedAt"),
        ({"type": 5}, "type"),
        ({"params": [1]}, "params"),
        ({"metadata": "x"}, "metadata"),
        ({"authConfig": None}, "authConfig"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": 1.5}, "ttl"),
        ({"cost": -1}, "cost"),
        ({"webhooks": {}}, "webhooks"),
        ({"cleanup": {"rules": 1}}, r"cleanup\.rules"),
        ({"tags": ["a", 1]}, r"tags\[1\]"),
        ({"assignMode": "push"}, "assignMode"),
        ({"disconnectPolicy": "x"}, "disconnectPolicy"),
        ({"result": "text"}, "result"),
        ({"result": None}, "result"),
        ({"error": "text"}, "error"),
        ({"error": {"message": 5}}, r"error\.message"),
        ({"error": {"message": "m", "details": "text"}}, r"error\.details"),
        ({"reason": 5}, "reason"),
        ({"resumeAt": "x"}, "resumeAt"),
        ({"blockedRequest": {"type": 5}}, r"blockedRequest\.type"),
        ({"assignedWorker": 5}, "assignedWorker"),
    ],
)
def test_a_bad_field_of_the_task_is_refused_at_its_place(
    fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(BadRequest, match=rf"\$\.archive\.task\.{place}`"):
        take(archive_with(task={**TASK, **fields}))


@pytest.mark.parametrize("field", list(TASK))
def test_a_task_lacks_nothing(field: str) -> None:
    task = {name: value for name, value in TASK.items() if name != field}
    with pytest.raises(BadRequest, match=rf"`{field}` - at `\$\.archive\.task`"):
        take(archive_with(task=task))


@pytest.mark.parametrize(
    ("archive", "place"),
    [
        (archive_with(schema="other"), r"archive\.schema"),
        (archive_with(version=2), r"archive\.version"),
        (archive_with(version="1"), r"archive\.version"),
        (archive_with(exportedAt="now"), r"archive\.exportedAt"),
        (archive_with(events={}), r"archive\.events"),
        (archive_with(events=None), r"archive\.events"),
        (archive_with(task=None), r"archive\.task"),
        *((archive_with(without=[name]), "archive") for name in archive_with()),
        *((bad, "archive") for bad in (5, None, "text")),
        ({}, "archive"),
        ([], "archive"),
    ],
)
def test_a_bad_archive_is_refused_at_its_place(archive: Any, place: str) -> None:
    with pytest.raises(BadRequest, match=rf"at `\$\.{place}`"):
        take(archive)


@pytest.mark.parametrize("body", [b"{}", b'{"archive":1}', b"[]", b"5", b"null"])
def test_a_bad_import_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(body, ImportTask)


def test_overwrite_is_true_or_false() -> None:
    text = json.dumps(archive_with()).encode()
    assert parse(b'{"archive":%b}' % text, ImportTask).overwrite is False
    assert parse(b'{"archive":%b,"overwrite":true}' % text, ImportTask).overwrite is True
    with pytest.raises(BadRequest, match=r"\$\.overwrite"):
        parse(b'{"archive":%b,"overwrite":"yes"}' % text, ImportTask)


@pytest.mark.parametrize(
    ("event", "place"),
    [
        ({"clientId": "me"}, "clientSeq"),
        ({"clientSeq": 1}, "clientId"),
        ({"clientId": "me", "clientSeq": 1.5}, "clientSeq"),
        ({"clientId": "me", "clientSeq": -1}, "clientSeq"),
        ({"clientId": "a\n", "clientSeq": 1}, "clientId"),
    ],
)
def test_an_event_that_is_counted_by_halves_is_refused_at_its_place(event: Any, place: str) -> None:
    with pytest.raises(BadRequest, match=rf"`\$\.archive\.events\[0\]\.{place}`"):
        take(archive_with({**EVENT, **event}))


def test_events_keep_what_they_are_counted_by() -> None:
    _, [event] = take(archive_with({**EVENT, "clientId": "me", "clientSeq": 3.0}))
    assert (event.client_id, event.client_seq) == ("me", 3)
    assert isinstance(event.client_seq, int)


@pytest.mark.parametrize(
    ("publisher", "place"),
    [
        ({"clientId": "", "expectedSeq": 1}, "clientId"),
        ({"clientId": "me", "expectedSeq": 0}, "expectedSeq"),
        ({"clientId": "me", "expectedSeq": 2**53 + 2}, "expectedSeq"),
    ],
)
def test_a_publisher_that_can_not_be_is_refused_at_its_place(publisher: Any, place: str) -> None:
    text = msgspec.json.encode(archive_with(publishers=[publisher]))
    with pytest.raises(BadRequest, match=rf"`\$\.archive\.publishers\[0\]\.{place}`"):
        expected_seqs(msgspec.json.decode(text, type=ImportArchive))
