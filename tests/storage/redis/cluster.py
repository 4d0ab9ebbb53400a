"""A real cluster of Redis servers, each as in :mod:`.server`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .server import PATIENCE_S, LocalServer, free_port, running

SLOTS = 16384
GOSSIP = 10_000
"""How far above its port a node talks to the others."""


@contextmanager
def cluster(nodes: int = 3) -> Iterator[list[LocalServer]]:
    """Primaries that share all slots evenly, agreed on who has which."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                running("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", port=_port())
            )
            for _ in range(nodes)
        ]
        for number, server in enumerate(servers):
            slots = range(SLOTS * number // nodes, SLOTS * (number + 1) // nodes)
            with server.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTS", *slots)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        deadline = time.monotonic() + PATIENCE_S
        while not all(_sees(server, nodes) for server in servers):
            assert time.monotonic() < deadline, "the nodes do not find each other"
            time.sleep(0.05)
        yield servers


def url_of(servers: list[LocalServer]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


@contextmanager
def moving(servers: list[LocalServer], slot: int) -> Iterator[None]:
    """Give a slot to the node after the one that has it: the keys now, the slot after the body."""
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for server in servers]
        names = [client.execute_command("CLUSTER", "MYID") for client in clients]
        (at,) = (number for number, client in enumerate(clients) if _has(client, slot))
        to = (at + 1) % len(servers)
        clients[to].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[at])
        clients[at].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[to])
        target = ("127.0.0.1", servers[to].port)
        while keys := clients[at].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10):
            for key in keys:
                clients[at].execute_command("MIGRATE", *target, key, 0, 5000)
        try:
            yield
        finally:
            for number in (to, at, *range(len(servers))):
                clients[number].execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[to])


def move(servers: list[LocalServer], slot: int) -> None:
    with moving(servers, slot):
        pass


def _has(client: Any, slot: int) -> bool:
    mine = client.execute_command("CLUSTER", "MYID")
    return any(
        first <= slot <= last and primary[2] == mine
        for first, last, primary, *_ in client.execute_command("CLUSTER", "SLOTS")
    )


def _port() -> int:
    while (port := free_port()) + GOSSIP > 65_535:
        pass
    return port


def _sees(server: LocalServer, nodes: int) -> bool:
    with server.client() as client:
        said = client.execute_command("CLUSTER", "INFO")
        return b"cluster_state:ok" in said and b"cluster_size:%d" % nodes in said
