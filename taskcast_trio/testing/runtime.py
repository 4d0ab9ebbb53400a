"""A runtime in which nothing is left to chance."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from taskcast_trio.config import Config
from taskcast_trio.engine import Runtime, open_runtime

from .clock import trio_clock_ms


@asynccontextmanager
async def open_test_runtime(
    *, seed: int = 0, inbox_commits: int | None = None
) -> AsyncIterator[Runtime]:
    """A memory runtime whose time is Trio's (:func:`trio_clock_ms`) and whose ids come from
    ``seed``.

    ``inbox_commits`` is the size of each subscriber's inbox; 1 makes slow ones lag at once.
    """
    config = Config()
    if inbox_commits is not None:
        fanout = msgspec.structs.replace(config.fanout, channel_batches=inbox_commits)
        config = msgspec.structs.replace(config, fanout=fanout)
    noise = random.Random(seed).getrandbits
    async with open_runtime(config, clock=trio_clock_ms(), noise=noise) as runtime:
        yield runtime
