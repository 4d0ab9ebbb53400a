"""Opening Redis as a backend: looked at once before anything is asked of it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from msgspec import Struct
from redis.exceptions import NoPermissionError, ResponseError

from taskcast_trio.core.errors import StoreUnavailable

from ..bridge import Bridge, bridge_or_own
from ..records import Durability, StoreLink, StoreRefused
from .broadcast import RedisBroadcast
from .commands import CONNECTIONS, Commands
from .errors import CONNECTION_ERRORS, refusal
from .keys import Keys
from .known import Known
from .nodes import Nodes, connect, cut, nodes_of
from .peers import RedisPeers
from .store import RedisStore
from .url import Target, target_of

OLDEST: Final = (6, 2)
SHARDED_SINCE: Final = (7, 0)
UNKNOWN: Final = "unknown"


class _Looked(Struct, frozen=True):
    version: str
    durability: Durability
    store_id: bytes
    sharded: bool


class RedisBackend:
    """A store in Redis, and the broadcast to every process that uses it."""

    provider = "redis"

    def __init__(self, commands: Commands, target: Target, looked: _Looked) -> None:
        known = Known()
        self._commands = commands
        self._target = target
        self.server_version = looked.version
        self.durability: Durability = looked.durability
        """``durable`` where Redis writes an append-only file: what it acknowledges survives its end
        (with ``appendfsync everysec``, but for the last second where the machine ends)."""
        self.store = RedisStore(commands, known, "SPUBLISH" if looked.sharded else "PUBLISH")
        self.broadcast = RedisBroadcast(
            commands, known, sharded=looked.sharded, store_id=looked.store_id
        )

    @property
    def peers(self) -> RedisPeers:
        return self.broadcast.peers

    def link(self) -> StoreLink:
        return StoreLink(
            commands="up" if self._commands.up else "down",
            pubsub=self.broadcast.state,
            server_version=self.server_version,
            kind=self._target.kind,
        )

    async def ping(self) -> None:
        """Return where Redis answers; else StoreUnavailable."""
        await self._commands.do(self._commands.plain(0, "PING"))


@asynccontextmanager
async def open_redis(
    url: str,
    *,
    prefix: str = "taskcast",
    bridge: Bridge | None = None,
    timeout_s: float = 5.0,
    connections: int = CONNECTIONS,
) -> AsyncIterator[RedisBackend]:
    """The Redis at ``url`` as a backend, open as long as the context.

    All keys and channels begin with ``prefix``. It shares the ``bridge`` that is given, else it has
    one of its own. A step that gets no answer within ``timeout_s`` raises StoreUnavailable. At most
    ``connections`` to each server carry steps; what waits at the same moment shares one. Leaving
    closes them and waits for no server.

    Raises:
        StoreRefused: the URL or the prefix is not valid, or there is no Redis there that can be
            used.
    """
    try:
        target, keys = target_of(url), Keys(prefix)
    except ValueError as error:
        raise StoreRefused(f"Redis can't be used: {error}") from None
    async with bridge_or_own(bridge) as loop:
        try:
            nodes = nodes_of(target, keys.stems)
        except (TypeError, ValueError, *CONNECTION_ERRORS):
            raise StoreRefused(
                "Redis can't be used: its URL has an option it does not know"
            ) from None
        commands = Commands(loop, nodes, keys, timeout_s=timeout_s, connections=connections)
        raised: Exception | None = None
        try:
            looked = await _look(commands, target)
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                await nursery.start(commands.run, name="redis commands")
                try:
                    yield RedisBackend(commands, target, looked)
                except Exception as error:
                    raised = error
                nursery.cancel_scope.cancel()
        finally:
            commands.close()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await loop.crossing("").run(nodes.close, lambda: None)
        if raised is not None:
            raise raised


async def _look(commands: Commands, target: Target) -> _Looked:
    """Connect once and see what is there."""
    looking = _Looking(commands.nodes, target, commands.keys.store)
    try:
        with trio.fail_after(commands.timeout_s):
            return await commands.crossing.run(looking.run, looking.cut)
    except trio.TooSlowError:
        why = f"Redis at {target.where} gave no answer in {commands.timeout_s:g} s"
    except (*CONNECTION_ERRORS, StoreUnavailable) as error:
        why = refusal(error, target.where, has_password="password" in target.options)
    raise StoreRefused(why)


class _Looking:
    """Runs on the asyncio side."""

    def __init__(self, nodes: Nodes, target: Target, store_key: str) -> None:
        self._nodes = nodes
        self._target = target
        self._store_key = store_key
        self._connection: Any = None

    def cut(self) -> None:
        if self._connection is not None:
            cut(self._connection)

    async def run(self) -> _Looked:
        await self._nodes.refresh()
        self._connection = self._nodes.connection(self._nodes.place_of(0))
        try:
            await connect(self._connection)
            await self._ask("PING")
            version = await self._version()
            if version != UNKNOWN and _numbers(version) < OLDEST:
                shown = ".".join(map(str, OLDEST))
                raise StoreRefused(
                    f"Redis at {self._target.where} is too old: {version}, {shown} is needed"
                )
            await self._ask("SET", self._store_key, secrets.token_hex(8), "NX")
            sharded = self._target.kind == "cluster" and _numbers(version) >= SHARDED_SINCE
            return _Looked(
                version=version,
                durability=await self._durability(),
                store_id=await self._ask("GET", self._store_key),
                sharded=sharded,
            )
        finally:
            cut(self._connection)

    async def _ask(self, *values: str) -> Any:
        await self._connection.send_command(*values, check_health=False)
        return await self._connection.read_response(disable_decoding=True)

    async def _version(self) -> str:
        try:
            return _fields(await self._ask("INFO", "server")).get("redis_version", UNKNOWN)
        except NoPermissionError:
            return UNKNOWN

    async def _durability(self) -> Durability:
        try:
            _, value = await self._ask("CONFIG", "GET", "appendonly")
            return "durable" if value == b"yes" else "volatile"
        except (ResponseError, ValueError):
            pass  # a managed Redis may forbid it, and tell all the same
        try:
            enabled = _fields(await self._ask("INFO", "persistence")).get("aof_enabled")
        except NoPermissionError:
            return "unknown"
        if enabled is None:
            return "unknown"
        return "durable" if enabled == "1" else "volatile"


def _fields(info: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, found, value in pairs if found}


def _numbers(version: str) -> tuple[int, int]:
    numbers = [int(part) if part.isdigit() else 0 for part in version.split(".")]
    major, minor = [*numbers, 0][:2]
    return major, minor
