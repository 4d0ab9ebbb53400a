"""The three ways to use a client, behind one: a scenario is written once, with ``await``, and
played on Trio, on asyncio, and with the synchronous client, where nothing waits in an event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import anyio

from taskcast_trio.client import AsyncTaskcastClient, Subscription, TaskcastClient, assemble
from taskcast_trio.client.assembling import Assembly

Name: TypeAlias = Literal["trio", "asyncio", "sync"]
NAMES: tuple[Name, ...] = ("trio", "asyncio", "sync")
Scenario: TypeAlias = Callable[[AsyncTaskcastClient], Awaitable[None]]

_CONTEXTS = frozenset({"subscribe", "subscribe_all", "run", "publisher"})


class Awaited:
    """A synchronous object with the face of an asynchronous one."""

    def __init__(self, of: Any) -> None:
        object.__setattr__(self, "of", of)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.of, name)
        if not callable(found):
            return found
        if name in _CONTEXTS:
            return lambda *args, **kwargs: Awaited(found(*args, **kwargs))

        async def method(*args: Any, **kwargs: Any) -> Any:
            return found(*args, **kwargs)

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.of, name, value)

    async def __aenter__(self) -> Awaited:
        self.of.__enter__()
        return self

    async def __aexit__(self, *exc: Any) -> Any:
        return self.of.__exit__(*exc)

    def __aiter__(self) -> Awaited:
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self.of)
        except StopIteration:
            raise StopAsyncIteration from None


def assembled(stream: Subscription) -> Assembly:
    """`assemble`, of whichever client."""
    if isinstance(stream, Awaited):
        return cast(Assembly, Awaited(assemble(stream.of)))
    return assemble(stream)


@dataclass(frozen=True)
class Flavour:
    name: Name

    @property
    def is_async(self) -> bool:
        return self.name != "sync"

    def play(self, url: str, scenario: Scenario, **options: Any) -> None:
        """Run a scenario with a client of the server at ``url``."""
        if self.is_async:
            played = partial(_with_client, url, scenario, options)
            # Where trio-asyncio is loaded, asyncio.run() would run on it.
            real = {"loop_factory": asyncio.SelectorEventLoop} if self.name == "asyncio" else {}
            anyio.run(played, backend=self.name, backend_options=real)
            return
        with TaskcastClient(url, **options) as client:
            finish(scenario(cast(AsyncTaskcastClient, Awaited(client))))


async def _with_client(url: str, scenario: Scenario, options: dict[str, Any]) -> None:
    with anyio.fail_after(120):
        async with AsyncTaskcastClient(url, **options) as client:
            await scenario(client)


def finish(scenario: Awaitable[None]) -> None:
    """Run to its end what never waits."""
    try:
        cast(Coroutine[Any, Any, None], scenario).send(None)
    except StopIteration:
        return
    raise AssertionError("the synchronous client has waited in an event loop")
