"""The configuration as types: every key, its default and its limits.

The names of the wire (``camelCase``), of the environment and of the command line all derive from
these fields (see :mod:`taskcast_trio.config.keys`). Times have their unit in the name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from taskcast_trio.config.secret import Secret, SecretUrl

Count: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Ms: TypeAlias = Annotated[int, Meta(ge=1, le=31_536_000_000)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=31_536_000)]
SecondsOrZero: TypeAlias = Annotated[float, Meta(ge=0, le=31_536_000)]
Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
LogLevel: TypeAlias = Literal["debug", "info", "warn", "error"]
Storage: TypeAlias = Literal["memory", "redis", "sqlite"]


class Section(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of every part of the configuration."""


class Jwt(Section, frozen=True):
    algorithm: Literal["HS256", "HS384", "HS512", "RS256", "ES256", "ES384", "ES512", "EdDSA"] = (
        "HS256"
    )
    secret: Secret | None = None
    public_key: Secret | None = None
    """PEM. Hidden like a secret, since a private key pasted here by mistake would be one."""
    public_key_file: str | None = None
    jwks_file: str | None = None
    jwks_url: SecretUrl | None = None
    jwks_cache_seconds: Seconds = 300.0
    leeway_seconds: SecondsOrZero = 0.0
    """Forgiven to clocks that disagree about ``exp`` and ``nbf``."""
    require: tuple[str, ...] = ()
    """Claims that a token must have."""
    issuer: str | None = None
    audience: str | None = None


class Auth(Section, frozen=True):
    mode: Literal["none", "jwt", "custom"] = "none"
    custom: str | None = None
    """``module:callable``: see :mod:`taskcast_trio.server.auth`."""
    custom_timeout_seconds: Seconds = 10.0
    stream_expiry_grace_seconds: SecondsOrZero = 60.0
    jwt: Jwt = Jwt()


class TrustedService(Section, frozen=True):
    name: str
    key: Secret
    scope: tuple[str, ...] = ()
    task_ids: tuple[str, ...] | Literal["*"] | None = None


class WorkerDefaults(Section, frozen=True):
    heartbeat_interval_ms: Ms = 30_000
    heartbeat_timeout_ms: Ms | None = None
    """None: three times the interval, at least 90000."""
    offer_timeout_ms: Ms = 10_000
    disconnect_policy: Literal["reassign", "mark", "fail"] = "reassign"
    disconnect_grace_ms: Ms = 30_000
    assign_mode: Literal["external", "pull", "ws-offer", "ws-race"] = "external"


class Workers(Section, frozen=True):
    enabled: bool = False
    defaults: WorkerDefaults = WorkerDefaults()


class BroadcastAdapter(Section, frozen=True):
    provider: Literal["memory", "redis"] | None = None
    url: SecretUrl | None = None


class ShortTermAdapter(Section, frozen=True):
    provider: Storage | None = None
    url: SecretUrl | None = None
    path: str | None = None


class LongTermAdapter(Section, frozen=True):
    provider: Literal["postgres"] | None = None
    url: SecretUrl | None = None


class Adapters(Section, frozen=True):
    """The older way to name stores; loading folds it into storage, redis, postgres and dbPath."""

    broadcast: BroadcastAdapter = BroadcastAdapter()
    short_term_store: ShortTermAdapter = ShortTermAdapter()
    long_term_store: LongTermAdapter = LongTermAdapter()


class Redis(Section, frozen=True):
    url: SecretUrl | None = None
    prefix: str = "taskcast"
    """Of every key, so that several servers can share one Redis and not meet."""
    max_connections: Count = 2
    """To each server. Steps that wait at one moment share a connection: more make smaller batches.
    """
    timeout_seconds: Seconds = 5.0
    """For an answer of Redis."""


class Sqlite(Section, frozen=True):
    synchronous: Literal["full", "normal"] = "full"
    """When a step is answered: full, after its fsync, so that it survives the loss of power;
    normal, before, so that it survives the death of the process only."""


class Postgres(Section, frozen=True):
    url: SecretUrl | None = None
    max_connections: Count = 10
    timeout_seconds: Seconds = 5.0
    """For an answer of the database, the wait for a free connection included."""


class StorageLifecycle(Section, frozen=True):
    hot_retention_enabled: bool = True
    hot_retention_terminal_seconds: Seconds = 86_400.0
    """How long a task that has ended and is archived stays in the short-term store."""
    hot_retention_idle_seconds: Seconds = 86_400.0
    rehydrate_replay_events: Count = 1000
    storage_lock_ttl_seconds: Seconds = 30.0
    ttl_sweep_interval_seconds: Seconds = 60.0
    ttl_sweep_batch_size: Count = 100


class Cleanup(Section, frozen=True):
    rules: tuple[dict[str, Any], ...] = ()
    """What is removed of tasks that have ended: see :mod:`taskcast_trio.core.cleanup`."""


class Retry(Section, frozen=True):
    retries: Annotated[int, Meta(ge=0, le=100)] = 3
    backoff: Literal["fixed", "linear", "exponential"] = "exponential"
    initial_delay_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 1000
    max_delay_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 30_000
    timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] = 5000
    """Of one try as a whole."""


class Webhook(Section, frozen=True):
    default_retry: Retry = Retry()
    """For what the ``retry`` of a webhook does not say."""
    allow_private: bool | None = None
    """Whether receivers may be on this machine and in private networks. None: while auth.mode is
    none."""
    allow: tuple[str, ...] = ()
    """Networks and hosts that may be connected to all the same: 10.1.0.0/16, hooks.internal,
    *.internal."""
    deny: tuple[str, ...] = ()
    """Networks and hosts that may not; these win."""
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 256
    """Tries at once."""
    per_host: Annotated[int, Meta(ge=1, le=10_000)] = 8
    """Of them to one host."""


class Limits(Section, frozen=True):
    body_bytes: Count = 1_048_576
    import_bytes: Count = 67_108_864
    batch_events: Count = 1000
    json_depth: Annotated[int, Meta(ge=1, le=512)] = 128
    connections: Count = 10_000
    header_bytes: Annotated[int, Meta(ge=1024, le=1_048_576)] = 32_768
    """Of a request's head; beyond it 431."""
    requests_per_second: Count = 100_000
    """Of one caller: a subject, a service, or else an address. As many may come at once."""
    tickets_per_second: Count = 100
    """That one caller may make."""
    streams: Count = 50_000
    """Open at once in one process, as they take its memory; so with those of one caller."""
    streams_per_caller: Count = 20_000
    task_events: Count = 10_000_000
    task_bytes: Annotated[int, Meta(ge=1024, le=1 << 50)] = 1 << 30
    """Of the data of one task's events, as stored."""
    task_subscribers: Count = 20_000
    """Over all processes."""


class Publish(Section, frozen=True):
    seq_hold_ms: Annotated[int, Meta(ge=0, le=600_000)] = 5000
    """How long an event of a publisher that counts them waits for those before it; 0: not at all.
    """
    held_per_task: Count = 100
    """Publishes that may wait so at one task, in one process."""
    held: Count = 1000
    """Publishes that may wait so in one process."""
    publishers_per_task: Count = 1000
    """That count their events."""


class Sse(Section, frozen=True):
    keepalive_seconds: Seconds = 15.0
    retry_ms: Ms = 2000
    global_keepalive_seconds: Seconds = 30.0
    """Silence after which ``GET /events`` sends a keepalive."""


class Server(Section, frozen=True):
    write_timeout_seconds: Seconds = 30.0
    header_timeout_seconds: Seconds = 10.0
    body_timeout_seconds: Seconds = 10.0
    keep_alive_timeout_seconds: Seconds = 10.0
    grace_seconds: Seconds = 10.0
    """How long a drain may take after SIGTERM."""
    backlog: Count = 4096
    http2: bool = False
    """Over TLS only."""
    cert_file: str | None = None
    key_file: str | None = None


class Cors(Section, frozen=True):
    origins: tuple[str, ...] = ()
    """Empty: no CORS headers at all."""
    credentials: bool = False
    headers: tuple[str, ...] = (
        "authorization",
        "content-type",
        "idempotency-key",
        "last-event-id",
    )


class Fanout(Section, frozen=True):
    channel_batches: Count = 64
    """Committed batches that may wait for one subscriber before it falls back to replay."""


class Config(Section, frozen=True):
    """The whole configuration. ``Config()`` is a working default; ``repr`` shows no secret."""

    port: Port = 3721
    host: str | None = None
    """None: see :attr:`listen_host`."""
    log_level: LogLevel = "info"
    http: Literal["httptools", "h11"] = "httptools"
    """Who parses HTTP/1.1: httptools, the fast one, or h11 through Hypercorn's own protocol."""
    processes: Annotated[int, Meta(ge=1, le=256)] = 1
    """Server processes on the one port; more than one needs storage redis."""
    storage: Storage = "memory"
    require_durable: bool = False
    """Whether to refuse a store that loses what it acknowledged when its machine restarts."""
    db_path: str = "./taskcast.db"
    admin_api: bool = False
    admin_token: Secret | None = None
    auto_migrate: bool = False
    auth: Auth = Auth()
    trusted_services: tuple[TrustedService, ...] = ()
    workers: Workers = Workers()
    adapters: Adapters = Adapters()
    redis: Redis = Redis()
    postgres: Postgres = Postgres()
    sqlite: Sqlite = Sqlite()
    storage_lifecycle: StorageLifecycle = StorageLifecycle()
    cleanup: Cleanup = Cleanup()
    webhook: Webhook = Webhook()
    limits: Limits = Limits()
    publish: Publish = Publish()
    sse: Sse = Sse()
    server: Server = Server()
    cors: Cors = Cors()
    fanout: Fanout = Fanout()

    @property
    def listen_host(self) -> str:
        """``host``, or while none is given: loopback as long as callers need no token, else all."""
        if self.host is not None:
            return self.host
        return "127.0.0.1" if self.auth.mode == "none" else "0.0.0.0"
