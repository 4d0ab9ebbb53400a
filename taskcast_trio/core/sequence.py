"""The order of publishers that count their events: each has the next number, from 0."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from .errors import BadRequest
from .model import Draft


def distinct(drafts: Sequence[Draft]) -> tuple[list[Draft], list[int]]:
    """The drafts without those that come twice, those of each publisher in its order, and for each
    of ``drafts`` which of these it is.

    Raises:
        BadRequest: between events of a publisher others of it are missing.
    """
    unlike: list[Draft] = []
    places: list[int] = []
    seqs: dict[str, dict[int, int]] = {}
    for draft in drafts:
        at = len(unlike)
        if draft.client_id is not UNSET and draft.client_seq is not UNSET:
            at = seqs.setdefault(draft.client_id, {}).setdefault(draft.client_seq, at)
        if at == len(unlike):
            unlike.append(draft)
        places.append(at)
    moved = {}
    for found in seqs.values():
        slots = iter(sorted(found.values()))
        before = min(found) - 1
        for seq, at in sorted(found.items()):
            if seq != before + 1:
                number = places.index(at)
                raise BadRequest(f"Events before this one are missing - at `$[{number}].clientSeq`")
            before, moved[at] = seq, next(slots)
    if all(at == to for at, to in moved.items()):
        return unlike, places
    ordered = list(unlike)
    for at, to in moved.items():
        ordered[to] = unlike[at]
    return ordered, [moved.get(at, at) for at in places]


def runs(drafts: Sequence[Draft]) -> list[Sequence[Draft]]:
    """The drafts in pieces: another one begins where events of a publisher are missing."""
    found: list[Sequence[Draft]] = []
    start = 0
    spans: dict[str, tuple[int, int]] = {}
    for number, draft in enumerate(drafts):
        if draft.client_id is UNSET or draft.client_seq is UNSET:
            continue
        seq = draft.client_seq
        lowest, highest = spans.get(draft.client_id, (seq, seq))
        if not lowest - 1 <= seq <= highest + 1:
            found.append(drafts[start:number])
            start, spans = number, {}
            lowest = highest = seq
        spans[draft.client_id] = min(lowest, seq), max(highest, seq)
    if start < len(drafts):
        found.append(drafts[start:])
    return found
