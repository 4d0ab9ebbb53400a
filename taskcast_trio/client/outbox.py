"""The events of one publisher on their way: numbered, in order, each stored once.

Every event goes with the publisher's id and its own number, from 0 without a hole. What the server
has stored already it answers again and stores not; so a batch whose answer was lost, or of which
only a part was stored, is sent once more as it was. One batch is on its way at a time: what comes
meanwhile makes up the next, so the first event waits for nothing, and the more come the larger the
batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec
from msgspec import UNSET

from taskcast_trio.core import validate
from taskcast_trio.core.errors import PayloadTooLarge, SeqGap, SeqStale, TaskFull
from taskcast_trio.core.model import Draft

from . import calls
from .retries import RetryPolicy, answered
from .steps import Flow

MAX_BATCH_EVENTS: Final = 500
MAX_BATCH_BYTES: Final = 256 * 1024
MAX_WAITING: Final = 2000
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
PATIENCE: Final = RetryPolicy(tries=40)
"""About three minutes for one batch while the server refuses connections."""
_OVERHEAD: Final = 200
"""Bytes of an event beside its data, about."""


class Outbox:
    """What waits to be sent, and what has been.

    Attributes:
        client_id: the publisher.
        next_seq: the number of the next event that is put in.
        stored: how many numbers the server has, counted from 0.
        last_index: the index of the newest event that is known to be stored; None before.
        failure: why nothing more is sent, if so.
    """

    def __init__(self, client_id: str, next_seq: int = 0) -> None:
        self.client_id = client_id
        self.next_seq = next_seq
        self.stored = next_seq
        self.last_index: int | None = None
        self.failure: Exception | None = None
        self._waiting: deque[Draft] = deque()
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether the next event has to wait for room."""
        return len(self._waiting) >= MAX_WAITING or self._bytes >= MAX_WAITING_BYTES

    @property
    def unstored(self) -> int:
        """How many of those that were put in are not known to be stored."""
        return self.next_seq - self.stored

    def check(self) -> None:
        """Raise what has ended the sending, if anything has."""
        if self.failure is not None:
            raise self.failure

    def put(self, draft: Draft) -> None:
        """Number an event, to be sent.

        Raises:
            BadRequest: no server would take it, nor anything that went with it.
        """
        validate.draft(draft, 0)
        # One batch is on its way at a time: where events are missing, they will not come.
        counted = msgspec.structs.replace(
            draft, client_id=self.client_id, client_seq=self.next_seq, seq_mode="fast-fail"
        )
        self.next_seq += 1
        self._waiting.append(counted)
        self._bytes += _size(draft)

    def take(self) -> list[Draft]:
        """The next batch; empty where nothing waits."""
        batch: list[Draft] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH_EVENTS:
            size += _size(self._waiting[0])
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        self._bytes -= sum(map(_size, batch))
        return batch

    def sent(self, batch: Sequence[Draft], last_index: int | None) -> None:
        """Take it that these are stored, the last of them at this index, if that is known."""
        self.stored += len(batch)
        self.last_index = self.last_index if last_index is None else last_index

    def broke(self, failure: Exception) -> None:
        """Send no more: what waits is dropped."""
        self.failure = failure
        self._waiting.clear()
        self._bytes = 0


def _size(draft: Draft) -> int:
    return _OVERHEAD + (0 if draft.data is UNSET else len(bytes(draft.data)))


def delivered(
    task_id: str, batch: Sequence[Draft], policy: RetryPolicy, fence: int | None = None
) -> Flow[int | None]:
    """Publish a batch, which may be sent any number of times; the index of its last event, where
    the server still tells.

    Raises:
        SeqGap: the server has lost what it had stored before.
        TaskcastError: what the last try came to.
    """
    left = list(batch)
    size = len(left)
    last_index = None
    while left:
        call = calls.publish_many(task_id, left[:size], fence=fence)
        try:
            stored = yield from answered(replace(call, final=(SeqGap,)), policy)
        except SeqStale as stale:
            # So long ago that it is not shown again, but stored.
            expected = stale.facts.get("expectedSeq", 0)
            if expected <= (left[0].client_seq or 0):
                raise
            left = [draft for draft in left if (draft.client_seq or 0) >= expected]
        except PayloadTooLarge as refused:
            # The server, or a proxy before it, may take less at once than it does by itself.
            size = min(size, len(left)) // 2
            if isinstance(refused, TaskFull) or not size:
                raise
        else:
            last_index = stored[-1].index if stored else None
            del left[:size]
    return last_index
