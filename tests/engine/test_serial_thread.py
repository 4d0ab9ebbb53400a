"""Long work is done beside the loop, one after the other, in each loop for itself."""

from __future__ import annotations

import threading

import trio
import trio.testing

from taskcast_trio.engine.serial_thread import SerialThread

PATIENCE_S = 30.0


class Held:
    """A function that goes on when it is let."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> bool:
        self.begun.set()
        return self.go_on.wait(PATIENCE_S)


async def test_one_waits_for_the_other_and_the_loop_for_neither() -> None:
    thread, first, second = SerialThread("test"), Held(), Held()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.run, first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(thread.run, second)
        await trio.testing.wait_all_tasks_blocked()
        assert not second.begun.is_set()
        first.go_on.set()
        second.go_on.set()
    assert second.begun.is_set()


def test_loops_in_several_threads_do_not_wait_for_each_other() -> None:
    thread, functions = SerialThread("test"), [Held(), Held()]
    found: list[bool] = []
    loops = [
        threading.Thread(target=lambda each=each: found.append(trio.run(thread.run, each)))
        for each in functions
    ]
    try:
        for loop, each in zip(loops, functions, strict=True):
            loop.start()
            assert each.begun.wait(PATIENCE_S), "it waits for the other loop's"
    finally:
        for each in functions:
            each.go_on.set()
        for loop in loops:
            loop.join(PATIENCE_S)
    assert found == [True, True]
