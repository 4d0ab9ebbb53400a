"""What the answers of a server mean to a worker."""

from __future__ import annotations

import httpx
import pytest

from taskcast_trio.client import AsyncTaskcastClient
from taskcast_trio.core.errors import RateLimited, StoreUnavailable, TaskcastError
from taskcast_trio.worker.api import Api
from taskcast_trio.worker.pauses import MAX_WAIT_S, pause_s


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [(429, "rate_limited", RateLimited), (503, "store_unavailable", StoreUnavailable)],
)
async def test_a_worker_waits_as_long_as_the_server_asks_for_and_not_for_ever(
    status: int, code: str, error: type[TaskcastError]
) -> None:
    after = "7"

    def answer(request: httpx.Request) -> httpx.Response:
        body = {"error": "later", "code": code}
        return httpx.Response(status, json=body, headers={"Retry-After": after})

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    api = Api(AsyncTaskcastClient("http://server", http=http))
    for asked, wait_s in (("7", 7), ("86400", MAX_WAIT_S)):
        after = asked
        with pytest.raises(error) as refused:
            await api.pull("w", 25)
        assert pause_s(1, refused.value) == wait_s
