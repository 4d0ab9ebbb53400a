"""What the client raises: the errors of ``core.errors``, and some of its own::

    TaskcastError
      ServerUnavailable         503 server_unavailable   no answer came
      EventsLost                     events_lost          a subscription can't go on where it was
      ResponseError                                      an answer that fits no other error
        GatewayError                                     of something before the server: it is also
                                                         a ServerUnavailable

Of those that were answers, ``body`` is the answer, and ``retry_after_s`` the ``Retry-After`` of it.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final, TypeVar

import msgspec

from taskcast_trio.core import errors, jsontext
from taskcast_trio.core.backoff import retry_after_ms
from taskcast_trio.core.errors import BadRequest, TaskcastError, TaskNotFound

from .steps import Reply

T = TypeVar("T")


class ServerUnavailable(TaskcastError):
    """No answer: the connection could not be made, or broke, or took too long.

    Whether a request had an effect is then unknown; an ``idempotency_key`` makes repeating it safe.

    Attributes:
        sent: whether the request may have reached the server.
    """

    status = 503
    code = "server_unavailable"
    retryable = True
    sent = True


class EventsLost(TaskcastError):
    """What comes does not go on where the subscription stood.

    The subscription stays: its next step goes on with the events from ``replayed_from`` on, which
    come again, or anew, so what was built from those before is to be forgotten.

    Attributes:
        reason: ``unknown_cursor``, ``log_replaced``, ``events_expired``; of a stream of all tasks
            ``reconnected``.
        replayed_from: the raw index from which it goes on; -1 where nothing comes again.
        last_event_id: the cursor that could not be continued; None where there was none.
        task_id: the task; None of a stream of all.
    """

    code = "events_lost"
    _WHY: Final = {
        "unknown_cursor": "its log has no event with the id of the cursor",
        "log_replaced": "its log is another one, or was lost",
        "events_expired": "events that had not come yet were removed by cleanup",
    }

    def __init__(
        self, reason: str, replayed_from: int, *, task_id: str | None, last_event_id: str | None
    ) -> None:
        self.reason = reason
        self.replayed_from = replayed_from
        self.task_id = task_id
        self.last_event_id = last_event_id
        if task_id is None:
            told = "The connection was lost: events of any task may be missing"
        else:
            why = self._WHY.get(reason, reason)
            told = f"Task {task_id} can't be followed on from where this stood: {why}"
        goes_on = "Iterated again, this goes on with what is there; gaps='deliver' gives an item"
        super().__init__(f"{told}. {goes_on}")


class ResponseError(TaskcastError):
    """An answer that fits no other error, with its own ``status``, ``code`` and ``body``."""

    def __init__(self, message: str, *, status: int, code: str, body: bytes) -> None:
        super().__init__(message)
        # Constants of the class elsewhere in the tree; here each answer brings its own.
        self.status = status  # type: ignore[misc]
        self.code = code  # type: ignore[misc]
        self.retryable = status >= 500  # type: ignore[misc]
        self.body = body


class GatewayError(ResponseError, ServerUnavailable):
    """A 502, 503 or 504 that is none of the server's own: of a proxy that can't reach it."""


_GATEWAY: Final = frozenset({502, 503, 504})
_BY_CODE: Final[dict[tuple[int, str], type[TaskcastError]]] = {
    (cls.status, cls.code): cls
    for cls in (
        errors.BadRequest,
        errors.TaskEnded,
        errors.NotBlocked,
        errors.Unauthorized,
        errors.TokenExpired,
        errors.TokenRevoked,
        errors.Forbidden,
        errors.NotFound,
        errors.TaskNotFound,
        errors.RequestNotFound,
        errors.WorkerNotFound,
        errors.WebhookNotFound,
        errors.NotPending,
        errors.NoRoom,
        errors.StaleFence,
        errors.SeqGap,
        errors.SeqStale,
        errors.TaskCancelled,
        errors.Conflict,
        errors.TaskExists,
        errors.InvalidTransition,
        errors.RevisionConflict,
        errors.TaskArchived,
        errors.RequestTimeout,
        errors.PayloadTooLarge,
        errors.TaskFull,
        errors.KeyReused,
        errors.RateLimited,
        errors.StoreUnavailable,
        errors.ReleaseUnsupported,
        errors.KeysUnavailable,
        errors.AuthUnavailable,
        errors.Draining,
    )
}
# For answers without a code: the base of what each status can mean.
_BY_STATUS: Final[dict[int, type[TaskcastError]]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    408: errors.RequestTimeout,
    409: errors.Conflict,
    413: errors.PayloadTooLarge,
    422: errors.KeyReused,
    429: errors.RateLimited,
}


class _Body(msgspec.Struct):
    error: str
    code: str = ""
    expected_seq: int | None = msgspec.field(default=None, name="expectedSeq")
    status: Any = None


def refusal(reply: Reply, task_id: str | None = None) -> TaskcastError:
    """The error that an answer stands for, to be raised by the caller."""
    error = error_of(reply.status, reply.body, task_id)
    asked_ms = retry_after_ms(reply.headers.get("Retry-After", ""), time.time())
    if asked_ms is not None:
        error.retry_after_s = math.ceil(asked_ms / 1000)
    return error


def error_of(status: int, body: bytes, task_id: str | None = None) -> TaskcastError:
    """As :func:`refusal`, of the status and the body alone."""
    try:
        told = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        told = None
    message = told.error if told is not None else f"The server answered with status {status}"
    code = told.code if told is not None else ""
    kind = _BY_CODE.get((status, code))
    if kind is None and not code:
        kind = _BY_STATUS.get(status)
        if kind is errors.NotFound and told is not None and task_id is not None:
            kind = TaskNotFound
    if kind is None:
        other = GatewayError if status in _GATEWAY else ResponseError
        return other(message, status=status, code=code, body=body)
    # Their constructors compose a message from parts that the server has put together already.
    error = kind.__new__(kind, message)
    error.body = body
    if told is not None and told.expected_seq is not None:
        error.facts = {"expectedSeq": told.expected_seq}
    elif told is not None and isinstance(error, errors.TaskCancelled):
        error.facts = {"status": told.status} if isinstance(told.status, str) else {}
    if isinstance(error, TaskNotFound) and task_id is not None:
        error.task_id = task_id
    return error


def decode(body: bytes, type_: type[T], *, status: int) -> T:
    """The body of a good answer.

    Raises:
        ResponseError: it is not what such an answer holds (code ``bad_answer``).
    """
    try:
        # An answer may wrap what was accepted at the limit once more.
        value: T = jsontext.parse(body, type_, max_depth=jsontext.MAX_DEPTH + 2)
    except BadRequest as error:
        message = f"The server's answer can't be read: {error}"
        raise ResponseError(message, status=status, code="bad_answer", body=body) from None
    return value
