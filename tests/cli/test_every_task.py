"""What `tail` shows of a server whose tasks come, go and come again while it is not connected.

The client is a stand-in with logs in memory: nothing waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, cast

import pytest
import trio
import trio.testing
from msgspec import Raw

from taskcast_trio.cli import every_task
from taskcast_trio.cli.every_task import EveryTask
from taskcast_trio.client import AsyncTaskcastClient, Gap, ServerUnavailable
from taskcast_trio.core.errors import BadRequest, TaskNotFound
from taskcast_trio.core.model import Envelope, Event, TaskView

NOW_MS = 1_700_000_000_000
"""When following begins, by the clock here."""
RECONNECTED = Gap(reason="reconnected", replayed_from=-1)


class Server:
    """Tasks with their logs, and what its stream says."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskView] = {}
        self.logs: dict[str, list[Event]] = {}
        self.live: list[Any] = []
        self.reads: list[str] = []
        self.deleted_after_page: str | None = None
        self.failing_reads: set[int] = set()
        """Which of the reads of logs, by number, the server is away for."""

    def create(self, task: str, at_ms: int, status: str = "running") -> None:
        self.tasks[task] = TaskView(
            id=task,
            status=cast(Any, status),
            created_at=at_ms,
            updated_at=at_ms,
            hot=False,
            subscriber_count=0,
        )
        self.logs[task] = []

    def store(self, task: str, at_ms: int, *, type_: str = "n", data: bytes = b"1") -> Event:
        """Publish while nobody is connected."""
        index = len(self.logs[task])
        event = Event(
            id=f"{task}-{index}-{at_ms}",
            task_id=task,
            index=index,
            timestamp=at_ms,
            type=type_,
            level="info",
            data=Raw(data),
        )
        self.logs[task].append(event)
        return event

    def send(self, event: Event) -> None:
        """Let the stream bring this event."""
        self.live.append(
            Envelope(
                filtered_index=0,
                raw_index=event.index,
                event_id=event.id,
                task_id=event.task_id,
                type=event.type,
                timestamp=event.timestamp,
                level=event.level,
                data=event.data,
            )
        )

    def subscribe_all(self, **_: Any) -> _Stream:
        return _Stream(self)

    async def list(self, *, after: str | None, limit: int) -> Sequence[TaskView]:
        ids = list(self.tasks)
        if after is not None and after not in ids:
            raise BadRequest("There is no such task to go on after")
        page = ids[0 if after is None else ids.index(after) + 1 :][:limit]
        found = [self.tasks[task] for task in page]
        if self.deleted_after_page in page:
            del self.tasks[self.deleted_after_page]
        return found

    async def history(
        self, task: str, *, since: str | int | datetime, limit: int, **_: Any
    ) -> Sequence[Event]:
        self.reads.append(task)
        if len(self.reads) in self.failing_reads:
            raise ServerUnavailable("away")
        if task not in self.logs:
            raise TaskNotFound(task)
        log = self.logs[task]
        if isinstance(since, str):
            place = [event.id for event in log].index(since)
            return log[place + 1 :][:limit]
        if isinstance(since, int):
            return [event for event in log if event.index > since][:limit]
        since_ms = since.timestamp() * 1000
        return [event for event in log if event.timestamp > since_ms][:limit]


class _Stream:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if not self._server.live:
            raise StopAsyncIteration
        item = self._server.live.pop(0)
        return item() if callable(item) else item


async def shown(
    server: Server, *, since_ms: int | None = None, follow: bool = True, **options: Any
) -> list[str]:
    """The ids of what is shown until the stream has no more."""
    found: list[str] = []
    every = EveryTask(
        cast(AsyncTaskcastClient, server),
        types=None,
        levels=None,
        since=None if since_ms is None else datetime.fromtimestamp(since_ms / 1000, UTC),
        show=lambda event: found.append(event.id),
        note=lambda _: None,
        clock=lambda: NOW_MS / 1000,
        **options,
    )
    await (every.follow() if follow else every.past())
    return found


def ids(events: Sequence[Event]) -> list[str]:
    return [event.id for event in events]


@pytest.fixture
def server() -> Server:
    return Server()


async def test_what_came_between_is_read_and_what_comes_twice_is_shown_once(
    server: Server,
) -> None:
    server.create("t", NOW_MS - 5000)
    server.store("t", NOW_MS - 5000)  # before it began
    seen = server.store("t", NOW_MS + 10)
    missed = [server.store("t", NOW_MS + 20), server.store("t", NOW_MS + 30)]
    after = server.store("t", NOW_MS + 40)
    server.send(seen)
    server.live.append(RECONNECTED)
    server.send(missed[1])  # announced after the stream was there, and read from the log, too
    server.send(after)
    assert await shown(server) == ids([seen, *missed, after])


async def test_tasks_that_were_silent_or_not_there_before_are_read_from_the_beginning(
    server: Server,
) -> None:
    server.create("silent", NOW_MS - 5000)
    server.store("silent", NOW_MS - 5000)
    silent = server.store("silent", NOW_MS + 2000)
    server.create("new", NOW_MS + 2000)
    new = [server.store("new", NOW_MS + 2000), server.store("new", NOW_MS + 2001)]
    server.live.append(RECONNECTED)
    assert await shown(server) == ids([silent, *new])


async def test_a_task_made_anew_under_its_id_is_another_one(server: Server) -> None:
    server.create("t", NOW_MS)
    old = [server.store("t", NOW_MS + n) for n in range(1, 4)]
    for event in old:
        server.send(event)
    server.create("t", NOW_MS + 100)
    live = server.store("t", NOW_MS + 101)
    server.send(live)  # while connected

    def again() -> Gap:
        server.create("t", NOW_MS + 200)
        server.store("t", NOW_MS + 201)
        return RECONNECTED

    server.live.append(again)  # while not
    found = await shown(server)
    assert found == [*ids([*old, live]), f"t-0-{NOW_MS + 201}"]


async def test_the_clock_of_the_server_counts(server: Server) -> None:
    behind_ms = 3_600_000  # the server's is an hour behind
    server.create("t", NOW_MS - behind_ms - 50_000)
    server.create("silent", NOW_MS - behind_ms - 50_000)
    server.store("silent", NOW_MS - behind_ms - 40_000)
    server.send(server.store("t", NOW_MS - behind_ms))
    missed = server.store("silent", NOW_MS - behind_ms + 5000)
    server.live.append(RECONNECTED)
    assert (await shown(server))[1:] == [missed.id]


async def test_tasks_that_ended_before_are_not_read_again(server: Server) -> None:
    server.create("old", NOW_MS - 5000, "completed")
    server.create("t", NOW_MS)
    server.send(server.store("t", NOW_MS + 5))
    end = server.store("t", NOW_MS + 10, type_="taskcast:status", data=b'{"status":"completed"}')
    server.send(end)
    server.live += [RECONNECTED, RECONNECTED]
    await shown(server)
    assert server.reads == []


async def test_memory_is_bounded_and_what_was_forgotten_is_not_shown_again(
    server: Server,
) -> None:
    seen = []
    for number in range(5):
        server.create(f"t{number}", NOW_MS + number)
        seen.append(server.store(f"t{number}", NOW_MS + number))
        server.send(seen[-1])
    server.live.append(RECONNECTED)
    assert await shown(server, max_cursors=2) == ids(seen)


async def test_logs_and_lists_are_read_in_pages(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(every_task, "PAGE_EVENTS", 2)
    monkeypatch.setattr(every_task, "PAGE_TASKS", 2)
    stored = []
    for task in ("a", "b", "c", "d", "e"):
        server.create(task, NOW_MS)
        stored += [server.store(task, NOW_MS + n) for n in range(1, 6)]
    stored.sort(key=lambda event: event.timestamp)
    assert await shown(server, since_ms=NOW_MS - 1, follow=False) == ids(stored)


@pytest.mark.parametrize(("events", "size"), [(10_000, 8 << 20), (4, 8 << 20), (10_000, 4)])
async def test_the_past_is_shown_in_the_order_of_time_as_far_as_it_is_held(
    server: Server, monkeypatch: pytest.MonkeyPatch, events: int, size: int
) -> None:
    monkeypatch.setattr(every_task, "SORTED_EVENTS", events)
    monkeypatch.setattr(every_task, "SORTED_BYTES", size)
    by_task = {}
    for number, task in enumerate("abc"):
        server.create(task, NOW_MS)
        by_task[task] = [server.store(task, NOW_MS + 10 * n + number) for n in range(1, 4)]
    latest = server.store("b", NOW_MS + 100)
    server.logs["b"].insert(0, server.logs["b"].pop())  # the order of its log counts
    log_of_b = [latest, *by_task["b"]]
    found = await shown(server, since_ms=NOW_MS - 1, follow=False)
    assert [id_ for id_ in found if id_.startswith("b")] == ids(log_of_b)
    a, c = by_task["a"], by_task["c"]
    if (events, size) == (10_000, 8 << 20):
        assert found == ids([a[0], c[0], a[1], c[1], a[2], c[2], *log_of_b])
    else:  # four at a time
        assert found == ids([*a, latest, c[0], *by_task["b"], *c[1:]])


async def test_a_list_whose_place_was_deleted_is_begun_again_and_nothing_is_shown_twice(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(every_task, "PAGE_TASKS", 2)
    stored = []
    for task in ("a", "b", "c"):
        server.create(task, NOW_MS)
        stored.append(server.store(task, NOW_MS + 1))
    server.deleted_after_page = "b"
    assert await shown(server, since_ms=NOW_MS - 1, follow=False) == ids(stored)


async def test_the_newest_of_a_series_stands_at_an_old_place_and_hides_nothing(
    server: Server,
) -> None:
    server.create("t", NOW_MS)
    seen = server.store("t", NOW_MS + 1)
    server.send(seen)
    missed = [server.store("t", NOW_MS + n) for n in range(2, 5)]
    latest = server.store("t", NOW_MS + 5)
    server.logs["t"] = [latest, seen, *missed]  # the order of its log
    server.live.append(RECONNECTED)
    after = Event(id="after", task_id="t", index=5, timestamp=NOW_MS + 6, type="n", level="info")
    server.send(after)
    assert await shown(server) == ids([seen, latest, *missed, after])


async def test_a_server_that_goes_away_again_while_logs_are_read_costs_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(every_task, "PAGE_EVENTS", 2)
    server.create("a", NOW_MS)
    server.create("b", NOW_MS)
    missed = [server.store(task, NOW_MS + n) for task in "ab" for n in range(1, 6)]
    latest = server.logs["b"].pop()
    server.logs["b"].insert(0, latest)  # a `latest` series: the newest stands first
    server.failing_reads = {2, 5, 6}
    server.live.append(RECONNECTED)
    found = await shown(server)
    # What was read is shown before it is tried again.
    assert found == ids([*missed[:5], latest, *missed[5:9]])
    server.failing_reads = set(range(1000))
    server.store("a", NOW_MS + 100)
    server.live.append(RECONNECTED)
    with pytest.raises(ServerUnavailable):
        await shown(server)
    assert trio.current_time() > every_task.PATIENCE_S
