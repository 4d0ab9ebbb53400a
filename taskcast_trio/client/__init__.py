"""The client: what publishers and subscribers in other programs use. It knows only ``core``."""

from __future__ import annotations

from .client import AsyncTaskcastClient, draft
from .errors import ResponseError, ServerUnavailable
from .sse import EventTooLarge, ServerSentEvent, SSEParser
from .subscription import Gap, Received, Subscription

__all__ = [
    "AsyncTaskcastClient",
    "EventTooLarge",
    "Gap",
    "Received",
    "ResponseError",
    "SSEParser",
    "ServerSentEvent",
    "ServerUnavailable",
    "Subscription",
    "draft",
]
