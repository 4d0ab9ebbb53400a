"""Workers over a WebSocket: JSON text both ways, as the contract has it.

What the worker says is answered in order, one message at a time; what it is told waits in an outbox
of bounded size that a task of its own sends. So a worker that does not read is cut, and one that
only sends is heard all the same. The server pings in JSON; who is silent for too long is cut too.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple, TypeGuard

import msgspec
import trio

from taskcast_trio.core import jsontext
from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import (
    BadRequest,
    Conflict,
    Draining,
    Forbidden,
    TaskcastError,
    TaskNotFound,
    Unauthorized,
    WorkerNotFound,
)
from taskcast_trio.core.matching import MatchRule
from taskcast_trio.engine import Runtime
from taskcast_trio.engine.workers import Workers
from taskcast_trio.engine.workers.asked import (
    Change,
    Holding,
    Registration,
    is_capacity,
    is_weight,
)
from taskcast_trio.engine.workers.parties import Message as Told
from taskcast_trio.engine.workers.parties import Session
from taskcast_trio.server.auth.admission import Admissions
from taskcast_trio.server.auth.gate import limit_key
from taskcast_trio.server.auth.permit import own_registration, owner_of, permit, visible
from taskcast_trio.server.plain import POLICY_VIOLATION, error_answer, refuse_handshake
from taskcast_trio.server.publish_ws import GOING_AWAY, NORMAL, take_leave
from taskcast_trio.server.publishing import PatientReceive
from taskcast_trio.server.target import Message, Receive, Scope, Send

ABNORMAL: Final = 1006
"""What stands for no close frame at all (RFC 6455, section 7.1.5)."""
TRY_AGAIN: Final = 1013
LEAVE_S: Final = 5.0
OUTBOX: Final = 512
MAX_DEPTH: Final = 32
INVALID: Final = "INVALID_MESSAGE"


class _Close(NamedTuple):
    code: int
    reason: str


class _Refusal(Exception):
    """A message that gets an error for its answer."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class WorkerConnection:
    """One connection of a worker.

    Cancelling it leaves what was asked for done or not done; the worker is waited for.
    """

    def __init__(
        self, runtime: Runtime, workers: Workers, admissions: Admissions, send: Send
    ) -> None:
        self._workers = workers
        self._admissions = admissions
        self._drain = runtime.drain
        self._depth = min(runtime.config.limits.json_depth, MAX_DEPTH)
        self._send = send
        self._session: Session | None = None
        self._outbox, self._to_send = trio.open_memory_channel[Told](OUTBOX)
        self._scope = trio.CancelScope()
        self._close: _Close | None = None
        self._heard_at = trio.current_time()
        self._caller = Caller()

    async def run(self, scope: Scope, receive: Receive) -> None:
        """Serve until the worker leaves, is cut, or the server drains."""
        await receive()  # websocket.connect
        try:
            if self._drain.is_set():
                raise Draining("The server is shutting down: try again")
            self._caller = permit(scope, "workerSocket")
            admission = self._admissions.open(self._caller, limit_key(scope))
        except TaskcastError as refusal:
            await refuse_handshake(scope, self._send, error_answer(refusal))
            return
        left: int | None = None
        try:
            with admission:
                await self._send({"type": "websocket.accept"})
                patient = PatientReceive(receive, self._drain, admission)
                with self._scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(patient.watch)
                        nursery.start_soon(self._send_all)
                        nursery.start_soon(self._ping)
                        left = await self._answer_all(patient)
                        nursery.cancel_scope.cancel()
        finally:
            if self._session is not None:
                clean = left is not None and left != ABNORMAL
                with trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_S):
                    await self._workers.disconnect(self._session, clean=clean)
        if left is None and self._close is not None:
            await self._send(
                {
                    "type": "websocket.close",
                    "code": self._close.code,
                    "reason": self._close.reason,
                }
            )
            await take_leave(receive)

    def _cut(self, code: int, reason: str) -> None:
        if self._close is None:
            self._close = _Close(code, reason)
        self._scope.cancel()

    async def _send_all(self) -> None:
        async for message in self._to_send:
            text = msgspec.json.encode(message).decode()
            await self._send({"type": "websocket.send", "text": text})

    def _tell(self, message: Told) -> None:
        try:
            self._outbox.send_nowait(message)
        except trio.WouldBlock:
            self._cut(TRY_AGAIN, "too much is waiting to be read")

    async def _ping(self) -> None:
        timeout_s = self._workers.timeout_s
        while True:
            with trio.move_on_after(self._workers.heartbeat_s):
                await trio.sleep(timeout_s)
            if trio.current_time() - self._heard_at >= timeout_s:
                self._cut(POLICY_VIOLATION, "nothing was heard for too long")
            elif self._session is not None:
                self._tell({"type": "ping"})

    async def _answer_all(self, receive: PatientReceive) -> int | None:
        """The code with which the worker has closed, or None where the server is to close."""
        while True:
            try:
                message = await receive()
            except Draining:
                self._close = _Close(GOING_AWAY, "the server is shutting down")
                return None
            except Unauthorized as ended:
                self._close = _Close(POLICY_VIOLATION, ended.code)
                return None
            if message["type"] == "websocket.disconnect":
                code: int = message.get("code") or ABNORMAL
                return code
            self._heard_at = trio.current_time()
            task_id: str | None = None
            try:
                asked = self._read(message)
                task_id = asked.get("taskId") if isinstance(asked.get("taskId"), str) else None
                await self._answer(asked, message["text"])
            except (_Refusal, TaskcastError) as error:
                self._tell(_error(str(error), error.code, task_id))

    def _read(self, message: Message) -> dict[str, Any]:
        text: str | None = message.get("text")
        if text is None:
            raise _Refusal("Expected a text message, got a binary one", INVALID)
        try:
            value = jsontext.parse(text.encode(), Any, max_depth=self._depth)
        except BadRequest:
            raise _Refusal("Invalid JSON", "INVALID_JSON") from None
        return value if isinstance(value, dict) else {}

    async def _answer(self, asked: dict[str, Any], text: str) -> None:
        type_ = asked.get("type")
        handlers: dict[object, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "accept": self._accept,
            "claim": self._claim,
            "decline": self._decline,
            "update": self._update,
            "drain": self._drain_worker,
            "pong": self._pong,
        }
        if type_ == "register":
            await self._register(text)
            return
        handler = handlers.get(type_) if isinstance(type_, str) else None
        if handler is None:
            shown = type_ if isinstance(type_, str) else msgspec.json.encode(type_).decode()
            raise _Refusal(f"Unknown message type: {shown[:64]}", "UNKNOWN_TYPE")
        if self._session is None:
            raise _Refusal("Not registered", "NOT_REGISTERED")
        self._workers.pong(self._session)
        await handler(asked)

    async def _register(self, text: str) -> None:
        if self._session is not None:
            raise _Refusal("This connection has registered a worker", "ALREADY_REGISTERED")
        asked: Registration = jsontext.parse(text.encode(), Registration, max_depth=self._depth)
        asked = own_registration(self._caller, asked)
        session = Session(
            "",
            secrets.token_hex(8),
            send=self._tell,
            close=lambda reason: self._cut(NORMAL, reason),
            may=partial(visible, self._caller, "workerSocket"),
            lags=lambda: self._outbox.statistics().current_buffer_used > OUTBOX // 2,
        )
        worker = await self._workers.connect(asked, session, owner=owner_of(self._caller))
        self._session = session
        self._tell({"type": "registered", "workerId": worker.id})

    @property
    def _own(self) -> Session:
        assert self._session is not None
        return self._session

    async def _take(self, task_id: str) -> tuple[Told, list[Told]]:
        """What the worker is told of the task that it takes, and of its end meanwhile."""
        session = self._own
        after: list[Told] = []
        session.taking[task_id] = after
        try:
            task = await self._workers.accept(session, task_id)
        finally:
            del session.taking[task_id]
        return {"taskId": task_id, "fence": task.fence}, after

    async def _accept(self, asked: dict[str, Any]) -> None:
        told, after = await self._take(_task_id(asked))
        for message in ({"type": "assigned", **told}, *after):
            self._tell(message)

    async def _claim(self, asked: dict[str, Any]) -> None:
        task_id = _task_id(asked)
        try:
            told, after = await self._take(task_id)
        except (TaskNotFound, Conflict, Forbidden, WorkerNotFound):
            self._tell({"type": "claimed", "taskId": task_id, "success": False})
            return
        for message in ({"type": "claimed", **told, "success": True}, *after):
            self._tell(message)

    async def _decline(self, asked: dict[str, Any]) -> None:
        task_id, blacklist = _task_id(asked), asked.get("blacklist") is True
        session, owner = self._own, owner_of(self._caller)
        told: list[Told] = []
        # The task may come back before all is done: it is told so after.
        after = session.declining[task_id] = []
        try:
            await self._workers.decline(
                session.worker_id, task_id, blacklist=blacklist, owner=owner
            )
            told.append({"type": "declined", "taskId": task_id})
        finally:
            del session.declining[task_id]
            for message in (*told, *after):
                self._tell(message)

    async def _update(self, asked: dict[str, Any]) -> None:
        changes: dict[str, Any] = {}
        weight, capacity = asked.get("weight"), asked.get("capacity")
        if _is_number(weight) and is_weight(weight):
            changes["weight"] = float(weight)
        if _is_number(capacity) and is_capacity(capacity):
            changes["capacity"] = int(capacity)
        try:
            if "matchRule" in asked:
                changes["rule"] = msgspec.convert(asked["matchRule"], MatchRule)
        except msgspec.ValidationError:
            pass  # as with the others: what is of another type is no change
        if changes:
            await self._workers.update(self._own.worker_id, Change(**changes))

    async def _drain_worker(self, asked: dict[str, Any]) -> None:
        await self._workers.set_draining(self._own.worker_id, draining=True)

    async def _pong(self, asked: dict[str, Any]) -> None:
        """A sign of life, as every message is; it may say which tasks the worker has."""
        if "tasks" not in asked:
            return
        try:
            tasks = msgspec.convert(asked["tasks"], tuple[Holding, ...])
        except msgspec.ValidationError as error:
            raise _Refusal(f"tasks: {error}", INVALID) from None
        for cancel in await self._workers.holds(self._own.worker_id, tasks):
            told = {"taskId": cancel.task_id, "reason": cancel.reason}
            self._tell({"type": "cancel", **told})


def _task_id(asked: dict[str, Any]) -> str:
    task_id = asked.get("taskId")
    if not isinstance(task_id, str):
        raise _Refusal("taskId is required and must be a string", INVALID)
    return task_id


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _error(message: str, code: str, task_id: str | None) -> Told:
    told = {"type": "error", "message": message, "code": code}
    return told if task_id is None else {**told, "taskId": task_id}
