"""What is emitted: at once, in order, each event once, and never more in memory than a bound."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from taskcast_trio.client import ServerUnavailable, draft
from taskcast_trio.core.errors import BadRequest, Forbidden, PayloadTooLarge
from taskcast_trio.core.model import Draft
from taskcast_trio.worker.emitter import WAITING_BYTES, WAITING_EVENTS, Emitter


class Server:
    """Takes a second for each batch, and refuses what it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.times: list[float] = []
        self.most = 10**6
        self.bad: set[int] = set()
        self.wait_s = 1.0

    async def send(self, drafts: list[Draft]) -> None:
        numbers = [int(each.type) for each in drafts]
        await trio.sleep(self.wait_s)
        if len(numbers) > self.most:
            raise PayloadTooLarge("too many")
        if self.bad.intersection(numbers):
            raise BadRequest("one is bad")
        self.batches.append(numbers)
        self.times.append(trio.current_time())

    @property
    def stored(self) -> list[int]:
        return [number for batch in self.batches for number in batch]


@pytest.fixture
def server() -> Server:
    return Server()


async def test_the_first_goes_at_once_and_what_comes_meanwhile_goes_together(
    server: Server, autojump_clock: MockClock
) -> None:
    emitter = Emitter(server.send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emitter.run)
        await wait_all_tasks_blocked()
        for number in range(450):
            await emitter.put(draft(str(number)))
            if number == 0:
                await wait_all_tasks_blocked()
        await emitter.flush()
        nursery.cancel_scope.cancel()
    assert [len(batch) for batch in server.batches] == [1, 200, 200, 49]
    assert server.times == [1, 2, 3, 4]
    assert server.stored == list(range(450))


async def test_who_emits_faster_than_the_server_stores_waits(
    server: Server, autojump_clock: MockClock
) -> None:
    emitter = Emitter(server.send)
    most = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emitter.run)
        for number in range(3 * WAITING_EVENTS):
            await emitter.put(draft(str(number)))
            most = max(most, number + 1 - len(server.stored))
        await emitter.flush()
        nursery.cancel_scope.cancel()
    assert server.stored == list(range(3 * WAITING_EVENTS))
    assert most == WAITING_EVENTS


async def test_large_events_wait_by_their_bytes_and_one_over_the_bound_goes_alone(
    server: Server, autojump_clock: MockClock
) -> None:
    emitter = Emitter(server.send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emitter.run)
        await emitter.put(draft("0", "x" * (2 * WAITING_BYTES)))
        with trio.move_on_after(0.5) as waiting:
            await emitter.put(draft("1", "x"))
        assert waiting.cancelled_caught
        await emitter.put(draft("2", "x"))
        assert trio.current_time() == 1
        await emitter.flush()
        nursery.cancel_scope.cancel()
    assert server.batches == [[0], [2]]


async def test_a_batch_over_the_limits_of_the_server_is_sent_in_halves(
    server: Server, autojump_clock: MockClock
) -> None:
    server.most = 30
    emitter = Emitter(server.send)
    async with trio.open_nursery() as nursery:
        for number in range(100):
            await emitter.put(draft(str(number)))
        nursery.start_soon(emitter.run)
        await emitter.flush()
        nursery.cancel_scope.cancel()
    assert server.stored == list(range(100))


async def test_what_comes_before_a_bad_event_is_stored_and_who_emits_is_told(
    server: Server, autojump_clock: MockClock
) -> None:
    server.bad = {70}
    emitter = Emitter(server.send)
    async with trio.open_nursery() as nursery:
        for number in range(100):
            await emitter.put(draft(str(number)))
        nursery.start_soon(emitter.run)
        for again in (emitter.flush, lambda: emitter.put(draft("101"))):
            with pytest.raises(BadRequest):
                await again()
    assert server.stored == list(range(70))


@pytest.mark.parametrize("error", [Forbidden("no"), ServerUnavailable("gone")])
async def test_who_waits_for_room_is_told_when_there_is_no_going_on(
    error: Exception, autojump_clock: MockClock
) -> None:
    async def send(drafts: list[Draft]) -> None:
        await trio.sleep(1)
        raise error

    emitter = Emitter(send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emitter.run)
        with pytest.raises(type(error)):
            for number in range(WAITING_EVENTS + 1):
                await emitter.put(draft(str(number)))
    assert trio.current_time() == 1
