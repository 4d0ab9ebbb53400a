"""The receiver of webhooks that users' tests have."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from taskcast_trio.config import Config
from taskcast_trio.core.signature import standard_headers, taskcast_signature
from taskcast_trio.server.background import background
from taskcast_trio.testing import WebhookSink


@pytest.fixture
def url() -> Iterator[str]:
    with background(Config(port=0)) as url:
        yield url


def post(url: str, path: str, body: object) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, trust_env=False).raise_for_status()


def publish(url: str, *webhooks: object, count: int = 1) -> None:
    post(url, "/tasks", {"id": "t", "webhooks": list(webhooks)})
    httpx.patch(f"{url}/tasks/t/status", json={"status": "running"}).raise_for_status()
    for number in range(count):
        post(url, "/tasks/t/events", {"type": "n", "level": "info", "data": number})


def signed(body: bytes, secret: str) -> dict[str, str]:
    headers = standard_headers(
        [secret], message_id="msg_1", timestamp_s=int(time.time()), body=body
    )
    return {**headers, "X-Taskcast-Signature": taskcast_signature(secret, body)}


def test_it_collects_what_a_server_sends_in_order(url: str, webhook_sink: WebhookSink) -> None:
    publish(url, webhook_sink.webhook(filter={"types": ["n"]}, wrap=False), count=3)
    deliveries = webhook_sink.wait(3)
    assert [each.event["data"] for each in deliveries] == [0, 1, 2]
    assert [each.status for each in webhook_sink.attempts] == [204] * 3
    assert len({each.id for each in deliveries}) == 3


def test_it_fails_as_often_as_it_is_told(url: str, webhook_sink: WebhookSink) -> None:
    webhook_sink.fail(2, status=503)
    publish(url, webhook_sink.webhook(filter={"types": ["n"]}))
    webhook_sink.wait(1)
    assert [each.status for each in webhook_sink.attempts] == [503, 503, 204]
    assert len({each.id for each in webhook_sink.attempts}) == 1


def test_a_receiver_that_is_gone_is_disabled(url: str, webhook_sink: WebhookSink) -> None:
    webhook_sink.gone()
    publish(url, webhook_sink.webhook(filter={"types": ["n"]}), count=2)
    deadline = time.monotonic() + 60
    while True:
        (webhook,) = httpx.get(f"{url}/tasks/t/webhooks").json()["webhooks"]
        if webhook["status"] == "disabled":
            break
        assert time.monotonic() < deadline, webhook
    assert [each.status for each in webhook_sink.attempts] == [410]
    assert webhook_sink.deliveries == []


def test_a_slow_one_is_tried_again_and_takes_it_once(url: str, webhook_sink: WebhookSink) -> None:
    webhook_sink.slow(0.3)
    retry = {"retries": 1, "backoff": "fixed", "initialDelayMs": 1, "timeoutMs": 100}
    publish(url, webhook_sink.webhook(filter={"types": ["n"]}, retry=retry))
    webhook_sink.wait(1)
    deadline = time.monotonic() + 60
    while len(webhook_sink.attempts) < 2:
        assert time.monotonic() < deadline
    assert len(webhook_sink.deliveries) == 1


@pytest.mark.parametrize("secret", [None, "another"])
def test_what_is_not_signed_with_its_secret_is_refused(
    url: str, webhook_sink: WebhookSink, secret: str | None
) -> None:
    webhook = webhook_sink.webhook(filter={"types": ["n"]})
    del webhook["secret"]
    publish(url, {**webhook, **({} if secret is None else {"secret": secret})})
    with pytest.raises(TimeoutError, match=r"0 of 1 deliveries.*401 \(webhook-") as caught:
        deadline = time.monotonic() + 60
        while not webhook_sink.attempts:
            assert time.monotonic() < deadline
        webhook_sink.wait(1, timeout_s=0)
    assert webhook_sink.secret is not None
    assert webhook_sink.secret not in str(caught.value)


def test_both_schemes_are_verified(webhook_sink: WebhookSink) -> None:
    assert webhook_sink.secret is not None
    body = b"{}"
    good = signed(body, webhook_sink.secret)
    bad = {**good, "X-Taskcast-Signature": taskcast_signature("another", body)}
    assert httpx.post(webhook_sink.url, content=body, headers=bad).status_code == 401
    assert httpx.post(webhook_sink.url, content=body, headers=good).status_code == 204
    assert httpx.post(webhook_sink.url, content=body, headers=good).status_code == 204
    assert len(webhook_sink.deliveries) == 1
    broken = httpx.post(webhook_sink.url, content=b"{", headers=signed(b"{", webhook_sink.secret))
    assert broken.status_code == 400


def test_it_ends_with_senders_that_hang_and_whoever_waits() -> None:
    waited: list[str] = []

    def wait() -> None:
        try:
            sink.wait(1, timeout_s=60)
        except TimeoutError as error:
            waited.append(str(error))

    def send(sink: WebhookSink) -> None:
        headers = signed(b"{}", str(sink.secret))
        with suppress(httpx.TransportError):
            httpx.post(sink.url, content=b"{}", headers=headers, trust_env=False)

    start = time.monotonic()
    with WebhookSink() as sink:
        sink.slow(60)
        waiter = threading.Thread(target=wait)
        waiter.start()
        sender = threading.Thread(target=send, args=(sink,))
        sender.start()
        while not sink._server._connections:
            time.sleep(0)
        sink.close()
        sender.join()
        waiter.join()
    assert time.monotonic() - start < 30
    assert len(waited) == 1
