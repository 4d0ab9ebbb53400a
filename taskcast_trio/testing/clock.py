"""A clock for the engine that goes with Trio's, so that an autojump clock drives timestamps too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

START_MS: Final = 1_700_000_000_000
"""Unix ms at which a test's day begins."""


def trio_clock_ms(start_ms: int = START_MS) -> Callable[[], int]:
    """A clock that gives ``start_ms`` plus the ms that Trio's clock shows.

    With ``MockClock``, which starts at 0, ``trio.sleep(2)`` moves it by exactly 2,000. To be called
    inside ``trio.run``.
    """

    def now_ms() -> int:
        return start_ms + round(trio.current_time() * 1000)

    return now_ms
