"""The clients: what publishers and subscribers in other programs use. They know only ``core``."""

from __future__ import annotations

from taskcast_trio.core.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    InvalidTransition,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    TaskcastError,
    TaskEnded,
    TaskExists,
    TaskNotFound,
    TokenExpired,
    Unauthorized,
)

from .assembling import Texts, TextTooLong, Update, assemble
from .client import AsyncTaskcastClient
from .composing import draft, value
from .errors import EventsLost, GatewayError, ResponseError, ServerUnavailable
from .following import Gap, Received
from .retries import NO_RETRIES, RetryPolicy
from .run import Publisher, Run
from .sse import EventTooLarge, ServerSentEvent, SSEParser
from .subscription import Subscription
from .sync_client import TaskcastClient
from .sync_run import SyncPublisher, SyncRun
from .sync_subscription import SyncSubscription

__all__ = [
    "NO_RETRIES",
    "AsyncTaskcastClient",
    "BadRequest",
    "Conflict",
    "EventTooLarge",
    "EventsLost",
    "Forbidden",
    "Gap",
    "GatewayError",
    "InvalidTransition",
    "NotFound",
    "PayloadTooLarge",
    "Publisher",
    "RateLimited",
    "Received",
    "ResponseError",
    "RetryPolicy",
    "Run",
    "SSEParser",
    "ServerSentEvent",
    "ServerUnavailable",
    "Subscription",
    "SyncPublisher",
    "SyncRun",
    "SyncSubscription",
    "TaskEnded",
    "TaskExists",
    "TaskNotFound",
    "TaskcastClient",
    "TaskcastError",
    "TextTooLong",
    "Texts",
    "TokenExpired",
    "Unauthorized",
    "Update",
    "assemble",
    "draft",
    "value",
]
