"""The test kit: schedules that a seed replays, a clock that autojump drives, cancellation at each
step.

It is what this package tests itself with, and good for programs that embed the engine. Nothing here
is imported by the rest of the package. The pytest options and fixtures are in
``taskcast_trio.testing.plugin``.
"""

from .cancellation import cancelled_after
from .clock import START_MS, trio_clock_ms
from .runtime import open_test_runtime
from .scheduler import run_with_seed, schedule

__all__ = [
    "START_MS",
    "cancelled_after",
    "open_test_runtime",
    "run_with_seed",
    "schedule",
    "trio_clock_ms",
]
