"""Tasks over a WebSocket: offers and races, cancellations at once, JSON text both ways."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import msgspec
import structlog
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    open_websocket_url,
)

from taskcast_trio.client import ServerUnavailable
from taskcast_trio.client.errors import error_of
from taskcast_trio.core.errors import TaskcastError

from .errors import WorkerRefused, WorkerReplaced
from .link import Describe, Take
from .pauses import pause_s
from .roster import Roster
from .session import Session, read
from .wire import Say

CONNECT_S: Final = 10.0
LEAVE_S: Final = 2.0
SETTLED_S: Final = 10.0
"""A connection that lasted this long was a good one."""
MAX_MESSAGE: Final = 16 * 1024 * 1024
NORMAL: Final = 1000
PASSING: Final = frozenset({"store_unavailable", "draining", "rate_limited", "auth_unavailable"})

log = structlog.get_logger(__name__)


class SocketLink:
    """See :class:`Link`."""

    def __init__(
        self, url: str, token: str | None, roster: Roster, describe: Describe, take: Take
    ) -> None:
        parts = urlsplit(url)
        scheme = {"http": "ws", "https": "wss"}[parts.scheme]
        self._url = f"{scheme}://{parts.netloc}{parts.path}/workers/ws"
        self._headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        self._roster = roster
        self._describe = describe
        self._take = take
        self._draining = False
        self._leaving = trio.Event()
        self._session: Session | None = None

    async def run(self) -> None:
        tries = 0
        while not self._leaving.is_set():
            began = trio.current_time()
            try:
                await self._connect()
            except TaskcastError as error:
                if not error.retryable:
                    raise
                tries = 1 if trio.current_time() > began + SETTLED_S else tries + 1
                if tries == 1:
                    log.warning("worker_disconnected", code=error.code, reason=str(error))
                with trio.move_on_after(pause_s(tries, error)):
                    await self._leaving.wait()

    def drain(self) -> None:
        self._draining = True
        if self._session is not None:
            self._session.say(Say(type="drain"))

    def leave(self) -> None:
        self._leaving.set()

    def ask(self) -> None:
        pass  # it tells

    async def _connect(self) -> None:
        """Serve one connection, until `leave`.

        Raises:
            ServerUnavailable: it could not be made, or has ended.
            TaskcastError: the server does not take this worker.
        """
        try:
            async with open_websocket_url(
                self._url,
                extra_headers=self._headers,
                max_message_size=MAX_MESSAGE,
                connect_timeout=CONNECT_S,
                disconnect_timeout=LEAVE_S,
            ) as socket:
                try:
                    await self._serve(socket)
                finally:
                    self._session = None
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_S):
                        await socket.aclose()
        except ConnectionRejected as refusal:
            raise error_of(refusal.status_code, refusal.body or b"") from None
        except ConnectionClosed as closed:
            raise _ended(closed) from None
        except (HandshakeError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            reason = str(error) or str(error.__cause__ or type(error).__name__)
            raise ServerUnavailable(f"No connection to {self._url}: {reason}") from error

    async def _serve(self, socket: WebSocketConnection) -> None:
        with trio.fail_after(CONNECT_S):
            await socket.send_message(msgspec.json.encode(self._describe()).decode())
            worker_id = await _registered(socket)
        self._roster.worker_id = worker_id
        self._roster.heard()
        log.info("worker_registered", worker_id=worker_id, mode="websocket")
        session = self._session = Session(socket, self._roster, self._take)
        session.pong()  # a registration is not answered with what is to be stopped
        if self._draining:
            session.say(Say(type="drain"))
        await session.run(self._leaving)


async def _registered(socket: WebSocketConnection) -> str:
    while True:
        told = read(await socket.get_message())
        if told is not None and told.type == "registered":
            return told.worker_id
        if told is not None and told.type == "error":
            if told.code in PASSING:
                raise ServerUnavailable(told.message)
            raise WorkerRefused(told.message, told.code)


def _ended(closed: ConnectionClosed) -> TaskcastError:
    told = closed.reason
    code = None if told is None else told.code
    reason = (None if told is None else told.reason) or f"close code {code}"
    if code == NORMAL and reason in ("replaced", "deleted"):
        return WorkerReplaced(f"This worker was {reason}", reason)
    return ServerUnavailable(f"The connection has ended: {reason}")
