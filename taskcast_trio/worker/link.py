"""How a worker hears of tasks: what a WebSocket and pulling have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .wire import Registration

Take = Callable[[str, int, int, str | None], None]
"""Begin with a task that was assigned: its id, fence, cost and type."""
Describe = Callable[[], Registration]


class Link(Protocol):
    async def run(self) -> None:
        """Keep up with the server until `leave`, and come back to it after every loss.

        Raises:
            TaskcastError: there is no coming back.
        """

    def drain(self) -> None:
        """Ask for no more tasks."""

    def leave(self) -> None:
        """Sign off, and let `run` return."""

    def ask(self) -> None:
        """Find out now whether something is to be stopped, where the server does not tell."""
