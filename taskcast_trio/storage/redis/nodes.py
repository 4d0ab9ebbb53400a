"""Connections to the servers of a target, each a redis-py connection, and which of them has a
bucket. Everything here runs on the asyncio side but what is a plain function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import (
    AbstractConnection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.connection import Connection as TcpConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.crc import key_slot

from .url import Target

Place: TypeAlias = str
"""Names a server; that of a single one is empty."""

OPTIONS: Final[dict[str, Any]] = {
    "protocol": 2,
    "decode_responses": False,
    "health_check_interval": 0,
    "socket_timeout": None,
    "socket_connect_timeout": None,
    # A step that was sent may have been done: it is ours to send it again, under its own name.
    "retry": Retry(NoBackoff(), 0),
}

SENTINEL_S: Final = 1.0
"""After which the next Sentinel is asked: the first of a list may be that of a machine that died.
"""

assert "_writer" in AbstractConnection.__slots__, "another redis-py: see cut()"


def cut(connection: AbstractConnection) -> None:
    """Close at once, without a word from the server, and whatever is still to be sent."""
    writer: asyncio.StreamWriter | None = connection._writer
    if writer is not None:
        writer.transport.abort()
        connection._reader = connection._writer = None


async def connect(connection: AbstractConnection) -> None:
    dial: Callable[[], Awaitable[None]] = connection.connect
    await dial()


class Nodes(Protocol):
    """The servers of one target."""

    def place_of(self, bucket: int) -> Place:
        """Which server has the bucket, as far as is known."""

    def connection(self, place: Place) -> AbstractConnection:
        """A new connection to it, not connected yet."""

    async def refresh(self) -> None:
        """Ask anew which server has which bucket, where there are several."""

    async def close(self) -> None: ...


class Server:
    """One server, or the one that Sentinels say is the primary."""

    def __init__(self, pool: ConnectionPool, sentinel: Sentinel | None = None) -> None:
        self._pool = pool
        self._sentinel = sentinel

    def place_of(self, bucket: int) -> Place:
        return ""

    def connection(self, place: Place) -> AbstractConnection:
        make: Callable[[], AbstractConnection] = self._pool.make_connection
        return make()

    async def refresh(self) -> None:
        pass

    async def close(self) -> None:
        for client in self._sentinel.sentinels if self._sentinel else ():
            await client.aclose()


class Cluster:
    """The primaries of a cluster."""

    def __init__(self, cluster: RedisCluster, tags: Sequence[str]) -> None:
        self._cluster = cluster
        self._slots = [key_slot(tag.encode()) for tag in tags]
        self._nodes: dict[Place, ClusterNode] = {}
        self._places: list[Place] = [""] * len(tags)
        self._refreshing = asyncio.Lock()

    def place_of(self, bucket: int) -> Place:
        return self._places[bucket]

    def connection(self, place: Place) -> AbstractConnection:
        node = self._nodes.get(place)
        if node is None:
            raise ConnectionError("the cluster has no such node")
        connection: AbstractConnection = node.connection_class(**node.connection_kwargs)
        return connection

    def asked_to(self, host: str, port: int) -> Place:
        """The place that the answer ASK names."""
        place = f"{host}:{port}"
        if place not in self._nodes and self._nodes:
            like = next(iter(self._nodes.values()))
            options = {k: v for k, v in like.connection_kwargs.items() if k not in ("host", "port")}
            self._nodes[place] = ClusterNode(
                host, port, connection_class=like.connection_class, **options
            )
        return place

    async def refresh(self) -> None:
        async with self._refreshing:
            await self._cluster.aclose()
            await self._cluster.initialize()
            manager = self._cluster.nodes_manager
            self._places = []
            for slot in self._slots:
                node = manager.get_node_from_slot(slot)
                self._nodes[node.name] = node
                self._places.append(node.name)

    async def close(self) -> None:
        await self._cluster.aclose()


def nodes_of(target: Target, tags: Sequence[str]) -> Nodes:
    """The servers of ``target``; ``tags`` are what the keys of each bucket begin with."""
    options = {**target.options, **OPTIONS}
    if target.kind == "cluster":
        startup = [ClusterNode(host, port) for host, port in target.hosts]
        return Cluster(RedisCluster(startup_nodes=startup, **options), tags)
    if target.kind == "sentinel":
        patience = {"socket_timeout": SENTINEL_S, "socket_connect_timeout": SENTINEL_S}
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            target.hosts,
            sentinel_kwargs={**target.sentinel_options, **OPTIONS, **patience},
            **options,
        )
        pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            target.service, sentinel, **options
        )
        return Server(pool, sentinel)
    tls = options.pop("ssl", False)
    options.setdefault(
        "connection_class",
        UnixDomainSocketConnection
        if "path" in options
        else SSLConnection
        if tls
        else TcpConnection,
    )
    server = Server(aioredis.ConnectionPool(**options))
    server.connection("")  # its options are looked at only here
    return server
