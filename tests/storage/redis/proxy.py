"""A TCP proxy that lets a client and a Redis be cut apart in the ways that networks know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

CHUNK = 64 * 1024


class Link:
    """One connection through the proxy."""

    def __init__(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        self.client = client
        self.server = server
        self.listens = False
        """Whether it has subscribed to something."""
        self.drops = False
        """Whether the next reply is lost, and the connection with it."""
        self.scope = trio.CancelScope()


class Proxy:
    """Passes everything on, until it is told otherwise."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.drop_every = 0
        """Of the scripts that pass, the reply of each so many-th is lost (0: of none)."""
        self.drop_next = False
        self.swallows: Callable[[Link], bool] = lambda link: False
        """Links whose bytes are taken, both ways, and never arrive."""
        self.refuses = False
        self.dropped = 0
        self._target = port
        self._scripts = 0
        self._links: list[Link] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self, which: Callable[[Link], bool] = lambda link: True) -> int:
        """Reset these connections; how many there were."""
        links = [link for link in self._links if which(link)]
        for link in links:
            link.scope.cancel()
        return len(links)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with listener:
            task_status.started()
            await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, client: trio.SocketStream) -> None:
        if self.refuses:
            return
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self._target)
        except OSError:
            return
        link = Link(client, server)
        self._links.append(link)
        try:
            with link.scope:
                async with server, trio.open_nursery() as nursery:
                    nursery.start_soon(self._there, link)
                    nursery.start_soon(self._back, link)
        finally:
            self._links.remove(link)

    async def _there(self, link: Link) -> None:
        try:
            async for data in link.client:
                link.listens |= b"SUBSCRIBE" in data
                for _ in range(data.count(b"EVALSHA") + data.count(b"$4\r\nEVAL\r\n")):
                    self._scripts += 1
                    if self.drop_next or (self.drop_every and not self._scripts % self.drop_every):
                        self.drop_next = False
                        link.drops = True
                if not self.swallows(link):
                    await link.server.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        link.scope.cancel()

    async def _back(self, link: Link) -> None:
        try:
            async for data in link.server:
                await trio.sleep(self.delay_s)
                if link.drops:
                    self.dropped += 1
                    break
                if not self.swallows(link):
                    await link.client.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        link.scope.cancel()


@asynccontextmanager
async def proxied(port: int) -> AsyncIterator[Proxy]:
    """A proxy to the server at ``port``."""
    proxy = Proxy(port)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()
