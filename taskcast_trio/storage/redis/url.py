"""Where a URL says that Redis is: one server, a service that Sentinels watch, or a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from redis.asyncio.connection import SSLConnection, parse_url

DEFAULT_PORTS: Final = {"sentinel": 26379, "cluster": 6379}
_YES_OR_NO: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Target:
    """``options`` are those of a connection, with the password: not to be shown."""

    kind: Literal["server", "sentinel", "cluster"]
    where: str
    """Without credentials."""
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)


def target_of(url: str) -> Target:
    """The place that ``url`` names.

    ``redis://``, ``rediss://`` (TLS) and ``unix://`` are as redis-py has them;
    ``redis+sentinel://host:port,host:port/service/db`` and ``redis+cluster://host:port,host:port``
    name several hosts (``rediss+...`` with TLS); a user and password before them are those of
    Redis, ``?sentinel_username=`` and ``?sentinel_password=`` those of the Sentinels. These have
    TLS where Redis has, unless ``?sentinel_ssl=`` says otherwise; ``ssl_...`` options are those of
    both.

    Raises:
        ValueError: the URL is none of these; the message does not repeat it.
    """
    scheme, found, _ = url.partition("://")
    if not found:
        raise ValueError("a Redis URL begins with redis://")
    plain, _, kind = scheme.partition("+")
    if scheme in ("redis", "rediss", "unix"):
        return _server(url)
    if plain not in ("redis", "rediss") or kind not in DEFAULT_PORTS:
        raise ValueError(
            "a Redis URL begins with redis://, rediss://, unix://, redis+sentinel:// or"
            " redis+cluster://"
        )
    try:
        parts = urlsplit(url)
        userinfo, _, hosts = parts.netloc.rpartition("@")
        addresses = tuple(_address(host, DEFAULT_PORTS[kind]) for host in hosts.split(","))
    except ValueError:
        raise ValueError("the Redis URL has a port that is none") from None
    user, _, password = userinfo.partition(":")
    options: dict[str, Any] = {}
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    path = [unquote(part) for part in parts.path.split("/") if part]
    tls = {"ssl": True, **_tls_options(query)}
    if plain == "rediss":
        options |= tls
    if kind == "cluster":
        return Target("cluster", f"cluster at {hosts}", addresses, options=options)
    if not path:
        raise ValueError("a Sentinel URL names its service: redis+sentinel://host:port/service/db")
    db = path[1] if len(path) > 1 else "0"
    if not db.isascii() or not db.isdigit():
        raise ValueError("the database in the Redis URL is no number")
    sentinel: dict[str, Any] = {
        name: query[f"sentinel_{name}"]
        for name in ("username", "password")
        if f"sentinel_{name}" in query
    }
    if _says_yes(query.get("sentinel_ssl"), plain == "rediss"):
        sentinel |= tls
    return Target(
        "sentinel",
        f"{path[0]} (Sentinel at {hosts})",
        addresses,
        path[0],
        {**options, "db": int(db)},
        sentinel,
    )


def _server(url: str) -> Target:
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError:
        raise ValueError("the Redis URL is not valid") from None
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    if "path" in options:
        return Target("server", str(options["path"]), options=options)
    if options.get("connection_class") is SSLConnection:
        del options["connection_class"]
        options["ssl"] = True
    return Target("server", f"{host}:{port}", ((host, port),), options=options)


def _tls_options(query: dict[str, str]) -> dict[str, Any]:
    """What the query says of TLS, as redis-py has it of one server."""
    named = {name: value for name, value in query.items() if name.startswith("ssl_")}
    try:
        parsed = parse_url(f"rediss://h?{urlencode(named)}")
    except ValueError:
        raise ValueError("the Redis URL has an option with a value that is none") from None
    return {name: value for name, value in parsed.items() if name in named}


def _says_yes(text: str | None, default: bool) -> bool:
    if text is None:
        return default
    if text.lower() not in _YES_OR_NO:
        raise ValueError("sentinel_ssl in the Redis URL is neither true nor false")
    return _YES_OR_NO[text.lower()]


def _address(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or default
