"""What a step costs Redis, on one server and on a cluster of three, and how evenly tasks spread.

    python -m benchmarks.cluster

Processor time of Redis is what is told: the nodes of a cluster share this machine's cores, so that
the wall clock would say nothing of three machines.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final

import trio
from msgspec import Raw
from redis.crc import key_slot

from taskcast_trio.core.ids import ulid
from taskcast_trio.core.model import Draft, Task
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.redis import open_redis
from taskcast_trio.storage.redis.keys import BUCKETS, Keys, bucket_of
from tests.storage.redis.cluster import SLOTS, cluster, url_of
from tests.storage.redis.server import LocalServer, running

TASKS: Final = 2_000
AT_ONCE: Final = 64
NOW: Final = 1_700_000_000_000
DRAFT: Final = Draft(type="llm.delta", level="info", data=Raw(b'{"delta":"word "}'))


def cpu_us(servers: Sequence[LocalServer]) -> list[float]:
    used = []
    for server in servers:
        with server.client() as client:
            info: dict[str, float] = client.info("cpu")
            used.append((info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6)
    return used


async def measure(url: str, servers: Sequence[LocalServer]) -> None:
    """Print what each kind of step costs each server."""
    async with open_redis(url, timeout_s=30) as backend:
        store: ShortTermStore = backend.store
        ids = [f"task-{number}" for number in range(TASKS)]

        async def create(id_: str) -> object:
            task = Task(id=id_, status="pending", created_at=NOW, updated_at=NOW)
            return await store.create(task, epoch="EPOCH001", now_ms=NOW)

        async def append(size: int, _: str) -> object:
            return await store.append(random.choice(ids), [DRAFT] * size, now_ms=NOW)

        async def look(what: Callable[[], Awaitable[object]], _: str) -> object:
            return await what()

        looks: dict[str, Callable[[], Awaitable[object]]] = {
            "read a task": partial(store.get, ids[0]),
            "list 50 tasks": partial(store.list_tasks, limit=50),
            "count tasks": store.count,
            "next timer": partial(store.next_due, "archive"),
        }
        steps: list[tuple[str, Callable[[str], Awaitable[object]], int]] = [
            ("create", create, TASKS),
            ("publish one", partial(append, 1), 20_000),
            ("publish 100", partial(append, 100), 1_000),
            *((name, partial(look, what), 100) for name, what in looks.items()),
        ]
        for name, step, count in steps:
            before = cpu_us(servers)
            await _all(step, iter((ids * (1 + count // TASKS))[:count]))
            each = [(now - then) / count for now, then in zip(cpu_us(servers), before, strict=True)]
            print(f"  {name:14}{sum(each):9.1f} us  ({', '.join(f'{us:.1f}' for us in each)})")


async def _all(step: Callable[[str], Awaitable[object]], ids: Iterator[str]) -> None:
    async def work() -> None:
        for id_ in ids:
            await step(id_)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work)


def spread(nodes: int, tasks: int, dice: random.Random) -> float:
    """The load of the fullest node, as a multiple of the mean; slots are shared out evenly."""
    node_of = [key_slot(stem.encode()) * nodes // SLOTS for stem in Keys("taskcast").stems]
    load = [0] * nodes
    for _ in range(tasks):
        load[node_of[bucket_of(ulid(NOW, dice.getrandbits(80)))]] += 1
    return max(load) * nodes / tasks


def main() -> None:
    with running("--appendonly", "yes") as server:
        print("one server, its processor time for each step:")
        trio.run(measure, server.url, [server])
    with cluster(3) as servers:
        print("a cluster of three, that of all (of each):")
        trio.run(measure, url_of(servers), servers)
    print(f"the fullest node, as a multiple of the mean, of tasks in {BUCKETS} buckets:")
    dice = random.Random(1)
    for nodes in (2, 3, 4, 6, 8, 16):
        loads = [spread(nodes, tasks, dice) for tasks in (100, 1_000, 10_000, 100_000)]
        print(f"  {nodes:2} nodes" + "".join(f"{load:7.2f}" for load in loads))


if __name__ == "__main__":
    main()
