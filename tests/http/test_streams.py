"""What a stream promises: resume, gaps, hygiene, and that it ends with its owner."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Sse

from .reading import opened

EVENT = {"type": "a", "level": "info"}


def blocks(text: str) -> list[str]:
    return [block for block in text.split("\n\n") if block]


def frames(text: str) -> list[dict[str, Any]]:
    """The data of every event, with the event's name."""
    found = []
    for block in blocks(text):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line[1:])
        if "data" in fields:
            data: dict[str, Any] = msgspec.json.decode(fields["data"])
            found.append({"event": fields["event"], **data})
    return found


async def finished_task(server: Any, events: int = 3) -> tuple[str, list[dict[str, Any]]]:
    task = await server.task()
    published = await server.publish(task, *[{**EVENT, "data": n} for n in range(events)])
    await server.move(task, "cancelled")
    return task, published


@pytest.mark.parametrize("how", ["header", "parameter"])
async def test_last_event_id_resumes_right_after_it(server: Any, how: str) -> None:
    task, events = await finished_task(server)
    cursor = events[1]["id"]
    options = (
        {"headers": {"Last-Event-ID": cursor}}
        if how == "header"
        else {"params": {"last_event_id": cursor}}
    )
    got = frames(await server.finished_stream(f"/tasks/{task}/events", **options))
    assert [f.get("rawIndex") for f in got] == [2, 3, None]


async def test_an_unknown_cursor_is_told_by_a_gap_before_the_replay(server: Any) -> None:
    task, _ = await finished_task(server)
    for cursor in ("nonsense", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "x" * 5000):
        text = await server.finished_stream(
            f"/tasks/{task}/events", headers={"Last-Event-ID": cursor}
        )
        got = frames(text)
        assert got[0] == {"event": "taskcast.gap", "reason": "unknown_cursor", "replayedFrom": 0}
        assert [f.get("rawIndex") for f in got[1:]] == [0, 1, 2, 3, None]


async def test_a_cursor_of_an_older_life_of_the_task_is_a_gap(server: Any) -> None:
    await server.task(id="t")
    (event,) = await server.publish("t", EVENT)
    await server.client.delete("/tasks/t")
    await server.task(id="t")
    await server.publish("t", EVENT, EVENT)
    await server.move("t", "cancelled")
    got = frames(
        await server.finished_stream("/tasks/t/events", headers={"Last-Event-ID": event["id"]})
    )
    assert got[0]["event"] == "taskcast.gap"
    assert [f.get("rawIndex") for f in got[1:]] == [0, 1, 2, None]


async def test_a_finished_task_with_nothing_new_answers_204(server: Any) -> None:
    task = await server.task()
    await server.move(task, "running")
    await server.move(task, "completed")
    (last,) = (await server.client.get(f"/tasks/{task}/events/history")).json()[-1:]
    answer = await server.client.get(f"/tasks/{task}/events", headers={"Last-Event-ID": last["id"]})
    assert (answer.status_code, answer.headers["Taskcast-Status"]) == (204, "completed")
    filtered = await server.client.get(
        f"/tasks/{task}/events?types=other.*", headers={"Last-Event-ID": last["id"]}
    )
    assert filtered.status_code == 204


async def test_the_since_parameters_keep_the_answers_of_the_contract(server: Any) -> None:
    task, _ = await finished_task(server)
    got = frames(await server.finished_stream(f"/tasks/{task}/events?since.id=unknown"))
    assert [f["event"] for f in got] == ["taskcast.event"] * 4 + ["taskcast.done"]


async def test_a_replaced_latest_event_still_is_a_cursor(server: Any) -> None:
    task = await server.task()
    series = {**EVENT, "seriesId": "p", "seriesMode": "latest"}
    events = await server.publish(task, series, EVENT, series, EVENT)
    await server.move(task, "cancelled")
    got = frames(
        await server.finished_stream(
            f"/tasks/{task}/events", headers={"Last-Event-ID": events[0]["id"]}
        )
    )
    assert [f.get("rawIndex") for f in got] == [1, 2, 3, 4, None]


async def test_a_late_snapshot_stands_where_resuming_after_it_repeats_nothing(server: Any) -> None:
    task = await server.task()
    piece = {"level": "info", "type": "t", "seriesId": "s", "seriesMode": "accumulate"}
    await server.publish(
        task,
        {**piece, "data": {"delta": "a"}},
        {**EVENT, "data": 1},
        {**piece, "data": {"delta": "b"}},
        {**EVENT, "data": 2},
    )
    await server.move(task, "cancelled")
    got = frames(await server.finished_stream(f"/tasks/{task}/events"))
    assert [f.get("rawIndex") for f in got] == [1, 2, 3, 4, None]
    assert got[1]["data"] == {"delta": "ab"}
    resumed = frames(
        await server.finished_stream(
            f"/tasks/{task}/events", headers={"Last-Event-ID": got[1]["eventId"]}
        )
    )
    assert [f.get("rawIndex") for f in resumed] == [3, 4, None]


async def test_a_stream_starts_with_retry_and_says_how_not_to_buffer_it(server: Any) -> None:
    task, _ = await finished_task(server)
    answer = await server.client.get(f"/tasks/{task}/events")
    assert answer.text.startswith("retry: 2000\n\n")
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["Content-Type"] == "text/event-stream"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_stream_says_which_silence_is_none(start: Any, method: str) -> None:
    pace = Sse(keepalive_seconds=2.5, global_keepalive_seconds=4_000_000)
    async with start(Config(sse=pace)) as server:
        task = await server.task()
        said = []
        for path in (f"/tasks/{task}/events", "/events"):
            async with server.client.stream(method, path) as answer:
                said.append(answer.headers["Taskcast-Keepalive"])
        assert said == ["2.5", "4000000"]


async def test_silence_is_broken_by_keepalives(start: Any) -> None:
    pace = Sse(keepalive_seconds=0.01, global_keepalive_seconds=0.01)
    async with start(Config(sse=pace)) as server:
        task = await server.task()
        for path in (f"/tasks/{task}/events", "/events"):
            async with opened(server, path) as stream:
                seen = [await stream.block() for _ in range(4)]
            assert seen.count(": keepalive") >= 3


async def test_the_global_stream_starts_with_a_keepalive_and_can_show_existing_tasks(
    server: Any,
) -> None:
    old = await server.task()
    async with (
        opened(server, "/events") as new,
        opened(server, "/events?existing=true") as both,
    ):
        assert await new.block() == await both.block() == ": keepalive"
        fresh = await server.task()
        await server.publish(old, EVENT)
        await server.publish(fresh, EVENT)
        assert await new.block() == await both.block() == "retry: 2000"
        assert fresh in await new.block()
        assert old in await both.block()
        assert fresh in await both.block()


async def test_deleting_a_task_ends_its_streams(server: Any) -> None:
    task = await server.task()
    async with opened(server, f"/tasks/{task}/events") as stream:
        assert await stream.block() == "retry: 2000"
        await wait_for_subscribers(server, task, 1)
        assert (await server.client.delete(f"/tasks/{task}")).status_code == 204
        assert frames(await stream.block() + "\n\n") == [
            {"event": "taskcast.done", "reason": "deleted"}
        ]
        assert await stream.rest() == ""
    assert (await server.client.delete(f"/tasks/{task}")).status_code == 404


async def wait_for_subscribers(server: Any, task: str, count: int) -> None:
    while True:
        await trio.lowlevel.checkpoint()
        if server.runtime.engine.fanout.subscribers(task) == count:
            return


async def test_a_viewer_who_leaves_never_touches_the_task(server: Any) -> None:
    task = await server.task()
    await server.move(task, "running")
    before = (await server.client.get(f"/tasks/{task}")).json()
    async with opened(server, f"/tasks/{task}/events"):
        await wait_for_subscribers(server, task, 1)
    await wait_for_subscribers(server, task, 0)
    assert (await server.client.get(f"/tasks/{task}")).json() == before


async def test_an_import_over_a_followed_task_is_told_and_replayed(server: Any) -> None:
    task = await server.task()
    await server.publish(task, EVENT)
    archive = (await server.client.get(f"/tasks/{task}/archive")).json()
    await server.publish(task, EVENT, EVENT)
    async with opened(server, f"/tasks/{task}/events") as stream:
        seen = [await stream.block() for _ in range(4)]
        assert [f["rawIndex"] for f in frames("\n\n".join(seen))] == [0, 1, 2]
        body = {"archive": archive, "overwrite": True}
        assert (await server.client.post("/tasks/import", json=body)).status_code == 200
        await server.move(task, "cancelled")
        rest = frames(await stream.rest())
    assert rest[0] == {"event": "taskcast.gap", "reason": "log_replaced", "replayedFrom": 0}
    assert [f.get("rawIndex") for f in rest[1:]] == [0, 1, None]


async def test_a_foreign_id_that_is_not_ascii_is_a_cursor_as_browsers_send_it(server: Any) -> None:
    events = [
        {"id": f"ö{n}", "taskId": "i", "index": n, "timestamp": 1, "data": n, **EVENT}
        for n in range(3)
    ]
    archive = {
        "schema": "taskcast.taskArchive",
        "version": 1,
        "exportedAt": 1,
        "task": {"id": "i", "status": "cancelled", "createdAt": 1, "updatedAt": 1},
        "events": events,
    }
    await server.client.post("/tasks/import", json={"archive": archive})
    headers = {"Last-Event-ID": "ö1".encode()}
    got = frames(await server.finished_stream("/tasks/i/events", headers=headers))
    assert [f.get("rawIndex") for f in got] == [2, None]


async def test_ids_of_imported_events_cannot_break_a_frame(server: Any) -> None:
    event = {"id": "e\n\ndata: x", "taskId": "i", "index": 0, "timestamp": 1, "data": 1, **EVENT}
    archive = {
        "schema": "taskcast.taskArchive",
        "version": 1,
        "exportedAt": 1,
        "task": {"id": "i", "status": "cancelled", "createdAt": 1, "updatedAt": 1},
        "events": [event],
    }
    answer = await server.client.post("/tasks/import", json={"archive": archive})
    assert answer.status_code == 200
    text = await server.finished_stream("/tasks/i/events")
    assert [f["event"] for f in frames(text)] == ["taskcast.event", "taskcast.done"]


async def test_a_drain_ends_streams_cleanly_and_refuses_new_work(server: Any) -> None:
    task = await server.task()
    async with opened(server, f"/tasks/{task}/events") as stream:
        assert await stream.block() == "retry: 2000"
        await wait_for_subscribers(server, task, 1)
        server.runtime.drain.set()
        assert (await stream.rest()).startswith("retry: ")


async def test_a_cut_before_a_snapshot_is_due_loses_none_of_its_pieces(server: Any) -> None:
    """A browser resumes at the last ``id:`` it received, wherever the first replay was cut."""
    task = await server.task()
    piece = {"level": "info", "type": "t", "seriesId": "s", "seriesMode": "accumulate"}
    texts = "abcdefgh"
    await server.publish(task, {**EVENT, "data": "before"})
    for letter in texts:
        await server.publish(task, {**piece, "data": {"delta": letter}}, {**EVENT, "data": letter})
    await server.move(task, "cancelled")
    path = f"/tasks/{task}/events"
    whole = blocks(await server.finished_stream(path))[1:]
    logs = [f["data"] for f in frames("\n\n".join(whole)) if f.get("type") == "a"]
    assert logs == ["before", *texts]
    for cut in range(1, len(whole)):
        received = whole[:cut]
        cursor = [line[4:] for b in received for line in b.split("\n") if line.startswith("id: ")]
        headers = {"Last-Event-ID": cursor[-1]} if cursor else {}
        received += blocks(await server.finished_stream(path, headers=headers))[1:]
        text, seen = "", set()
        for frame in frames("\n\n".join(received)):
            if frame.get("type") == "t":
                delta = frame["data"]["delta"]
                text = delta if frame.get("seriesSnapshot") else text + delta
            elif frame.get("type") == "a":
                seen.add(frame["data"])
        assert text == texts, f"cut after {cut} frames"
        assert seen == {"before", *texts}


async def test_a_drain_that_begins_while_a_stream_opens_is_a_503(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, task = server.runtime.engine, await server.task()
    finished = engine.finished

    async def and_then_drain(*args: Any) -> Any:
        status = await finished(*args)
        engine.fanout.close()
        return status

    monkeypatch.setattr(engine, "finished", and_then_drain)
    answer = await server.client.get(f"/tasks/{task}/events")
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert "retry-after" in answer.headers
