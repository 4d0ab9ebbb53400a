"""A process that cleans up, and kills itself in the middle of it.

    python -m tests.integration.cleanup_process CONFIG NOW_MS STORE STEP NUMBER

It runs the rules that are due at NOW_MS, with the configuration in that file, up to where the STEP
of the STORE (``redis`` or ``postgres``) would be taken for the NUMBER-th time.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import trio

from taskcast_trio.config import Config, load_config
from taskcast_trio.engine import open_runtime
from taskcast_trio.storage.postgres import PostgresStore
from taskcast_trio.storage.redis.store import RedisStore

PATIENCE_S = 60
STORES: dict[str, type] = {"redis": RedisStore, "postgres": PostgresStore}


def configured(path: Path) -> Config:
    """What the file says, and nothing else."""
    loaded = load_config(path=path, flags={}, env={}, cwd=path.parent, home=path.parent)
    return loaded.config


def die_at(store: str, step: str, number: int) -> None:
    take = getattr(STORES[store], step)
    left = number

    async def last(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return await take(*args, **kwargs)

    setattr(STORES[store], step, last)


async def main(path: Path, now_ms: int) -> None:
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(configured(path), clock=lambda: now_ms):
            await trio.sleep_forever()


if __name__ == "__main__":
    die_at(sys.argv[3], sys.argv[4], int(sys.argv[5]))
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
