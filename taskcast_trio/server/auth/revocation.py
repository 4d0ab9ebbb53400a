"""Revocation: tokens that are refused before they expire, by every process of the store.

By ``jti`` (RFC 7519, section 4.1.7) one token is revoked; by ``sub`` every token that the subject
has at that moment, while a token issued later passes. Services have no tokens and are not
concerned.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from math import ceil
from typing import Final

import msgspec
import trio
from msgspec import UNSET, Struct, UnsetType

from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import BadRequest, TokenRevoked
from taskcast_trio.core.model import Wire
from taskcast_trio.storage.protocols import NoteStore

MAX_EXPIRES_AT_S: Final = 253_402_300_799
"""The end of the year 9999, the last moment that every store can write."""


class RevokeRequest(Wire, frozen=True, kw_only=True):
    """Which tokens are revoked, and when the last of them expires, in Unix seconds.

    Without ``expiresAt`` the revocation is kept for ever.
    """

    admin_token: object = None
    jti: str | UnsetType = UNSET
    sub: str | UnsetType = UNSET
    expires_at: float | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"RevokeRequest(jti={self.jti!r}, sub={self.sub!r}, expires_at={self.expires_at!r})"


class _Revocation(Struct, frozen=True, array_like=True):
    """A note's value: when it was revoked, and the note's expiry, both in Unix ms."""

    at_ms: int
    until_ms: int | None

    def joined(self, other: _Revocation) -> _Revocation:
        """Both in one: a revocation never undoes a part of another one."""
        at_ms = max(self.at_ms, other.at_ms)
        if self.until_ms is None or other.until_ms is None:
            return _Revocation(at_ms, None)
        return _Revocation(at_ms, max(self.until_ms, other.until_ms))


class Revocations:
    """The revoked tokens, in notes that all processes of a store see.

    Args:
        notes: where the revocations are kept.
        clock_ms: the time in Unix ms.
        leeway_s: how long after its expiry a token is still accepted; revocations are kept for
            that much longer.
    """

    def __init__(
        self, notes: NoteStore, *, clock_ms: Callable[[], int], leeway_s: float = 0.0
    ) -> None:
        self._notes = notes
        self._clock_ms = clock_ms
        self._leeway_s = leeway_s
        self._writing = trio.Lock()

    async def revoke(self, request: RevokeRequest) -> Revoked:
        """Refuse these tokens from now on, and say what others are to be told of it. Cancelled, it
        is done or not done.

        One that was made before stays in force to its own end: this one only adds. (Where two
        processes revoke the same at one moment, the end is that of the last to write.) Open streams
        are not ended by this: see :func:`concerns`.

        Raises:
            BadRequest: not exactly one of ``jti`` and ``sub``, or an expiry that has passed.
        """
        key, now_ms = _key_of(request), self._clock_ms()
        revocation = _Revocation(now_ms, self._until_ms(request, now_ms))
        async with self._writing:
            known = await self._read(key, now_ms)
            if known is not None:
                revocation = revocation.joined(known)
            await self._notes.put_note(
                key,
                msgspec.json.encode(revocation),
                expires_ms=revocation.until_ms,
                now_ms=now_ms,
            )
        return Revoked(at_ms=revocation.at_ms, jti=request.jti, sub=request.sub)

    async def check(self, caller: Caller) -> None:
        """Let the caller pass if its token is not revoked: at most two reads of a note.

        Raises:
            TokenRevoked: it is; a token without ``iat`` counts as older than any revocation.
        """
        if caller.service is not None or (caller.jti is None and caller.sub is None):
            return
        now_ms = self._clock_ms()
        if caller.jti is not None and await self._read(_key("jti", caller.jti), now_ms) is not None:
            raise TokenRevoked("The token has been revoked")
        if caller.sub is None:
            return
        revocation = await self._read(_key("sub", caller.sub), now_ms)
        if revocation is None:
            return
        if not _is_later(caller, revocation.at_ms):
            raise TokenRevoked("The token has been revoked")

    async def _read(self, key: str, now_ms: int) -> _Revocation | None:
        value = await self._notes.note(key, now_ms=now_ms)
        return None if value is None else msgspec.json.decode(value, type=_Revocation)

    def _until_ms(self, request: RevokeRequest, now_ms: int) -> int | None:
        if request.expires_at is UNSET:
            return None
        if not now_ms < request.expires_at * 1000 <= MAX_EXPIRES_AT_S * 1000:
            raise BadRequest("Expected a time to come, in Unix seconds - at `$.expiresAt`")
        return ceil((request.expires_at + self._leeway_s) * 1000)


class Revoked(Wire, frozen=True, kw_only=True):
    """What processes tell each other of a revocation: when it was made (Unix ms), and of what."""

    at_ms: int
    jti: str | UnsetType = UNSET
    sub: str | UnsetType = UNSET


def concerns(revoked: Revoked, caller: Caller) -> bool:
    """Whether a revocation hits a caller that was let in before it was heard of."""
    if caller.service is not None:
        return False
    if caller.jti is not None and caller.jti == revoked.jti:
        return True
    is_subject = caller.sub is not None and caller.sub == revoked.sub
    return is_subject and not _is_later(caller, revoked.at_ms)


def _is_later(caller: Caller, at_ms: int) -> bool:
    """Whether the caller's token is known to be newer than that."""
    return caller.issued_at is not None and caller.issued_at * 1000 > at_ms


def _key_of(request: RevokeRequest) -> str:
    if request.jti is not UNSET and request.sub is UNSET:
        return _key("jti", request.jti)
    if request.sub is not UNSET and request.jti is UNSET:
        return _key("sub", request.sub)
    raise BadRequest("Expected exactly one of `jti` and `sub` - at `$`")


def _key(kind: str, text: str) -> str:
    # Text of JSON may hold lone surrogates, which UTF-8 can not write.
    return f"revoked:{kind}:{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
