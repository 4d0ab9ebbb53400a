"""Connections to receivers: a name is looked up once, checked, and what was checked is dialled."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import httpcore
import trio

from taskcast_trio.core.addresses import Address, AddressPolicy, parse_address

from .turns import Turns

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a host as texts; raises OSError where it has none."""
_SocketOption: TypeAlias = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)

MAX_DIALLED: Final = 4
ONE_DIAL_S: Final = 1.0
"""Before the next address is tried; the last one has all the time that is left."""
LOOKUPS: Final = 64
CLOSE_S: Final = 1.0


class AddressRefused(Exception):
    """The host, or one of its addresses, may not be connected to."""


class HostNotFound(Exception):
    """The host has no address, or nobody could say."""


class Dialer(httpcore.AsyncNetworkBackend):
    """Opens the connections of a pool, where ``policy`` permits it.

    Every address of a host must be permitted: a host that has a forbidden one is not dialled at
    all. Between check and use nothing is looked up, so an answer of the DNS that changes is never
    used. TLS goes on checking the certificate against the name.

    ``resolve`` takes the place of the system's resolver, and ``network`` that of the network; it is
    given addresses, never names.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        resolve: Resolve | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._policy = policy
        self._resolve = resolve or Lookups()
        self._network = network or httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host.

        Raises:
            AddressRefused: the policy forbids it.
            HostNotFound: there is no such host.
            httpcore.ConnectError: none of its addresses could be reached.
        """
        *others, last = (await self._permitted(host, port))[:MAX_DIALLED]
        dial = partial(
            self._network.connect_tcp,
            port=port,
            local_address=local_address,
            socket_options=socket_options,
        )
        for address in others:
            try:
                return _Connection(await dial(str(address), timeout=ONE_DIAL_S))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return _Connection(await dial(str(last), timeout=timeout))

    async def _permitted(self, host: str, port: int) -> list[Address]:
        if self._policy.refuses_host(host):
            raise AddressRefused
        try:
            addresses = [parse_address(text) for text in await self._resolve(host, port)]
        except (OSError, ValueError):
            raise HostNotFound from None
        if not addresses:
            raise HostNotFound
        if not all(self._policy.permits(address, host) for address in addresses):
            raise AddressRefused
        return addresses


class _Connection(httpcore.AsyncNetworkStream):
    """A connection that is closed, too, where its TLS handshake is cancelled; httpcore leaks it."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's interface
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._stream.aclose()
            raise


class Lookups:
    """The system's resolver, in threads, each host by one at a time.

    A thread can't be cancelled: one that is given up holds its turn until it ends. So a host whose
    name servers are dead takes one of the turns, however often it is tried.
    """

    def __init__(self, total: int = LOOKUPS) -> None:
        self._turns = Turns(total, 1)

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return the addresses in the order to try them. Cancelled, the thread is left behind.

        Raises:
            OSError: there are none.
        """
        look_up = partial(
            socket.getaddrinfo,
            host.encode("ascii"),  # text would pass the codec for names, which raises other errors
            port,
            type=socket.SOCK_STREAM,
            proto=socket.IPPROTO_TCP,
        )
        found = await trio.to_thread.run_sync(
            look_up,
            abandon_on_cancel=True,
            limiter=_Turn(self._turns, host),  # type: ignore[arg-type]  # anything like it will do
        )
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Turn:
    """A host's turns as the limiter of a thread."""

    def __init__(self, turns: Turns, host: str) -> None:
        self._turns = turns
        self._host = host

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._turns.acquire(self._host, borrower)

    def release_on_behalf_of(self, borrower: object) -> None:
        self._turns.release(self._host, borrower)
