"""What the pure parts of the client ask of the one that does the I/O.

Whatever decides (what to send, when to try again, what an answer means) is a generator that yields
steps, is sent what came of them, and returns its result: a *flow*. A port does the steps and
decides nothing; there is one with ``await`` and one without, and everything else is written once.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request, as yet without its token; ``path`` is below the base URL."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    read_timeout_s: float = TIMEOUT_S
    """How long (s) no byte may come."""


class Reply(NamedTuple):
    """An answer; ``token`` is the one that its request went with."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    token: str | None

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Send:
    """Send it and read the whole answer: a `Reply`.

    Raises:
        ServerUnavailable: no answer came.
    """

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """As `Send`, but leave the body of an event stream on the way, for `Read`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Bound:
    """Take the stream that was opened as broken when no byte comes for so long (s)."""

    silence_s: float


@dataclass(frozen=True, slots=True)
class Read:
    """Wait for the next bytes of the stream; None where it has ended, or broke."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the stream, if there is one."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait before another try.

    Raises:
        ServerUnavailable: there is no time for another one.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Renew:
    """Get another token than this one, which was refused: whether there is one."""

    refused: str | None


Step: TypeAlias = Send | Open | Bound | Read | Close | Sleep | Renew
Flow: TypeAlias = Generator[Step, Any, T]
