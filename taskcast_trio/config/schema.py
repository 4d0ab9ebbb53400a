"""The configuration as types: every key, its default and its limits.

The names of the wire (``camelCase``), of the environment and of the command line all derive from
these fields (see :mod:`taskcast_trio.config.keys`). Times have their unit in the name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args, get_type_hints

from msgspec import Meta, Struct

from taskcast_trio.config.secret import Secret, SecretUrl

Count: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Ms: TypeAlias = Annotated[int, Meta(ge=1, le=31_536_000_000)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=31_536_000)]
SecondsOrZero: TypeAlias = Annotated[float, Meta(ge=0, le=31_536_000)]
Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
LogLevel: TypeAlias = Literal["debug", "info", "warn", "error"]
LogFormat: TypeAlias = Literal["auto", "json", "text"]
Storage: TypeAlias = Literal["memory", "redis", "sqlite"]


class Section(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of every part of the configuration."""

    def __post_init__(self) -> None:
        """Refuse (TypeError) a secret given as plain text, which whoever reads it would trip over
        later, and elsewhere. It is not shown.
        """
        for name in self.__struct_fields__:
            if isinstance(getattr(self, name), str) and (kind := _secret_of(type(self), name)):
                section = type(self).__name__
                raise TypeError(f"{section}.{name} is a secret: {name}={kind.__name__}(...)")


def _secret_of(section: type[Section], name: str) -> type[Secret] | None:
    hint = get_type_hints(section)[name]
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, Secret)), None)


class Jwt(Section, frozen=True):
    algorithm: Literal["HS256", "HS384", "HS512", "RS256", "ES256", "ES384", "ES512", "EdDSA"] = (
        "HS256"
    )
    """The one algorithm that is accepted."""
    secret: Secret | None = None
    """For HS256, HS384 and HS512: at least 32 bytes."""
    public_key: Secret | None = None
    """For the others: a PEM text. Hidden like a secret, since a private key pasted here by mistake
    would be one."""
    public_key_file: str | None = None
    """A file with that PEM text."""
    jwks_file: str | None = None
    """A file with a JSON Web Key Set."""
    jwks_url: SecretUrl | None = None
    """Where a JSON Web Key Set is fetched from."""
    jwks_cache_seconds: Seconds = 300.0
    """How long a fetched set is used before it is fetched again."""
    leeway_seconds: SecondsOrZero = 0.0
    """Forgiven to clocks that disagree about ``exp`` and ``nbf``."""
    require: tuple[str, ...] = ()
    """Claims that a token must have."""
    issuer: str | None = None
    """What ``iss`` has to be, if given."""
    audience: str | None = None
    """What ``aud`` has to be, or to hold, if given."""


class Auth(Section, frozen=True):
    mode: Literal["none", "jwt", "custom"] = "none"
    """Who may call: none, everybody, and then only this machine can; jwt, whoever has a token;
    custom, whoever a callable of yours says."""
    custom: str | None = None
    """That callable, as ``module:callable``."""
    custom_timeout_seconds: Seconds = 10.0
    """How long it may take; then the request is a 503."""
    stream_expiry_grace_seconds: SecondsOrZero = 60.0
    """How long a stream may go on after the token that opened it has expired."""
    jwt: Jwt = Jwt()


class TrustedService(Section, frozen=True):
    name: str
    """By what logs and limits know it."""
    key: Secret
    """What it sends as ``X-Taskcast-Service-Key``."""
    scope: tuple[str, ...] = ()
    """Its scopes, as a token has them."""
    task_ids: tuple[str, ...] | Literal["*"] | None = None
    """The tasks it is limited to; without, or with ``*``, all."""


class WorkerDefaults(Section, frozen=True):
    heartbeat_interval_ms: Ms = 30_000
    """How often a worker is to give a sign of life; at least three times within the timeout."""
    heartbeat_timeout_ms: Ms | None = None
    """After what silence it counts as lost. Without: three times the interval, at least 90000."""
    offer_timeout_ms: Ms = 10_000
    """How long a worker that is asked may think before the next one is."""
    disconnect_policy: Literal["reassign", "mark", "fail"] = "reassign"
    """What becomes of the tasks of a lost worker: they are handed on, only marked, or failed."""
    disconnect_grace_ms: Ms = 30_000
    """How long a lost worker has to come back before that."""
    assign_mode: Literal["external", "pull", "ws-offer", "ws-race"] = "external"
    """Of tasks that do not say."""


class Workers(Section, frozen=True):
    enabled: bool = False
    """Whether there are the routes under ``/workers``, and tasks are handed out."""
    defaults: WorkerDefaults = WorkerDefaults()


class BroadcastAdapter(Section, frozen=True):
    provider: Literal["memory", "redis"] | None = None
    """Has no effect: each storage brings its own."""
    url: SecretUrl | None = None
    """The same as ``redis.url``."""


class ShortTermAdapter(Section, frozen=True):
    provider: Storage | None = None
    """The same as ``storage``."""
    url: SecretUrl | None = None
    """The same as ``redis.url``."""
    path: str | None = None
    """The same as ``dbPath``."""


class LongTermAdapter(Section, frozen=True):
    provider: Literal["postgres"] | None = None
    """Needs the URL."""
    url: SecretUrl | None = None
    """The same as ``postgres.url``."""


class Adapters(Section, frozen=True):
    """The older way to name stores; loading folds it into storage, redis, postgres and dbPath."""

    broadcast: BroadcastAdapter = BroadcastAdapter()
    short_term_store: ShortTermAdapter = ShortTermAdapter()
    long_term_store: LongTermAdapter = LongTermAdapter()


class Redis(Section, frozen=True):
    url: SecretUrl | None = None
    """Selects storage redis by itself. Also ``rediss://``,
    ``redis+sentinel://host:port,host:port/service/0`` and ``redis+cluster://host:port,host:port``.
    """
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
    """Turns the archive on."""
    max_connections: Count = 10
    """Of each process."""
    timeout_seconds: Seconds = 5.0
    """For an answer of the database, the wait for a free connection included."""


class StorageLifecycle(Section, frozen=True):
    hot_retention_enabled: bool = True
    """Whether a task that has ended and is archived leaves the short-term store."""
    hot_retention_terminal_seconds: Seconds = 86_400.0
    """How long after its end."""
    hot_retention_idle_seconds: Seconds = 86_400.0
    """Without effect in this version."""
    rehydrate_replay_events: Count = 1000
    """Without effect in this version."""
    storage_lock_ttl_seconds: Seconds = 30.0
    """Without effect in this version."""
    ttl_sweep_interval_seconds: Seconds = 60.0
    """Without effect in this version."""
    ttl_sweep_batch_size: Count = 100
    """Without effect in this version."""


class Cleanup(Section, frozen=True):
    rules: tuple[dict[str, Any], ...] = ()
    """What is removed of tasks that have ended, as in the README under Cleanup and retention."""


class Retry(Section, frozen=True):
    retries: Annotated[int, Meta(ge=0, le=100)] = 3
    """How often an event is tried again."""
    backoff: Literal["fixed", "linear", "exponential"] = "exponential"
    """How the wait grows from try to try."""
    initial_delay_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 1000
    """The first wait."""
    max_delay_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 30_000
    """The longest."""
    timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] = 5000
    """Of one try as a whole."""


class Webhook(Section, frozen=True):
    default_retry: Retry = Retry()
    """For what the ``retry`` of a webhook does not say."""
    allow_private: bool | None = None
    """Whether receivers may be on this machine and in private networks. Without: while
    ``auth.mode`` is none."""
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
    """Of a request's body; NDJSON is limited by its lines. Beyond it 413."""
    import_bytes: Count = 67_108_864
    """Of the body of ``POST /tasks/import``."""
    batch_events: Count = 1000
    """Of one request, or one WebSocket message."""
    json_depth: Annotated[int, Meta(ge=1, le=512)] = 128
    """How deep a body may be nested."""
    connections: Count = 10_000
    """Open at once, of each process; what is over is closed. Lowered to what the limit of open
    files leaves room for."""
    header_bytes: Annotated[int, Meta(ge=1024, le=1_048_576)] = 32_768
    """Of a request's head; beyond it 431."""
    requests_per_second: Count = 100_000
    """Of one caller: a subject, a service, or else an address. As many may come at once."""
    tickets_per_second: Count = 100
    """That one caller may make."""
    streams: Count = 50_000
    """Open at once in one process, as they take its memory; so with those of one caller."""
    streams_per_caller: Count = 20_000
    """Of one caller."""
    task_events: Count = 10_000_000
    """In the log of one task."""
    task_bytes: Annotated[int, Meta(ge=1024, le=1 << 50)] = 1 << 30
    """Of the data of one task's events, as stored."""
    task_subscribers: Count = 20_000
    """Over all processes."""
    workers: Count = 10_000
    """Registered at once, over all processes; who has left counts while its tasks wait for it. More
    are refused (429), those that are known may come back."""


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
    """Silence after which a stream of a task is sent a comment."""
    retry_ms: Ms = 2000
    """After what time clients are told to come back when a stream breaks."""
    global_keepalive_seconds: Seconds = 30.0
    """Silence after which ``GET /events`` sends a keepalive."""


class Server(Section, frozen=True):
    write_timeout_seconds: Seconds = 30.0
    """How long a peer may take for 64 KiB before it is cut."""
    header_timeout_seconds: Seconds = 10.0
    """How long the head of a request may take."""
    body_timeout_seconds: Seconds = 10.0
    """How long a whole body may take; then 408. NDJSON may take its time."""
    keep_alive_timeout_seconds: Seconds = 10.0
    """How long an idle connection is kept."""
    grace_seconds: Seconds = 10.0
    """How long a drain may take after SIGTERM."""
    backlog: Count = 4096
    """Connections that may wait to be accepted."""
    http2: bool = False
    """Over TLS only."""
    cert_file: str | None = None
    """A PEM file; with the key's it turns TLS on."""
    key_file: str | None = None
    """Its private key, a PEM file."""


class Cors(Section, frozen=True):
    origins: tuple[str, ...] = ()
    """Those of other sites whose pages may call, as ``https://app.example``, or ``*``. Without: no
    CORS headers at all."""
    credentials: bool = False
    """Whether browsers may send cookies; not with origin ``*``."""
    headers: tuple[str, ...] = (
        "authorization",
        "content-type",
        "idempotency-key",
        "last-event-id",
    )
    """Header fields that another origin's page may send."""


class Fanout(Section, frozen=True):
    channel_batches: Count = 64
    """Committed batches that may wait for one subscriber before it falls back to replay."""


class Config(Section, frozen=True):
    """The whole configuration. ``Config()`` is a working default; ``repr`` shows no secret."""

    port: Port = 3721
    """To listen on; 0 takes a free one."""
    host: str | None = None
    """Address to listen on. Without: 127.0.0.1 while ``auth.mode`` is none, else all interfaces."""
    log_level: LogLevel = "info"
    """What is logged: this and what weighs more."""
    log_format: LogFormat = "auto"
    """How a line looks: as JSON, or as text for a person. auto: text on a terminal, else JSON."""
    http: Literal["httptools", "h11"] = "httptools"
    """Who parses HTTP/1.1: httptools, the fast one, or h11 through Hypercorn's own protocol."""
    processes: Annotated[int, Meta(ge=1, le=256)] = 1
    """Server processes on the one port; more than one needs storage redis."""
    storage: Storage = "memory"
    """Where tasks are kept until they are archived, if they are."""
    require_durable: bool = False
    """Whether to refuse a store that loses what it acknowledged when its machine restarts."""
    db_path: str = "./taskcast.db"
    """The file of storage sqlite."""
    admin_api: bool = False
    """Whether there are the routes under ``/admin``."""
    admin_token: Secret | None = None
    """What they ask for. Without, one is made at each start, and shown."""
    auto_migrate: bool = False
    """Whether the start brings the schema of PostgreSQL up to date."""
    auth: Auth = Auth()
    trusted_services: tuple[TrustedService, ...] = ()
    """Services that are known by a key: a list of ``name``, ``key``, ``scope`` and ``taskIds``."""
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
