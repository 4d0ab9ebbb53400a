"""Bearer tokens: JWT (RFC 7519), checked as RFC 8725 asks.

The algorithm is the configured one, never the token's choice, and nothing in a token's header is
followed anywhere. What is wrong with a token is said in a few words that hold nothing of it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final, cast

import httpx
from jwt.exceptions import PyJWTError
from msgspec import MsgspecError, Struct, json

from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.schema import Jwt
from taskcast_trio.core.access import ANY, Caller
from taskcast_trio.core.errors import TokenExpired, Unauthorized

from .jwks import KeySet, KeySource
from .keys import PublicKey, hmac_secret, is_symmetric, pem_key, read_file, signatures

MAX_TOKEN_BYTES: Final = 16_384
MAX_REMEMBERED: Final = 4096
MAX_REMEMBERED_BYTES: Final = 4096
"""Longer tokens are checked anew each time: what is remembered has a bound in bytes too."""

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+\.){2}[A-Za-z0-9_-]+")
"""RFC 7515, 7.1: three parts, without padding. Libraries take more."""
_UNREADABLE: Final = (
    PyJWTError,
    MsgspecError,
    ValueError,
    RecursionError,
    TypeError,
    OverflowError,
)


class _Verified(Struct, frozen=True):
    """What a good signature vouches for. Only the clock may still say no."""

    caller: Caller
    not_before: float | None


class JwtVerifier:
    """Checks the tokens of one issuer, as ``auth.jwt`` has it.

    The key is ``secret`` for HS*, else ``public_key``, ``public_key_file``, ``jwks_file`` or
    ``jwks_url``, the first that is given. Tokens with a good signature are remembered, so that a
    caller pays for it once; the clock is asked every time. Nothing is left to close.

    Args:
        jwt: the configuration.
        clock_ms: Unix time in ms.
        transport: takes the place of the network for a ``jwks_url``.

    Raises:
        ConfigError: no key, or one that does not fit the algorithm; one line without key material.
    """

    def __init__(
        self,
        jwt: Jwt,
        clock_ms: Callable[[], int],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._jwt = jwt
        self._clock_ms = clock_ms
        self._jws = signatures(jwt.algorithm)
        key = _fixed_key(jwt)
        self._key = key
        self._source = KeySource(jwt, transport=transport) if key is None else None
        self._remembered: OrderedDict[bytes, _Verified] = OrderedDict()
        self._remembered_of: KeySet | None = None

    @property
    def signs(self) -> bool:
        """Whether `sign` can be used: the key is a secret, good for both ways."""
        return isinstance(self._key, bytes)

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Return a token with these claims, exactly; `verify` takes it if they are to its liking.

        Raises:
            RuntimeError: `signs` is false.
            TypeError: the claims are not JSON.
        """
        if not isinstance(self._key, bytes):
            raise RuntimeError(f"{self._jwt.algorithm} is only checked here: there is no secret")
        return self._jws.encode(json.encode(dict(claims)), self._key, self._jwt.algorithm)

    async def verify(self, token: str) -> Caller:
        """Return the caller whom a token vouches for.

        There is a checkpoint only where a key set has to be read. Cancelling is safe.

        Raises:
            TokenExpired: it was good once.
            Unauthorized: it is not good.
            KeysUnavailable: no key to check it with is to be had now.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthorized("The token is too long")
        if not _COMPACT.fullmatch(token):
            raise Unauthorized("The token is not a JWT")
        since = 0
        if self._source is not None:
            since = self._source.attempts
            self._remember_for(await self._source.refresh_if_due())
        digest = sha256(token.encode()).digest()
        verified = self._remembered.get(digest)
        if verified is None:
            verified = self._judge(await self._claims(token, since))
            if len(token) <= MAX_REMEMBERED_BYTES:
                self._remembered[digest] = verified
                if len(self._remembered) > MAX_REMEMBERED:
                    self._remembered.popitem(last=False)
        else:
            self._remembered.move_to_end(digest)
        self._check_times(verified)
        return verified.caller

    def _remember_for(self, keys: KeySet) -> None:
        """Forget what was verified with other keys: one of them may have been withdrawn."""
        if keys is not self._remembered_of:
            self._remembered.clear()
            self._remembered_of = keys

    async def _claims(self, token: str, since: int) -> dict[str, Any]:
        try:
            header = self._jws.get_unverified_header(token)
        except _UNREADABLE:
            raise Unauthorized("The token is not a JWT") from None
        if header.get("alg") != self._jwt.algorithm:
            raise Unauthorized(f"The token is not signed with {self._jwt.algorithm}")
        if "crit" in header:
            raise Unauthorized("The token asks for extensions that are not known here")
        key: bytes | PublicKey
        if self._source is None:
            key = cast("bytes | PublicKey", self._key)
        else:
            keys, key = await self._source.key_for(header.get("kid"), since)
            self._remember_for(keys)
        try:
            payload = self._jws.decode(token, cast("Any", key), [self._jwt.algorithm])
        except _UNREADABLE:
            raise Unauthorized("The token's signature is not good") from None
        try:
            # Stricter than the library: UTF-8 only, no NaN, no lone surrogates, no second value.
            claims = json.decode(payload)
        except _UNREADABLE:
            raise Unauthorized("The token's claims are not JSON") from None
        if not isinstance(claims, dict):
            raise Unauthorized("The token's claims are not an object")
        return claims

    def _judge(self, claims: dict[str, Any]) -> _Verified:
        for name in self._jwt.require:
            if claims.get(name) is None:
                raise Unauthorized(f"The token lacks the claim {name}")
        issuer, audience = self._jwt.issuer, self._jwt.audience
        if issuer is not None and claims.get("iss") != issuer:
            raise Unauthorized("The token is not of the issuer that is trusted here")
        if audience is not None:
            meant = claims.get("aud")
            if meant != audience and not (isinstance(meant, list) and audience in meant):
                raise Unauthorized("The token is not meant for this server")
        caller = Caller(
            scopes=_scopes(claims.get("scope")),
            task_ids=_task_ids(claims.get("taskIds")),
            sub=_text(claims.get("sub")),
            jti=_text(claims.get("jti")),
            worker_id=_text(claims.get("workerId")),
            claims=claims,
            issued_at=_number(claims.get("iat")),
            expires_at=_time(claims, "exp"),
        )
        return _Verified(caller, _time(claims, "nbf"))

    def _check_times(self, verified: _Verified) -> None:
        now = self._clock_ms() / 1000
        leeway = self._jwt.leeway_seconds
        expires_at = verified.caller.expires_at
        if expires_at is not None and expires_at + leeway <= now:
            raise TokenExpired("The token has expired")
        if verified.not_before is not None and verified.not_before - leeway > now:
            raise Unauthorized("The token is not valid yet")


def _fixed_key(jwt: Jwt) -> bytes | PublicKey | None:
    """The one key that is configured; None: a key set is."""
    has_set = jwt.jwks_file is not None or jwt.jwks_url is not None
    has_public = jwt.public_key is not None or jwt.public_key_file is not None
    if not has_set and not has_public and jwt.secret is None:
        raise ConfigError(
            "auth.jwt: a key is needed: secret, publicKey, publicKeyFile, jwksFile or jwksUrl"
        )
    if is_symmetric(jwt.algorithm):
        if has_set:
            where = "jwksFile" if jwt.jwks_file is not None else "jwksUrl"
            raise ConfigError(f"auth.jwt.{where}: a key set is no use to {jwt.algorithm}")
        if jwt.secret is None:
            raise ConfigError(f"auth.jwt.secret: {jwt.algorithm} needs it; a public key is no use")
        return hmac_secret(jwt.secret)
    if jwt.public_key is not None:
        pem = jwt.public_key.reveal().encode(errors="replace")
        return pem_key(pem, jwt.algorithm, "auth.jwt.publicKey")
    if jwt.public_key_file is not None:
        where = "auth.jwt.publicKeyFile"
        return pem_key(read_file(jwt.public_key_file, where), jwt.algorithm, where)
    if not has_set:
        raise ConfigError(f"auth.jwt.publicKey: {jwt.algorithm} needs one; a secret is no use")
    return None


def _scopes(claim: Any) -> frozenset[str]:
    """An item that is no text names no scope; a claim that is no list of anything is refused."""
    if claim is None:
        return frozenset()
    if isinstance(claim, str):
        return frozenset(filter(None, claim.split(" ")))  # RFC 8693, 4.2
    if isinstance(claim, list):
        return frozenset(scope for scope in claim if isinstance(scope, str))
    raise Unauthorized("The token's scope is neither a list nor text")


def _task_ids(claim: Any) -> frozenset[str] | None:
    """``"*"`` alone lifts the limit; in a list it is the id of a task."""
    if claim is None or claim == ANY:
        return None
    if isinstance(claim, list):
        return frozenset(task_id for task_id in claim if isinstance(task_id, str))
    raise Unauthorized('The token\'s taskIds are neither a list nor "*"')


def _text(claim: Any) -> str | None:
    return claim if isinstance(claim, str) else None


def _number(claim: Any) -> float | None:
    """A JSON number as a double; None for what is no number, or beyond every double."""
    if isinstance(claim, bool) or not isinstance(claim, int | float):
        return None
    try:
        return float(claim)
    except OverflowError:
        return None


def _time(claims: dict[str, Any], name: str) -> float | None:
    """RFC 7519, 4.1.4: a number of seconds since 1970, if the claim is there."""
    if name not in claims:
        return None
    seconds = _number(claims[name])
    if seconds is None:
        raise Unauthorized(f"The token's {name} is not a number of seconds")
    return seconds
