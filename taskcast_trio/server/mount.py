"""A whole server under a prefix of another ASGI application on Trio."""

from __future__ import annotations

import re
from typing import Final

import trio

from taskcast_trio.config import Config, ConfigError, require_available
from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.engine import Runtime, TaskEngine, open_runtime
from taskcast_trio.storage.records import StoreRefused

from .app import create_app
from .auth.custom import Authenticate
from .causes import sole_cause
from .outer_life import OuterLife
from .plain import refuse
from .target import ASGIApp, Receive, Scope, Send

_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")


class Mount:
    """ASGI middleware: what is under ``prefix`` is taskcast's, everything else the application's.

    ::

        app = QuartTrio(__name__)
        taskcast = app.asgi_app = Mount(app.asgi_app, "/follow")

    The stores and background tasks live as long as the lifespan of the application, around it: its
    start and end may use ``engine``. Where the server ends the lifespan, streams end. A server of
    Trio is needed (``hypercorn -k trio``, :func:`taskcast_trio.server.serve.serve`); beside an
    application on asyncio or WSGI, :func:`taskcast_trio.background` runs a server in a thread.

    Args:
        app: an ASGI 3 application, with or without lifespan.
        prefix: ``/follow``, for example.
        config: where and how things are kept, who may do what. How to listen is not looked at.
        authenticate: finds the caller of a request where ``auth.mode`` is ``custom``.

    Raises:
        ValueError: the prefix is not a path of plain segments.
    """

    def __init__(
        self,
        app: ASGIApp,
        prefix: str,
        config: Config | None = None,
        *,
        authenticate: Authenticate | None = None,
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f"not a prefix: {prefix!r}; expected one like /follow")
        self.prefix = prefix
        self.config = Config() if config is None else config
        self._app = app
        self._authenticate = authenticate
        self._runtime: Runtime | None = None
        self._mounted: ASGIApp | None = None

    @property
    def runtime(self) -> Runtime:
        """What is mounted, while the application is up.

        Raises:
            RuntimeError: it is not.
        """
        if self._runtime is None:
            raise RuntimeError("taskcast is not up: it is while the application's lifespan is")
        return self._runtime

    @property
    def engine(self) -> TaskEngine:
        """To create, publish and follow without HTTP. Raises as :attr:`runtime`."""
        return self.runtime.engine

    def drain(self) -> None:
        """Begin the end: readiness fails, streams end cleanly, new work is refused.

        For whoever knows of the end before the lifespan does: Hypercorn waits for streams first.
        """
        if self._runtime is not None:
            self._runtime.drain.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        inner = self._inner(scope)
        if inner is None:
            await self._app(scope, receive, send)
        elif self._mounted is None:
            away = StoreUnavailable("Taskcast is not up: the server has not run its lifespan")
            await refuse(inner, receive, send, away)
        else:
            await self._mounted(inner, receive, send)

    def _inner(self, scope: Scope) -> Scope | None:
        """The scope of a request under the prefix, else None."""
        root: str = scope.get("root_path", "")
        path: str = scope["path"]
        whole = root + self.prefix
        if path == whole:  # the page at the top of the mounted application
            raw: bytes | None = scope.get("raw_path")
            raw = None if raw is None else raw + b"/"
            return {**scope, "path": f"{path}/", "raw_path": raw, "root_path": whole}
        if path.startswith(f"{whole}/"):
            return {**scope, "root_path": whole}
        return None

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        startup = await receive()
        life = OuterLife(startup, receive, send)
        try:
            if not trio.lowlevel.in_trio_run():
                raise ConfigError(
                    "taskcast_trio.Mount needs a server on Trio, such as hypercorn -k trio; "
                    "beside one on asyncio: taskcast_trio.background()"
                )
            require_available(self.config)
            async with open_runtime(self.config) as runtime:
                app = create_app(runtime, authenticate=self._authenticate)
                self._runtime, self._mounted = runtime, app
                life.ending = runtime.drain.set
                try:
                    await life.of(self._app, scope)
                finally:
                    self._runtime = self._mounted = None
        except Exception as error:
            cause = sole_cause(error)
            if life.answered or not isinstance(cause, (ConfigError, StoreRefused)):
                raise
            await send({"type": "lifespan.startup.failed", "message": str(cause)})
            return
        if life.end is not None:
            await send(life.end)
