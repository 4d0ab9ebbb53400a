"""What the health pages say of the parts that a server depends on; never a URL."""

from __future__ import annotations

from typing import Any

from taskcast_trio.engine import Runtime


def adapters(runtime: Runtime) -> dict[str, Any]:
    """The stores and the broadcast by their role."""
    found = {
        "broadcast": {"provider": "memory", "status": "ok"},
        "shortTermStore": {"provider": runtime.backend.provider, "status": "ok"},
    }
    if runtime.archiver is not None:
        found["longTermStore"] = {"provider": "postgres", "status": _archive_status(runtime)}
    return found


def dependencies(runtime: Runtime) -> dict[str, Any]:
    """The services that are reached over a connection, as they are now."""
    if runtime.archiver is None:
        return {}
    return {"postgres": {"status": _archive_status(runtime)}}


def all_ok(found: dict[str, Any]) -> bool:
    return all(dependency["status"] == "ok" for dependency in found.values())


def _archive_status(runtime: Runtime) -> str:
    return "unavailable" if runtime.archiver is not None and runtime.archiver.away else "ok"
