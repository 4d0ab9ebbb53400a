"""A server in a thread, beside a program that does not run on Trio.

::

    with background() as url:
        ...

The thread has a Trio loop of its own and shares nothing with whoever starts it: a site on Django,
FastAPI or Flask, a notebook, a test.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final

import anyio
import anyio.to_thread
import trio

from taskcast_trio.config import Config, ConfigError, require_available
from taskcast_trio.engine import open_runtime
from taskcast_trio.storage.records import StoreRefused

from .app import create_app
from .auth.custom import Authenticate
from .causes import sole_cause
from .connection import GuardStats
from .options import reachable, serve_options
from .outer_life import OuterLife
from .serve import serve
from .target import ASGIApp, Receive, Scope, Send

START_S: Final = 60.0
"""How long stores and application may take to start."""
CLOSE_S: Final = 15.0
"""How long, after the grace period, the runtime may take to close: webhooks, archive, stores."""
CUT_S: Final = 10.0
"""How long the end may take when it is no longer an orderly one."""


class Background:
    """A server in a thread of its own; see :func:`background`.

    Where there is no place for a ``with``, ``start()`` and ``stop()`` do the same, or ``around()``
    for an ASGI application. One serves once.
    """

    def __init__(
        self, config: Config | None = None, *, authenticate: Authenticate | None = None
    ) -> None:
        self.config = Config(port=0) if config is None else config
        self._authenticate = authenticate
        self._url: str | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._ready = threading.Event()
        self._unwanted = threading.Event()
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._drain: trio.Event | None = None

    @property
    def url(self) -> str:
        """Where it listens, with the port it has.

        Raises:
            RuntimeError: it was not started.
        """
        if self._url is None:
            raise RuntimeError("the server was not started")
        return self._url

    def start(self) -> str:
        """Start the server, and return its URL when it takes requests.

        It ends with the interpreter, where ``stop()`` does not come before.

        Raises:
            ConfigError: the configuration can't be used, or not in a thread.
            OSError: the address can't be listened on.
            StoreRefused: a store can't be used as it is configured.
            TimeoutError: it has not started within 60 s.
            RuntimeError: it was started before.
        """
        if self._thread is not None:
            raise RuntimeError("the server was started before: make another one")
        require_available(self.config)
        if self.config.processes > 1:
            raise ConfigError("processes: a thread is one; taskcast-trio runs several")
        self._pid = os.getpid()
        # A daemon, so that an end that hangs is not the program's.
        self._thread = threading.Thread(target=self._run, name="taskcast-trio", daemon=True)
        self._thread.start()
        try:
            if not self._ready.wait(START_S):
                raise TimeoutError(f"the server has not started within {START_S:g} s")
        except BaseException:
            self._cut()
            raise
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        atexit.register(self.stop)
        return self.url

    def stop(self) -> None:
        """End the server in an orderly way, and return when it has ended.

        Streams end cleanly, requests in flight are answered. It takes ``server.graceSeconds`` and
        25 s more at the very most. In a process that was forked from the one that started it, it
        does nothing; nor does it a second time.

        Raises:
            Exception: what the server crashed with, if it did.
            TimeoutError: it hangs. Its thread is left behind.
        """
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return
        atexit.unregister(self.stop)
        if self._drain is not None:
            self._tell(self._drain.set)
        thread.join(self.config.server.grace_seconds + CLOSE_S)
        if thread.is_alive():
            self._cut()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def around(self, app: ASGIApp) -> ASGIApp:
        """An ASGI application that is ``app``, with this server up for as long as its lifespan.

        For asyncio and Trio, and for applications without a lifespan, as those of Django. What
        keeps the server from starting is the application's failure to start.
        """

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            life = OuterLife(await receive(), receive, send)
            try:
                await anyio.to_thread.run_sync(self.start)
            except (ConfigError, StoreRefused, OSError) as error:
                reason = ": ".join([*getattr(error, "__notes__", ()), str(error)])
                await send({"type": "lifespan.startup.failed", "message": reason})
                return
            try:
                await life.of(app, scope)
            finally:
                with anyio.CancelScope(shield=True):  # stop() has a deadline of its own
                    await anyio.to_thread.run_sync(self.stop)
            if life.end is not None:
                await send(life.end)

        return application

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _cut(self) -> None:
        self._unwanted.set()
        self._tell(self._scope.cancel)
        assert self._thread is not None
        self._thread.join(CUT_S)
        if self._thread.is_alive():
            raise TimeoutError("the server does not end: its thread is left behind")

    def _tell(self, step: Callable[[], object]) -> None:
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(step)

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: ASYNC103 - raised where it is started or stopped
            self._failure = sole_cause(error)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            if self._unwanted.is_set():
                return
            async with open_runtime(self.config) as runtime, trio.open_nursery() as nursery:
                stats = GuardStats()
                app = create_app(runtime, stats=stats, authenticate=self._authenticate)
                options = serve_options(self.config)
                serving = partial(serve, app, options, drain=runtime.drain, stats=stats)
                try:
                    urls: list[str] = await nursery.start(serving)
                except OSError as error:
                    error.add_note(f"listening on {options.host}, port {options.port}")
                    raise
                self._drain = runtime.drain
                self._url = reachable(urls[0])
                self._ready.set()


def background(
    config: Config | None = None, *, authenticate: Authenticate | None = None
) -> Background:
    """A server in a thread, for as long as the context: ``with background(...) as url``.

    Without a configuration it is in memory, on 127.0.0.1 and a free port; with one, that says all.
    ``authenticate`` finds the caller of a request where ``auth.mode`` is ``custom``; it runs in
    the server's thread, on Trio.

    Entering returns when the server takes requests, and raises why it can't; leaving drains it. No
    signal handler is installed. A crash of the server is raised on leaving. A fork has no server of
    its own: start it after, not before.
    """
    return Background(config, authenticate=authenticate)
