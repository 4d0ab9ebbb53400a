"""Configuration: one tree of types, filled from flags, environment, file and defaults."""

from __future__ import annotations

from taskcast_trio.config.available import require_available
from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.loader import Loaded, load_config
from taskcast_trio.config.schema import (
    Auth,
    Cleanup,
    Config,
    Cors,
    Fanout,
    Jwt,
    Limits,
    Postgres,
    Publish,
    Redis,
    Retry,
    Server,
    Sqlite,
    Sse,
    StorageLifecycle,
    TrustedService,
    Webhook,
    WorkerDefaults,
    Workers,
)
from taskcast_trio.config.secret import Secret, SecretUrl

__all__ = [
    "Auth",
    "Cleanup",
    "Config",
    "ConfigError",
    "Cors",
    "Fanout",
    "Jwt",
    "Limits",
    "Loaded",
    "Postgres",
    "Publish",
    "Redis",
    "Retry",
    "Secret",
    "SecretUrl",
    "Server",
    "Sqlite",
    "Sse",
    "StorageLifecycle",
    "TrustedService",
    "Webhook",
    "WorkerDefaults",
    "Workers",
    "load_config",
    "require_available",
]
