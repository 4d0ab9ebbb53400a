"""The lifespan of an application that ours stands around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from .target import ASGIApp, Message, Receive, Scope, Send

_ENDS: Final = ("lifespan.shutdown.complete", "lifespan.shutdown.failed")

log = structlog.get_logger(__name__)


def _nothing() -> None:
    """Nobody has to know."""


class OuterLife:
    """The lifespan of another application, which has begun with ``startup``."""

    def __init__(self, startup: Message, receive: Receive, send: Send) -> None:
        self.answered = False
        """Whether the server was told how the start went."""
        self.end: Message | None = None
        """What the server is to be told when what is ours has ended too."""
        self.ending: Callable[[], object] = _nothing
        """Called when the server ends the lifespan, before the application hears of it."""
        self._over = False
        """Whether nothing more is to be waited for: it did not start, or the server ends it."""
        self._startup: Message | None = startup
        self._receive = receive
        self._send = send

    async def of(self, app: ASGIApp, scope: Scope) -> None:
        """Return at the end of the lifespan of ``app``; one without any has ours."""
        reason = "returned"
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            if self.answered:
                raise
            reason = type(error).__name__
        if self._over:
            return
        # ASGI lifespan 2.0: an application that raises here is served without lifespan; so are
        # those that return, as they look for requests only.
        if not self.answered:
            log.info("application has no lifespan", error=reason)
            await self.send({"type": "lifespan.startup.complete"})
        while (await self.receive())["type"] != "lifespan.shutdown":
            pass
        await self.send({"type": "lifespan.shutdown.complete"})

    async def receive(self) -> Message:
        startup, self._startup = self._startup, None
        if startup is not None:
            return startup
        message: Message = await self._receive()
        if message["type"] == "lifespan.shutdown":
            self._over = True
            self.ending()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] in _ENDS:
            self.end = message
            return
        self.answered = True
        self._over = message["type"] == "lifespan.startup.failed"
        await self._send(message)
