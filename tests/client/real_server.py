"""Real server processes for tests that have no event loop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def running_server(*options: str) -> Iterator[str]:
    """A server on a free port, killed at the end: its URL."""
    command = [sys.executable, "-m", "taskcast_trio", "-p", "0", "--log-level", "error", *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TASKCAST_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        try:
            said = b""
            while b"/docs\n" not in said:
                part = process.stdout.readline()
                assert part, f"the server has ended: {said!r}"
                said += part
            found = re.search(rb"http://[\d.:]+", said)
            assert found is not None
            yield found[0].decode()
        finally:
            process.kill()
