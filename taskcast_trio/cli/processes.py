"""Several server processes on one port: one parent that listens, starts them and keeps them up.

A child is this same command with the same configuration. It inherits the listening sockets, and one
end of a pair of sockets: it says there that it is ready, and sees there when it is to end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog
import trio
from hypercorn.utils import repr_socket_addr

from taskcast_trio.config import Config
from taskcast_trio.core.backoff import Backoff
from taskcast_trio.server.serve import ServeOptions, open_sockets, run_until_signal

HANDED_DOWN: Final = "_TASKCAST_TRIO_CHILD"
"""The environment variable that makes a child: listening descriptors by commas, a colon, and that
of its end of the pair."""

KILL_AFTER_S: Final = 15.0
"""How long after the grace period a child that has not ended is killed."""

RESTART: Final = Backoff(initial_delay_ms=500, max_delay_ms=15_000)
STEADY_S: Final = 60.0
"""When a child that was up for so long ends, its failures before that are forgotten."""

NOT_STARTED: Final = 127
"""Shown as the status of a process that there never was, as shells do."""

_READY: Final = b"r"

log = structlog.get_logger(__name__)


class ChildFailed(Exception):
    """A child could not start. Where it is ``said``, it has told why itself."""

    def __init__(self, message: str, *, said: bool = False) -> None:
        super().__init__(message)
        self.said = said


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a child gets from its parent."""

    listening: tuple[int, ...]
    pair: socket.socket

    def ready(self) -> None:
        """Tell the parent that connections are accepted."""
        with suppress(BrokenPipeError):  # it is gone, and parent_gone says so
            self.pair.send(_READY)

    async def parent_gone(self) -> None:
        """Return when the parent ends, or wants this to."""
        # It is reset where the parent had not read yet that we are ready.
        with (
            trio.socket.from_stdlib_socket(self.pair) as pair,
            suppress(ConnectionResetError),
        ):
            await pair.recv(1)


def inherited() -> Inherited | None:
    """What this process was handed down, once; None where it is no child.

    A child ignores signals from here on, but where it waits for them: whoever stops a service may
    signal all of its processes, and the one that the parent sends then comes while it ends.
    """
    handed = os.environ.pop(HANDED_DOWN, None)
    if handed is None:
        return None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    listening, _, pair = handed.partition(":")
    return Inherited(tuple(int(fd) for fd in listening.split(",")), socket.socket(fileno=int(pair)))


async def supervise(
    config: Config,
    options: ServeOptions,
    announce: Callable[[list[str]], None],
    *,
    environment: dict[str, str],
) -> bool:
    """Run ``config.processes`` children until SIGTERM or SIGINT; whether all of them drained.

    The first is started alone: what is wrong is said once. ``announce`` is called with the URLs
    when all are ready. A child that ends by itself is started again, after a while that grows if
    it does so often. A second signal, or cancelling this, kills them.

    Raises:
        OSError: the address can't be listened on.
        ChildFailed: one could not start at all.
    """
    sockets = await open_sockets(options)
    drain = trio.Event()
    try:
        children = [
            _Child(number, sockets, config.server.grace_seconds, environment)
            for number in range(config.processes)
        ]
        async with trio.open_nursery() as signals:
            signals.start_soon(_end_by_signal, drain, signals.cancel_scope)
            async with trio.open_nursery() as nursery:
                first, *others = children
                await nursery.start(first.run, drain)
                async with trio.open_nursery() as starting:
                    for child in others:
                        starting.start_soon(nursery.start, child.run, drain)
                if not drain.is_set():
                    announce(_urls(sockets, "http" if options.certfile is None else "https"))
            signals.cancel_scope.cancel()
        return all(child.drained for child in children)
    finally:
        for listening in sockets:
            listening.close()


def _urls(sockets: Sequence[trio.socket.SocketType], scheme: str) -> list[str]:
    return [f"{scheme}://{repr_socket_addr(s.family, s.getsockname())}" for s in sockets]


async def _end_by_signal(drain: trio.Event, scope: trio.CancelScope) -> None:
    await run_until_signal(drain)
    scope.cancel()


def _nothing() -> None:
    """It was up before."""


class _Child:
    def __init__(
        self,
        number: int,
        sockets: Sequence[trio.socket.SocketType],
        grace_s: float,
        environment: dict[str, str],
    ) -> None:
        self.drained = False
        """Whether nothing was cut when it ended."""
        self._number = number
        self._listening = [listening.fileno() for listening in sockets]
        self._grace_s = grace_s
        self._environment = environment

    async def run(
        self, drain: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the process up until ``drain``, then end it; ``started()`` when it is ready."""
        failures = 0
        first = True
        while not drain.is_set():
            begun = trio.current_time()
            try:
                status, was_ready = await self._live(
                    drain, task_status.started if first else _nothing
                )
            except ChildFailed:
                if first:
                    raise
                status, was_ready = NOT_STARTED, False
            if drain.is_set():
                if first and not was_ready:
                    task_status.started()
                self.drained = status == 0 or not was_ready
                return
            if first and not was_ready:
                raise ChildFailed(
                    f"a server process ended with status {status} while it started", said=status > 0
                )
            first = False
            failures = 1 if trio.current_time() - begun > STEADY_S else failures + 1
            delay_s = RESTART.delay_ms(failures, jitter=0) / 1000
            log.error("process_ended", number=self._number, status=status, restart_in_s=delay_s)
            with trio.move_on_after(delay_s):
                await drain.wait()
        if first:
            task_status.started()
        self.drained = True  # there was none

    async def _live(self, drain: trio.Event, up: Callable[[], object]) -> tuple[int, bool]:
        """Start the process and wait for its end; its status, and whether it was ready once.

        ``up`` is called when it is.

        Raises:
            ChildFailed: the system can't start one.
        """
        ours, theirs = socket.socketpair()
        listening = ",".join(map(str, self._listening))
        handed = {HANDED_DOWN: f"{listening}:{theirs.fileno()}"}
        with trio.socket.from_stdlib_socket(ours) as pair, theirs:
            # A session of its own: what a terminal sends to all of its group is ours to pass on.
            try:
                process = await trio.lowlevel.open_process(
                    [sys.executable, *sys.orig_argv[1:]],
                    env={**os.environ, **self._environment, **handed},
                    pass_fds=[*self._listening, theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:  # too many processes, too little memory
                raise ChildFailed(f"a server process can't be started: {error.strerror}") from error
            theirs.close()
            ready = trio.Event()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell_ready, pair, ready, up)
                    nursery.start_soon(self._end, process, pair, drain)
                    status = await process.wait()
                    nursery.cancel_scope.cancel()
            finally:
                if process.returncode is None:
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()  # killed: it does end
        return status, ready.is_set()

    async def _tell_ready(
        self, pair: trio.socket.SocketType, ready: trio.Event, up: Callable[[], object]
    ) -> None:
        if await pair.recv(1):
            ready.set()
            up()

    async def _end(
        self, process: trio.Process, pair: trio.socket.SocketType, drain: trio.Event
    ) -> None:
        await drain.wait()
        pair.shutdown(socket.SHUT_WR)
        process.send_signal(signal.SIGTERM)  # for one that does not listen to us yet
        await trio.sleep(self._grace_s + KILL_AFTER_S)
        log.error("process_killed", number=self._number)
        process.kill()
