"""What the machine lends a measurement: a core each for server and client, open files, clocks."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "linux":
    CORES = sorted(os.sched_getaffinity(0))

    @contextmanager
    def on_core(which: int) -> Iterator[None]:
        """Bind this process, and what it starts in the body, to one of the allowed cores.

        Nothing is bound where only one core is allowed.
        """
        before = os.sched_getaffinity(0)
        if len(CORES) > 1:
            os.sched_setaffinity(0, {CORES[which]})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def cpu_ns(pid: int) -> int | None:
        """Processor time that a process has used, in ns; None where the system does not tell."""
        # The clock id of another process, as clock_getcpuclockid(3) makes it: the complement of
        # the pid, with the two lowest bits saying "scheduler time".
        return time.clock_gettime_ns((~pid << 3) | 2)

    def resident_kib(pid: int) -> int | None:
        """Resident memory of a process, in KiB; None where the system does not tell."""
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return None

else:
    CORES = list(range(os.cpu_count() or 1))

    @contextmanager
    def on_core(which: int) -> Iterator[None]:
        """Bind nothing: this system has no processor affinity."""
        yield

    def cpu_ns(pid: int) -> int | None:
        """Processor time that a process has used, in ns; None where the system does not tell."""
        return None

    def resident_kib(pid: int) -> int | None:
        """Resident memory of a process, in KiB; None where the system does not tell."""
        return None


SERVER, CLIENT = 0, 1


def raise_open_files() -> int:
    """Raise the limit on open files as far as allowed, for the processes started too; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # "Unlimited" is refused by some systems.
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def description() -> str:
    """One line on the machine and the interpreter."""
    pinned = "server and client on a core each" if sys.platform == "linux" else "not pinned"
    if len(CORES) < 2:
        pinned = "one core for all"
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {len(CORES)} cores, {pinned}"
    )
