"""Anti-vacuity: an engine that is broken on purpose must fail the races, under one seed of a few.

If a test here fails, a race no longer sees what it is there to see.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import pytest
import trio

from taskcast_trio.core.errors import RevisionConflict
from taskcast_trio.core.ids import parse_event_id
from taskcast_trio.engine import resume, subscription
from taskcast_trio.engine.cursor import Cursor
from taskcast_trio.engine.fanout import Fanout, Inbox
from taskcast_trio.engine.follow_all import FollowAll
from taskcast_trio.engine.replay import Replay
from taskcast_trio.engine.scheduler import Scheduler
from taskcast_trio.engine.subscription import Subscription
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.storage.records import Commit, TaskRecord
from taskcast_trio.testing import run_with_seed

from .scenarios import (
    check_deadline_race,
    check_followed_all,
    check_joined,
    check_lives,
    check_streamed,
    check_terminal_race,
    follow_all,
    join,
    live_again,
    race_a_deadline,
    race_to_the_end,
    stream,
)

T = TypeVar("T")
SEEDS = range(25)


def assert_caught(
    race: Callable[[int], Awaitable[T]], check: Callable[[T], None], seeds: range = SEEDS
) -> None:
    with pytest.raises(AssertionError):
        for seed in seeds:
            check(run_with_seed(partial(race, seed), seed))


calm = partial(stream, loss=0, away=0, drops=False)
"""Nothing but full inboxes, and nobody who comes back and so heals what went wrong."""


def test_skipping_the_gap_check_is_caught(monkeypatch):
    monkeypatch.setattr(Commit, "first_index", property(lambda self: 0))
    assert_caught(stream, check_streamed)


def test_dropping_commits_of_a_full_inbox_is_caught(monkeypatch):
    def drop_silently(self: Inbox, commit: Commit) -> bool:
        try:
            (self._channel or self._open())[0].send_nowait(commit)
        except trio.WouldBlock:
            return False
        return True

    monkeypatch.setattr(Inbox, "put", drop_silently)
    assert_caught(calm, check_streamed)


@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_resume_that_is_one_off_is_caught(monkeypatch, off_by):
    resolve_cursor = resume.resolve_cursor

    async def off_by_one(*args: Any) -> int | None:
        index = await resolve_cursor(*args)
        return index if index is None else max(index + off_by, -1)

    monkeypatch.setattr(subscription, "resolve_cursor", off_by_one)
    # Else the id that it has for that place gives it away.
    monkeypatch.setattr(Cursor, "has_another", lambda *_: False)
    assert_caught(stream, check_streamed)
    assert_caught(join, check_joined)


def test_attaching_after_the_replay_is_caught(monkeypatch):
    """The classic: what is committed between the last page and the attach is lost."""
    read = Subscription._read

    async def attach_nowhere(self: Subscription) -> Subscription:
        self._inbox = Inbox(1)
        self._metrics.task_subscribers.inc()
        await self._start()
        return self

    async def read_then_attach(self: Subscription, runs: bool) -> Any:
        items = await read(self, runs)
        if self._cursor.live:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)
            self._inbox = self._fanout.attach(self.task_id)
        return items

    monkeypatch.setattr(Subscription, "__aenter__", attach_nowhere)
    monkeypatch.setattr(Subscription, "_read", read_then_attach)
    assert_caught(partial(calm, inbox_commits=64), check_streamed)


def test_going_on_live_after_a_cut_is_caught(monkeypatch):
    reattach = Subscription._reattach

    def stay_live(self: Subscription) -> None:
        reattach(self)
        self._cursor.live = True

    monkeypatch.setattr(Subscription, "_reattach", stay_live)
    assert_caught(calm, check_streamed)


def test_taking_twice_what_replay_and_inbox_both_have_is_caught(monkeypatch):
    def without_looking(self: Cursor, entries: Any, items: Any) -> None:
        for entry in entries:
            self.last = entry.index
            self.deliver(self.running(entry) if self.follow.accumulated else entry, items)

    monkeypatch.setattr(Cursor, "_advance", without_looking)
    assert_caught(calm, check_streamed)
    assert_caught(join, check_joined)


def test_resuming_running_values_from_nothing_is_caught(monkeypatch):
    start = Cursor.start

    def start_without_the_past(
        self: Cursor, record: TaskRecord, after: int = -1, event_id: str | None = None
    ) -> None:
        start(self, record, after, event_id)
        self.last, self._silent_until = after, -1

    monkeypatch.setattr(Cursor, "start", start_without_the_past)
    assert_caught(stream, check_streamed)


def test_forgetting_a_snapshot_whose_place_was_taken_is_caught(monkeypatch):
    monkeypatch.setattr(Replay, "_replaced_value", lambda self, later: None)
    assert_caught(stream, check_streamed)


def test_mistaking_another_life_for_the_same_log_is_caught(monkeypatch):
    async def by_index(store: Any, record: TaskRecord, event_id: str) -> int | None:
        position = parse_event_id(event_id)
        return None if position is None else position.index

    monkeypatch.setattr(subscription, "resolve_cursor", by_index)
    monkeypatch.setattr(Cursor, "has_another", lambda *_: False)
    assert_caught(live_again, check_lives)


def test_a_transition_that_does_not_compare_is_caught(monkeypatch):
    transition = MemoryStore.transition

    async def overwrite(self: MemoryStore, task: Any, drafts: Any, **expected: Any) -> Commit:
        while True:
            record = self._logs[task.id].record
            expected |= {"revision": record.revision, "epoch": record.epoch}
            try:
                return await transition(self, task, drafts, **expected)
            except RevisionConflict:
                continue

    monkeypatch.setattr(MemoryStore, "transition", overwrite)
    assert_caught(race_to_the_end, check_terminal_race)


def test_a_terminal_transition_that_is_told_to_one_subscriber_only_is_caught(monkeypatch):
    committed = Fanout.committed

    def forgetful(self: Fanout, commit: Commit) -> None:
        if commit.record.task.terminal:
            for inboxes in self._by_task.values():
                next(iter(inboxes)).put(commit)
        else:
            committed(self, commit)

    monkeypatch.setattr(Fanout, "committed", forgetful)
    assert_caught(race_to_the_end, check_terminal_race)


def test_not_looking_for_tasks_created_during_a_lag_is_caught(monkeypatch):
    async def none(self: FollowAll) -> bool:
        return False

    monkeypatch.setattr(FollowAll, "_list_page", none)
    assert_caught(follow_all, check_followed_all)


def test_every_race_passes_where_nothing_is_broken():
    """The same seeds as above, so that it is the mutation that is caught."""

    for seed in SEEDS:
        check_streamed(run_with_seed(partial(stream, seed), seed))
        check_streamed(run_with_seed(partial(calm, seed), seed))
        check_joined(run_with_seed(partial(join, seed), seed))
        check_lives(run_with_seed(partial(live_again, seed), seed))
        check_followed_all(run_with_seed(partial(follow_all, seed), seed))
        check_terminal_race(run_with_seed(partial(race_to_the_end, seed), seed))


def test_ending_a_task_at_a_deadline_that_was_put_off_meanwhile_is_caught(monkeypatch):
    set_timer = Scheduler._set

    async def without_looking(self: Scheduler, timer: Any, due_ms: int | None) -> bool:
        await set_timer(self, timer, due_ms)
        return True

    monkeypatch.setattr(Scheduler, "_set", without_looking)
    assert_caught(race_a_deadline, check_deadline_race, range(300))


def test_storing_a_timeout_over_what_changed_meanwhile_is_caught(monkeypatch):
    transition = MemoryStore.transition

    async def regardless(self: MemoryStore, task: Any, *args: Any, **kwargs: Any) -> Commit:
        while True:
            try:
                return await transition(self, task, *args, **kwargs)
            except RevisionConflict:
                if task.status != "timeout":
                    raise
                kwargs["revision"] = self._log(task.id).record.revision

    monkeypatch.setattr(MemoryStore, "transition", regardless)
    assert_caught(race_a_deadline, check_deadline_race, range(300))
