"""What the queries of the event routes mean."""

from __future__ import annotations

from typing import Final, TypeAlias

from taskcast_trio.core.filter import EventFilter
from taskcast_trio.core.model import Draft
from taskcast_trio.engine import Follow, FollowAllOptions, HistoryQuery

from .query import Query

Published: TypeAlias = Draft | list[Draft]
"""The body of a publish."""

SINCE: Final = frozenset({"since.id", "since.index", "since.timestamp"})
FILTER: Final = frozenset({"types", "levels", "includeStatus"})
HISTORY_PARAMETERS: Final = SINCE | FILTER | {"limit", "seriesFormat"}
STREAM_PARAMETERS: Final = HISTORY_PARAMETERS | {"wrap", "last_event_id", "ticket"}
GLOBAL_PARAMETERS: Final = frozenset({"types", "levels", "existing", "ticket"})


def _filter(parameters: Query) -> EventFilter:
    return EventFilter.from_query(
        parameters.get("types"), parameters.get("levels"), parameters.get("includeStatus")
    )


def history_query(query_string: bytes) -> HistoryQuery:
    parameters = Query(query_string, HISTORY_PARAMETERS)
    return HistoryQuery(
        filter=_filter(parameters),
        since_id=parameters.get("since.id") or None,
        since_index=parameters.number("since.index"),
        since_timestamp=parameters.number("since.timestamp"),
        limit=parameters.limit(),
        accumulated=parameters.get("seriesFormat") == "accumulated",
    )


def follow_query(parameters: Query, last_event_id: str | None) -> Follow:
    return Follow(
        filter=_filter(parameters),
        last_event_id=last_event_id or parameters.get("last_event_id") or None,
        since_id=parameters.get("since.id") or None,
        since_index=parameters.lenient_number("since.index"),
        since_timestamp=parameters.lenient_number("since.timestamp"),
        resumed=any(name in parameters for name in SINCE),
        limit=parameters.limit(),
        accumulated=parameters.get("seriesFormat") == "accumulated",
    )


def follow_all_query(query_string: bytes) -> FollowAllOptions:
    parameters = Query(query_string, GLOBAL_PARAMETERS)
    return FollowAllOptions(
        filter=EventFilter.from_query(
            parameters.get("types"), parameters.get("levels"), None, empty_is_absent=True
        ),
        existing=parameters.flag("existing"),
    )
