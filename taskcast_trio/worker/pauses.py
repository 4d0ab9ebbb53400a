"""How long to wait before the next try."""

from __future__ import annotations

import random
from typing import Final

from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.errors import RateLimited, TaskcastError

MAX_WAIT_S: Final = 30.0

_SCHEDULE: Final = Backoff(initial_delay_ms=250, max_delay_ms=5000)


def pause_s(tries: int, error: TaskcastError | None = None) -> float:
    """Before try number ``tries`` + 1: from a quarter of a second to five, each a little random so
    that the workers of a server that restarts do not come all at once.
    """
    wait_s = _SCHEDULE.delay_ms(max(tries, 1), jitter=random.random()) / 1000
    if isinstance(error, RateLimited) and error.retry_after_s is not None:
        wait_s = max(wait_s, min(error.retry_after_s, MAX_WAIT_S))
    return wait_s
