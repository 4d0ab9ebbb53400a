"""The gate: finds out who calls, once for each request, before anything else looks at it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from typing import Final

from taskcast_trio.core.access import NOBODY, OPEN, Caller
from taskcast_trio.core.errors import Forbidden, TaskcastError, TokenExpired, Unauthorized
from taskcast_trio.server.plain import field_of, refuse
from taskcast_trio.server.query import Query
from taskcast_trio.server.target import ASGIApp, Receive, Scope, Send, local_path

from .custom import AuthRequest, ask
from .limits import Limiter, count, key_of
from .methods import Methods
from .revocation import Revocations
from .tickets import Tickets

CALLER: Final = "taskcast.caller"
"""Where the caller stands in the ASGI scope."""
_RECHECK: Final = "taskcast.recheck"
PROTECTED: Final = ("/tasks", "/events", "/workers", "/tickets")
SERVICE_KEY: Final = b"x-taskcast-service-key"
_FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
_TICKET: Final = frozenset({"ticket"})


def caller_of(scope: Scope) -> Caller:
    """Who the request comes from; nobody where the gate has not said."""
    caller: Caller = scope.get(CALLER, NOBODY)
    return caller


async def recheck(scope: Scope) -> None:
    """Look at the caller's token again, after a wait: it may have ended meanwhile.

    Raises:
        Unauthorized: it has expired, or was revoked.
    """
    again: Callable[[Caller], Awaitable[None]] | None = scope.get(_RECHECK)
    if again is not None:
        await again(caller_of(scope))


def address_of(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


def limit_key(scope: Scope) -> str:
    """By what the caller's requests and streams are counted."""
    return key_of(caller_of(scope), address_of(scope))


class Authenticator:
    """Finds the caller of a request."""

    def __init__(
        self,
        methods: Methods,
        tickets: Tickets,
        revocations: Revocations,
        clock_ms: Callable[[], int],
    ) -> None:
        self._clock_ms = clock_ms
        self._methods = methods
        self._tickets = tickets
        self._revocations = revocations

    async def identify(self, scope: Scope) -> Caller:
        """The caller.

        Raises:
            Unauthorized: what it shows is not good, or it shows nothing.
            TaskcastError: of status 503 where that can't be found out now.
        """
        methods = self._methods
        if methods.services and (key := field_of(scope, SERVICE_KEY)) is not None:
            return methods.services.identify(key)
        if not methods.needs_token:
            return OPEN
        authorization = field_of(scope, b"authorization")
        ticket = _ticket(scope) if authorization is None else None
        if ticket is not None:
            caller = await self._tickets.redeem(ticket)
            if caller.open and methods.authenticate is None:
                raise Unauthorized("The ticket was made by a server that asks for nothing")
        elif authorization is None and _has_ticket(scope):
            raise Unauthorized("A ticket opens streams only")
        elif methods.verifier is not None:
            caller = await methods.verifier.verify(_bearer(authorization))
        elif methods.authenticate is not None:
            caller = await ask(methods.authenticate, _describe(scope), methods.timeout_s)
        else:
            raise Unauthorized("This server can't authenticate anybody")
        await self._revocations.check(caller)
        return caller

    async def check(self, caller: Caller) -> None:
        """Refuse a caller whose token has expired since, or was revoked.

        Raises:
            Unauthorized: so it is.
        """
        expires_at, leeway_s = caller.expires_at, self._methods.leeway_s
        if expires_at is not None and (expires_at + leeway_s) * 1000 <= self._clock_ms():
            raise TokenExpired("The token has expired")
        await self._revocations.check(caller)


class Gate:
    """ASGI middleware; see the module. What it lets pass carries its caller in the scope."""

    def __init__(
        self,
        app: ASGIApp,
        methods: Methods,
        authenticator: Authenticator,
        limiter: Limiter,
        *,
        origins: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._limiter = limiter
        self._asks = methods.asks
        self._is_custom = methods.authenticate is not None
        self._origins = frozenset(origin.encode() for origin in origins)
        self._needs_token = methods.needs_token

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # What it awaits is handed on where nothing is asked: a stream would keep one frame more.
        if scope["type"] not in ("http", "websocket"):
            return self._app(scope, receive, send)
        path = local_path(scope)
        if self._asks and self._is_protected(path, scope):
            return self._pass(scope, receive, send)
        is_open = not self._needs_token or path == "/metrics"
        scope[CALLER] = OPEN if is_open else NOBODY
        if path.startswith("/health"):
            return self._app(scope, receive, send)
        try:
            if not self._limiter.check(limit_key(scope)):
                return self._count_first(scope, receive, send)
        except TaskcastError as refusal:
            return refuse(scope, receive, send, refusal)
        return self._app(scope, receive, send)

    async def _count_first(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await count(self._limiter, limit_key(scope))
        except TaskcastError as refusal:
            await refuse(scope, receive, send, refusal)
            return
        await self._app(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CALLER] = NOBODY
        try:
            refusal: TaskcastError | None = None
            try:
                if self._is_custom:
                    self._check_origin(scope)
                scope[CALLER] = await self._authenticator.identify(scope)
                scope[_RECHECK] = self._authenticator.check
            except TaskcastError as error:
                refusal = error
            # Guessing is a request like any other, counted by its address.
            await count(self._limiter, limit_key(scope))
            if refusal is not None:
                raise refusal
        except TaskcastError as error:
            await refuse(scope, receive, send, error)
            return
        await self._app(scope, receive, send)

    def _check_origin(self, scope: Scope) -> None:
        """Refuse what another site makes a browser do: it may send along what `custom` looks at.

        Raises:
            Forbidden: the Origin is neither this host nor one of ``cors.origins``.
        """
        origin = field_of(scope, b"origin")
        is_safe = scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")
        if origin is None or is_safe or origin in self._origins or b"*" in self._origins:
            return
        if origin.partition(b"://")[2] != field_of(scope, b"host"):
            raise Forbidden("This Origin is neither the server's own nor one of cors.origins")

    def _is_protected(self, path: str, scope: Scope) -> bool:
        if path == "/metrics":
            return self._needs_token and not _is_local(scope)
        return any(path == root or path.startswith(f"{root}/") for root in PROTECTED)


def _is_local(scope: Scope) -> bool:
    """Whether the peer is on this machine, and is no proxy for somebody who is not."""
    address = address_of(scope)
    if any(name in _FORWARDED for name, _ in scope["headers"]):
        return False
    try:
        return address is not None and ip_address(address).is_loopback
    except ValueError:
        return False


def _bearer(authorization: bytes | None) -> str:
    if authorization is None:
        raise Unauthorized("A bearer token is needed")
    word, _, token = authorization.partition(b" ")
    if word != b"Bearer" or not token or not token.isascii() or b" " in token:
        raise Unauthorized("Authorization is not `Bearer <token>`")
    return token.decode()


def _has_ticket(scope: Scope) -> bool:
    return scope["query_string"].startswith(b"ticket=") or b"&ticket=" in scope["query_string"]


def _ticket(scope: Scope) -> str | None:
    """The ticket in the query of a stream; nowhere else is one looked at."""
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return None
    if not _has_ticket(scope):
        return None
    parts = local_path(scope).split("/")
    is_task_stream = len(parts) == 4 and parts[1] == "tasks" and parts[3] == "events"
    if parts != ["", "events"] and not is_task_stream:
        return None
    return Query(scope["query_string"], _TICKET).get("ticket")


def _describe(scope: Scope) -> AuthRequest:
    headers = (
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
    )
    return AuthRequest(
        method=scope.get("method", "GET"),
        path=local_path(scope),
        headers=tuple(headers),
        client=address_of(scope),
    )
