"""A worker as a process of its own, which does what it is told by lines on its standard input.

    python -m tests.worker.process URL MODE ID DRAIN_S

Prints ``ID TASK`` for each task that it gets, ``ID stops`` when it is told to by a signal, and
``ID end`` when it has been drained. With each line ``step`` every handler emits an event,
those that begin later too; after ``finish`` they return.
"""

from __future__ import annotations

import logging
import os
import sys

import trio

from taskcast_trio.worker import Run, Worker


class Orders:
    """The lines that came."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = trio.Event()

    async def listen(self) -> None:
        text = b""
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
            while part := await stream.receive_some():
                *lines, text = (text + part).split(b"\n")
                self._lines += [line.decode() for line in lines]
                more, self._more = self._more, trio.Event()
                more.set()

    async def line(self, number: int) -> str:
        while len(self._lines) <= number:
            await self._more.wait()
        return self._lines[number]


class Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if " stops: " in record.getMessage():
            print(sys.argv[3], "stops", flush=True)


async def main(url: str, mode: str, name: str, drain_s: float) -> None:
    settings = {"capacity": 5, "heartbeat_s": 0.3, "drain_s": drain_s}
    worker = Worker(url, mode=mode, worker_id=name, **settings)  # type: ignore[arg-type]
    orders = Orders()

    @worker.task("job")
    async def work(run: Run) -> dict[str, str]:
        print(name, run.task.id, flush=True)
        number = 0
        while await orders.line(number) == "step":
            await run.emit("step", {"n": number, "by": name})
            number += 1
        return {"by": name}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(orders.listen)
        await worker.run()
        nursery.cancel_scope.cancel()
    print(name, "end", flush=True)


if __name__ == "__main__":
    log = logging.getLogger("taskcast_trio.worker")
    log.setLevel(logging.INFO)
    log.addHandler(Told())
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
