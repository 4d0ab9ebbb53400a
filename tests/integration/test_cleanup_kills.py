"""A process that is killed in the middle of a cleanup, wherever that is: who comes next completes
it, and nothing is removed but what the rules say.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import trio
from msgspec import Raw

from taskcast_trio.config import Config
from taskcast_trio.engine import Runtime, cleaner, open_runtime

from ..storage.postgres.server import psql
from ..storage.redis.server import new_prefix, redis_url
from .cleanup_process import PATIENCE_S, configured
from .test_cleanup import CHATTER, NOW, OLD, Clock, archived, ended, left

LOGS = 2500
"""Three batches of 1,000 events, the last of them not full."""
JOBS = ["job-1", "job-2"]
KEPT = [0, LOGS + 4, LOGS + 5]
LATER_MS = 10_000_000
MATCH = {"match": {"taskTypes": ["job"]}}
TRIM = {**CHATTER, **MATCH}
DELETE = {**OLD, **MATCH, "trigger": {"afterMs": LATER_MS}}
Death = tuple[str, str, int]


@pytest.fixture(params=["redis", "memory+postgres", "redis+postgres"])
def stores(request: pytest.FixtureRequest) -> set[str]:
    return set(request.param.split("+")) - {"memory"}


@pytest.fixture
def file(stores: set[str], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A configuration, still without rules."""
    said: dict[str, Any] = {}
    if "redis" in stores:
        said |= {"storage": "redis", "redis": {"url": redis_url(), "prefix": new_prefix()}}
    if "postgres" in stores:
        said["postgres"] = {"url": request.getfixturevalue("postgres_url")}
    path = tmp_path / "taskcast.config.json"
    path.write_text(json.dumps(said))
    return path


def with_rule(file: Path, rule: dict[str, Any]) -> Config:
    said = json.loads(file.read_text()) | {"cleanup": {"rules": [rule]}}
    file.write_text(json.dumps(said))
    return configured(file)


def rows(file: Path) -> str:
    """How many events of which tasks are in PostgreSQL, and which tasks."""
    return psql(
        json.loads(file.read_text())["postgres"]["url"],
        "SELECT task_id, count(*) FROM taskcast_events GROUP BY task_id ORDER BY task_id;"
        "SELECT id FROM taskcast_tasks ORDER BY id",
    )


@asynccontextmanager
async def opened(config: Config, clock: Clock) -> AsyncIterator[Runtime]:
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(config, clock=clock) as runtime:
            yield runtime


async def kill(file: Path, clock: Clock, death: Death) -> None:
    """Clean up until death; its lease has ended then."""
    store, step, number = death
    command = [sys.executable, "-m", "tests.integration.cleanup_process", str(file), str(clock.ms),
               store, step, str(number)]  # fmt: skip
    with trio.fail_after(PATIENCE_S):
        ended = await trio.run_process(command, check=False, capture_stderr=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    clock.ms += cleaner.LEASE_MS


def trims(stores: set[str]) -> list[Death]:
    """Between two batches, and where one is gone from one store and not yet from the other."""
    deaths: list[Death] = [(store, "trim", 2) for store in sorted(stores)]
    return [*deaths, *[(store, "trim", 1) for store in sorted(stores)]]


def deletions(stores: set[str]) -> list[Death]:
    """Before it is gone from anywhere, from one of them, and where it is gone but not its rows."""
    deaths: list[Death] = [(store, "delete", 1) for store in sorted(stores)]
    return [*deaths, ("postgres", "_purge", 1)] if "postgres" in stores else deaths


async def test_a_killed_cleanup_is_completed_and_takes_nothing_else(
    stores: set[str], file: Path
) -> None:
    config, clock = with_rule(file, TRIM), Clock()
    async with opened(config, clock) as runtime:
        for id_ in JOBS:
            await ended(runtime, id_, logs=LOGS, type_="job")
        await ended(runtime, "chat", type_="chat")
        await archived(runtime)
    clock.ms += 1000
    for death in trims(stores):
        await kill(file, clock, death)
    async with opened(config, clock) as runtime:
        for id_ in JOBS:
            while (await runtime.engine.record(id_)).trims < LOGS + 3:
                await trio.lowlevel.checkpoint()
            assert await left(runtime, id_) == KEPT
            data = (await runtime.engine.snapshot(id_)).values["s"].event.data
            assert data == Raw(b'{"delta":"abcd"}')
        assert len(await left(runtime, "chat")) == 16
        await archived(runtime)
    if "postgres" in stores:
        assert rows(file) == "chat|16\njob-1|3\njob-2|3\nchat\njob-1\njob-2"


async def test_a_killed_deletion_is_completed_and_takes_nothing_else(
    stores: set[str], file: Path
) -> None:
    config, clock = with_rule(file, DELETE), Clock()
    async with opened(config, clock) as runtime:
        for id_ in JOBS:
            await ended(runtime, id_, type_="job")
        await ended(runtime, "chat", type_="chat")
        clock.ms += LATER_MS // 2
        await ended(runtime, "young", type_="job")
        await archived(runtime)
    clock.ms = NOW + LATER_MS
    for death in deletions(stores):
        await kill(file, clock, death)
    async with opened(config, clock) as runtime:
        while [task.id for task in await runtime.engine.list_tasks()] != ["chat", "young"]:
            await trio.lowlevel.checkpoint()
        for id_ in ("chat", "young"):
            assert len(await left(runtime, id_)) == 16
        while "postgres" in stores and rows(file) != "chat|16\nyoung|16\nchat\nyoung":  # noqa: ASYNC110
            await trio.sleep(0.05)  # what is gone for everybody is removed a little later
    if "redis" in stores:
        with redis.Redis.from_url(redis_url()) as client:
            assert not [key for key in client.keys(f"{config.redis.prefix}:*") if b"job-" in key]
