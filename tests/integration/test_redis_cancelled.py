"""A runtime on Redis that is cancelled together with its store: nothing crashes over that."""

from __future__ import annotations

import pytest
import trio

from taskcast_trio.engine import open_runtime
from tests.receiver import receiving

from ..engine.webhook_support import create, publish
from .test_webhooks import PATIENCE_S, Gate, hook, on_redis


@pytest.mark.parametrize("at_work", [False, True])
async def test_a_runtime_that_is_cancelled_together_with_its_store_ends_in_order(
    at_work: bool,
) -> None:
    gate = Gate(5)
    for _ in range(5):
        async with receiving(gate, patience_s=PATIENCE_S) as receiver:
            with trio.CancelScope() as scope:
                async with open_runtime(on_redis()) as runtime:
                    if at_work:
                        await create(runtime, hook(receiver))
                        await publish(runtime, *["a"] * 9)
                        await gate.reached.wait()
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught
