"""Anti-vacuity: workers of the SDK that break a rule on purpose must fail the races."""

from __future__ import annotations

from functools import partial

import pytest
from msgspec import UNSET

from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.testing import run_with_seed
from taskcast_trio.worker import run, work
from taskcast_trio.worker.emitter import Emitter
from taskcast_trio.worker.roster import Roster
from taskcast_trio.worker.session import Session

from .sdk_scenario import check_sdk, run_sdk


def assert_caught() -> None:
    with pytest.raises(AssertionError):
        for seed in range(5):
            check_sdk(run_with_seed(partial(run_sdk, seed), seed))


def test_a_new_key_for_each_try_is_caught(monkeypatch):
    async def publish(self, held, events):
        await held.patiently(
            lambda: self._api.publish(held.task_id, events, key=held.key(), fence=held.fence)
        )

    monkeypatch.setattr(work.Work, "_publish", publish)
    assert_caught()


def test_events_that_are_dropped_when_the_server_is_away_are_caught(monkeypatch):
    async def publish(self, held, events):
        key = held.key()
        try:
            await self._api.publish(held.task_id, events, key=key, fence=held.fence)
        except TaskcastError as error:
            if not error.retryable:
                raise

    monkeypatch.setattr(work.Work, "_publish", publish)
    assert_caught()


def test_an_end_before_the_last_word_is_caught(monkeypatch):
    async def no_flush(self):
        pass

    monkeypatch.setattr(run.Run, "flush", no_flush)
    assert_caught()


def test_batches_out_of_order_are_caught(monkeypatch):
    batch = Emitter._batch
    monkeypatch.setattr(Emitter, "_batch", lambda self: batch(self)[::-1])
    assert_caught()


def test_slots_that_stay_reserved_are_caught(monkeypatch):
    monkeypatch.setattr(Roster, "unreserve", lambda self, task_id: None)
    assert_caught()


def test_assignments_that_are_not_begun_are_caught(monkeypatch):
    begin = Session._begin

    def begin_some(self, told):
        if not told.task_id.endswith("3"):
            begin(self, told)

    monkeypatch.setattr(Session, "_begin", begin_some)
    monkeypatch.setattr(Roster, "held", lambda self: UNSET)
    assert_caught()
