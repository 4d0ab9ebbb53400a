"""Schedules that can be replayed: a seed fixes in which order Trio runs the tasks that are ready.

By itself Trio runs each batch of ready tasks forwards or backwards, by chance: repeating a test
finds few of its interleavings, and does not find one again. Under :func:`schedule` every batch is
shuffled by a generator that starts from the seed, so other seeds are other interleavings and the
same seed is the same one, as long as nothing else decides by chance (real I/O, threads, the wall
clock, an unseeded generator).

::

    for seed in range(1000):
        run_with_seed(scenario, seed)

Under pytest, take the fixture ``schedule_seed`` of ``taskcast_trio.testing.plugin`` instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

T = TypeVar("T")

# Trio has the switch for its Hypothesis support only; both names are asserted here so that a
# release that moves them fails at import and not by silently finding nothing.
_run: Any = getattr(trio._core, "_run")  # noqa: B009 - mypy: the module is private
_SWITCH = "_ALLOW_DETERMINISTIC_SCHEDULING"
assert hasattr(_run, _SWITCH), "this Trio has no deterministic scheduling"
assert hasattr(_run, "_r"), "this Trio has no scheduler of its own to seed"


@contextmanager
def schedule(seed: int) -> Iterator[None]:
    """Inside this context, ``trio.run`` interleaves its tasks as ``seed`` says.

    Enter it outside of the run. An exception that leaves it carries a note that names the seed.
    What was before is restored at the end.
    """
    allowed, state = getattr(_run, _SWITCH), _run._r.getstate()
    setattr(_run, _SWITCH, True)
    _run._r.seed(seed)
    try:
        yield
    except BaseException as error:
        error.add_note(f"schedule seed: {seed}")
        raise
    finally:
        setattr(_run, _SWITCH, allowed)
        _run._r.setstate(state)


def run_with_seed(async_fn: Callable[[], Awaitable[T]], seed: int) -> T:
    """Run ``async_fn()`` on an autojump clock, interleaved as ``seed`` says, and return what it
    returns.

    The clock starts at 0 and jumps whenever every task waits: memory only, no sockets and no
    threads.
    """
    with schedule(seed):
        return trio.run(async_fn, clock=MockClock(autojump_threshold=0))
