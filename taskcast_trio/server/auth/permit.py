"""Whether a caller may use a route: the scope comes from the route table, and nowhere else."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any, Final

from msgspec import UNSET
from msgspec.structs import replace

from taskcast_trio.core import validate
from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import BadRequest, Forbidden
from taskcast_trio.core.model import Task
from taskcast_trio.engine import TaskEngine
from taskcast_trio.engine.workers.asked import Registration
from taskcast_trio.server.plain import field_of
from taskcast_trio.server.route_table import ROUTES
from taskcast_trio.server.target import Scope

from .gate import caller_of

SCOPES: Final = {route.name: route.scope for route in ROUTES if route.scope is not None}
"""By the name of the route."""
FENCE: Final = b"taskcast-fence"
MAX_FENCE_DIGITS: Final = 15
_PASSING: Final = frozenset({"iat", "exp", "nbf", "jti"})


def permit(scope: Scope, route: str, task_id: str | None = None) -> Caller:
    """The caller of an ASGI scope, who has the scope of ``route`` and reaches the task.

    Raises:
        Forbidden: one of the two is not so.
    """
    caller = caller_of(scope)
    caller.require(SCOPES[route], task_id)
    return caller


async def permit_task(engine: TaskEngine, scope: Scope, route: str, task_id: str) -> Caller:
    """As `permit`, and by the task's own rules too.

    Raises:
        Forbidden: the caller may not.
        TaskNotFound: there is no such task.
    """
    caller = permit(scope, route, task_id)
    if not caller.open:
        caller.require_rules(SCOPES[route], (await engine.record(task_id)).task)
    return caller


def idempotency_key(key: str, caller: Caller) -> str:
    """The key as it is stored: of two callers with the same one, each has its own.

    Raises:
        BadRequest: it is none.
    """
    key = validate.idempotency_key(key)
    if caller.open:
        return key
    owner: list[Any] = [caller.service, caller.sub]
    if caller.service is None and caller.sub is None:  # what stays when such a token is renewed
        lasting = caller.claims.keys() - _PASSING
        owner.append({name: caller.claims[name] for name in sorted(lasting)})
    text = json.dumps(owner, sort_keys=True).encode()
    return f"{blake2b(text, digest_size=16).hexdigest()}:{key}"


def fence_of(scope: Scope) -> int | None:
    """By which assignment a worker acts; None where it does not say.

    Raises:
        BadRequest: it is no fence.
    """
    text = field_of(scope, FENCE)
    if text is None:
        return None
    if not text.isdigit() or len(text) > MAX_FENCE_DIGITS:
        raise BadRequest("Taskcast-Fence is not a whole number")
    return int(text)


def owner_of(caller: Caller) -> str | None:
    """Whose the workers are that ``caller`` registers; None where nobody is asked."""
    if caller.open:
        return None
    owner = [caller.service, caller.sub, caller.worker_id]
    return blake2b(json.dumps(owner).encode(), digest_size=16).hexdigest()


def check_worker(caller: Caller, worker_id: str) -> None:
    """Refuse (Forbidden) a worker that the caller's token is not for."""
    if caller.worker_id and caller.worker_id != worker_id:
        raise Forbidden(f"This caller is worker {caller.worker_id}")


def signs_off(caller: Caller, worker_id: str) -> bool:
    """Whether ``caller`` may sign a worker off that is its own."""
    of_token = not caller.worker_id or caller.worker_id == worker_id
    return of_token and caller.has(SCOPES["registerWorker"])


def own_registration(caller: Caller, asked: Registration) -> Registration:
    """As `check_worker`; a registration without an id gets that of the token."""
    if asked.worker_id is not UNSET:
        check_worker(caller, asked.worker_id)
    elif caller.worker_id:
        return replace(asked, worker_id=caller.worker_id)
    return asked


def visible(caller: Caller, route: str, task: Task) -> bool:
    """Whether ``caller`` may use ``route`` for this task, where a list or a stream has many."""
    return caller.may(SCOPES[route], task)
