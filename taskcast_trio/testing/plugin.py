"""pytest: fixtures for the tests of programs that use taskcast_trio.

pytest finds this by itself wherever taskcast_trio is installed (``-p
no:taskcast_trio.testing.plugin`` keeps it out). It imports nothing until a fixture is asked for.

- ``taskcast_engine``: an engine in memory, for tests on Trio; its time is Trio's, so that
  ``autojump_clock`` drives it.
- ``taskcast_server``: a real server on a free port of 127.0.0.1, for any kind of test;
  ``taskcast_config`` is its configuration, there to be overridden.
- ``taskcast_client``: a client of ``taskcast_server`` that fits the test.
- ``webhook_sink``: a receiver of webhooks.
- ``schedule_seed``: runs a test once for each seed, inside
  :func:`taskcast_trio.testing.schedule`; an async one (pytest-trio) wants ``autojump_clock`` beside
  it::

      async def test_one_wins(schedule_seed, autojump_clock): ...

``--schedule-seeds N`` says how many seeds (25), ``--schedule-seed N`` takes that one alone. The
report of a failure names the seed and the command that replays it.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Generator, Iterator
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from taskcast_trio.client import AsyncTaskcastClient, TaskcastClient
    from taskcast_trio.config import Config
    from taskcast_trio.engine import TaskEngine

    from .server import TestServer
    from .sink import WebhookSink

DEFAULT_SEEDS = 25


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("schedules")
    group.addoption(
        "--schedule-seeds",
        type=int,
        default=DEFAULT_SEEDS,
        metavar="N",
        help=f"run tests that take schedule_seed under N seeds (default: {DEFAULT_SEEDS})",
    )
    group.addoption(
        "--schedule-seed",
        type=int,
        default=None,
        metavar="N",
        help="run tests that take schedule_seed under this seed alone",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "schedule_seed" not in metafunc.fixturenames:
        return
    one = metafunc.config.getoption("schedule_seed")
    seeds = range(metafunc.config.getoption("schedule_seeds")) if one is None else [one]
    metafunc.parametrize("schedule_seed", seeds, indirect=True, ids=lambda seed: f"seed{seed}")


@pytest.fixture
def schedule_seed(request: pytest.FixtureRequest) -> Iterator[int]:
    """The seed whose schedule this run of the test follows."""
    from .scheduler import schedule

    with schedule(request.param):
        yield request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    callspec = getattr(item, "callspec", None)
    if report.failed and callspec is not None and "schedule_seed" in callspec.params:
        seed = callspec.params["schedule_seed"]
        test = item.nodeid.partition("[")[0]
        report.sections.append(
            (f"schedule seed {seed}", f"replay: pytest --schedule-seed {seed} {shlex.quote(test)}")
        )
    return report


@pytest.fixture
async def taskcast_engine() -> AsyncIterator[TaskEngine]:
    """An engine in memory, on Trio (pytest-trio, or anyio's plugin with its Trio backend).

    Its clock is Trio's: under ``autojump_clock`` deadlines and delays take no time.
    """
    from trio.lowlevel import in_trio_run

    from .runtime import open_test_runtime

    if not in_trio_run():
        pytest.fail(
            "taskcast_engine runs on Trio: with pytest-trio, or the plugin of anyio and its Trio "
            "backend (pytest-asyncio in auto mode takes every async fixture for itself)",
            pytrace=False,
        )
    async with open_test_runtime() as runtime:
        yield runtime.engine


@pytest.fixture
def taskcast_config() -> Config:
    """The configuration of ``taskcast_server``: in memory, no authentication.

    Override it for another one. Where to listen is not looked at.
    """
    from taskcast_trio.config import Config

    return Config()


@pytest.fixture
def taskcast_server(taskcast_config: Config) -> Iterator[TestServer]:
    """A real server on a real port, in a thread of its own, for this test alone."""
    from .server import serving

    with serving(taskcast_config) as server:
        yield server


@pytest.fixture
def taskcast_client(
    request: pytest.FixtureRequest, taskcast_server: TestServer
) -> Iterator[TaskcastClient | AsyncTaskcastClient]:
    """A client of ``taskcast_server``: the asynchronous one in an ``async def`` test, on asyncio or
    Trio, else the synchronous one.
    """
    from .server import async_client, sync_client

    if iscoroutinefunction(request.function):
        yield async_client(taskcast_server.url)
        return
    with sync_client(taskcast_server.url) as client:
        yield client


@pytest.fixture
def webhook_sink() -> Iterator[WebhookSink]:
    """A receiver of webhooks on a real port: see ``taskcast_trio.testing.WebhookSink``."""
    from .sink import WebhookSink

    with WebhookSink() as sink:
        yield sink
