"""How callers are authenticated, as the configuration says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taskcast_trio.config import Config

from .custom import Authenticate, load
from .services import TrustedServices
from .tokens import JwtVerifier


@dataclass(frozen=True, slots=True)
class Methods:
    """What a request may show. Where ``mode`` is not ``none`` it must show something."""

    mode: str
    services: TrustedServices
    verifier: JwtVerifier | None = None
    authenticate: Authenticate | None = None
    timeout_s: float = 10.0
    """For ``authenticate``."""
    leeway_s: float = 0.0
    """After the expiry of a token."""

    @property
    def asks(self) -> bool:
        """Whether a request is asked for anything at all."""
        return self.needs_token or bool(self.services)

    @property
    def needs_token(self) -> bool:
        """Whether a request that shows nothing is refused."""
        return self.mode != "none"


def methods(
    config: Config, clock_ms: Callable[[], int], authenticate: Authenticate | None = None
) -> Methods:
    """The methods that ``config`` asks for.

    ``authenticate`` comes before what ``auth.custom`` names; both count in mode ``custom`` only.

    Raises:
        ConfigError: a key is missing, weak, unreadable, or for another algorithm; or what
            ``auth.custom`` names can't be used.
    """
    auth = config.auth
    verifier = JwtVerifier(auth.jwt, clock_ms) if auth.mode == "jwt" else None
    if auth.mode != "custom":
        authenticate = None
    elif authenticate is None and auth.custom is not None:
        authenticate = load(auth.custom)
    return Methods(
        auth.mode,
        TrustedServices(config.trusted_services),
        verifier,
        authenticate,
        auth.custom_timeout_seconds,
        auth.jwt.leeway_seconds,
    )
