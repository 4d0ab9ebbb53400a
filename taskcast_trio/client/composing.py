"""What calls are made of: paths, queries, bodies, and how their answers are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.model import Draft, Level, SeqMode, SeriesMode

from .errors import decode
from .retries import KEY, Call, Repeat
from .steps import TIMEOUT_S, Reply, Request

T = TypeVar("T")

FENCE: Final = "Taskcast-Fence"


def draft(
    type: str,
    data: Any = UNSET,
    *,
    level: Level = "info",
    series: str | None = None,
    mode: SeriesMode | None = None,
    acc_field: str | None = None,
    client_id: str | None = None,
    client_seq: int | None = None,
    seq_mode: SeqMode | None = None,
) -> Draft:
    """An event to publish.

    Args:
        type: its type, ``llm.delta`` for example.
        data: anything that is JSON; left out, the event has none, which is not the same as ``None``
            (null).
        level: how important it is.
        series: the id of the series it belongs to, if any; with ``mode``.
        mode: what the series does with it: ``accumulate`` joins texts, ``latest`` keeps only the
            newest.
        acc_field: the field of ``data`` that ``accumulate`` joins, ``delta`` without.
        client_id: of a publisher that counts its events (`Publisher` does it by itself).
        client_seq: its number among them, from 0: the server stores each once, in this order.
        seq_mode: what becomes of one that comes before others that are missing: it waits for them
            (``hold``), or is refused (``fast-fail``).

    Raises:
        ValueError: ``series`` without ``mode`` or the other way round, which the server would store
            as an event of no series.
    """
    if (series is None) != (mode is None):
        raise ValueError("series and mode go together: the event would be of no series")
    return Draft(
        type=type,
        level=level,
        data=raw(data),
        series_id=given(series),
        series_mode=given(mode),
        series_acc_field=given(acc_field),
        client_id=given(client_id),
        client_seq=given(client_seq),
        seq_mode=given(seq_mode),
    )


def event_params(
    types: Iterable[str] | None,
    levels: Iterable[Level] | None,
    include_status: bool,
    series_format: Literal["delta", "accumulated"],
) -> dict[str, str]:
    """The parts of a query that say which events, and how."""
    params: dict[str, str] = {}
    if types is not None:
        params["types"] = ",".join(types)
    if levels is not None:
        params["levels"] = ",".join(levels)
    if not include_status:
        params["includeStatus"] = "false"
    if series_format != "delta":
        params["seriesFormat"] = series_format
    return params


def since_params(since: str | datetime | None) -> dict[str, str]:
    """The part of a query that says from where on."""
    if since is None:
        return {}
    if isinstance(since, str):
        return {"since.id": since}
    return {"since.timestamp": str(round(since.timestamp() * 1000))}


def events_path(task_id: str) -> str:
    return task_path(task_id, "/events")


def segment(text: str) -> str:
    """One segment of a path; every character of the text is one of its own, ``/`` included."""
    quoted = quote(text, safe="")
    if quoted in (".", ".."):
        # RFC 3986, section 5.2.4: as they are, clients and proxies would remove these.
        quoted = quoted.replace(".", "%2E")
    return quoted


def given(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value


def encoded(value: Any) -> Raw:
    return value if isinstance(value, Raw) else Raw(msgspec.json.encode(value))


def raw(value: Any) -> Raw | UnsetType:
    return UNSET if value is UNSET else encoded(value)


def value(raw: Raw | UnsetType, default: Any = None) -> Any:
    """What a ``msgspec.Raw`` of an answer holds, decoded: the ``data`` of an event, the ``result``
    or the ``params`` of a task. ``default`` where there is none.
    """
    return default if raw is UNSET else json.loads(bytes(raw))


def task_path(task_id: str, below: str = "") -> str:
    return f"/tasks/{segment(task_id)}{below}"


def nothing(reply: Reply) -> None:
    return None


def decoder(type_: type[T]) -> Any:
    def read(reply: Reply) -> T:
        return decode(reply.body, type_, status=reply.status)

    return read


def reading(
    path: str,
    type_: type[T],
    params: Mapping[str, str] | None = None,
    *,
    task_id: str | None = None,
    read_timeout_s: float = TIMEOUT_S,
) -> Call[T]:
    sent = Request("GET", path, params or {}, read_timeout_s=read_timeout_s)
    return Call(sent, decoder(type_), "safe", task_id=task_id)


def writing(
    method: str,
    path: str,
    type_: type[T],
    body: msgspec.Struct | list[Draft],
    *,
    task_id: str | None = None,
    key: str | None = None,
    fence: int | None = None,
    repeat: Repeat = "keyed",
) -> Call[T]:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers[KEY] = key
    if fence is not None:
        headers[FENCE] = str(fence)
    sent = Request(method, path, headers=headers, body=msgspec.json.encode(body))
    return Call(sent, decoder(type_), repeat, task_id=task_id)
