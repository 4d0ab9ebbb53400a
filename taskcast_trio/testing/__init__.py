"""The test kit: what programs that use taskcast_trio test themselves with.

- pytest fixtures, in ``taskcast_trio.testing.plugin``, which pytest finds by itself: an engine in
  memory, a real server, a client of it, a receiver of webhooks;
- schedules that a seed replays, a clock that autojump drives, cancellation at each step.

Nothing here is imported by the rest of the package, and pytest starts without any of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .cancellation import cancelled_after
    from .clock import START_MS, trio_clock_ms
    from .runtime import open_test_runtime
    from .scheduler import run_with_seed, schedule
    from .server import TestServer
    from .sink import Attempt, Delivery, WebhookSink

__all__ = [
    "START_MS",
    "Attempt",
    "Delivery",
    "TestServer",
    "WebhookSink",
    "cancelled_after",
    "open_test_runtime",
    "run_with_seed",
    "schedule",
    "trio_clock_ms",
]

_HOMES: Final = {
    "START_MS": "clock",
    "Attempt": "sink",
    "Delivery": "sink",
    "TestServer": "server",
    "WebhookSink": "sink",
    "cancelled_after": "cancellation",
    "open_test_runtime": "runtime",
    "run_with_seed": "scheduler",
    "schedule": "scheduler",
    "trio_clock_ms": "clock",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
