"""A worker as a process of its own.

    python -m tests.worker.process URL MODE ID HOLD_S

Prints ``ID TASK`` for each task that it gets, works HOLD_S seconds on it, which it tells by an
event each 50 ms, and prints ``ID end`` when it has been drained.
"""

from __future__ import annotations

import sys

import trio

from taskcast_trio.worker import Run, Worker


def main(url: str, mode: str, name: str, hold_s: float) -> None:
    settings = {"capacity": 5, "heartbeat_s": 0.3, "drain_s": 3.0}
    worker = Worker(url, mode=mode, worker_id=name, **settings)  # type: ignore[arg-type]

    @worker.task("job")
    async def work(run: Run) -> dict[str, str]:
        print(name, run.task.id, flush=True)
        for n in range(round(hold_s / 0.05)):
            await run.emit("step", {"n": n, "by": name})
            await trio.sleep(0.05)
        return {"by": name}

    trio.run(worker.run)
    print(name, "end", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
