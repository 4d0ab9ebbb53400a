"""The promises of the engine under many schedules; ``--schedule-seed N`` replays one."""

from __future__ import annotations

from taskcast_trio.engine import follow_all as follow_all_module
from taskcast_trio.engine import subscription

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


async def test_one_of_ten_racing_terminal_transitions_wins_and_100_subscribers_see_that_one(
    schedule_seed, autojump_clock
):
    check_terminal_race(await race_to_the_end(schedule_seed))


async def test_subscribers_that_lag_drop_and_resume_get_every_event_once_and_in_order(
    schedule_seed, autojump_clock
):
    """Inboxes of one commit, lost announcements, a store that is away, cancelled receives."""
    streamed = await stream(schedule_seed)
    check_streamed(streamed)
    assert sum(client.connections for client in streamed.clients) > len(streamed.clients)


async def test_subscribers_that_never_leave_get_every_event_once_however_slow(
    schedule_seed, autojump_clock
):
    check_streamed(await stream(schedule_seed, drops=False))


async def test_subscribers_that_keep_up_get_every_event_once_and_in_order(
    schedule_seed, autojump_clock
):
    check_streamed(await stream(schedule_seed, loss=0, away=0, inbox_commits=64))


async def test_a_replay_of_many_pages_is_overtaken_by_publishers(
    schedule_seed, autojump_clock, monkeypatch
):
    """Without drops: in the middle of a first replay, which collapses series and has ``latest``
    events at their first place, no single id says what a client has seen.
    """
    monkeypatch.setattr(subscription, "PAGE_EVENTS", 3)
    check_streamed(await stream(schedule_seed, drops=False))


async def test_a_replay_of_many_pages_is_resumed_in_the_middle(
    schedule_seed, autojump_clock, monkeypatch
):
    monkeypatch.setattr(subscription, "PAGE_EVENTS", 3)
    check_streamed(await stream(schedule_seed, series=False))


async def test_joining_while_others_publish_starts_right_after_the_cursor(
    schedule_seed, autojump_clock
):
    check_joined(await join(schedule_seed))


async def test_who_follows_a_task_that_is_deleted_and_created_again_ends_with_its_last_life(
    schedule_seed, autojump_clock
):
    check_lives(await live_again(schedule_seed))


async def test_who_follows_all_tasks_gets_every_event_once_however_slow(
    schedule_seed, autojump_clock
):
    check_followed_all(await follow_all(schedule_seed))


async def test_who_follows_all_tasks_catches_up_in_pages(
    schedule_seed, autojump_clock, monkeypatch
):
    monkeypatch.setattr(follow_all_module, "PAGE_EVENTS", 2)
    check_followed_all(await follow_all(schedule_seed))


async def test_a_deadline_that_races_with_other_changes_ends_the_task_once_or_not_at_all(
    schedule_seed, autojump_clock
):
    check_deadline_race(await race_a_deadline(schedule_seed))
