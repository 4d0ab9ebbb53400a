"""Key sets (JWKS, RFC 7517, 5) from a file or a URL, kept for a while and renewed when needed.

A set is read again when its time has passed, and when a token names a key that is not in it: that
is how issuers rotate keys. What can't be read is logged and changes nothing: keys that were good
stay good until the source says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import httpx
import structlog
import trio

from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.schema import Jwt
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.core.errors import KeysUnavailable, Unauthorized

from .keys import MAX_FILE_BYTES, PublicKey, jwk_key, read_file

log = structlog.get_logger(__name__)

FETCH_S: Final = 5.0
MAX_BYTES: Final = MAX_FILE_BYTES
UNKNOWN_KID_S: Final = 30.0
"""A token with an unknown key id, which anybody can write, causes one fetch in this time."""
RETRY_S: Final = 5.0
"""After a failure; never later than the set would have been renewed."""


class UnusableKeySet(ValueError):
    """Its text is a constant of this module: nothing of the set."""


class KeySet:
    """The keys of one text: those that fit ``algorithm``, by key id. Never changes.

    Raises:
        UnusableKeySet: the text is no JWKS, or none of its keys fits.
    """

    def __init__(self, text: bytes, algorithm: str) -> None:
        self.digest = sha256(text).digest()
        self.skipped = 0
        self._by_id: dict[str, PublicKey] = {}
        self._nameless: list[PublicKey] = []
        for jwk in _members(text):
            kid = jwk.get("kid")
            key = jwk_key(jwk, algorithm)
            if key is None or (isinstance(kid, str) and kid in self._by_id):
                self.skipped += 1
            elif kid is None:
                self._nameless.append(key)
            elif isinstance(kid, str):
                self._by_id[kid] = key
            else:
                self.skipped += 1
        if not self._by_id and not self._nameless:
            raise UnusableKeySet(f"holds no public key for {algorithm}")

    def find(self, kid: str | None) -> PublicKey | None:
        """Return the key of that id; for a token without one, the only key there is."""
        if kid is not None:
            return self._by_id.get(kid)
        keys = [*self._by_id.values(), *self._nameless]
        return keys[0] if len(keys) == 1 else None

    def __len__(self) -> int:
        return len(self._by_id) + len(self._nameless)


class KeySource:
    """The current `KeySet` of ``auth.jwt.jwksFile``, or else of ``auth.jwt.jwksUrl``.

    A file is read here and now, a URL when the first token comes. Nothing is left to close.

    Args:
        jwt: names the source, the algorithm and ``jwks_cache_seconds``.
        transport: takes the place of the network; for tests and unusual networks.

    Raises:
        ConfigError: the file can't be read or used, or the URL is none of http or https.
    """

    def __init__(self, jwt: Jwt, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._algorithm = jwt.algorithm
        self._cache_s = jwt.jwks_cache_seconds
        self._file = jwt.jwks_file
        self._url = jwt.jwks_url
        self._transport = transport
        self._lock = trio.Lock()
        self.attempts = 0
        """How often the source was read, or failed to be."""
        self._due: float | None = None
        self._unknown_due: float | None = None
        self.current: KeySet | None = None
        """None until a URL was fetched. Replaced, never changed, and only by another text."""
        if self._file is not None:
            try:
                self.current = KeySet(_read(self._file), self._algorithm)
            except UnusableKeySet as error:
                raise ConfigError(f"auth.jwt.jwksFile: {error}") from None
        elif self._url is not None:
            _check_url(self._url)

    async def refresh_if_due(self) -> KeySet:
        """Return the current set, read again if its time has passed.

        One caller at a time reads; others go on with the old keys meanwhile, and wait only where
        there are none. No checkpoint unless there is something to wait for. Cancelling the reader
        leaves the reading to the next caller.

        Raises:
            KeysUnavailable: there is no set yet, and none to be had.
        """
        now = trio.current_time()
        if self._due is None and self.current is not None:
            self._due = now + self._cache_s  # a file read before there was a clock
        if (self._due is None or now >= self._due) and not (self.current and self._lock.locked()):
            await self._refresh(self.attempts)
        if self.current is None:
            raise KeysUnavailable("The keys that tokens are checked with are not available")
        return self.current

    async def key_for(self, kid: str | None, since: int) -> tuple[KeySet, PublicKey]:
        """Return the key that a token's header asks for, and the set that holds it.

        A key id that is not in the set makes this look again, unless that was done since ``since``
        (the `attempts` when the token came), or for another unknown one in the last 30 s.

        Raises:
            Unauthorized: no key fits.
            KeysUnavailable: there is no set yet, and none to be had.
        """
        keys = await self.refresh_if_due()
        key = keys.find(kid)
        if key is None and kid is not None and since == self.attempts and self._may_look():
            await self._refresh(since)
            keys = self.current or keys
            key = keys.find(kid)
        if key is None:
            raise Unauthorized("The token's key is not known")
        return keys, key

    def _may_look(self) -> bool:
        if self._lock.locked():
            return True  # somebody does already: it costs only waiting
        now = trio.current_time()
        if self._unknown_due is not None and now < self._unknown_due:
            return False
        self._unknown_due = now + UNKNOWN_KID_S
        return True

    async def _refresh(self, attempts: int) -> None:
        """Read the source once, unless somebody has since ``attempts`` were counted."""
        async with self._lock:
            if self.attempts != attempts:
                return
            try:
                text = await self._load()
                keys = KeySet(text, self._algorithm)
            except (UnusableKeySet, ConfigError) as error:
                self._failed(str(error))
            except (httpx.HTTPError, trio.TooSlowError, OSError, ValueError) as error:
                self._failed(type(error).__name__)  # its text may quote the URL
            else:
                if self.current is None or self.current.digest != keys.digest:
                    self.current = keys
                    log.info("key set read", keys=len(keys), skipped=keys.skipped)
                self._due = trio.current_time() + self._cache_s
            self.attempts += 1

    def _failed(self, reason: str) -> None:
        self._due = trio.current_time() + min(self._cache_s, RETRY_S)
        log.warning("key set not read", reason=reason, keys=len(self.current or ()))

    async def _load(self) -> bytes:
        if self._file is not None:
            return await trio.to_thread.run_sync(_read, self._file)
        assert self._url is not None
        with trio.fail_after(FETCH_S):
            return await self._fetch(self._url.reveal())

    async def _fetch(self, url: str) -> bytes:
        client = httpx.AsyncClient(
            transport=self._transport, timeout=FETCH_S, follow_redirects=False
        )
        # Read raw, too: what is compressed could become long before it can be counted.
        headers = {
            "accept": "application/jwk-set+json, application/json",
            "accept-encoding": "identity",
        }
        async with client, client.stream("GET", url, headers=headers) as response:
            if response.status_code != 200:
                raise UnusableKeySet(f"answered with status {response.status_code}")
            text = bytearray()
            # Cancelled, and not left early: only so do all of httpx's generators end here.
            with trio.CancelScope() as enough:
                async for chunk in response.aiter_raw():
                    text += chunk
                    if len(text) > MAX_BYTES:
                        enough.cancel()
            if len(text) > MAX_BYTES:
                raise UnusableKeySet(f"is larger than {MAX_BYTES} bytes")
            return bytes(text)


def _read(path: str) -> bytes:
    return read_file(path, "auth.jwt.jwksFile")


def _check_url(url: SecretUrl) -> None:
    try:
        parsed = httpx.URL(url.reveal())
    except httpx.InvalidURL:
        raise ConfigError("auth.jwt.jwksUrl: is not a URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError("auth.jwt.jwksUrl: is not a URL of http or https")


def _members(text: bytes) -> list[Mapping[str, Any]]:
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise UnusableKeySet("is not JSON") from None
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise UnusableKeySet('is not a key set: it has no list "keys"')
    return [key for key in keys if isinstance(key, dict)]
