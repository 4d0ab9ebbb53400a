"""The routes of webhooks, as data."""

from __future__ import annotations

from typing import Final

from .openapi_shapes import Deliveries, Done, Redeliver, WebhookList
from .route_parts import Answer, Route

WEBHOOK_ROUTES: Final = (
    Route(
        "GET",
        "/tasks/{task_id}/webhooks",
        "event:subscribe",
        "Read how far a task's webhooks are",
        name="listWebhooks",
        tag="Webhooks",
        text="In the order of the task's `webhooks`. One that can't be used is `disabled`.",
        answers={200: Answer("The webhooks.", WebhookList)},
        errors=(404,),
    ),
    Route(
        "GET",
        "/tasks/{task_id}/webhooks/{number}/deliveries",
        "event:subscribe",
        "Read the last tries and the dead letters of a webhook",
        name="listDeliveries",
        tag="Webhooks",
        answers={200: Answer("At most 20 tries, and at most 256 dead letters.", Deliveries)},
        errors=(404,),
    ),
    Route(
        "POST",
        "/tasks/{task_id}/webhooks/{number}/redeliver",
        "task:manage",
        "Deliver again",
        name="redeliver",
        tag="Webhooks",
        text=(
            "The dead letters, before what is new; or with `fromIndex` everything from there on. A "
            "webhook that was disabled by a 410 is so no more. The ids of deliveries stay the same."
        ),
        body=Redeliver,
        answers={202: Answer("It will be done.", Done)},
        errors=(400, 404, 409, 413),
    ),
)
