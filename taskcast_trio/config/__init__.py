"""Configuration: one tree of types, filled from flags, environment, file and defaults."""

from __future__ import annotations

from taskcast_trio.config.available import require_available
from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.loader import Loaded, load_config
from taskcast_trio.config.schema import (
    Auth,
    Config,
    Cors,
    Fanout,
    Jwt,
    Limits,
    Server,
    Sse,
    TrustedService,
    Workers,
)
from taskcast_trio.config.secret import Secret, SecretUrl

__all__ = [
    "Auth",
    "Config",
    "ConfigError",
    "Cors",
    "Fanout",
    "Jwt",
    "Limits",
    "Loaded",
    "Secret",
    "SecretUrl",
    "Server",
    "Sse",
    "TrustedService",
    "Workers",
    "load_config",
    "require_available",
]
