"""Signals that end a command which has something to say before it ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import trio

from taskcast_trio.cli.connect import SETTLE_S

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Whether a signal came, and the work that it cancels."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.scope = trio.CancelScope()
        self._hurried: trio.CancelScope | None = None

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Around what is to be finished though a signal comes, within a few seconds from then."""
        with trio.CancelScope() as self._hurried:
            if self.number is not None:
                self._hurry()
            yield
        self._hurried = None

    def tell(self) -> None:
        """Cancel the work: a signal came."""
        self.scope.cancel()
        self._hurry()

    def _hurry(self) -> None:
        if self._hurried is not None:
            self._hurried.deadline = trio.current_time() + SETTLE_S


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Note the first signal, and cancel the scope with it; a second one acts as it always does.

    At the end of stdin it is known whether a signal came before: when Ctrl-C ends a pipeline, both
    arrive at once, and the signal is what counts.
    """
    found = Interruption()
    token = trio.lowlevel.current_trio_token()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        if found.number is None:
            found.number = number
            token.run_sync_soon(found.tell, idempotent=True)
        for one in SIGNALS:
            signal.signal(one, before[one])

    try:
        for one in SIGNALS:
            # nohup has SIGHUP ignored, and it stays so.
            if before[one] != signal.SIG_IGN:
                signal.signal(one, note)
        yield found
    finally:
        for one in SIGNALS:
            signal.signal(one, before[one])
