"""The application's lifespan (ASGI lifespan specification 2.0)."""

from __future__ import annotations

from typing import Any, Final

import trio

from taskcast_trio.server.target import ASGIApp, Message

LIFESPAN_STARTUP_S: Final = 60.0
LIFESPAN_SHUTDOWN_S: Final = 5.0


class Lifespan:
    """The application's lifespan (ASGI lifespan 2.0). Its crash is the server's crash."""

    def __init__(self, app: ASGIApp, state: dict[str, Any], log: Any) -> None:
        self._app = app
        self._state = state
        self._log = log
        self._to_app, self._inbox = trio.open_memory_channel[Message](2)
        self._started = trio.Event()
        self._ended = trio.Event()
        self._supported = True
        self.failure: str | None = None
        """Why the application refused to start; None if it did not."""

    async def start_up(self, nursery: trio.Nursery) -> None:
        """Run the application's startup in `nursery`; return when it is complete or refused."""
        nursery.start_soon(self._run)
        self._to_app.send_nowait({"type": "lifespan.startup"})
        with trio.move_on_after(LIFESPAN_STARTUP_S):
            await self._started.wait()
        if not self._started.is_set():
            self.failure = f"startup took longer than {LIFESPAN_STARTUP_S:g} s"

    async def shut_down(self) -> None:
        """Run the application's shutdown, for at most 5 s."""
        if not self._supported:
            return
        self._to_app.send_nowait({"type": "lifespan.shutdown"})
        with trio.move_on_after(LIFESPAN_SHUTDOWN_S):
            await self._ended.wait()
        if not self._ended.is_set():
            self._log.error("lifespan shutdown cut", after_s=LIFESPAN_SHUTDOWN_S)

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self._state,
        }
        try:
            await self._app(scope, self._inbox.receive, self._send)
        except Exception as error:
            if self._started.is_set():
                raise
            # ASGI lifespan 2.0: an application that raises here is served without lifespan.
            self._log.warning("application has no lifespan", error=type(error).__name__)
        finally:
            self._supported = False
            self._started.set()
            self._ended.set()

    async def _send(self, message: Message) -> None:
        match message["type"]:
            case "lifespan.startup.complete":
                self._started.set()
            case "lifespan.startup.failed":
                self.failure = message.get("message") or "the application gave no reason"
                self._started.set()
            case "lifespan.shutdown.complete":
                self._ended.set()
            case "lifespan.shutdown.failed":
                self._log.error("lifespan shutdown failed", reason=message.get("message", ""))
                self._ended.set()
        await trio.lowlevel.checkpoint()
