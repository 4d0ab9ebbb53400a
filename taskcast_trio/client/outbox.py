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
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET

from taskcast_trio.core.model import Draft, Wire

from . import calls
from .errors import decode
from .retries import Call, RetryPolicy
from .steps import Reply, Request

SeqMode: TypeAlias = Literal["hold", "fast-fail"]

MAX_BATCH_EVENTS: Final = 500
MAX_BATCH_BYTES: Final = 256 * 1024
MAX_WAITING: Final = 2000
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
PATIENCE: Final = RetryPolicy(tries=40)
"""About three minutes for one batch while the server refuses connections."""
_OVERHEAD: Final = 200
"""Bytes of an event beside its data, about."""


class Numbered(Draft, frozen=True, kw_only=True):
    """A draft with its place among those of its publisher."""

    client_id: str
    client_seq: int
    seq_mode: SeqMode


class SeqState(Wire, frozen=True, kw_only=True):
    """Which number the server expects next of a publisher."""

    client_id: str
    expected_seq: int


class Outbox:
    """What waits to be sent, and what has been.

    Attributes:
        client_id: the publisher.
        next_seq: the number of the next event that is put in.
        stored: how many numbers the server has, counted from 0.
        failure: why nothing more is sent, if so.
    """

    def __init__(self, client_id: str, next_seq: int = 0) -> None:
        self.client_id = client_id
        self.next_seq = next_seq
        self.stored = next_seq
        self.failure: Exception | None = None
        self._waiting: deque[Numbered] = deque()
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether the next event has to wait for room."""
        return len(self._waiting) >= MAX_WAITING or self._bytes >= MAX_WAITING_BYTES

    @property
    def idle(self) -> bool:
        """Whether all that was put in is stored."""
        return self.stored == self.next_seq

    def check(self) -> None:
        """Raise what has ended the sending, if anything has."""
        if self.failure is not None:
            raise self.failure

    def put(self, draft: Draft) -> None:
        """Number an event, to be sent."""
        fields = {name: getattr(draft, name) for name in Draft.__struct_fields__}
        numbered = Numbered(
            **fields, client_id=self.client_id, client_seq=self.next_seq, seq_mode="hold"
        )
        self.next_seq += 1
        self._waiting.append(numbered)
        self._bytes += _size(draft)

    def take(self) -> list[Numbered]:
        """The next batch; empty where nothing waits."""
        batch: list[Numbered] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH_EVENTS:
            size += _size(self._waiting[0])
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        self._bytes -= sum(map(_size, batch))
        return batch

    def sent(self, batch: Sequence[Numbered]) -> None:
        """Take it that these are stored."""
        self.stored += len(batch)

    def broke(self, failure: Exception) -> None:
        """Send no more: what waits is dropped."""
        self.failure = failure
        self._waiting.clear()
        self._bytes = 0


def _size(draft: Draft) -> int:
    return _OVERHEAD + (0 if draft.data is UNSET else len(bytes(draft.data)))


def batch_call(task_id: str, batch: Sequence[Numbered], fence: int | None = None) -> Call[None]:
    """Publish a batch; it may be repeated as it is."""
    headers = {"Content-Type": "application/json"}
    if fence is not None:
        headers[calls.FENCE] = str(fence)
    body = msgspec.json.encode(list(batch))
    request = Request("POST", calls.events_path(task_id), headers=headers, body=body)
    return Call(request, _nothing, "safe", task_id=task_id)


def seq_call(task_id: str, client_id: str) -> Call[SeqState]:
    """Where a publisher stands."""
    path = f"/tasks/{calls.segment(task_id)}/seq/{calls.segment(client_id)}"

    def read(reply: Reply) -> SeqState:
        return decode(reply.body, SeqState, status=reply.status)

    return Call(Request("GET", path), read, "safe", task_id=task_id)


def _nothing(reply: Reply) -> None:
    return None
