"""The requests that a worker makes."""

from __future__ import annotations

from typing import Final, TypeVar

import httpx
import msgspec
import trio

from taskcast_trio.client import AsyncTaskcastClient, ServerUnavailable
from taskcast_trio.client.composing import (
    FENCE,
    decoder,
    nothing,
    reading,
    segment,
    task_path,
    writing,
)
from taskcast_trio.client.retries import KEY, NO_RETRIES, Call
from taskcast_trio.client.service_calls import delete_worker
from taskcast_trio.client.steps import TIMEOUT_S, Reply, Request
from taskcast_trio.core.errors import NotFound
from taskcast_trio.core.model import Task, Transition

from .errors import not_here
from .wire import Cancel, Giving, Heard, Holding, Pulse, Registered, Registration

PATIENCE_S: Final = 2 * TIMEOUT_S
"""For all of a request, beside what it is to wait for; ``TIMEOUT_S`` is for each step of it."""

T = TypeVar("T")


class Api:
    """Every method raises ``ServerUnavailable`` where no answer comes, and an error of
    ``core.errors`` (or ``ResponseError``) where the server says no. None is tried again here.

    Cancelling a call closes its connection; whether it took effect is then unknown, and the same
    ``key`` makes it safe to repeat.
    """

    def __init__(self, client: AsyncTaskcastClient) -> None:
        self._client = client

    async def register(self, asked: Registration) -> str:
        """Enter the worker, for pulling; its id."""
        try:
            found = await self._ask(writing("POST", "/workers/register", Registered, asked))
        except NotFound as error:
            raise not_here(error, self._client.base_url) from error
        return found.id

    async def unregister(self, worker_id: str) -> None:
        """Sign the worker off."""
        await self._ask(delete_worker(worker_id))

    async def heartbeat(
        self, worker_id: str, tasks: list[Holding] | msgspec.UnsetType
    ) -> tuple[list[Cancel], float]:
        """What is to be stopped, and how often (s) the server wants to hear of the worker."""
        path = f"/workers/{segment(worker_id)}/heartbeat"
        heard = await self._ask(writing("POST", path, Heard, Pulse(tasks=tasks)))
        return heard.cancel, heard.interval_ms / 1000

    async def pull(self, worker_id: str, wait_s: float) -> Task | None:
        """The next task, waited for up to ``wait_s``."""
        params = {"workerId": worker_id, "timeout": str(int(wait_s * 1000))}
        call = reading("/workers/pull", Task, params, read_timeout_s=wait_s + TIMEOUT_S)
        return await self._ask(Call(call.request, _pulled, call.repeat), wait_s)

    async def decline(self, worker_id: str, task_id: str, *, blacklist: bool) -> None:
        """Give a task back."""
        path = f"/workers/tasks/{segment(task_id)}/decline"
        body = Giving(worker_id=worker_id, blacklist=blacklist)
        await self._ask(writing("POST", path, dict, body))

    async def publish(self, task_id: str, events: list[bytes], *, key: str, fence: int) -> None:
        """Append events, each given as JSON text, all or none."""
        headers = {"Content-Type": "application/json", KEY: key, FENCE: str(fence)}
        body = b"[%b]" % b",".join(events)
        request = Request("POST", task_path(task_id, "/events"), headers=headers, body=body)
        await self._ask(Call(request, nothing, "keyed", task_id=task_id))

    async def move(self, task_id: str, change: Transition, *, key: str, fence: int) -> Task:
        """Move a task to another status."""
        path = task_path(task_id, "/status")
        return await self._ask(
            writing("PATCH", path, Task, change, task_id=task_id, key=key, fence=fence)
        )

    async def _ask(self, call: Call[T], wait_s: float = 0.0) -> T:
        try:
            with trio.fail_after(wait_s + PATIENCE_S):
                return await self._client.ask(call, retries=NO_RETRIES)
        except trio.TooSlowError as error:
            where = self._client.base_url
            raise ServerUnavailable(f"No answer from {where}: it takes too long") from error


_read_task = decoder(Task)


def _pulled(reply: Reply) -> Task | None:
    if reply.status == httpx.codes.NO_CONTENT:
        return None
    task: Task = _read_task(reply)
    return task
