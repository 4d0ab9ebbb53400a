"""The routes that give and take rights: tickets, and what whoever has the admin token may do."""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from typing import Any, Final, cast
from uuid import uuid4

import msgspec
from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from taskcast_trio.config.secret import Secret
from taskcast_trio.core.errors import BadRequest, NotFound, Unauthorized
from taskcast_trio.core.jsontext import parse
from taskcast_trio.engine import Runtime

from . import answers
from .auth.admission import Admissions
from .auth.gate import limit_key
from .auth.limits import count, limiter_of
from .auth.revocation import Revocations, Revoked, RevokeRequest, concerns
from .auth.tickets import TicketRequest, Tickets
from .auth.tokens import JwtVerifier
from .requests import Permits, read_body
from .target import Scope

DEFAULT_LIFE_S: Final = 86_400
REVOKED: Final = "revoked"


class AdminApiOff(NotFound):
    code = "admin_api_off"


class Admin:
    """The admin token, in the body of a request."""

    def __init__(self, token: Secret | None, *, on: bool) -> None:
        self._digest = None if token is None else sha256(token.reveal().encode()).digest()
        self._on = on

    async def body(self) -> Mapping[str, Any]:
        """The body of the request in progress, of whatever content type, with a right token.

        Raises:
            NotFound: the admin API is off.
            BadRequest: it is no JSON.
            Unauthorized: it has not the admin token.
        """
        if not self._on:
            raise AdminApiOff("The admin API is off")
        text = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        body = parse(text, Any)
        given = body.get("adminToken") if isinstance(body, dict) else None
        if self._digest is None or not isinstance(given, str):
            raise Unauthorized("The admin token is needed")
        digest = sha256(given.encode("utf-8", "surrogatepass")).digest()
        if not hmac.compare_digest(digest, self._digest):
            raise Unauthorized("The admin token is wrong")
        found: dict[str, Any] = body
        return found


def register(
    app: QuartTrio,
    runtime: Runtime,
    tickets: Tickets,
    revocations: Revocations,
    admissions: Admissions,
    verifier: JwtVerifier | None,
) -> None:
    config, clock_ms = runtime.config, runtime.engine.clock
    permits = Permits(runtime.engine)
    limiter = limiter_of(runtime, "tickets", config.limits.tickets_per_second)

    def end_streams(told: bytes) -> None:
        admissions.revoke(partial(concerns, msgspec.convert(json.loads(told), Revoked)))

    runtime.bulletin.listen(REVOKED, end_streams)
    admin = Admin(config.admin_token, on=config.admin_api)

    @app.post("/tickets")
    async def create_ticket() -> Response:
        wanted: TicketRequest = await read_body(TicketRequest, config.limits, empty=b"{}")
        caller = permits.route("createTicket")
        await count(limiter, limit_key(cast(Scope, request.scope)))
        return answers.json(await tickets.issue(caller, wanted), HTTPStatus.CREATED)

    @app.post("/admin/token")
    async def admin_token() -> Response:
        body = await admin.body()
        claims = _claims(body, clock_ms())
        if config.auth.mode == "none":
            token = ""
        elif verifier is not None and verifier.signs:
            token = verifier.sign(claims)
        else:
            return answers.error(
                HTTPStatus.NOT_IMPLEMENTED,
                "This server only checks tokens: it has no key to sign one with",
                "no_signing_key",
            )
        return answers.json({"token": token, "expiresAt": claims["exp"]})

    @app.post("/admin/revoke")
    async def admin_revoke() -> Response:
        body = await admin.body()
        try:
            wanted = msgspec.convert(body, RevokeRequest)
        except msgspec.ValidationError as error:
            raise BadRequest(str(error)) from None
        told = await revocations.revoke(wanted)
        await runtime.bulletin.tell(REVOKED, json.dumps(msgspec.to_builtins(told)).encode())
        return Response(b"", HTTPStatus.NO_CONTENT)


def _claims(body: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """What an admin's token says.

    Raises:
        BadRequest: the scopes are no list.
    """
    scopes = body.get("scopes", ["*"])
    if not isinstance(scopes, list):
        raise BadRequest("Expected a list of scopes - at `$.scopes`")
    life_s = body.get("expiresIn", UNSET)
    is_number = isinstance(life_s, int | float) and not isinstance(life_s, bool)
    if not is_number or not math.isfinite(life_s) or life_s <= 0:
        life_s = DEFAULT_LIFE_S
    now_s = now_ms // 1000
    return {
        "sub": "admin",
        "jti": uuid4().hex,
        "scope": scopes,
        "taskIds": "*",
        "iat": now_s,
        "exp": now_s + life_s,
    }
