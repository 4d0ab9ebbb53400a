"""Identifiers: ULIDs for tasks, and event ids that carry their own position.

An event id has the shape of a ULID (https://github.com/ulid/spec): 10 characters of time in ms,
then 80 bits that other systems fill with noise. Here they say where the event stands: 8 characters
of its log's epoch and 8 of its index. So an id sorts by time and index, is unique across tasks, and
resolves to a position without a look-up, even after the event itself is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_DIGITS = {c: i for i, c in enumerate(_ALPHABET)}
_CHUNKS = [a + b for a in _ALPHABET for b in _ALPHABET]

_TIME_LENGTH = 10
_PART_LENGTH = 8
ID_LENGTH = _TIME_LENGTH + 2 * _PART_LENGTH
EPOCH_BITS = 5 * _PART_LENGTH
MAX_INDEX = 2**EPOCH_BITS - 1
MAX_TIME_MS = 2**48 - 1


@dataclass(frozen=True, slots=True)
class Position:
    """A place in one life of a task's log."""

    epoch: str
    index: int


def _encode(number: int, length: int) -> str:
    chunks = []
    for _ in range(length // 2):
        number, chunk = divmod(number, 1024)
        chunks.append(_CHUNKS[chunk])
    chunks.reverse()
    return "".join(chunks)


def ulid(time_ms: int, noise: int) -> str:
    """A ULID of ``time_ms`` (Unix, ms) and the low 80 bits of ``noise``."""
    return _encode(time_ms & MAX_TIME_MS, _TIME_LENGTH) + _encode(noise & (2**80 - 1), 16)


def new_epoch(noise: int) -> str:
    """The name of a new log, from the low 40 bits of ``noise``: 8 characters."""
    return _encode(noise & (2**EPOCH_BITS - 1), _PART_LENGTH)


@lru_cache(maxsize=256)
def _time_part(time_ms: int) -> str:
    return _encode(time_ms & MAX_TIME_MS, _TIME_LENGTH)


@lru_cache(maxsize=256)
def _upper_part(upper: int) -> str:
    return _encode(upper, _PART_LENGTH - 4)


def event_id(time_ms: int, epoch: str, index: int) -> str:
    """The id of the event at ``index`` of the log ``epoch``, stamped ``time_ms`` (Unix, ms)."""
    # Every event of every log passes here: most of them have the time and the upper half of the
    # index of one before.
    return (
        f"{_time_part(time_ms)}{epoch}{_upper_part(index >> 20)}"
        f"{_CHUNKS[index >> 10 & 1023]}{_CHUNKS[index & 1023]}"
    )


def parse_event_id(text: str) -> Position | None:
    """The position that an event id carries, or None where the text has not the shape of one.

    Foreign ids (imported, or made up) may have the shape by chance: compare the epoch before
    believing it.
    """
    if len(text) != ID_LENGTH:
        return None
    index = 0
    for char in text[-_PART_LENGTH:]:
        digit = _DIGITS.get(char)
        if digit is None:
            return None
        index = index << 5 | digit
    return Position(text[_TIME_LENGTH:-_PART_LENGTH], index)
