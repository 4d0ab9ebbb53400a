"""When a call is tried again: only what may be repeated, as often and as late as was said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskcast_trio.client import (
    GatewayError,
    RateLimited,
    RetryPolicy,
    ServerUnavailable,
    calls,
    draft,
    service_calls,
)
from taskcast_trio.client.errors import ResponseError
from taskcast_trio.client.retries import KEY, Call, answered
from taskcast_trio.client.steps import Flow, Renew, Reply, Request, Send, Sleep
from taskcast_trio.core.errors import (
    Draining,
    RequestTimeout,
    StoreUnavailable,
    TaskArchived,
    TaskcastError,
    TaskNotFound,
    Unauthorized,
    WebhookNotFound,
)

TASK = {"id": "t", "status": "pending", "createdAt": 1, "updatedAt": 2}
VIEW = {**TASK, "hot": False, "subscriberCount": 0}

Answer = Reply | TaskcastError | bool


def reply(status: int, body: Any = b"", **headers: str) -> Reply:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, {k.replace("_", "-"): v for k, v in headers.items()}, text, "token")


def refused(status: int, code: str, **headers: str) -> Reply:
    return reply(status, {"error": "e", "code": code}, **headers)


def silence(*, sent: bool) -> ServerUnavailable:
    error = ServerUnavailable("nothing")
    error.sent = sent
    return error


class Played:
    """A flow, played with these answers: what it asked for, and what came of it."""

    def __init__(self, flow: Flow[Any], *answers: Answer) -> None:
        self.sent: list[Request] = []
        self.pauses: list[float] = []
        self.result: Any = None
        self.raised: TaskcastError | None = None
        left = list(answers)
        try:
            step = flow.send(None)
            while True:
                if isinstance(step, Sleep):
                    self.pauses.append(step.seconds)
                    step = flow.send(None)
                    continue
                if isinstance(step, Send):
                    self.sent.append(step.request)
                else:
                    assert isinstance(step, Renew)
                answer = left.pop(0)
                if isinstance(answer, TaskcastError):
                    step = flow.throw(answer)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            self.result = end.value
        except TaskcastError as error:
            self.raised = error
        assert left == []


LOST = silence(sent=True)
UNREACHED = silence(sent=False)
DRAINING = refused(503, "draining", Retry_After="1")
POLICY = RetryPolicy(tries=3)


def play(call: Call[Any], *answers: Answer, policy: RetryPolicy = POLICY) -> Played:
    return Played(answered(call, policy), *answers)


READ, CREATE, RESOLVE = calls.get("t"), calls.create(), calls.resolve("t")


@pytest.mark.parametrize("failure", [LOST, UNREACHED, DRAINING, refused(429, "rate_limited")])
def test_a_read_is_repeated_whatever_happened(failure: Answer) -> None:
    played = play(READ, failure, failure, reply(200, VIEW))
    assert played.result.id == "t"
    assert len(played.sent) == 3


def test_a_write_is_repeated_with_the_key_that_it_had_at_first() -> None:
    first, second, _third = play(CREATE, LOST, DRAINING, reply(201, TASK)).sent
    assert first.headers[KEY]
    assert first == second
    assert play(CREATE, reply(201, TASK)).sent[0].headers[KEY] != first.headers[KEY]
    own = play(calls.create(idempotency_key="mine"), LOST, reply(201, TASK)).sent
    assert [request.headers[KEY] for request in own] == ["mine", "mine"]


def test_without_retries_there_is_no_key() -> None:
    once = RetryPolicy(tries=1)
    played = play(CREATE, LOST, policy=once)
    assert played.raised is LOST
    assert KEY not in played.sent[0].headers


def test_what_has_no_key_is_repeated_only_where_nothing_can_have_happened() -> None:
    for harmless in (UNREACHED, refused(429, "rate_limited")):
        assert play(RESOLVE, harmless, reply(200, TASK)).result.id == "t"
    for unknown in (LOST, DRAINING, reply(502)):
        assert play(RESOLVE, unknown).raised is not None


def test_events_that_are_counted_need_no_key() -> None:
    counted = draft("n", 0, client_id="c", client_seq=0)
    plain = draft("n", 0)
    stored = reply(201, [])
    sent = play(calls.publish_many("t", [counted]), LOST, stored).sent
    assert [KEY in request.headers for request in sent] == [False, False]
    assert KEY in play(calls.publish_many("t", [plain]), stored).sent[0].headers
    mixed = play(calls.publish_many("t", [counted, plain]), LOST)
    assert mixed.raised is LOST
    assert KEY not in mixed.sent[0].headers


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422])
def test_a_refusal_for_good_is_not_repeated(status: int) -> None:
    assert play(READ, refused(status, "")).raised is not None


def test_what_was_removed_by_the_try_before_is_removed() -> None:
    delete = calls.delete("t")
    missing = refused(404, "task_not_found")
    assert play(delete, LOST, missing).raised is None
    assert isinstance(play(delete, missing).raised, TaskNotFound)
    assert isinstance(play(delete, UNREACHED, missing).raised, TaskNotFound)


def test_pauses_grow_up_to_a_limit_and_are_spread() -> None:
    policy = RetryPolicy(tries=8, first_pause_s=1, max_pause_s=10)
    runs = [play(READ, *[LOST] * 8, policy=policy) for _ in range(20)]
    for played in runs:
        for pause, least in zip(played.pauses, [1, 2, 4, 8, 10, 10, 10], strict=True):
            assert least <= pause <= 1.5 * least
    assert len({played.pauses[0] for played in runs}) > 10


def test_the_server_says_when_to_come_back() -> None:
    (pause,) = play(READ, refused(429, "rate_limited", Retry_After="7"), reply(200, VIEW)).pauses
    assert 7 <= pause <= 10.5
    dated = refused(503, "draining", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")
    (pause,) = play(READ, dated, reply(200, VIEW)).pauses
    assert pause <= 0.15
    late = play(READ, refused(429, "rate_limited", Retry_After="3600")).raised
    assert isinstance(late, RateLimited)
    assert late.retry_after_s == 3600


def test_a_refused_token_is_renewed_once() -> None:
    over = refused(401, "token_expired")
    assert play(READ, over, True, reply(200, VIEW)).result.id == "t"
    assert isinstance(play(READ, over, False).raised, Unauthorized)
    assert isinstance(play(READ, over, True, over).raised, Unauthorized)
    # A write that was refused for its token has not been done: no key is needed.
    assert play(RESOLVE, over, True, reply(200, TASK)).result.id == "t"


@pytest.mark.parametrize(
    ("status", "code", "kind", "retryable"),
    [
        (404, "webhook_not_found", WebhookNotFound, False),
        (409, "task_archived", TaskArchived, False),
        (408, "request_timeout", RequestTimeout, True),
        (408, "", RequestTimeout, True),
        (503, "draining", Draining, True),
        (503, "store_unavailable", StoreUnavailable, True),
        (502, "", GatewayError, True),
        (504, "", ServerUnavailable, True),
        (503, "of_another_version", ServerUnavailable, True),
        (500, "internal_error", ResponseError, True),
    ],
)
def test_every_answer_has_its_error(
    status: int, code: str, kind: type[TaskcastError], retryable: bool
) -> None:
    once = RetryPolicy(tries=1)
    raised = play(READ, refused(status, code), policy=once).raised
    assert isinstance(raised, kind)
    assert (raised.status, raised.code or code, raised.retryable) == (
        status,
        code or raised.code,
        retryable,
    )
    assert json.loads(raised.body) == {"error": "e", "code": code}


def test_readiness_is_an_answer_also_where_it_is_no() -> None:
    body = {"ok": False, "dependencies": {}, "draining": True}
    assert play(service_calls.ready(), reply(503, body)).result.ok is False


def every(of: type[TaskcastError]) -> list[type[TaskcastError]]:
    below = [each for each in of.__subclasses__() if each.__module__ == of.__module__]
    return [each for kind in below for each in (kind, *every(kind))]


@pytest.mark.parametrize("kind", every(TaskcastError))
def test_every_error_of_the_server_is_raised_as_itself(kind: type[TaskcastError]) -> None:
    refusal = [refused(kind.status, kind.code)]
    unrenewed = [False] if issubclass(kind, Unauthorized) else []
    raised = play(READ, *refusal, *unrenewed, policy=RetryPolicy(tries=1)).raised
    assert type(raised) is kind
    assert str(raised) == "e"
