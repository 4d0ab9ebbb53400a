"""What ends a connection, or lets none begin, leaves nothing of it behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import TokenRevoked
from taskcast_trio.server.auth.admission import Admissions
from taskcast_trio.server.auth.limits import StreamSlots

CALLER = Caller(sub="s", jti="j")


class Body:
    """What a request has brought."""


async def cut(admissions: Admissions) -> None:
    with admissions.open(CALLER, "key") as admission:
        admissions.revoke(lambda caller: caller.jti == "j")
        await admission.during(trio.sleep_forever)


async def late(admissions: Admissions) -> None:
    admissions.revoke(lambda caller: caller.jti == "j")
    with admissions.open(CALLER, "key"):
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("connect", [cut, late])
async def test_a_connection_that_was_revoked_keeps_no_request_alive(
    connect: Callable[[Admissions], Awaitable[None]], autojump_clock: trio.testing.MockClock
) -> None:
    slots = StreamSlots(total=100, per_caller=100)

    async def ended() -> weakref.ref[Body]:
        body = Body()
        with pytest.raises(TokenRevoked):
            await connect(Admissions(slots, clock_ms=lambda: 1, grace_s=0))
        return weakref.ref(body)

    requests = [await ended() for _ in range(2)]
    gc.collect()
    assert [request() for request in requests] == [None, None]
    assert slots.open_streams == 0
