"""The client is light: it loads nothing of the server."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import taskcast_trio.client
heavy = {"trio", "asyncio", "quart", "hypercorn", "jsonschema", "structlog"}
ours = {f"taskcast_trio.{room}" for room in ("engine", "storage", "server", "cli", "config")}
print(*sorted((heavy | ours) & sys.modules.keys()))
"""


def test_importing_the_client_loads_no_server_and_no_event_loop() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_facade_loads_what_it_names_when_it_is_asked() -> None:
    code = "import taskcast_trio as t; print(callable(t.open_engine), {*t.__all__} <= {*dir(t)})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "True"]
