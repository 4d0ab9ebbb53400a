"""An event as text for a person."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, Final

from msgspec import UNSET

from taskcast_trio.cli.failures import printable
from taskcast_trio.cli.output import STATUS_STYLES, Out
from taskcast_trio.core.model import BLOCKED_EVENT, STATUS_EVENT, TERMINAL, Envelope, Event
from taskcast_trio.core.series import DEFAULT_FIELD

_LEVEL_STYLES: Final[dict[str, dict[str, Any]]] = {
    "debug": {"dim": True},
    "warn": {"fg": "yellow"},
    "error": {"fg": "red"},
}
_TASK_COLORS: Final = ("cyan", "magenta", "blue", "green", "bright_cyan", "bright_magenta")
# Controls but tab and newline, lone surrogates, and what turns the direction of text around.
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def ends_task(event: Event) -> bool:
    """Whether it is the last event of its task."""
    return event.type == STATUS_EVENT and _field(data_of(event), "status") in TERMINAL


def event_of(envelope: Envelope) -> Event:
    """The event as the log has it."""
    return Event(
        id=envelope.event_id,
        task_id=envelope.task_id,
        index=envelope.raw_index,
        timestamp=envelope.timestamp,
        type=envelope.type,
        level=envelope.level,
        data=envelope.data,
        series_id=envelope.series_id,
        series_mode=envelope.series_mode,
        series_acc_field=envelope.series_acc_field,
        series_snapshot=envelope.series_snapshot,
    )


def data_of(event: Event) -> Any:
    """The data, decoded; None where there is none."""
    # Not msgspec: it refuses halves of characters, which JavaScript senders cut between pieces.
    return None if event.data is UNSET else json.loads(bytes(event.data))


def piece_of(event: Event) -> str | None:
    """The text that the event adds to an accumulate series; None for another event."""
    if event.series_mode != "accumulate" or not event.series_id:
        return None
    text = _field(data_of(event), event.series_acc_field or DEFAULT_FIELD)
    return text if isinstance(text, str) else None


def _field(data: Any, name: str) -> Any:
    return data.get(name) if isinstance(data, dict) else None


def line_of(event: Event, out: Out, *, with_task: bool, limit: int | None = None) -> str:
    """The event as one line; of its data, what fits the limit."""
    series = f" [{printable(event.series_id)}]" if event.series_id else ""
    text = _summary(event, out, limit)
    return head_of(event, out, with_task=with_task) + series + (f"  {text}" if text else "")


def head_of(event: Event, out: Out, *, with_task: bool) -> str:
    """When, of which task, how important, and what type."""
    parts = [out.styled(_time(event.timestamp), dim=True)]
    if with_task:
        color = _TASK_COLORS[sum(event.task_id.encode(errors="replace")) % len(_TASK_COLORS)]
        parts.append(out.styled(printable(event.task_id), fg=color))
    parts.append(out.styled(f"{event.level:<5}", **_LEVEL_STYLES.get(event.level, {})))
    parts.append(out.styled(printable(event.type), **_LEVEL_STYLES.get(event.level, {})))
    return " ".join(parts)


def _summary(event: Event, out: Out, limit: int | None) -> str:
    if event.data is UNSET:
        return ""
    data = data_of(event)
    if event.type == STATUS_EVENT and isinstance(status := _field(data, "status"), str):
        told = out.styled(printable(status), bold=True, fg=STATUS_STYLES.get(status))
        message = _field(_field(data, "error"), "message")
        return told + (f": {printable(message)}" if isinstance(message, str) else "")
    if event.type == BLOCKED_EVENT and isinstance(reason := _field(data, "reason"), str):
        return printable(reason)
    is_text = isinstance(data, str)
    text = data if is_text else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    if limit is not None and len(text) > limit:
        return printable(text[:limit]) + "…"
    return printable(text)


def _time(at_ms: float) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000).strftime("%H:%M:%S.%f")[:-3]
    except (ValueError, OverflowError, OSError):  # an import may say anything
        return "--:--:--.---"


def readable(text: str) -> str:
    """Running text that does nothing to a terminal but be read; halves that meet become whole."""
    text = text.replace("\r\n", "\n")
    if not _UNSAFE.search(text):
        return text
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], whole)
