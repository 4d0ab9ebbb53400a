"""The promises of the worker SDK under many schedules; ``--schedule-seed N`` replays one."""

from __future__ import annotations

from .sdk_scenario import check_sdk, run_sdk


async def test_every_task_is_done_once_whatever_is_lost_on_the_way(schedule_seed, autojump_clock):
    """Handlers that emit, fail, block, hang and decline; requests, answers and connections lost;
    workers drained and cut off; cancels by the server.
    """
    outcome = await run_sdk(schedule_seed)
    check_sdk(outcome)
    assert min(outcome.happened[what] for what in ("complete", "lost", "lives")) > 0
