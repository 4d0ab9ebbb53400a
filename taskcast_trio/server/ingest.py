"""Events as lines of JSON (NDJSON), stored while they come.

A body may be of any length: of what has come, only the chunk in hand and one unfinished line are
held, and nothing more is received while events are being stored, so that TCP slows the sender down.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
import trio
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import force_setattr

from taskcast_trio.config.schema import Limits
from taskcast_trio.core import jsontext, sequence, validate
from taskcast_trio.core.access import Caller
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import BadRequest, PayloadTooLarge, SeqGap, TaskcastError
from taskcast_trio.core.model import Draft, Wire
from taskcast_trio.engine import Runtime, TaskEngine
from taskcast_trio.server.auth.admission import Admission
from taskcast_trio.server.auth.permit import fence_of, permit_task
from taskcast_trio.server.bodies import PeerGone
from taskcast_trio.server.openapi_shapes import Ingested
from taskcast_trio.server.plain import Answer, error_answer, field_of, json_answer
from taskcast_trio.server.publishing import PatientReceive, check_open, publish_held, span
from taskcast_trio.server.target import Receive, Scope

MEDIA_TYPE: Final = b"application/x-ndjson"
MAX_LINE_BYTES: Final = 1024 * 1024
GROUP_EVENTS: Final = 1000
SLICE_BYTES: Final = 64 * 1024
STALL_S: Final = 10.0
"""How long a sender may be silent within its body; an empty line is a sign of life."""

_DRAFT: Final = msgspec.json.Decoder(Draft)
_BLANK: Final = b" \t\r"


def is_ndjson(scope: Scope) -> bool:
    """Whether the body is declared to be NDJSON; parameters of the type do not matter."""
    declared = field_of(scope, b"content-type")
    return declared is not None and declared.partition(b";")[0].strip().lower() == MEDIA_TYPE


async def ingest(
    runtime: Runtime, admission: Admission, task_id: str, scope: Scope, receive: Receive
) -> Answer:
    """Store the events of a body and say how many they were, also where it ends in an error.

    What was stored before an error, a disconnect or a cancellation stays stored; a last line
    without a line break counts only where the body is complete.

    Raises:
        BadRequest: the request came with an ``Idempotency-Key``.
        TaskNotFound: there is no such task; nothing was received yet.
        TaskEnded: the task is terminal; nothing was received yet.
        StaleFence, TaskCancelled: so it is for its worker.
        PeerGone: the peer left in the middle.
    """
    if field_of(scope, b"idempotency-key") is not None:
        raise BadRequest(
            "Idempotency-Key is not supported with NDJSON: "
            "after an error go on behind the events that were accepted"
        )
    fence = fence_of(scope)
    await check_open(runtime.engine, task_id, fence)
    permit = partial(permit_task, runtime.engine, scope, "publishEvents", task_id)
    patient = PatientReceive(receive, runtime.drain, admission, patience_s=STALL_S)
    body = _Body(runtime.engine, task_id, runtime.config.limits, permit, patient, fence)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patient.watch)
        answer = await body.take()
        nursery.cancel_scope.cancel()
    if answer is None:
        raise PeerGone
    return answer


class _Stopped(Wire, frozen=True, kw_only=True):
    """The answer to a body of which not all was stored."""

    error: str
    code: str
    accepted: int
    first_index: int | UnsetType
    last_index: int | UnsetType
    expected_seq: int | UnsetType


class _Body:
    """One body on its way into a task's log."""

    def __init__(
        self,
        engine: TaskEngine,
        task_id: str,
        limits: Limits,
        permit: Callable[[], Awaitable[Caller]],
        receive: PatientReceive,
        fence: int | None,
    ) -> None:
        self._engine = engine
        self._task_id = task_id
        self._permit = permit
        self._receive = receive
        self._fence = fence
        self._line_bytes = min(limits.body_bytes, MAX_LINE_BYTES)
        self._depth = limits.json_depth
        self._group_events = min(limits.batch_events, GROUP_EVENTS)
        self._unfinished = bytearray()
        self._lines = 0
        self._accepted = 0
        self._first: int | UnsetType = UNSET
        self._last: int | UnsetType = UNSET

    async def take(self) -> Answer | None:
        """Store what comes, up to the end or an error; None: the peer left."""
        try:
            more = True
            while more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    return None
                body: bytes = message.get("body", b"")
                for start in range(0, len(body), SLICE_BYTES):
                    await self._feed(body[start : start + SLICE_BYTES])
                more = message.get("more_body", False)
            await self._store(bytes(self._unfinished))
        except PeerGone:
            return None
        except TaskcastError as raised:
            refusal = error_answer(raised)
            stopped = _Stopped(
                error=str(raised),
                code=raised.code,
                accepted=self._accepted,
                first_index=self._first,
                last_index=self._last,
                expected_seq=raised.facts.get("expectedSeq", UNSET),
            )
            return Answer(refusal.status, msgspec.json.encode(stopped), refusal.headers)
        stored = Ingested(accepted=self._accepted, first_index=self._first, last_index=self._last)
        return json_answer(201, msgspec.json.encode(stored))

    async def _feed(self, chunk: bytes) -> None:
        end = chunk.rfind(b"\n")
        if end < 0:
            self._unfinished += chunk
        else:
            block = bytes(self._unfinished) + chunk[:end]
            self._unfinished = bytearray(chunk[end + 1 :])
            await self._store(block)
        if len(self._unfinished) > self._line_bytes:
            raise self._at(0, self._too_long())

    async def _store(self, block: bytes) -> None:
        """Store the events of whole lines, up to the first bad one."""
        lines = block.split(b"\n")
        plain = self._is_plain(block, lines)
        for start in range(0, len(lines), self._group_events):
            group = lines[start : start + self._group_events]
            drafts, bad = self._parse(group, plain=plain)
            for run in sequence.runs(drafts):
                entries = await self._publish(run)
                self._accepted += len(entries)
                first, last = span(entries)
                self._first = first if self._first is UNSET else min(first, self._first)
                self._last = last if self._last is UNSET else max(last, self._last)
            if bad is not None:
                raise bad
            self._lines += len(group)

    async def _publish(self, drafts: Sequence[Draft]) -> Sequence[Entry]:
        caller = await self._permit()  # again: the task may be another one by now
        engine, task_id, fence = self._engine, self._task_id, self._fence
        try:
            return await engine.publish(task_id, drafts, fence=fence, hold=False)
        except SeqGap as gap:
            meanwhile = self._receive.meanwhile
            return await publish_held(engine, task_id, drafts, gap, meanwhile, caller, fence=fence)

    def _parse(
        self, lines: list[bytes], *, plain: bool
    ) -> tuple[list[Draft], TaskcastError | None]:
        """The events up to the first bad line, and what is wrong with that."""
        if plain:
            with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TaskcastError):
                return [self._quickly(line) for line in lines if line], None
        drafts: list[Draft] = []
        for offset, line in enumerate(lines):
            if line.strip(_BLANK):
                try:
                    drafts.append(self._exactly(line))
                except (BadRequest, PayloadTooLarge) as error:
                    return drafts, self._at(offset, error)
        return drafts, None

    def _is_plain(self, block: bytes, lines: list[bytes]) -> bool:
        """Whether the checks of `jsontext.parse` can be made for all lines at once.

        Nesting is left to each line, and lone surrogates to the decoder, which refuses them; what
        else is looked for never spans a line break.
        """
        if max(map(len, lines)) > self._line_bytes:
            return False
        try:
            if not block.isascii():
                block.decode()
            jsontext.check_limits(block, max_depth=len(block))
        except (UnicodeDecodeError, BadRequest):
            return False
        return True

    def _quickly(self, line: bytes) -> Draft:
        """What `_exactly` gives for a line of a plain block; any error if that would refuse it."""
        # Each level of nesting takes two bytes.
        is_long = len(line) > 2 * self._depth
        if is_long and line.count(b"[") + line.count(b"{") > self._depth:
            return self._exactly(line)
        draft = _DRAFT.decode(line)
        validate.draft(draft, 0)
        if draft.data is not UNSET:
            force_setattr(draft, "data", Raw(jsontext.one_line(bytes(draft.data))))
        return draft

    def _exactly(self, line: bytes) -> Draft:
        if len(line) > self._line_bytes:
            raise self._too_long()
        draft: Draft = jsontext.parse(line, Draft, max_depth=self._depth)
        validate.draft(draft, 0)
        return draft

    def _too_long(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"over the limit of {self._line_bytes} bytes")

    def _at(self, offset: int, error: BadRequest | PayloadTooLarge) -> TaskcastError:
        return type(error)(f"line {self._lines + offset + 1}: {error}")
