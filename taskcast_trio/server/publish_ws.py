"""Publishing over a WebSocket (RFC 6455): one event or an array in each text message.

Each message is answered in order, by ``{"ok": true, "firstIndex": ..., "lastIndex": ...}`` or by
``{"ok": false, "error": ..., "code": ...}`` with nothing stored of it. One message is in work at a
time; meanwhile the server reads ahead by no more than ten messages and 64 KiB, and then leaves the
rest to TCP. The server that runs this closes a message over 256 Ki characters with 1009, whatever
``limits.bodyBytes`` says beyond that, and cuts a peer that does not read its answers.

A peer that vanishes is found by TCP keepalive, or by its connection's own end: this route sends
nothing by itself, so there is no heartbeat.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import trio
from msgspec import UNSET, UnsetType

from taskcast_trio.core.errors import (
    BadRequest,
    Draining,
    PayloadTooLarge,
    SeqGap,
    TaskcastError,
    TaskEnded,
    TaskNotFound,
    Unauthorized,
)
from taskcast_trio.core.model import Wire
from taskcast_trio.engine import Runtime
from taskcast_trio.server.auth.admission import Admissions
from taskcast_trio.server.auth.gate import limit_key
from taskcast_trio.server.auth.permit import fence_of, permit_task
from taskcast_trio.server.bodies import PeerGone
from taskcast_trio.server.plain import (
    JSON,
    POLICY_VIOLATION,
    Answer,
    error_answer,
    is_http2,
    refuse_handshake,
)
from taskcast_trio.server.publishing import (
    PatientReceive,
    batch_of,
    check_open,
    publish_held,
    read_drafts,
    span,
)
from taskcast_trio.server.target import Message, Receive, Scope, Send

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
CLOSE_GRACE_S: Final = 2.0


class _Ack(Wire, frozen=True, kw_only=True):
    ok: bool
    first_index: int | UnsetType = UNSET
    last_index: int | UnsetType = UNSET
    error: str | UnsetType = UNSET
    code: str | UnsetType = UNSET
    expected_seq: int | UnsetType = UNSET


class _Close(NamedTuple):
    code: int
    reason: str


class Publisher:
    """One WebSocket that publishes to one task.

    Cancelling it leaves the message in work stored or not stored; it was not acknowledged.
    """

    def __init__(self, runtime: Runtime, admissions: Admissions, task_id: str, send: Send) -> None:
        self._admissions = admissions
        self._scope: Scope = {}
        self._fence: int | None = None
        self._engine = runtime.engine
        self._limits = runtime.config.limits
        self._drain = runtime.drain
        self._task_id = task_id
        self._send = send

    async def run(self, scope: Scope, receive: Receive) -> None:
        """Serve until the peer leaves, the task ends or the server drains.

        A task that is unknown or has ended, and a drain, are told by an HTTP answer in place of
        the handshake.
        """
        self._scope = scope
        await receive()  # websocket.connect
        try:
            if self._drain.is_set():
                raise Draining("The server is shutting down: try again")
            caller = await permit_task(self._engine, scope, "publishSocket", self._task_id)
            self._fence = fence_of(scope)
            await check_open(self._engine, self._task_id, self._fence)
            admission = self._admissions.open(caller, limit_key(scope))
        except TaskcastError as refusal:
            await refuse_handshake(scope, self._send, error_answer(refusal))
            return
        with admission:
            await self._send({"type": "websocket.accept"})
            patient = PatientReceive(receive, self._drain, admission)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(patient.watch)
                close = await self._answer_all(patient)
                nursery.cancel_scope.cancel()
        if close is not None:
            await self._send(
                {"type": "websocket.close", "code": close.code, "reason": close.reason}
            )
            await take_leave(receive)

    async def _answer_all(self, receive: PatientReceive) -> _Close | None:
        while True:
            try:
                message = await receive()
            except Draining:
                return _Close(GOING_AWAY, "the server is shutting down")
            except Unauthorized as ended:
                return _Close(POLICY_VIOLATION, ended.code)
            if message["type"] == "websocket.disconnect":
                return None
            end = None
            try:
                ack = await self._publish(message, receive)
            except PeerGone:
                return None
            except TaskcastError as error:
                expected = error.facts.get("expectedSeq", UNSET)
                ack = _Ack(ok=False, error=str(error), code=error.code, expected_seq=expected)
                if isinstance(error, TaskEnded | TaskNotFound):
                    end = _Close(NORMAL, "the task has ended")
            text = msgspec.json.encode(ack).decode()
            await self._send({"type": "websocket.send", "text": text})
            if end is not None:
                return end

    async def _publish(self, message: Message, receive: PatientReceive) -> _Ack:
        text: str | None = message.get("text")
        if text is None:
            raise BadRequest("Expected a text message, got a binary one")
        body = text.encode()
        if len(body) > self._limits.body_bytes:
            raise PayloadTooLarge(
                f"The message is over the limit of {self._limits.body_bytes} bytes"
            )
        drafts = batch_of(await read_drafts(body, self._limits))
        # Again: the task may be another one by now.
        caller = await permit_task(self._engine, self._scope, "publishSocket", self._task_id)
        engine, task_id, fence = self._engine, self._task_id, self._fence
        try:
            entries = await engine.publish(task_id, drafts, fence=fence, hold=False)
        except SeqGap as gap:
            entries = await publish_held(
                engine, task_id, drafts, gap, receive.meanwhile, caller, fence=fence
            )
        if not entries:
            return _Ack(ok=True)
        first, last = span(entries)
        return _Ack(ok=True, first_index=first, last_index=last)


async def take_leave(receive: Receive) -> None:
    """Wait for the peer's close (RFC 6455, section 7.1.1), and discard what it had sent ahead.

    To end with input unread would reset the connection, and the peer might never read why.
    """
    with trio.move_on_after(CLOSE_GRACE_S):
        while (await receive())["type"] != "websocket.disconnect":
            pass


async def upgrade_required(scope: Scope) -> Answer:
    """What a request without the handshake is told (RFC 9110, section 15.5.22)."""
    await trio.lowlevel.checkpoint()
    text = msgspec.json.encode(
        {"error": "Only a WebSocket handshake is answered here", "code": "upgrade_required"}
    )
    upgrade = [] if is_http2(scope) else [(b"upgrade", b"websocket")]
    return Answer(426, text, [JSON, *upgrade])
