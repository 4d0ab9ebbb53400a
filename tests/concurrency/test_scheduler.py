"""A seed is an interleaving: the same one each time, and other ones by other seeds."""

from __future__ import annotations

from functools import partial
from itertools import count

import pytest
import trio

from taskcast_trio.testing import START_MS, cancelled_after, run_with_seed, schedule, trio_clock_ms

from .scenarios import stream


async def order_of_tasks(tasks: int = 4) -> tuple[int, ...]:
    ran: list[int] = []

    async def run(name: int) -> None:
        ran.append(name)

    async with trio.open_nursery() as nursery:
        for name in range(tasks):
            nursery.start_soon(run, name)
    return tuple(ran)


def test_seeds_reach_every_order_and_a_seed_always_the_same_one():
    orders = [run_with_seed(order_of_tasks, seed) for seed in range(200)]
    assert len(set(orders)) == 24
    assert orders == [run_with_seed(order_of_tasks, seed) for seed in range(200)]


def test_a_whole_race_is_replayed_by_its_seed():
    def play(seed: int) -> list[list[str]]:
        streamed = run_with_seed(partial(stream, seed), seed)
        return [client.ids for client in streamed.clients]

    assert play(7) == play(7)
    assert play(7) != play(8)


def test_what_was_before_is_restored_and_a_failure_names_the_seed():
    internals = trio._core._run
    before = internals._r.getstate()
    with pytest.raises(ZeroDivisionError) as caught, schedule(42):
        assert internals._r.getstate() != before
        raise ZeroDivisionError
    assert internals._r.getstate() == before
    assert caught.value.__notes__ == ["schedule seed: 42"]


async def test_the_clock_of_the_engine_goes_with_the_clock_of_trio(autojump_clock):
    now_ms = trio_clock_ms()
    assert now_ms() == START_MS
    await trio.sleep(2)
    assert now_ms() == START_MS + 2_000


async def test_an_operation_is_cancelled_after_each_of_its_steps_in_turn(autojump_clock):
    reached: list[int] = []

    async def three_steps() -> None:
        for step in range(3):
            reached.append(step)
            await trio.lowlevel.checkpoint()

    for steps in count():
        reached.clear()
        if not await cancelled_after(steps, three_steps):
            break
        assert reached == list(range(max(steps, 1)))
    assert (steps, reached) == (4, [0, 1, 2])


RACY = """
import trio

async def test_forwards(schedule_seed, autojump_clock):
    ran = []
    async def run(name):
        ran.append(name)
    async with trio.open_nursery() as nursery:
        for name in range(3):
            nursery.start_soon(run, name)
    assert ran == [0, 1, 2]
"""


def test_a_failure_under_pytest_says_how_to_replay_it_and_the_replay_fails_too(pytester):
    pytester.makepyfile(test_racy=RACY)
    pytester.makeini("[pytest]\ntrio_mode = true")
    run = partial(pytester.runpytest_inprocess, "-p", "taskcast_trio.testing.plugin")
    result = run("--schedule-seeds", "30")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] + outcomes["failed"] == 30
    assert 0 < outcomes["passed"] < 30
    replays = [line for line in result.outlines if line.startswith("replay: pytest ")]
    assert len(replays) == outcomes["failed"]
    for line in replays[:2]:
        arguments = line.removeprefix("replay: pytest ").split()
        run(*arguments).assert_outcomes(failed=1)
