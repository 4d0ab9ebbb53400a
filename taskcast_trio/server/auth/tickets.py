"""Tickets: short opaque texts that open a stream where no header can be sent.

A browser's ``EventSource`` has only a URL, and tokens do not belong into URLs, which end up in
histories and logs (RFC 6750, section 5.3). So whoever holds a token asks for a ticket first. A
ticket reaches no more than its maker, opens streams only, and opens them no longer than the token
that made it would. The stream itself lives as long as that token.

The store knows tickets by their hash: a dump of it opens nothing.
"""

from __future__ import annotations

import json
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from math import ceil
from typing import Any, Final

from msgspec import UNSET

from taskcast_trio.core import validate
from taskcast_trio.core.access import ANY, Caller
from taskcast_trio.core.errors import BadRequest, Forbidden, TokenExpired, Unauthorized
from taskcast_trio.core.views import Ticket, TicketRequest
from taskcast_trio.storage.protocols import NoteStore

__all__ = ["Ticket", "TicketRequest", "Tickets"]

MAX_TTL_S: Final = 300
DEFAULT_TTL_S: Final = 60
MAX_TASK_IDS: Final = 100
MAX_NOTE_BYTES: Final = 8 * 1024
SCOPE: Final = "event:subscribe"

_RANDOM_BYTES: Final = 32
_TICKET: Final = re.compile(r"tkt_[A-Za-z0-9_-]{43}")
_INVALID: Final = "The ticket is not valid (any more)"


class Tickets:
    """Makes tickets and takes them back, through notes that all processes of a store see.

    Args:
        notes: where the tickets are kept until they expire.
        clock_ms: the time in Unix ms.
        random_bytes: gives that many bytes that nobody can guess.
        leeway_s: how long after its expiry a token still opens a stream.
    """

    def __init__(
        self,
        notes: NoteStore,
        *,
        clock_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        leeway_s: float = 0.0,
    ) -> None:
        self._notes = notes
        self._clock_ms = clock_ms
        self._random_bytes = random_bytes
        self._leeway_s = leeway_s

    async def issue(self, caller: Caller, request: TicketRequest) -> Ticket:
        """Make a ticket for ``caller``. Cancelled, it may leave a ticket that nobody knows.

        Raises:
            BadRequest: the request is wrong, naming the place.
            Forbidden: the caller may not subscribe, or not to all of those tasks.
            TokenExpired: the caller's token has expired meanwhile.
        """
        caller.require(SCOPE)
        ttl_s = _ttl_s(request)
        task_ids = _task_ids(caller, request)
        now_ms = self._clock_ms()
        end_ms = now_ms + ttl_s * 1000
        if caller.expires_at is not None:
            # A revocation is kept until the token's expiry: no ticket of it may last longer.
            end_ms = min(end_ms, (caller.expires_at + self._leeway_s) * 1000)
            if end_ms <= now_ms:
                raise TokenExpired("The token has expired")
        expires_ms = ceil(end_ms)
        text = f"tkt_{_base64url(self._random_bytes(_RANDOM_BYTES))}"
        value = _packed(caller, task_ids, single_use=request.single_use)
        if len(value) > MAX_NOTE_BYTES:
            raise BadRequest("The ticket would hold too much: name fewer tasks, or shorter claims")
        await self._notes.put_note(_key(text), value, expires_ms=expires_ms, now_ms=now_ms)
        return Ticket(ticket=text, expires_at=-(-expires_ms // 1000))

    async def redeem(self, ticket: str) -> Caller:
        """The caller that the ticket stands for: its maker, with the ticket's tasks, to subscribe.

        A ticket for one use is used up by this, also where what follows fails or is cancelled.

        Raises:
            Unauthorized: there is no such ticket (any more).
        """
        if _TICKET.fullmatch(ticket) is None:
            raise Unauthorized(_INVALID)
        key, now_ms = _key(ticket), self._clock_ms()
        value = await self._notes.note(key, now_ms=now_ms)
        if value is None:
            raise Unauthorized(_INVALID)
        note = json.loads(value)
        if note.pop("single_use") and await self._notes.take_note(key, now_ms=now_ms) is None:
            raise Unauthorized(_INVALID)  # another request was faster
        return _caller(**note)


def _ttl_s(request: TicketRequest) -> float:
    if request.ttl_seconds is UNSET:
        return DEFAULT_TTL_S
    if not 0 < request.ttl_seconds <= MAX_TTL_S:
        raise BadRequest(f"Expected a number above 0, at most {MAX_TTL_S} - at `$.ttlSeconds`")
    return request.ttl_seconds


def _task_ids(caller: Caller, request: TicketRequest) -> frozenset[str] | None:
    if request.task_ids is UNSET or request.task_ids == ANY:
        return caller.task_ids
    if len(request.task_ids) > MAX_TASK_IDS:
        raise BadRequest(f"Expected at most {MAX_TASK_IDS} task ids - at `$.taskIds`")
    for number, task_id in enumerate(request.task_ids):
        validate.task_id(task_id, f"taskIds[{number}]")
    if not all(map(caller.reaches, request.task_ids)):
        raise Forbidden("A ticket may name only tasks that its maker may name")
    return frozenset(request.task_ids)


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _key(ticket: str) -> str:
    return f"ticket:{sha256(ticket.encode()).hexdigest()}"


def _packed(caller: Caller, task_ids: frozenset[str] | None, *, single_use: bool) -> bytes:
    # The json of the standard library: claims may hold what other encoders refuse, as lone
    # surrogates and integers of any size.
    note: dict[str, Any] = {
        "sub": caller.sub,
        "jti": caller.jti,
        "worker_id": caller.worker_id,
        "service": caller.service,
        "claims": dict(caller.claims),
        "issued_at": caller.issued_at,
        "expires_at": caller.expires_at,
        "open": caller.open,
        "task_ids": None if task_ids is None else sorted(task_ids),
        "single_use": single_use,
    }
    return json.dumps(note, separators=(",", ":")).encode()


def _caller(*, task_ids: list[str] | None, **fields: Any) -> Caller:
    limit = None if task_ids is None else frozenset(task_ids)
    return Caller(scopes=frozenset({SCOPE}), task_ids=limit, **fields)
