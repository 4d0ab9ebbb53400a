"""pytest: run a test under many schedules, and replay the one that failed.

Load it with ``pytest_plugins = ["taskcast_trio.testing.plugin"]`` in the top ``conftest.py``. A
test that takes the fixture ``schedule_seed`` runs once for each seed, inside
:func:`taskcast_trio.testing.schedule`; an async one (pytest-trio) wants ``autojump_clock`` beside
it::

    async def test_one_wins(schedule_seed, autojump_clock): ...

``--schedule-seeds N`` says how many seeds (25), ``--schedule-seed N`` takes that one alone. The
report of a failure names the seed and the command that replays it.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from .scheduler import schedule

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
