"""The order of publishers that count their events: each has the next number, from 0."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from .errors import BadRequest
from .model import Draft


def distinct(drafts: Sequence[Draft]) -> tuple[list[Draft], list[int]]:
    """The drafts without those that come twice, and for each of ``drafts`` which of these it is.

    Raises:
        BadRequest: behind an event of a publisher others of it are missing.
    """
    unlike: list[Draft] = []
    places: list[int] = []
    seen: dict[tuple[str, int], int] = {}
    for place, run in enumerate(runs(drafts)):
        if place:
            number = len(places)
            raise BadRequest(f"Events before this one are missing - at `$[{number}].clientSeq`")
        for draft in run:
            at = len(unlike)
            if draft.client_id is not UNSET and draft.client_seq is not UNSET:
                at = seen.setdefault((draft.client_id, draft.client_seq), at)
            if at == len(unlike):
                unlike.append(draft)
            places.append(at)
    return unlike, places


def runs(drafts: Sequence[Draft]) -> list[Sequence[Draft]]:
    """The drafts in pieces: another one begins where events of a publisher are missing."""
    found: list[Sequence[Draft]] = []
    start = 0
    highest: dict[str, int] = {}
    for number, draft in enumerate(drafts):
        if draft.client_id is UNSET or draft.client_seq is UNSET:
            continue
        before = highest.get(draft.client_id, draft.client_seq)
        if draft.client_seq > before + 1:
            found.append(drafts[start:number])
            start, highest = number, {}
            before = draft.client_seq
        highest[draft.client_id] = max(before, draft.client_seq)
    if start < len(drafts):
        found.append(drafts[start:])
    return found
