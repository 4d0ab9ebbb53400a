"""What the health pages say of the parts that a server depends on; never a URL."""

from __future__ import annotations

from typing import Any

from taskcast_trio.engine import Runtime

_WORDS = {"up": "ok", "down": "unavailable"}


def adapters(runtime: Runtime) -> dict[str, Any]:
    """The stores and the broadcast by their role."""
    backend = runtime.backend
    found = {
        "broadcast": {"provider": "memory", "status": "ok"},
        "shortTermStore": {
            "provider": backend.provider,
            "status": "ok",
            "durability": backend.durability,
        },
    }
    link = backend.link()
    if link is not None:
        found["broadcast"] = {"provider": backend.provider, "status": _WORDS[link.pubsub]}
        found["shortTermStore"]["status"] = _WORDS[link.commands]
    if runtime.archiver is not None:
        found["longTermStore"] = {"provider": "postgres", "status": _archive_status(runtime)}
    return found


def dependencies(runtime: Runtime) -> dict[str, Any]:
    """The services that are reached over a connection, as they are now."""
    found: dict[str, Any] = {}
    link = runtime.backend.link()
    if link is not None:
        is_up = link.commands == link.pubsub == "up"
        found[runtime.backend.provider] = {
            "status": "ok" if is_up else "unavailable",
            "commands": _WORDS[link.commands],
            "pubsub": _WORDS[link.pubsub],
            "version": link.server_version,
            "kind": link.kind,
            "durability": runtime.backend.durability,
        }
    if runtime.archiver is not None:
        found["postgres"] = {"status": _archive_status(runtime)}
    return found


def all_ok(found: dict[str, Any]) -> bool:
    return all(dependency["status"] == "ok" for dependency in found.values())


def processes(runtime: Runtime) -> int:
    """How many processes have the store, this one included."""
    peers = runtime.backend.peers
    return 1 if peers is None else peers.count


def _archive_status(runtime: Runtime) -> str:
    return "unavailable" if runtime.archiver is not None and runtime.archiver.away else "ok"
