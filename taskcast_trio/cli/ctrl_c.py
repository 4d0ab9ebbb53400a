"""Ctrl-C while a command talks to a server: the command is cancelled, and the interruption raised.

Raised where the program is just then, as Python and Trio do it, it leaves coroutines that nothing
awaits and generators that nothing closes, of which Python tells on stderr.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

_writing = False


@contextmanager
def writing() -> Iterator[None]:
    """Around a write, which may wait for its reader without end: Ctrl-C is raised from it."""
    global _writing
    _writing = True
    try:
        yield
    finally:
        _writing = False


def run_on_trio(work: Callable[[], Awaitable[T]]) -> T:
    """Run it on Trio. The first Ctrl-C cancels it; a second one is raised where it comes.

    Raises:
        KeyboardInterrupt: Ctrl-C came, and all is put away.
    """
    import trio

    async def main() -> T:
        before = signal.getsignal(signal.SIGINT)
        token = trio.lowlevel.current_trio_token()
        interrupted = False

        def interrupt(number: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            interrupted = True
            signal.signal(signal.SIGINT, before)
            if _writing:
                raise KeyboardInterrupt
            token.run_sync_soon(scope.cancel)

        # In the background of a script it is ignored, and stays so. A thread beside hears nothing.
        hears = before != signal.SIG_IGN and current_thread() is main_thread()
        with trio.CancelScope() as scope:
            if hears:
                signal.signal(signal.SIGINT, interrupt)
            try:
                found = await work()
            finally:
                if hears:
                    signal.signal(signal.SIGINT, before)
        if interrupted:
            raise KeyboardInterrupt
        return found

    return trio.run(main)
