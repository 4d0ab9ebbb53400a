"""The worker: code of one's own that tasks are handed to. It knows only ``core`` and ``client``."""

from __future__ import annotations

from .errors import Decline, TaskLost, WorkerRefused, WorkerReplaced
from .run import Run
from .worker import Worker

__all__ = [
    "Decline",
    "Run",
    "TaskLost",
    "Worker",
    "WorkerRefused",
    "WorkerReplaced",
]
