"""Run the server in this process, from a loaded configuration to an exit status."""

from __future__ import annotations

import errno
import gc
import os
import secrets
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

import click
import msgspec
import structlog
import trio

from taskcast_trio import __version__
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.processes import ChildFailed, Inherited, inherited, supervise
from taskcast_trio.config import Config, Loaded, Secret
from taskcast_trio.engine.backends import open_stores
from taskcast_trio.engine.runtime import open_runtime
from taskcast_trio.logs import ACCESS_LOG, PlainLines, access_lines, setup_logging
from taskcast_trio.server.access import AccessLog
from taskcast_trio.server.app import create_app
from taskcast_trio.server.connection import GuardStats
from taskcast_trio.server.options import reachable, serve_options
from taskcast_trio.server.serve import StartupFailedError, run_until_signal, serve
from taskcast_trio.storage.records import StoreRefused

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_HUNG: Final = 70
FLUSH_EVERY_S: Final = 0.2
WATCHDOG_MARGIN_S: Final = 10.0
"""How long after the grace period a process that has not ended is ended without ceremony."""

PLAIN: Final = Out()
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
log = structlog.get_logger(__name__)


class CannotListen(Exception):
    """The server could not begin to serve; the text is one line for a person."""


def run(loaded: Loaded, out: Out = PLAIN) -> int:
    """Serve until SIGTERM or SIGINT and return the exit status: 0 after a drain, 1 on a failure.

    Nothing is raised for a failure: it is one line on stderr where its cause is plain (a port in
    use), else a log line with its traceback.
    """
    config, new_admin_token = with_admin_token(loaded.config)
    # What lives long is many small objects without cycles: looking for some among them costs more
    # than it finds. What the start has made stays.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    setup_logging(config.log_level, config.log_format, no_color=out.no_color)
    told = Told(loaded, out, new_admin_token)
    for line in loaded.warnings:
        log.warning("configuration", detail=line)
    if config.auth.mode == "none" and config.listen_host not in _LOOPBACK:
        log.warning("no authentication: whoever reaches the port may do anything")
    drained = False
    at_end = ExitStack()
    child = inherited()
    try:
        with at_end:
            if config.processes > 1 and child is None:
                drained = trio.run(_supervise, config, told)
            else:
                drained = trio.run(_serve, config, told, at_end, child)
    except* (CannotListen, ChildFailed, StoreRefused) as group:
        first = _first(group)
        if not (isinstance(first, ChildFailed) and first.said):
            click.echo(f"Error: {first}", err=True)
    except* Exception as group:
        log.critical("crashed", exc_info=group)
    return EXIT_OK if drained else EXIT_FAILED


async def _supervise(config: Config, told: Told) -> bool:
    """Run the processes that serve; whether all of them ended by draining."""
    token = told.new_admin_token
    environment = {} if token is None else {"TASKCAST_ADMIN_TOKEN": token}
    async with open_stores(config):
        pass  # they answer, so that no port is bound in vain
    try:
        return await supervise(
            config, serve_options(config), told.listening, environment=environment
        )
    except OSError as error:
        raise CannotListen(_explain(error, config.listen_host, config.port)) from error


async def _serve(config: Config, told: Told, at_end: ExitStack, child: Inherited | None) -> bool:
    """Serve, and return whether it ended by draining: False means that a second signal cut it."""
    options = serve_options(config, listening=child.listening if child else ())
    grace_s = config.server.grace_seconds
    drained = False
    async with open_runtime(config) as runtime:
        stats = GuardStats()
        lines = access_lines(config.log_level, config.log_format)
        app = AccessLog(
            create_app(runtime, stats=stats).asgi_app, lines or structlog.get_logger(ACCESS_LOG)
        )
        async with trio.open_nursery() as nursery:
            if lines is not None:
                nursery.start_soon(_flush, lines)
            if child is None:
                await nursery.start(_end_by_signal, runtime.drain, nursery.cancel_scope)
            else:
                await nursery.start(_drain_by_signal, runtime.drain)
                nursery.start_soon(_end_with_parent, child, runtime.drain)
            async with trio.open_nursery() as serving:
                # Beside serve, not around it: a drain may be over before this task has run.
                serving.start_soon(_watch_drain, runtime.drain, grace_s, at_end)
                try:
                    serving_app = partial(serve, app, options, drain=runtime.drain, stats=stats)
                    urls: list[str] = await serving.start(serving_app)
                except (OSError, StartupFailedError) as error:
                    raise CannotListen(_explain(error, options.host, config.port)) from error
                if child is None:
                    told.listening(urls)
                else:
                    child.ready()
            drained = True
            nursery.cancel_scope.cancel()
    log.info("stopped", drained=drained)
    return drained


async def _end_with_parent(child: Inherited, drain: trio.Event) -> None:
    await child.parent_gone()
    drain.set()


async def _flush(lines: PlainLines) -> None:
    try:
        while True:
            await trio.sleep(FLUSH_EVERY_S)
            lines.flush()
    finally:
        lines.flush()


async def _end_by_signal(
    drain: trio.Event, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    # Nothing runs between this and the first wait, before which the handlers are in place: a
    # signal that comes while the server starts drains it too.
    task_status.started()
    await run_until_signal(drain)
    log.warning("second signal: ending at once")
    scope.cancel()


async def _drain_by_signal(drain: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    """A child is ended at once by its parent only: see :func:`inherited`."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            drain.set()


async def _watch_drain(drain: trio.Event, grace_s: float, at_end: ExitStack) -> None:
    await drain.wait()
    log.info("draining", grace_s=grace_s)
    at_end.callback(arm_watchdog(grace_s + WATCHDOG_MARGIN_S).cancel)


def arm_watchdog(seconds: float, end: Callable[[int], object] = os._exit) -> threading.Timer:
    """End the process after `seconds`, whatever it hangs in: a thread needs no event loop.

    The timer is a daemon: it holds up no orderly end. The caller may cancel it.
    """

    def expire() -> None:
        os.write(2, b"taskcast-trio: still there after the grace period, ending\n")
        end(EXIT_HUNG)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    return timer


def with_admin_token(config: Config) -> tuple[Config, str | None]:
    """The configuration with an admin token, and that token where it had to be made."""
    if not config.admin_api or config.admin_token is not None:
        return config, None
    token = secrets.token_urlsafe(32)
    return msgspec.structs.replace(config, admin_token=Secret(token)), token


@dataclass(frozen=True)
class Told:
    """What is said when it listens."""

    loaded: Loaded
    out: Out
    new_admin_token: str | None

    def listening(self, urls: list[str]) -> None:
        if self.out.as_json:
            self.out.json(facts(self.loaded, urls, self.new_admin_token))
        else:
            click.echo(banner(self.loaded, urls, self.new_admin_token))


def facts(loaded: Loaded, urls: list[str], new_admin_token: str | None) -> dict[str, object]:
    """As :func:`banner`, for programs."""
    config = loaded.config
    found = {
        "version": __version__,
        "url": reachable(urls[0]),
        "listening": urls,
        "processes": config.processes,
        "storage": config.storage,
        "archive": config.postgres.url and str(config.postgres.url),
        "auth": config.auth.mode,
        "config": loaded.file and str(loaded.file),
        "docs": f"{reachable(urls[0])}/docs",
    }
    return found if new_admin_token is None else {**found, "adminToken": new_admin_token}


def banner(loaded: Loaded, urls: list[str], new_admin_token: str | None = None) -> str:
    """Say what is used and where it listens, in a few lines."""
    config = loaded.config
    here = reachable(urls[0])
    auth = "none (no token is asked for)" if config.auth.mode == "none" else config.auth.mode
    lines = [
        ("listening", ", ".join(urls)),
        *([] if config.processes == 1 else [("processes", f"{config.processes}")]),
        ("storage", _storage(config)),
        *([] if config.postgres.url is None else [("archive", f"{config.postgres.url}")]),
        ("auth", auth),
        ("config", str(loaded.file or "no file")),
        ("docs", f"{here}/docs"),
    ]
    if new_admin_token is not None:
        lines.append(("", f"admin token for this run, as adminToken has none: {new_admin_token}"))
    if config.host is None and config.auth.mode == "none":
        lines.insert(1, ("", "this machine only, while auth is none: --host opens it to others"))
    elif config.host is None:
        lines.insert(1, ("", "on all interfaces: --host limits it"))
    return "\n".join([f"taskcast-trio {__version__}", *(f"  {k:<11}{v}" for k, v in lines)])


def _storage(config: Config) -> str:
    if config.storage == "redis":
        return f"redis, {config.redis.url}, keys {config.redis.prefix}:*"
    if config.storage != "sqlite":
        survives = "nothing" if config.postgres.url is None else "what was archived"
        return f"memory ({survives} survives a restart)"
    survives = "power loss" if config.sqlite.synchronous == "full" else "kill -9"
    return f"sqlite, {config.db_path} (what was acknowledged survives {survives})"


def _explain(error: Exception, host: str, port: int) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.EADDRINUSE:
            return f"port {port} on {host} is in use; choose another with --port"
        reason = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        return f"cannot listen on {host}, port {port}: {reason}"
    return f"cannot start: {error}"


def _first(group: BaseExceptionGroup[CannotListen | ChildFailed | StoreRefused]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
