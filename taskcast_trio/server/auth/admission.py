"""Who may stay: long-lived connections end when the right to them does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import trio

from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import TokenExpired, TokenRevoked, Unauthorized

from .limits import Slot, StreamSlots

T = TypeVar("T")

REVOKED_S: Final = 60.0
"""How long a request may take from the look at its token to its admission."""
MAX_REVOKED: Final = 1000


def _expired() -> Unauthorized:
    return TokenExpired("The token has expired: come back with a new one")


def _revoked() -> Unauthorized:
    return TokenRevoked("The token has been revoked")


class Admission:
    """One connection that goes on for long: its place among the limits, and when it must end.

    It is to be closed by who opened it. ``deadline`` is on Trio's clock.
    """

    __slots__ = ("_admissions", "_slot", "_why", "caller", "deadline", "wake")

    def __init__(self, admissions: Admissions, slot: Slot, caller: Caller, deadline: float) -> None:
        self._admissions = admissions
        self._slot = slot
        self._why = _expired
        self.caller = caller
        self.deadline = deadline
        self.wake: Callable[[], None] | None = None
        """Called when the deadline has moved to now."""

    @property
    def over(self) -> bool:
        return self.deadline <= trio.current_time()

    @property
    def reason(self) -> Unauthorized:
        """Why it is over, to be raised once: with it goes what led there."""
        return self._why()

    def revoke(self) -> None:
        self._why = _revoked
        self.deadline = -math.inf
        if self.wake is not None:
            self.wake()

    async def during(self, async_fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """What ``async_fn(*args, **kwargs)`` returns; cancelled where this is over before.

        Raises:
            Unauthorized: so it was.
        """
        with trio.CancelScope(deadline=self.deadline) as scope:
            self.wake = scope.cancel
            return await async_fn(*args, **kwargs)
        raise self.reason

    def close(self) -> None:
        """Give the place free. Idempotent."""
        self._slot.close()
        self._admissions.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Admissions:
    """The long-lived connections of this process."""

    def __init__(self, slots: StreamSlots, *, clock_ms: Callable[[], int], grace_s: float) -> None:
        self._slots = slots
        self._clock_ms = clock_ms
        self._grace_s = grace_s
        self._open: set[Admission] = set()
        self._revoked: deque[tuple[float, Callable[[Caller], bool]]] = deque(maxlen=MAX_REVOKED)
        """What was revoked lately, and until when that is remembered."""

    def open(self, caller: Caller, key: str) -> Admission:
        """Admit one more connection of ``caller``, until ``grace_s`` after its token's expiry.

        Raises:
            TokenRevoked: its token was, since it was looked at.
            RateLimited: there are too many.
        """
        if self._revoked and self._was_revoked(caller):
            raise _revoked()
        slot = self._slots.open(key)
        deadline = math.inf
        if caller.expires_at is not None:
            left_s = caller.expires_at + self._grace_s - self._clock_ms() / 1000
            deadline = trio.current_time() + left_s
        admission = Admission(self, slot, caller, deadline)
        if not caller.open:
            self._open.add(admission)
        return admission

    def _was_revoked(self, caller: Caller) -> bool:
        now_s = trio.current_time()
        while self._revoked and self._revoked[0][0] <= now_s:
            self._revoked.popleft()
        return not caller.open and any(concerned(caller) for _, concerned in self._revoked)

    def forget(self, admission: Admission) -> None:
        self._open.discard(admission)

    def revoke(self, concerned: Callable[[Caller], bool]) -> int:
        """End the connections of the callers that are ``concerned``, those too that are about to
        open; how many are open.
        """
        self._revoked.append((trio.current_time() + REVOKED_S, concerned))
        found = [admission for admission in self._open if concerned(admission.caller)]
        for admission in found:
            admission.revoke()
        return len(found)
