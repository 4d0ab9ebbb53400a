"""Trusted services: programs that show a key of their own instead of a token."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

from taskcast_trio.config.schema import TrustedService
from taskcast_trio.core.access import ANY, Caller
from taskcast_trio.core.errors import Unauthorized


class TrustedServices:
    """The services of ``trustedServices``; false where there are none.

    Of two services with the same key, the first has it.
    """

    def __init__(self, services: Iterable[TrustedService]) -> None:
        self._services = [
            (_digest(service.key.reveal().encode(errors="surrogatepass")), _caller(service))
            for service in services
        ]

    def __bool__(self) -> bool:
        return bool(self._services)

    def identify(self, key: bytes) -> Caller:
        """Return the service whose key this is; ``key`` is a header's value, as it came.

        Every key is compared, in constant time: how long it takes tells nothing about any.

        Raises:
            Unauthorized: it is nobody's.
        """
        digest = _digest(key)
        found = [caller for known, caller in self._services if compare_digest(known, digest)]
        if not found:
            raise Unauthorized("The service key is not known")
        return found[0]


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _caller(service: TrustedService) -> Caller:
    ids = service.task_ids
    return Caller(
        service=service.name,
        scopes=frozenset(service.scope),
        task_ids=None if ids is None or ids == ANY else frozenset(ids),
    )
