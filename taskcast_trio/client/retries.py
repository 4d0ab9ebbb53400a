"""When a call is tried again, and how the answer of one is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Generic, Literal, TypeAlias, TypeVar
from uuid import uuid4

from taskcast_trio.core.errors import NotFound, RateLimited, TaskcastError, Unauthorized

from .errors import ServerUnavailable, refusal
from .steps import Flow, Renew, Reply, Request, Send, Sleep

T = TypeVar("T")
Repeat: TypeAlias = Literal["safe", "keyed", "refused"]

KEY: Final = "Idempotency-Key"
JITTER: Final = 0.5
_MAX_DOUBLINGS: Final = 16


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, and after which pauses, a call is tried again.

    Only what may be repeated is: reads; writes that go with an idempotency key, which the client
    makes where it was given none; and what has not reached the server, or was refused for its rate.

    Args:
        tries: how many there are at most, the first included; 1 for no retries, and no keys.
        first_pause_s: the pause (s) before the second try; it doubles with each. Up to half as much
            again is added at random.
        max_pause_s: the longest that it becomes.
        max_retry_after_s: a server that asks, with ``Retry-After``, for a longer pause than this is
            not tried again.
    """

    tries: int = 4
    first_pause_s: float = 0.1
    max_pause_s: float = 5.0
    max_retry_after_s: float = 30.0

    def pause_s(self, failed: int, asked_s: float | None) -> float | None:
        """The pause after this many failed tries; None for no further try."""
        if failed >= self.tries or (asked_s or 0) > self.max_retry_after_s:
            return None
        pause_s = min(self.first_pause_s * 2.0 ** min(failed - 1, _MAX_DOUBLINGS), self.max_pause_s)
        return max(pause_s, asked_s or 0) * random.uniform(1, 1 + JITTER)


NO_RETRIES: Final = RetryPolicy(tries=1)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One thing to ask of the server.

    Args:
        request: what to send.
        read: what a good answer means.
        repeat: ``safe``: twice is as good as once; ``keyed``: with an idempotency key it is;
            ``refused``: only as long as the server has surely done nothing.
        task_id: the task that it is about, if any.
        removes: what it removes may be gone when it is repeated.
        also_good: a status beside the good ones whose answer is a result.
        final: errors that no further try helps against, for this one.
    """

    request: Request
    read: Callable[[Reply], T]
    repeat: Repeat
    task_id: str | None = None
    removes: bool = False
    also_good: int | None = None
    final: tuple[type[TaskcastError], ...] = ()


def answered(call: Call[T], policy: RetryPolicy) -> Flow[T]:
    """The result of a call, tried as often as the policy and its kind allow.

    Raises:
        TaskcastError: what the last try came to.
    """
    request, safe = call.request, call.repeat != "refused"
    if call.repeat == "keyed" and KEY not in request.headers and policy.tries > 1:
        request = replace(request, headers={**request.headers, KEY: uuid4().hex})
    failed, unknown, renewed = 0, False, False
    while True:
        try:
            reply: Reply = yield Send(request)
        except ServerUnavailable as error:
            failure: TaskcastError = error
            has_acted = error.sent
        else:
            if reply.good or reply.status == call.also_good:
                return call.read(reply)
            failure = refusal(reply, call.task_id)
            has_acted = failure.status >= 500
            if isinstance(failure, Unauthorized) and not renewed:
                renewed = True
                if (yield Renew(reply.token)):
                    continue
            if call.removes and unknown and isinstance(failure, NotFound):
                return call.read(reply)  # the try before has removed it
        failed += 1
        unknown = unknown or has_acted
        pause_s = policy.pause_s(failed, failure.retry_after_s)
        harmless = safe or (not has_acted and isinstance(failure, ServerUnavailable | RateLimited))
        can_help = failure.retryable and not isinstance(failure, call.final)
        if not can_help or not harmless or pause_s is None:
            raise failure
        try:
            yield Sleep(pause_s)
        except ServerUnavailable:
            raise failure from None
