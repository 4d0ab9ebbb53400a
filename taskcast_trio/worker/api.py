"""The requests that a worker makes."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
import trio

from taskcast_trio.client import ServerUnavailable
from taskcast_trio.client.errors import decode, error_of
from taskcast_trio.core.model import Draft, Task, Transition

from .wire import Cancel, Heard, Holding, Pulse, Registered, Registration

TIMEOUT_S: Final = 10.0
"""For each step of a request, as httpx counts them; all of one may take twice that."""


class Api:
    """Every method raises ``ServerUnavailable`` where no answer comes, and an error of
    ``core.errors`` (or ``ResponseError``) where the server says no.

    Cancelling a call closes its connection; whether it took effect is then unknown, and the same
    ``key`` makes it safe to repeat.
    """

    def __init__(self, base_url: str, token: str | None, http: httpx.AsyncClient) -> None:
        self._base_url = base_url
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = http

    async def register(self, asked: Registration) -> str:
        """Enter the worker, for pulling; its id."""
        answer = await self._call("POST", "/workers/register", asked)
        return decode(answer.content, Registered, status=answer.status_code).id

    async def heartbeat(
        self, worker_id: str, tasks: list[Holding] | msgspec.UnsetType
    ) -> tuple[list[Cancel], float]:
        """What is to be stopped, and how often (s) the server wants to hear of the worker."""
        path = f"/workers/{_segment(worker_id)}/heartbeat"
        answer = await self._call("POST", path, Pulse(tasks=tasks))
        heard = decode(answer.content, Heard, status=answer.status_code)
        return heard.cancel, heard.interval_ms / 1000

    async def pull(self, worker_id: str, wait_s: float) -> Task | None:
        """The next task, waited for up to ``wait_s``."""
        answer = await self._call(
            "GET",
            "/workers/pull",
            query={"workerId": worker_id, "timeout": str(int(wait_s * 1000))},
            wait_s=wait_s,
        )
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        return decode(answer.content, Task, status=answer.status_code)

    async def decline(self, worker_id: str, task_id: str, *, blacklist: bool) -> None:
        """Give a task back."""
        body = {"workerId": worker_id, "blacklist": blacklist}
        await self._call("POST", f"/workers/tasks/{_segment(task_id)}/decline", body)

    async def publish(self, task_id: str, drafts: list[Draft], *, key: str, fence: int) -> None:
        """Append events, all or none."""
        path = f"/tasks/{_segment(task_id)}/events"
        await self._call("POST", path, drafts, task_id=task_id, key=key, fence=fence)

    async def move(self, task_id: str, change: Transition, *, key: str, fence: int) -> Task:
        """Move a task to another status."""
        path = f"/tasks/{_segment(task_id)}/status"
        answer = await self._call("PATCH", path, change, task_id=task_id, key=key, fence=fence)
        return decode(answer.content, Task, status=answer.status_code)

    async def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        task_id: str | None = None,
        key: str | None = None,
        fence: int | None = None,
        wait_s: float = 0.0,
    ) -> httpx.Response:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Idempotency-Key"] = key
        if fence is not None:
            headers["Taskcast-Fence"] = str(fence)
        try:
            with trio.fail_after(wait_s + 2 * TIMEOUT_S):
                response = await self._http.request(
                    method,
                    self._base_url + path,
                    params=query,
                    content=None if body is None else msgspec.json.encode(body),
                    headers=headers,
                    timeout=httpx.Timeout(TIMEOUT_S, read=wait_s + TIMEOUT_S),
                )
        except (httpx.RequestError, trio.TooSlowError) as error:
            reason = str(error) or type(error).__name__
            raise ServerUnavailable(f"No answer from {self._base_url}: {reason}") from error
        if not response.is_success:
            raise error_of(response.status_code, response.content, task_id)
        return response


def _segment(text: str) -> str:
    """``text`` as one segment of a path, ``/`` included."""
    segment = quote(text, safe="")
    if segment in (".", ".."):
        # RFC 3986, section 5.2.4: as they are, clients and proxies would remove these.
        segment = segment.replace(".", "%2E")
    return segment
