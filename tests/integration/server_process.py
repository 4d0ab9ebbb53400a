"""Real server processes, for tests that kill them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def server_process(*options: str) -> AsyncIterator[tuple[str, trio.Process]]:
    """A server on a free port, killed at the end: its URL, and the process."""
    command = [sys.executable, "-m", "taskcast_trio", "-p", "0", "--log-level", "error", *options]
    process = await trio.lowlevel.open_process(
        command,
        stdout=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if not k.startswith("TASKCAST_")},
    )
    assert process.stdout is not None
    try:
        said = b""
        while b"/docs\n" not in said:
            part = await process.stdout.receive_some()
            assert part, f"the server has ended: {said!r}"
            said += part
        found = re.search(rb"http://[\d.:]+", said)
        assert found is not None
        yield found[0].decode(), process
    finally:
        process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()
            await process.stdout.aclose()
