"""The promises to and of workers under many schedules; ``--schedule-seed N`` replays one."""

from __future__ import annotations

from .worker_scenario import check_workers, run_workers


async def test_every_task_ends_once_whatever_becomes_of_its_workers(schedule_seed, autojump_clock):
    """20 workers and 200 tasks: accepts, declines, offers ignored, connections lost with and
    without a word, heartbeats that stop, failures with attempts left, cancels by the server.
    """
    outcome = await run_workers(schedule_seed)
    check_workers(outcome)
    happened = outcome.happened
    assert min(happened[what] for what in ("completed", "failed", "cancel", "ignored", "stopped"))
    assert happened["stale_fence"] + happened["task_cancelled"] > 0
