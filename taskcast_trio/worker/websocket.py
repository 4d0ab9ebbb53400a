"""Tasks over a WebSocket: offers and races, cancellations at once, JSON text both ways."""

from __future__ import annotations

import logging
import ssl
from typing import Final
from urllib.parse import urlsplit

import msgspec
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)

from taskcast_trio.client import ServerUnavailable
from taskcast_trio.client.async_port import AsyncCredentials
from taskcast_trio.client.errors import error_of
from taskcast_trio.core.errors import TaskcastError, TokenExpired, TokenRevoked, Unauthorized

from .errors import WorkerRefused, WorkerReplaced, not_here
from .link import Describe, Take
from .pauses import pause_s
from .roster import Roster
from .session import Session, read
from .wire import Say

CONNECT_S: Final = 10.0
LEAVE_S: Final = 2.0
BYE_S: Final = 0.1
"""How long saying goodbye may take where nobody reads the answer: when cancelled."""
SETTLED_S: Final = 10.0
"""A connection that lasted this long was a good one."""
MAX_MESSAGE: Final = 16 * 1024 * 1024
NORMAL: Final = 1000
POLICY_VIOLATION: Final = 1008
PASSING: Final = frozenset({"store_unavailable", "draining", "rate_limited", "auth_unavailable"})
TOKEN_ENDS: Final = {cls.code: cls for cls in (TokenExpired, TokenRevoked, Unauthorized)}
"""With what the server closes a connection whose token it takes no more."""

log = logging.getLogger(__name__)


class SocketLink:
    """See :class:`Link`."""

    def __init__(
        self,
        url: str,
        credentials: AsyncCredentials,
        roster: Roster,
        describe: Describe,
        take: Take,
        *,
        tls: ssl.SSLContext,
    ) -> None:
        parts = urlsplit(url)
        self._url = url
        self._secure = parts.scheme == "https"
        self._tls = tls
        self._name = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._host = parts.netloc.rpartition("@")[2]
        self._path = f"{parts.path}/workers/ws"
        self._credentials = credentials
        self._shown: str | None = None
        self._renewed = False
        self._roster = roster
        self._describe = describe
        self._take = take
        self._draining = False
        self._leaving = trio.Event()
        self._session: Session | None = None
        self._try = trio.CancelScope()

    async def run(self) -> None:
        tries = 0
        while not self._leaving.is_set():
            began = trio.current_time()
            failure = await self._attempt()
            if failure is None:
                continue
            error = await self._unless_renewed(failure)
            if error is not None and not error.retryable:
                raise error
            tries = 1 if trio.current_time() > began + SETTLED_S else tries + 1
            if error is None and tries == 1:
                continue  # handlers are at work
            if error is not None and tries == 1:
                log.warning("Worker %s waits for its server: %s", self._roster.worker_id, error)
            with trio.move_on_after(pause_s(tries, error)):
                await self._leaving.wait()

    async def _attempt(self) -> TaskcastError | None:
        """Serve one connection: why it came to nothing, or ended before `leave`."""
        try:
            with trio.CancelScope() as self._try:
                await self._connect()
        except TaskcastError as error:
            return error
        return None

    async def _unless_renewed(self, refusal: TaskcastError) -> TaskcastError | None:
        """None where the token was refused and there is another one, now: it is asked for once, and
        again when the server has taken one, or was away: one may end meanwhile. Else why there is
        no connection.
        """
        if not isinstance(refusal, Unauthorized):
            self._renewed = False
            return refusal
        if self._renewed:
            return refusal
        with trio.CancelScope() as self._try:
            try:
                self._renewed = await self._credentials.renew(self._shown)
            except ServerUnavailable as failure:
                return failure
            return None if self._renewed else refusal
        return None  # it leaves

    def drain(self) -> None:
        self._draining = True
        if self._session is not None:
            self._session.say(Say(type="drain"))

    def leave(self) -> None:
        self._leaving.set()
        if self._session is None:
            self._try.cancel()

    async def bye(self) -> None:
        pass  # the close frame has told

    def ask(self) -> None:
        pass  # it tells

    async def _connect(self) -> None:
        """Serve one connection, until `leave`.

        Raises:
            ServerUnavailable: it could not be made, or has ended.
            TaskcastError: the server does not take this worker.
        """
        failures: list[BaseException] = []
        try:
            self._shown = await self._credentials.current()
            with trio.fail_after(CONNECT_S):
                stream = await self._dial()
            async with stream, trio.open_nursery() as nursery:
                with trio.fail_after(CONNECT_S):
                    socket = await wrap_client_stream(
                        nursery,
                        stream,
                        self._host,
                        self._path,
                        extra_headers=_bearer(self._shown),
                        max_message_size=MAX_MESSAGE,
                    )
                wait_s = BYE_S
                try:
                    await self._serve(socket)
                    wait_s = LEAVE_S
                finally:
                    self._session = None
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + wait_s):
                        await socket.aclose()
                nursery.cancel_scope.cancel()
        except* Exception as group:
            failures += leaves(group)
        if failures:
            raise _meaning(failures[0], self._url)

    async def _dial(self) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
        if not self._secure:
            return await trio.open_tcp_stream(self._name, self._port)
        return await trio.open_ssl_over_tcp_stream(
            self._name,
            self._port,
            ssl_context=self._tls,
            https_compatible=True,
        )

    async def _serve(self, socket: WebSocketConnection) -> None:
        with trio.fail_after(CONNECT_S):
            await socket.send_message(msgspec.json.encode(self._describe()).decode())
            worker_id = await _registered(socket)
        self._renewed = False
        self._roster.worker_id = worker_id
        self._roster.heard()
        log.info("Worker %s is registered, over a WebSocket", worker_id)
        session = self._session = Session(socket, self._roster, self._take)
        session.pong()  # a registration is not answered with what is to be stopped
        if self._draining:
            session.say(Say(type="drain"))
        await session.run(self._leaving)


def _bearer(token: str | None) -> list[tuple[bytes, bytes]]:
    return [] if token is None else [(b"authorization", f"Bearer {token}".encode())]


async def _registered(socket: WebSocketConnection) -> str:
    while True:
        told = read(await socket.get_message())
        if told is not None and told.type == "registered":
            return told.worker_id
        if told is not None and told.type == "error":
            if told.code in PASSING:
                raise ServerUnavailable(told.message)
            raise WorkerRefused(told.message, told.code)


def leaves(group: BaseExceptionGroup[Exception]) -> list[BaseException]:
    """What happened, without the nurseries that it passed through."""
    found: list[BaseException] = []
    for each in group.exceptions:
        found += leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found


def _meaning(failure: BaseException, url: str) -> BaseException:
    match failure:
        case ConnectionRejected():
            return not_here(error_of(failure.status_code, bytes(failure.body or b"")), url)
        case ConnectionClosed():
            return _ended(failure)
        case HandshakeError() | OSError() | trio.TooSlowError():
            reason = str(failure) or type(failure).__name__
            return ServerUnavailable(f"No connection to {url}: {reason}")
        case trio.BrokenResourceError() | trio.ClosedResourceError():
            reason = str(failure.__cause__ or "it has broken")
            return ServerUnavailable(f"No connection to {url}: {reason}")
    return failure


def _ended(closed: ConnectionClosed) -> TaskcastError:
    told = closed.reason
    code = None if told is None else told.code
    reason = (None if told is None else told.reason) or f"close code {code}"
    if code == NORMAL and reason in ("replaced", "deleted"):
        return WorkerReplaced(f"This worker was {reason}", reason)
    if code == POLICY_VIOLATION and reason in TOKEN_ENDS:
        return TOKEN_ENDS[reason]("The connection has ended: its token is taken no more")
    return ServerUnavailable(f"The connection has ended: {reason}")
