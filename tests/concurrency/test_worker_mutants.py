"""Anti-vacuity: workers that are served wrongly on purpose must fail the races."""

from __future__ import annotations

from functools import partial

import pytest
from msgspec.structs import replace

from taskcast_trio.core import assignment
from taskcast_trio.engine.workers import dispatcher
from taskcast_trio.engine.workers.leases import Leases
from taskcast_trio.engine.workers.queues import Queues
from taskcast_trio.engine.workers.registry import Registry
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.testing import run_with_seed

from .worker_scenario import check_workers, run_workers


def assert_caught() -> None:
    with pytest.raises(AssertionError):
        for seed in range(5):
            check_workers(run_with_seed(partial(run_workers, seed), seed))


def test_storing_whatever_the_fence_is_caught(monkeypatch):
    append = MemoryStore.append

    async def append_always(self, *args, fence=None, **options):
        return await append(self, *args, **options)

    monkeypatch.setattr(MemoryStore, "append", append_always)
    assert_caught()


def test_a_fence_that_does_not_grow_when_a_task_is_taken_away_is_caught(monkeypatch):
    settled = assignment.settled

    def settle(before, after, *, by_holder):
        kept = settled(before, after, by_holder=by_holder)
        return replace(kept, fence=after.fence)

    monkeypatch.setattr(assignment, "settled", settle)
    monkeypatch.setattr(
        assignment,
        "assign",
        lambda task, worker_id, now_ms, assign=assignment.assign: (
            replace(assign(task, worker_id, now_ms)[0], fence=1),
            assign(task, worker_id, now_ms)[1],
        ),
    )
    assert_caught()


def test_slots_that_are_not_given_back_are_caught(monkeypatch):
    async def keep(self, worker_id, task_id, *, reason=None):
        pass

    monkeypatch.setattr(Registry, "release", keep)
    assert_caught()


def test_leases_that_never_end_are_caught(monkeypatch):
    async def wait(self, record):
        return self._clock() + 60_000

    monkeypatch.setattr(Leases, "_until", wait)
    assert_caught()


def test_tasks_that_wait_and_are_never_served_are_caught(monkeypatch):
    monkeypatch.setattr(Queues, "fitting", lambda self, *args: [])
    assert_caught()


def test_offers_that_never_move_on_are_caught(monkeypatch):
    set_ = dispatcher.Dispatcher._set

    async def set_late(self, timer, due_ms):
        return await set_(self, timer, None if due_ms is None else due_ms + 10**12)

    monkeypatch.setattr(dispatcher.Dispatcher, "_set", set_late)
    assert_caught()


def test_an_assignment_that_looks_at_no_room_is_caught(monkeypatch):
    async def give_anyway(self, worker_id, task_id, cost):
        pass

    monkeypatch.setattr(Registry, "reserve", give_anyway)
    monkeypatch.setattr(Registry, "adopt", give_anyway)
    with pytest.raises(AssertionError):
        outcome = run_with_seed(partial(run_workers, 0), 0)
        check_workers(outcome)
        assert outcome.happened["accept: no_room"] > 0
