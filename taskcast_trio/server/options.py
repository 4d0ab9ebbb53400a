"""From a configuration to how the server listens."""

from __future__ import annotations

from typing import Final

from taskcast_trio.config import Config
from taskcast_trio.server.serve import ServeOptions

BODY_PAUSE_S: Final = 30.0
"""At least: where the time of the whole body is shorter, it is the application that answers."""


def serve_options(config: Config, *, listening: tuple[int, ...] = ()) -> ServeOptions:
    """How a configuration asks to listen and what to bear with."""
    server = config.server
    return ServeOptions(
        host=config.listen_host,
        port=config.port,
        listening=listening,
        backlog=server.backlog,
        max_connections=config.limits.connections,
        write_timeout_s=server.write_timeout_seconds,
        header_timeout_s=server.header_timeout_seconds,
        body_pause_s=max(BODY_PAUSE_S, server.body_timeout_seconds),
        header_bytes=config.limits.header_bytes,
        keep_alive_timeout_s=server.keep_alive_timeout_seconds,
        grace_s=server.grace_seconds,
        certfile=server.cert_file,
        keyfile=server.key_file,
        http2=server.http2,
        http=config.http,
    )


def reachable(url: str) -> str:
    """A URL that is listened on, as a client on this machine writes it."""
    return url.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]")
