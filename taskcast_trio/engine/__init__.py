"""The engine: tasks, their logs, and the cursors that follow them. Usable without HTTP."""

from .engine import TaskEngine
from .follow_all import FollowAll, FollowAllOptions
from .history import HistoryQuery
from .items import Delivery, Done, Follow, Gap
from .runtime import Runtime, open_engine, open_runtime
from .subscription import Subscription

__all__ = [
    "Delivery",
    "Done",
    "Follow",
    "FollowAll",
    "FollowAllOptions",
    "Gap",
    "HistoryQuery",
    "Runtime",
    "Subscription",
    "TaskEngine",
    "open_engine",
    "open_runtime",
]
