"""Where a worker's tokens come from."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from taskcast_trio.client import ServerUnavailable
from taskcast_trio.client.async_port import AsyncToken

from .options import checked_token

GetToken: TypeAlias = Callable[[], str | Awaitable[str]]

GET_S: Final = 30.0

log = logging.getLogger(__name__)


def checked_source(token: AsyncToken) -> AsyncToken:
    """What a worker shows: a text, or a function that is asked for one.

    Raises:
        ValueError: no header can hold the text.
    """
    return Tokens(token) if callable(token) else checked_token(token)


class Tokens:
    """A function that gets tokens, as a worker asks it.

    What it raises is told as a server that can't be had: the first time that is final, as it is
    rather a mistake than an outage; later it is asked again, as handlers are at work.
    """

    def __init__(self, get: GetToken) -> None:
        self._get = get
        self._had_one = False

    async def __call__(self) -> str:
        """A new token.

        Raises:
            ServerUnavailable: there is none, now. What the function said may hold secrets, so only
                the type of its error is told; the error is the cause.
        """
        try:
            with trio.fail_after(GET_S):
                found = self._get()
                token = await found if inspect.isawaitable(found) else found
            if not isinstance(token, str):
                raise TypeError("a token is a text")
            checked_token(token)
        except Exception as error:  # whatever it is, it is the caller's function's
            name = type(error).__name__
            log.warning("The function that gets tokens failed: %s", name)
            failure = ServerUnavailable(f"No token: the function that gets them raised {name}")
            failure.sent = False
            failure.retryable = self._had_one  # type: ignore[misc]
            raise failure from error
        self._had_one = True
        return token
