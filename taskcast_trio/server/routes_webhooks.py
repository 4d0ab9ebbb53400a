"""The routes of webhooks: how far they are, what they tried last, and deliver again."""

from __future__ import annotations

from http import HTTPStatus

from msgspec import UNSET
from quart import Response
from quart_trio import QuartTrio

from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import BadRequest, WebhookNotFound
from taskcast_trio.core.webhook import Unusable
from taskcast_trio.engine import Runtime
from taskcast_trio.engine.webhooks import Look
from taskcast_trio.engine.webhooks.state import DeadLetter, Try

from . import answers
from .openapi_shapes import (
    DeadLetter as DeadLetterView,
)
from .openapi_shapes import (
    Deliveries,
    Done,
    Redeliver,
    WebhookList,
    WebhookTry,
    WebhookView,
)
from .requests import Permits, read_body
from .target import path_id

MAX_DIGITS = 6


def register(app: QuartTrio, runtime: Runtime) -> None:
    engine, webhooks, limits = runtime.engine, runtime.webhooks, runtime.config.limits
    permits = Permits(engine)

    async def looks(task_id: str) -> list[Look]:
        return await webhooks.look(await engine.record(task_id))

    @app.get("/tasks/<task_id>/webhooks")
    async def list_webhooks(task_id: str) -> Response:
        caller = await permits.task("listWebhooks", path_id(task_id))
        found = enumerate(await looks(path_id(task_id)))
        return answers.json(
            WebhookList(webhooks=[_view(number, look, caller) for number, look in found])
        )

    @app.get("/tasks/<task_id>/webhooks/<number>/deliveries")
    async def list_deliveries(task_id: str, number: str) -> Response:
        await permits.task("listDeliveries", path_id(task_id))
        found, place = await looks(path_id(task_id)), _place(path_id(task_id), number)
        if place >= len(found):
            raise WebhookNotFound(path_id(task_id), number)
        kept = found[place].kept
        tries = [] if kept is None else reversed(kept.state.recent)
        letters = [] if kept is None else kept.dead.values()
        return answers.json(
            Deliveries(
                deliveries=[_try(one) for one in tries],
                dead_letters=[_letter(letter) for letter in letters],
            )
        )

    @app.post("/tasks/<task_id>/webhooks/<number>/redeliver")
    async def redeliver(task_id: str, number: str) -> Response:
        request: Redeliver = await read_body(Redeliver, limits, empty=b"{}")
        await permits.task("redeliver", path_id(task_id))
        from_index = None if request.from_index is UNSET else request.from_index
        if from_index is not None and from_index < 0:
            raise BadRequest("Expected an index of at least 0 - at `$.fromIndex`")
        await engine.record(path_id(task_id))
        place = _place(path_id(task_id), number)
        await webhooks.redeliver(path_id(task_id), place, from_index)
        return answers.json(Done(ok=True), HTTPStatus.ACCEPTED)


def _place(task_id: str, number: str) -> int:
    if not (number.isascii() and number.isdigit()) or len(number) > MAX_DIGITS:
        raise WebhookNotFound(task_id, number)
    return int(number)


def _view(number: int, look: Look, caller: Caller) -> WebhookView:
    webhook, kept, record = look.webhook, look.kept, look.record
    if isinstance(webhook, Unusable):
        return WebhookView(number=number, status="disabled", reason=webhook.reason)
    may_manage = caller.may("task:manage", record.task)
    url = webhook.url if may_manage else UNSET
    if kept is None:
        return WebhookView(number=number, status="archived", host=webhook.host, url=url)
    state = kept.state
    status = "disabled" if state.disabled else "retrying" if state.tries else "active"
    return WebhookView(
        number=number,
        status=status,  # type: ignore[arg-type]  # one of them
        reason=UNSET if state.disabled is None else state.disabled,
        host=webhook.host,
        url=url,
        cursor=state.cursor,
        pending=max(record.next_index - 1 - state.cursor, 0),
        delivered=state.delivered,
        dead_letters=len(kept.dead),
        dropped_dead_letters=state.dropped,
        failed_tries=state.tries,
        next_try_at=UNSET if state.next_try_ms is None else state.next_try_ms,
        last_try=UNSET if state.last is None else _try(state.last),
    )


def _try(one: Try) -> WebhookTry:
    return WebhookTry(
        at=one.at_ms,
        index=one.index,
        event_id=one.event_id,
        type=one.type,
        attempt=one.number,
        outcome=one.outcome,
        duration_ms=one.duration_ms,
        status=UNSET if one.status is None else one.status,
        error=UNSET if one.error is None else one.error,
    )


def _letter(letter: DeadLetter) -> DeadLetterView:
    return DeadLetterView(
        at=letter.at_ms,
        index=letter.index,
        event_id=letter.event_id,
        type=letter.type,
        attempts=letter.tries,
        status=UNSET if letter.status is None else letter.status,
        error=UNSET if letter.error is None else letter.error,
    )
