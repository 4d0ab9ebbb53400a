"""What the shapes alone can't say of a request: ids, control characters, whole numbers, objects."""

from __future__ import annotations

import re
from typing import Any

from msgspec import UNSET

from .errors import BadRequest
from .machine import MAX_WHOLE, expect_object, whole, whole_between
from .model import MAX_SEQ, ArchivedTask, CreateTask, Draft, StorageRelease

MAX_ID_CHARACTERS = 1024
MAX_KEY_CHARACTERS = 255
MAX_CLIENT_CHARACTERS = 255
MAX_PRIORITY = 1000
MAX_ATTEMPTS = 1000

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _no_control_characters(text: str, where: str) -> None:
    found = _CONTROL.search(text)
    if found:
        raise BadRequest(f"Control character U+{ord(found[0]):04X} - at `${where}`")


def task_id(text: str, where: str = "id") -> None:
    """Refuse (BadRequest) an id that no path could name: empty, too long, or with control
    characters.
    """
    if not text:
        raise BadRequest(f"Expected an id that is not empty - at `$.{where}`")
    if len(text) > MAX_ID_CHARACTERS:
        raise BadRequest(f"Expected at most {MAX_ID_CHARACTERS} characters - at `$.{where}`")
    _no_control_characters(text, f".{where}")


def idempotency_key(text: str) -> str:
    """The key, if it is one: 1 to 255 printable ASCII characters; else BadRequest."""
    if not 0 < len(text) <= MAX_KEY_CHARACTERS or not text.isascii() or not text.isprintable():
        raise BadRequest(
            f"Idempotency-Key must be 1 to {MAX_KEY_CHARACTERS} printable ASCII characters"
        )
    return text


def new_task(request: CreateTask) -> dict[str, Any]:
    """The fields of the task that ``request`` asks for; BadRequest where one is wrong."""
    fields = {name: getattr(request, name) for name in CreateTask.__struct_fields__}
    if request.id is not UNSET:
        task_id(request.id)
    expect_object(request.params, "params")
    expect_object(request.metadata, "metadata")
    expect_object(request.auth_config, "authConfig")
    fields["ttl"] = whole(request.ttl, "ttl")
    fields["cost"] = whole(request.cost, "cost")
    fields |= work(request, "")
    return fields


def work(request: CreateTask | ArchivedTask, where: str) -> dict[str, Any]:
    """The fields that say when, and how often, a worker gets the task; BadRequest where one is
    wrong. ``where`` is what stands before their names in an error.
    """
    retry = request.retry
    if retry is not UNSET:
        whole_between(retry.initial_delay_ms, 0, MAX_WHOLE, f"{where}retry.initialDelayMs")
        whole_between(retry.max_delay_ms, 0, MAX_WHOLE, f"{where}retry.maxDelayMs")
    return {
        "priority": whole_between(
            request.priority, -MAX_PRIORITY, MAX_PRIORITY, f"{where}priority"
        ),
        "run_at": whole_between(request.run_at, 0, MAX_WHOLE, f"{where}runAt"),
        "max_attempts": whole_between(request.max_attempts, 1, MAX_ATTEMPTS, f"{where}maxAttempts"),
    }


def draft(event: Draft, number: int) -> bool:
    """Refuse (BadRequest) an event that would break the lines of a stream or of a log, or that is
    counted by halves. Returns whether it is counted.
    """
    if not (event.type.isascii() and event.type.isprintable() and not event.series_id):
        _no_control_characters(event.type, f"[{number}].type")
        if event.series_id is not UNSET:
            _no_control_characters(event.series_id, f"[{number}].seriesId")
    if event.client_id is UNSET and event.client_seq is UNSET:
        return False
    if event.client_id is UNSET or event.client_seq is UNSET:
        missing = "clientId" if event.client_id is UNSET else "clientSeq"
        raise BadRequest(f"Object missing required field `{missing}` - at `$[{number}].{missing}`")
    client_id(event.client_id, f"[{number}].clientId")
    if not 0 <= event.client_seq <= MAX_SEQ:
        raise BadRequest(
            f"Expected a whole number from 0 to {MAX_SEQ} - at `$[{number}].clientSeq`"
        )
    return True


def client_id(text: str, where: str) -> None:
    """Refuse (BadRequest) the id of a publisher that is empty, too long, or with control
    characters.
    """
    if not 0 < len(text) <= MAX_CLIENT_CHARACTERS:
        raise BadRequest(f"Expected 1 to {MAX_CLIENT_CHARACTERS} characters - at `${where}`")
    _no_control_characters(text, where)


def storage_release(request: StorageRelease) -> None:
    """Refuse (BadRequest) numbers that are not whole or too small."""
    for value, least, name in (
        (request.expected_last_event_index, -1, "expectedLastEventIndex"),
        (request.inactive_since, 0, "inactiveSince"),
    ):
        if value < least or value != value // 1:
            raise BadRequest(f"Expected a whole number of at least {least} - at `$.{name}`")
