"""A runtime on Trio's clock."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from taskcast_trio import TaskEngine
from taskcast_trio.engine import Runtime
from taskcast_trio.testing import open_test_runtime


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    # pytest-trio sees a clock only where the test itself takes the fixture.
    assert isinstance(trio.lowlevel.current_clock(), MockClock), "the test wants autojump_clock"
    async with open_test_runtime(inbox_commits=4) as opened:
        yield opened


@pytest.fixture
def engine(runtime: Runtime) -> TaskEngine:
    return runtime.engine
