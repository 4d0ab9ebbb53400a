"""From flags, environment and file to one checked :class:`Config` with the source of each value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from taskcast_trio.config import files
from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.keys import (
    CLIENT_ENV,
    ENV_ALIASES,
    ENV_PREFIX,
    KEYS,
    TEST_ENV_PREFIX,
    fields_of,
    is_section,
)
from taskcast_trio.config.schema import Config, Jwt, Section
from taskcast_trio.config.secret import Secret
from taskcast_trio.config.values import convert, parse_text, unknown
from taskcast_trio.core.addresses import AddressPolicy
from taskcast_trio.core.cleanup import parse_rules
from taskcast_trio.core.errors import BadRequest

S = TypeVar("S", bound=Section)

FOREIGN_KEYS: Final = frozenset({"sentry"})
"""Keys that files of other servers hold; known so that such files load."""

SHORT_SECRET: Final = 16
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ORIGIN: Final = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+")
WITHOUT_EFFECT: Final = (
    "storageLifecycle.hotRetentionIdleSeconds",
    "storageLifecycle.rehydrateReplayEvents",
    "storageLifecycle.storageLockTtlSeconds",
    "storageLifecycle.ttlSweepIntervalSeconds",
    "storageLifecycle.ttlSweepBatchSize",
)
"""Keys, or sections, that this version checks and does not act on."""


@dataclass(frozen=True, slots=True)
class Value:
    """A checked value and where it is from."""

    value: Any
    source: str


Layer = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What :func:`load_config` found.

    ``sources`` maps the dotted key of each value that was set to a name for its source; a key that
    is not in it has its default. ``warnings`` are lines for a person.
    """

    config: Config
    sources: Mapping[str, str]
    warnings: tuple[str, ...]
    file: Path | None


def load_config(
    *,
    path: Path | None,
    flags: Mapping[str, object],
    env: Mapping[str, str],
    cwd: Path,
    home: Path,
) -> Loaded:
    """Load the configuration: flag before environment before file before default.

    Args:
        path: the file to read; None looks in `cwd`, then in ``~/.taskcast``. Relative to `cwd`.
        flags: dotted keys to values, as text or typed; None means that the flag was not given.
        env: the environment: ``TASKCAST_*``, and what ``${NAME}`` in the file refers to. An empty
            ``TASKCAST_*`` variable counts as not set.
        cwd: the working directory.
        home: the home directory.

    Raises:
        ConfigError: one line naming the source, the key and the reason.
    """
    warnings: list[str] = []
    file = cwd / path if path is not None else files.find(cwd, home)
    used: frozenset[str] = frozenset()
    from_file: Layer = {}
    if file is not None:
        tree, used = files.interpolate(files.read(file), env, str(file))
        from_file = _file_layer(tree, str(file), warnings)
    else:
        ignored = [name for name in files.FOREIGN_NAMES if (cwd / name).is_file()]
        warnings += [f"{name} is not read: write it as YAML or JSON" for name in ignored]
    from_env = _env_layer(env, used, warnings)
    from_flags = _flag_layer(flags)

    merged: Layer = {}
    for layer in (from_file, from_env, from_flags):
        merged |= _fold_adapters(layer)
    config = _build(Config, "", merged)
    _check_together(config, merged)
    for key, value in merged.items():
        if any(key == name or key.startswith(f"{name}.") for name in WITHOUT_EFFECT):
            warnings.append(f"{value.source}: {key} has no effect in this version")
    warnings += _advice(config)
    sources = {key: value.source for key, value in merged.items()}
    broadcast = "redis" if config.storage == "redis" else "memory"
    if config.adapters.broadcast.provider not in (None, broadcast):
        key = "adapters.broadcast.provider"
        warnings.append(
            f'{sources[key]}: {key} has no effect: storage "{config.storage}" brings its own'
        )
    return Loaded(config, sources, tuple(warnings), file)


def _file_layer(tree: dict[str, Any], source: str, warnings: list[str]) -> Layer:
    layer: Layer = {}

    def walk(section: type[Section], mapping: dict[str, Any], prefix: str) -> None:
        fields = fields_of(section)
        for name, raw in mapping.items():
            path = f"{prefix}{name}"
            if path in FOREIGN_KEYS:
                warnings.append(f"{source}: {path} has no effect")
            elif name not in fields:
                raise ConfigError(f"{source}: {unknown(path, list(fields))}")
            elif raw is None:
                continue  # `auth:` with every line below it commented out
            elif is_section(annotation := fields[name][1]):
                if not isinstance(raw, dict):
                    raise ConfigError(f"{source}: {path}: expected a mapping of keys")
                walk(annotation, raw, f"{path}.")
            elif isinstance(raw, files.Interpolated):
                layer[path] = Value(parse_text(KEYS[path], str(raw), source), source)
            else:
                layer[path] = Value(convert(KEYS[path], raw, source), source)

    walk(Config, tree, "")
    return layer


def _env_layer(env: Mapping[str, str], used: frozenset[str], warnings: list[str]) -> Layer:
    names = {**{key.env: path for path, key in KEYS.items()}, **ENV_ALIASES}
    layer: Layer = {}
    for name in sorted(env, key=lambda name: (name in ENV_ALIASES, name)):
        source = f"environment variable {name}"
        if not name.startswith(ENV_PREFIX) or name in CLIENT_ENV | used:
            continue
        if name.startswith(TEST_ENV_PREFIX):
            continue
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            warnings.append(f"{source} is not known{hint}")
        elif not env[name]:
            warnings.append(f"{source} is empty and counts as not set")
        else:
            key = KEYS[names[name]]
            layer[key.path] = Value(parse_text(key, env[name], source), source)
    return layer


def _flag_layer(flags: Mapping[str, object]) -> Layer:
    layer: Layer = {}
    for path, raw in flags.items():
        if raw is not None:
            key = KEYS[path]
            is_text = isinstance(raw, str)
            value = parse_text(key, str(raw), key.flag) if is_text else convert(key, raw, key.flag)
            layer[path] = Value(value, key.flag)
    return layer


_ADAPTERS: Final = (
    ("adapters.shortTermStore.provider", "storage"),
    ("adapters.shortTermStore.url", "redis.url"),
    ("adapters.shortTermStore.path", "dbPath"),
    ("adapters.broadcast.url", "redis.url"),
    ("adapters.longTermStore.url", "postgres.url"),
)


def _fold_adapters(layer: Layer) -> Layer:
    """Give the older names of stores their newer ones; a Redis URL alone selects Redis."""
    folded = dict(layer)
    for old, new in _ADAPTERS:
        if old in layer:
            folded.setdefault(new, layer[old])
    if "redis.url" in folded:
        folded.setdefault("storage", Value("redis", folded["redis.url"].source))
    return folded


def _build(section: type[S], prefix: str, merged: Layer) -> S:
    values: dict[str, Any] = {}
    for wire, (attribute, annotation) in fields_of(section).items():
        path = f"{prefix}{wire}"
        if is_section(annotation):
            values[attribute] = _build(annotation, f"{path}.", merged)
        elif path in merged:
            values[attribute] = merged[path].value
    return section(**values)


def _check_together(config: Config, merged: Layer) -> None:
    """Refuse values that are each fine and do not go together."""

    def refuse(path: str, reason: str) -> None:
        raise ConfigError(f"{merged[path].source}: {path}: {reason}")

    server, cors = config.server, config.cors
    if config.storage == "redis" and config.redis.url is None:
        refuse("storage", "redis needs its URL: redis.url, --redis-url or TASKCAST_REDIS_URL")
    if config.processes > 1 and config.storage != "redis":
        refuse("processes", f'needs storage redis: "{config.storage}" is of one process')
    if config.require_durable and config.storage == "memory":
        refuse("requireDurable", 'storage "memory" keeps nothing')
    if server.cert_file and not server.key_file:
        refuse("server.certFile", "needs server.keyFile")
    if server.key_file and not server.cert_file:
        refuse("server.keyFile", "needs server.certFile")
    if server.http2 and not server.cert_file:
        refuse("server.http2", "needs TLS: server.certFile and server.keyFile")
    if cors.credentials and "*" in cors.origins:
        refuse("cors.credentials", 'cannot be with origin "*" (Fetch standard, section 3.3.5)')
    provider = config.adapters.long_term_store.provider
    if provider and not config.postgres.url:
        refuse("adapters.longTermStore.provider", "needs adapters.longTermStore.url")
    try:
        parse_rules(config.cleanup.rules)
    except BadRequest as error:
        raise ConfigError(f"{merged['cleanup.rules'].source}: {error}") from None
    names = [service.name for service in config.trusted_services]
    if len(set(names)) < len(names):
        refuse("trustedServices", "two services have one name")
    if len({service.key for service in config.trusted_services}) < len(names):
        refuse("trustedServices", "two services have one key")
    if not all(_SENDABLE.fullmatch(each.key.reveal()) for each in config.trusted_services):
        refuse("trustedServices", "a key that no header can carry: visible ASCII is needed")
    if not all(map(_ORIGIN.fullmatch, cors.origins)):
        refuse("cors.origins", 'expected "*" or origins like https://app.example, without a path')
    if not all(map(_TOKEN.fullmatch, cors.headers)):
        refuse("cors.headers", "expected names of header fields")
    for path, texts in (
        ("webhook.allow", config.webhook.allow),
        ("webhook.deny", config.webhook.deny),
    ):
        try:
            AddressPolicy.of(allow=texts)
        except ValueError as error:
            refuse(path, str(error))


def _advice(config: Config) -> Iterator[str]:
    """What is allowed and probably a mistake."""
    short = [each.name for each in config.trusted_services if _is_short(each.key)]
    if short:
        yield f"trustedServices: a key of less than {SHORT_SECRET} characters: {', '.join(short)}"
    if config.admin_token is not None and not config.admin_api:
        yield "adminToken has no effect without adminApi"
    elif config.admin_token is not None and _is_short(config.admin_token):
        yield f"adminToken has less than {SHORT_SECRET} characters"
    if config.auth.mode != "jwt" and config.auth.jwt != Jwt():
        yield f'auth.jwt has no effect: auth.mode is "{config.auth.mode}"'
    if config.auth.mode == "custom" and config.auth.custom is None:
        yield "auth.custom names no callable: everybody is refused"


def _is_short(secret: Secret) -> bool:
    return len(secret.reveal()) < SHORT_SECRET
