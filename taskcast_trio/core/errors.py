"""The error tree of taskcast_trio.

Every error that a caller can meet is a :class:`TaskcastError`::

    TaskcastError
      BadRequest                  400 bad_request          the request is wrong as it stands
        TaskEnded                 400 task_ended           publish to a task that is terminal
        NotBlocked                400 not_blocked          resolve of a task that is not blocked
      Unauthorized                401 unauthorized
        TokenExpired              401 token_expired        a new token helps
        TokenRevoked              401 token_revoked
      Forbidden                   403 forbidden
      NotFound                    404 not_found
        TaskNotFound              404 task_not_found
        RequestNotFound           404 request_not_found    no blocked request to answer
        WorkerNotFound            404 worker_not_found
        WebhookNotFound           404 webhook_not_found
      Conflict                    409 conflict
        TaskExists                409 task_exists
        InvalidTransition         409 invalid_transition
        RevisionConflict          409 revision_conflict    lost a race; reading again may help
        TaskArchived              409 task_archived        the archive knows nothing of that
        NotPending                409 not_pending          the task is not there to be taken
        NoRoom                    409 no_room              the worker has no free slots for it
        StaleFence                409 stale_fence          the assignment is over
        TaskCancelled             409 task_cancelled       ended or paused by someone else
        SeqGap                    409 seq_gap              events of the publisher are missing
        SeqStale                  409 seq_stale            stored too long ago to be shown again
      RequestTimeout              408 request_timeout      the body did not come in time
      PayloadTooLarge             413 payload_too_large
        TaskFull                  413 task_full            the task's log has no room for it
      KeyReused                   422 idempotency_key_reused
      RateLimited                 429 rate_limited
      StoreUnavailable            503 store_unavailable
      KeysUnavailable             503 keys_unavailable     no key to check tokens with
      AuthUnavailable             503 auth_unavailable     custom authentication gave no answer
      ReleaseUnsupported          503 storage_release_unsupported
      Draining                    503 draining

``status`` is the HTTP status that the server answers with, ``code`` a stable machine-readable
word, and ``retryable`` says whether the same call may succeed later; ``retry_after_s`` when, where
that is known. Of an error that a client met, ``body`` is the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar


class TaskcastError(Exception):
    """Base of all errors of this package; ``str(error)`` is safe to show to the caller."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    retry_after_s: int | None = None
    body: bytes = b""
    facts: Mapping[str, int] = MappingProxyType({})
    """What the answer says besides, by its names on the wire."""

    @property
    def wait(self) -> bool:
        """Whether the caller should wait before it tries again (429 and 503)."""
        return self.retryable and self.status in (429, 503)


class BadRequest(TaskcastError):
    status = 400
    code = "bad_request"


class TaskEnded(BadRequest):
    code = "task_ended"

    def __init__(self, task_id: str, status: str) -> None:
        super().__init__(f"Task {task_id} has ended ({status}): it takes no more events")


class NotBlocked(BadRequest):
    code = "not_blocked"

    def __init__(self, task_id: str, status: str) -> None:
        super().__init__(f"Task {task_id} is {status}, not blocked")


class Unauthorized(TaskcastError):
    status = 401
    code = "unauthorized"


class TokenExpired(Unauthorized):
    code = "token_expired"


class TokenRevoked(Unauthorized):
    code = "token_revoked"


class Forbidden(TaskcastError):
    status = 403
    code = "forbidden"


class NotFound(TaskcastError):
    status = 404
    code = "not_found"


class TaskNotFound(NotFound):
    code = "task_not_found"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"Task not found: {task_id}")
        self.task_id = task_id


class RequestNotFound(NotFound):
    code = "request_not_found"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"Task {task_id} has no blocked request")


class WorkerNotFound(NotFound):
    code = "worker_not_found"

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"Worker not found: {worker_id}")


class WebhookNotFound(NotFound):
    code = "webhook_not_found"

    def __init__(self, task_id: str, number: int | str) -> None:
        super().__init__(f"Task {task_id} has no webhook {number}")


class Conflict(TaskcastError):
    status = 409
    code = "conflict"


class TaskExists(Conflict):
    code = "task_exists"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"Task already exists: {task_id}")


class InvalidTransition(Conflict):
    code = "invalid_transition"

    def __init__(self, task_id: str, source: str, target: str, allowed: Iterable[str]) -> None:
        way = ", ".join(sorted(allowed))
        hint = f"only to {way}" if way else "it has ended"
        super().__init__(f"Task {task_id} cannot go from {source} to {target}: {hint}")


class RevisionConflict(Conflict):
    """The task changed between the read and the write; read it again and decide anew."""

    code = "revision_conflict"
    retryable = True

    def __init__(self, task_id: str) -> None:
        super().__init__(f"Task {task_id} changed meanwhile")


class TaskArchived(Conflict):
    code = "task_archived"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"Task {task_id} is archived: nothing is kept of its webhooks")


class NotPending(Conflict):
    code = "not_pending"

    def __init__(self, task_id: str, status: str) -> None:
        super().__init__(f"Task {task_id} is not pending (status: {status})")


class NoRoom(Conflict):
    code = "no_room"

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"Worker {worker_id} has no room for this task")


class StaleFence(Conflict):
    """A request came with the fence of an assignment that is over."""

    code = "stale_fence"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"Task {task_id} is not assigned as this Taskcast-Fence says any more")


class TaskCancelled(Conflict):
    """As `StaleFence`, where the task was ended or paused by someone else: its work is to stop."""

    code = "task_cancelled"

    def __init__(self, task_id: str, status: str) -> None:
        super().__init__(f"Task {task_id} was taken from its worker: it is {status}")


class SeqGap(Conflict):
    """An event of a publisher came before others of it that are missing; nothing was stored.

    ``held`` says that it asked to wait for them.
    """

    code = "seq_gap"
    retryable = True

    def __init__(
        self, task_id: str, client_id: str, seq: int, *, expected: int, held: bool = True
    ) -> None:
        super().__init__(
            f"Task {task_id} expects event {expected} of publisher {client_id}, not {seq} yet"
        )
        self.client_id = client_id
        self.seq = seq
        self.held = held
        self.facts = {"expectedSeq": expected}


class SeqStale(Conflict):
    """An event of a publisher was stored before, but so long ago that it is not known where."""

    code = "seq_stale"

    def __init__(self, task_id: str, client_id: str, seq: int, *, expected: int) -> None:
        super().__init__(
            f"Event {seq} of publisher {client_id} was stored in task {task_id} long ago: "
            f"{expected} comes next"
        )
        self.facts = {"expectedSeq": expected}


class RequestTimeout(TaskcastError):
    status = 408
    code = "request_timeout"
    retryable = True


class PayloadTooLarge(TaskcastError):
    status = 413
    code = "payload_too_large"


class TaskFull(PayloadTooLarge):
    """The log would hold more than it may; nothing of the request was stored."""

    code = "task_full"

    def __init__(self, task_id: str, unit: str, *, limit: int, stored: int) -> None:
        super().__init__(
            f"Task {task_id} has no room for this: "
            f"it may hold {limit} {unit} and holds {stored} already"
        )


class KeyReused(TaskcastError):
    """An ``Idempotency-Key`` came back with another request (IETF httpapi draft, section 2.7)."""

    status = 422
    code = "idempotency_key_reused"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"This Idempotency-Key was used for another request on task {task_id}")


class RateLimited(TaskcastError):
    """Over a limit of the server; ``retry_after_s`` is when it makes sense to try again."""

    status = 429
    code = "rate_limited"
    retryable = True

    def __init__(self, message: str = "", *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailable(TaskcastError):
    status = 503
    code = "store_unavailable"
    retryable = True


class KeysUnavailable(TaskcastError):
    """The key set that tokens are checked with could not be fetched, and none is known."""

    status = 503
    code = "keys_unavailable"
    retryable = True


class AuthUnavailable(TaskcastError):
    """Custom authentication failed, or took too long: nobody knows who calls."""

    status = 503
    code = "auth_unavailable"
    retryable = True


class ReleaseUnsupported(TaskcastError):
    status = 503
    code = "storage_release_unsupported"


class Draining(TaskcastError):
    """The server is shutting down and takes no new work."""

    status = 503
    code = "draining"
    retryable = True


def no_page_after(task_id: str) -> BadRequest:
    """A list was to go on after a task that is not there, or not there for this caller."""
    return BadRequest(f"There is no task {task_id} to go on after")
