"""What is kept of a webhook beside its task, and under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import structlog
from msgspec import UNSET, Raw, Struct

from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.model import Task
from taskcast_trio.core.webhook import Outcome, Unusable, Webhook, read
from taskcast_trio.storage.records import PARKED_MS, TaskRecord

from .attempt import Failure

log = structlog.get_logger(__name__)

WEBHOOK: Final = "webhook"
"""The kind of timer that a task with webhooks has: parked while there is nothing to deliver, due at
once where there is, and held by whoever delivers. Without it nothing is owed any more."""
RETRY: Final = "webhook_retry"
"""The kind of timer that hastens the other one: when the next try of one of the webhooks is due."""

MAX_WEBHOOKS: Final = 32
"""Of one task; further ones are not used."""
MAX_FAULTS: Final = 8
"""How many unusable ones of a task are logged."""
MAX_DEAD: Final = 256
"""Of one webhook; the oldest is dropped for a new one."""
KEPT_TRIES: Final = 20

GONE: Final = "The receiver has answered 410 Gone"

_TOO_MANY: Final = Unusable(f"Expected at most {MAX_WEBHOOKS} webhooks - at `$.webhooks`")


class Try(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One try, as it is remembered: the last 20 of a webhook are."""

    at_ms: int
    index: int
    event_id: str
    type: str
    number: int
    """1 is the first one of its event."""
    outcome: Outcome
    duration_ms: int
    status: int | None = None
    error: Failure | None = None


class DeadLetter(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event that was given up. Its text is in the log."""

    at_ms: int
    index: int
    event_id: str
    type: str
    filtered_index: int
    tries: int
    status: int | None = None
    error: Failure | None = None


class State(Struct, kw_only=True, omit_defaults=True):
    """How far a webhook is. Events up to index ``cursor`` are behind it: delivered, not wanted, or
    dead letters.
    """

    cursor: int
    filtered: int = 0
    """How many of the events behind the cursor were wanted: the next one's ``filteredIndex``."""
    delivered: int = 0
    tries: int = 0
    """Failed ones of the event that is next."""
    next_try_ms: int | None = None
    dropped: int = 0
    """Dead letters that had to make room for later ones."""
    disabled: str | None = None
    resend_from: int | None = None
    """The dead letters from this index on, up to ``resend_to``, are delivered again first."""
    resend_to: int = -1
    redelivery: str | None = None
    """The id of the last one that was begun."""
    recent: tuple[Try, ...] = ()

    @property
    def last(self) -> Try | None:
        return self.recent[-1] if self.recent else None

    def remember(self, one: Try) -> None:
        self.recent = (*self.recent[1 - KEPT_TRIES :], one)


class Redelivery(Struct, frozen=True, omit_defaults=True):
    """What somebody asked for last: the dead letters again, or all from an index on."""

    id: str
    from_index: int | None = None


def state_name(number: int) -> str:
    return f"webhook.{number}"


def redelivery_name(number: int) -> str:
    return f"webhook.{number}.redeliver"


def dead_name(number: int, index: int) -> str:
    return f"webhook.{number}.dead.{index}"


encode: Final = msgspec.msgpack.Encoder().encode
_STATE: Final = msgspec.msgpack.Decoder(State)
_DEAD: Final = msgspec.msgpack.Decoder(DeadLetter)
_REDELIVERY: Final = msgspec.msgpack.Decoder(Redelivery)


class Kept(Struct):
    """All that is kept of one webhook."""

    state: State
    dead: dict[int, DeadLetter]
    """By index, in its order."""
    redelivery: Redelivery | None
    """One that was not begun yet."""
    is_new: bool
    """Whether nothing was."""


def kept(notes: Mapping[str, bytes], number: int, record: TaskRecord) -> Kept:
    """Find it among the notes of the task."""
    packed = notes.get(state_name(number))
    state = State(cursor=first_cursor(record)) if packed is None else _STATE.decode(packed)
    note = notes.get(redelivery_name(number))
    asked = None if note is None else _REDELIVERY.decode(note)
    prefix = dead_name(number, 0)[:-1]
    dead = [_DEAD.decode(value) for name, value in notes.items() if name.startswith(prefix)]
    return Kept(
        state=state,
        dead={letter.index: letter for letter in sorted(dead, key=lambda letter: letter.index)},
        redelivery=asked if asked is not None and asked.id != state.redelivery else None,
        is_new=packed is None,
    )


def first_cursor(record: TaskRecord) -> int:
    """Where a webhook of which nothing is kept begins: at the beginning; or, where the task was
    taken in from the archive, which keeps no notes, at the end of what was archived.
    """
    return record.former[-1].next_index - 1 if record.former else -1


def definitions(task: Task, default: Backoff) -> list[Webhook | Unusable]:
    """The webhooks of a task, in their places."""
    return [
        read(raw, default, place=f"webhooks[{number}]") if number < MAX_WEBHOOKS else _TOO_MANY
        for number, raw in enumerate(raws_of(task))
    ]


def judge(task: Task) -> None:
    """Say which webhooks of a new task can't be used, and why: it was taken with them, and nobody
    would look for what never comes.
    """
    unusable = [
        (number, webhook.reason)
        for number, webhook in enumerate(definitions(task, Backoff()))
        if isinstance(webhook, Unusable)
    ]
    for number, reason in unusable[:MAX_FAULTS]:
        log.warning("webhook_unusable", task=task.id, number=number, reason=reason)


def raws_of(task: Task) -> Sequence[Raw]:
    return () if task.webhooks is UNSET else task.webhooks


def timers_of(task: Task, *, due_ms: int = PARKED_MS) -> dict[str, int]:
    """What a task begins with: nothing where it has no webhooks.

    A time other than parked must come after now: it takes the place of a lease, and the next one
    must differ from that.
    """
    return {WEBHOOK: due_ms} if raws_of(task) else {}
