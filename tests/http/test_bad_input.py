"""Bad input is a 4xx that says what and where, stores nothing, and leaves the server well."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Limits

EVENT = b'{"type":"a","level":"info","data":%b}'

BAD_EVENTS: list[tuple[str, bytes, int, str]] = [
    ("no body", b"", 400, "no body"),
    ("malformed", b'{"type":', 400, "not valid JSON"),
    ("trailing", b'{"type":"a","level":"info"} {}', 400, "not valid JSON"),
    ("invalid UTF-8", EVENT % b'"\xff"', 400, "offset"),
    ("overlong UTF-8", EVENT % b'"\xc0\x80"', 400, "UTF-8"),
    ("raw surrogate", EVENT % b'"\xed\xa0\x80"', 400, "UTF-8"),
    ("NaN", EVENT % b"NaN", 400, "not valid JSON"),
    ("Infinity", EVENT % b"-Infinity", 400, "not valid JSON"),
    ("1e400", EVENT % b"[1e400]", 400, "double"),
    ("-1e999", EVENT % b'{"a":-1e999}', 400, "double"),
    ("400 digits", EVENT % (b"1" * 400), 400, "double"),
    ("depth 129", EVENT % (b"[" * 128 + b"]" * 128), 400, "128"),
    ("depth 100,000", EVENT % (b"[" * 100_000), 400, "128"),
    ("wrong type", b'{"type":5,"level":"info"}', 400, "$.type"),
    ("no level", b'{"type":"a"}', 400, "level"),
    ("unknown level", b'{"type":"a","level":"loud"}', 400, "expected debug, info, warn, error"),
    ("bad element", b'[{"type":"a","level":"info"},{"type":"a","level":1}]', 400, "$[1].level"),
    ("control in type", b'{"type":"a\\n","level":"info"}', 400, "U+000A"),
    ("NUL in type", b'{"type":"a\\u0000","level":"info"}', 400, "U+0000"),
    (
        "control in series",
        b'{"type":"a","level":"info","seriesId":"\\r","seriesMode":"latest"}',
        400,
        "seriesId",
    ),
    ("surrogate in type", b'{"type":"\\ud800","level":"info"}', 400, "$.type"),
    ("null", b"null", 400, "Expected"),
    ("batch over the limit", b"[" + b",".join([EVENT % b"1"] * 1001) + b"]", 413, "1000"),
]


@pytest.mark.parametrize(
    ("body", "status", "text"), [c[1:] for c in BAD_EVENTS], ids=[c[0] for c in BAD_EVENTS]
)
@pytest.mark.parametrize("media_type", ["application/json", "text/plain", None])
async def test_a_bad_publish_stores_nothing_and_names_the_place(
    server: Any, body: bytes, status: int, text: str, media_type: str | None
) -> None:
    task = await server.task()
    headers = {"Content-Type": media_type} if media_type else {}
    answer = await server.client.post(f"/tasks/{task}/events", content=body, headers=headers)
    assert answer.status_code == status
    assert text in answer.json()["error"]
    assert (await server.client.get(f"/tasks/{task}/events/history")).json() == []


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"id": ""}, "$.id"),
        ({"id": "x" * 1025}, "1024"),
        ({"id": "a\x00"}, "U+0000"),
        ({"id": "a\x7f"}, "U+007F"),
        ({"ttl": 0}, "$.ttl"),
        ({"ttl": 1.5}, "$.ttl"),
        ({"ttl": 1e300}, "$.ttl"),
        ({"ttl": "60"}, "$.ttl"),
        ({"cost": -1}, "$.cost"),
        ({"params": []}, "$.params"),
        ({"metadata": None}, "$.metadata"),
        ({"tags": ["a", 1]}, "$.tags[1]"),
        ({"assignMode": "magic"}, "$.assignMode"),
        ({"cleanup": {}}, "rules"),
    ],
)
async def test_a_bad_create_stores_nothing_and_names_the_place(
    server: Any, task: dict[str, Any], text: str
) -> None:
    answer = await server.client.post("/tasks", json=task)
    assert answer.status_code == 400
    assert text in answer.json()["error"]
    assert (await server.client.get("/tasks")).json() == {"tasks": []}


async def test_bodies_over_the_limit_are_413_with_and_without_a_length(start: Any) -> None:
    async with start(Config(limits=Limits(body_bytes=1000))) as server:

        async def unsized() -> Any:
            for _ in range(20):
                yield b" " * 100

        for content in (b" " * 1001, unsized()):
            answer = await server.client.post("/tasks", content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]
        assert (await server.client.post("/tasks", content=b"{}" + b" " * 998)).status_code == 201


async def test_an_import_may_be_larger_than_other_bodies(start: Any) -> None:
    async with start(Config(limits=Limits(body_bytes=1000))) as server:
        task = await server.task(id="big")
        for _ in range(20):
            await server.publish(task, {"type": "a", "level": "info", "data": "x" * 100})
        archive = (await server.client.get(f"/tasks/{task}/archive")).content
        body = b'{"archive":%b,"overwrite":true}' % archive
        assert len(body) > 3000
        assert (await server.client.post("/tasks/import", content=body)).status_code == 200


async def test_what_was_accepted_at_the_depth_limit_can_be_exported_and_imported(
    server: Any,
) -> None:
    task = await server.task()
    await server.move(task, "running")
    deep = b"[" * 126 + b"]" * 126
    publish = b'[{"type":"a","level":"info","data":%b}]' % deep
    assert (await server.client.post(f"/tasks/{task}/events", content=publish)).is_success
    details = b'{"a":' + deep[1:-1] + b"}"
    change = b'{"status":"failed","error":{"message":"m","details":%b}}' % details
    assert (await server.client.patch(f"/tasks/{task}/status", content=change)).is_success
    archive = (await server.client.get(f"/tasks/{task}/archive")).content
    body = b'{"archive":%b,"overwrite":true}' % archive
    assert (await server.client.post("/tasks/import", content=body)).is_success


EXACT = [
    b'{"a":1,"a":2}',
    b'{ "spaced" :  [ 1 , 2 ] }',
    b'{"nul":"\\u0000"}',
    b'{"big":18446744073709551616,"more":123456789012345678901234567890}',
    b'{"f":1.0,"e":1E5,"z":-0,"t":5e-324}',
    b'{"esc":"\\u0041\\/","lone":"\\ud83d","pair":"\\ud83d\\ude00"}',
    b'{"deep":' + b"[" * 120 + b"]" * 120 + b"}",
    '{"text":"\u2028é😀"}'.encode(),
]


@pytest.mark.parametrize("text", EXACT)
async def test_accepted_values_come_back_byte_for_byte(server: Any, text: bytes) -> None:
    created = await server.client.post(
        "/tasks", content=b'{"id":"t","params":%b,"metadata":%b}' % (text, text)
    )
    assert created.content.count(text) == 2
    await server.move("t", "running")
    await server.client.post("/tasks/t/events", content=EVENT % text)
    change = b'{"status":"completed","result":%b,"error":{"message":"m","details":%b}}'
    await server.client.patch("/tasks/t/status", content=change % (text, text))
    assert (await server.client.get("/tasks/t")).content.count(text) == 4
    assert (await server.client.get("/tasks/t/events/history")).content.count(text) == 3
    stream = await server.client.get("/tasks/t/events")
    assert stream.content.count(text) == 3


async def test_line_breaks_between_tokens_become_spaces(server: Any) -> None:
    task = await server.task()
    await server.client.post(f"/tasks/{task}/events", content=EVENT % b'{"a":\r\n[1,\n2]}')
    history = await server.client.get(f"/tasks/{task}/events/history")
    assert b'{"a":  [1, 2]}' in history.content


@pytest.mark.parametrize("value", ["abc", "1x", "NaN", "1,2", "0x1", "1e309", "-1e400"])
@pytest.mark.parametrize("name", ["since.index", "since.timestamp"])
async def test_junk_cursors_of_the_history_are_refused(server: Any, name: str, value: str) -> None:
    task = await server.task()
    answer = await server.client.get(f"/tasks/{task}/events/history", params={name: value})
    assert answer.status_code == 400
    assert name in answer.json()["error"]


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9"])
async def test_a_bad_idempotency_key_is_refused(server: Any, key: str) -> None:
    headers = {"Idempotency-Key": key.encode()}
    answer = await server.client.post("/tasks", json={}, headers=headers)
    assert answer.status_code == 400


async def test_an_idempotency_key_brings_the_first_answer_back(server: Any) -> None:
    create = {"headers": {"Idempotency-Key": "c"}, "json": {"type": "x"}}
    first = await server.client.post("/tasks", **create)
    task = first.json()["id"]
    publish = {"headers": {"Idempotency-Key": "p"}, "json": {"type": "a", "level": "info"}}
    answers = [await server.client.post(f"/tasks/{task}/events", **publish) for _ in range(3)]
    assert len({answer.content for answer in answers}) == 1
    move = {"headers": {"Idempotency-Key": "m"}, "json": {"status": "cancelled"}}
    moves = [await server.client.patch(f"/tasks/{task}/status", **move) for _ in range(2)]
    assert [m.status_code for m in moves] == [200, 200]
    assert (await server.client.post("/tasks", **create)).content == first.content
    history = (await server.client.get(f"/tasks/{task}/events/history")).json()
    assert [event["type"] for event in history] == ["a", "taskcast:status"]
    other = {"headers": {"Idempotency-Key": "c"}, "json": {"type": "y"}}
    assert (await server.client.post("/tasks", **other)).status_code == 422


@pytest.mark.parametrize(
    "task_id", ["a/b", "../x", "a b", "q?x=1#f", "per%20cent", "日本😀", "a;b:c,d", ".", "%2F"]
)
async def test_an_id_may_hold_any_printable_character(server: Any, task_id: str) -> None:
    from urllib.parse import quote

    assert (await server.client.post("/tasks", json={"id": task_id})).status_code == 201
    path = f"/tasks/{quote(task_id, safe='')}"
    if task_id == ".":
        path = "/tasks/%2E"
    answer = await server.client.get(path)
    assert answer.json()["id"] == task_id
    event = await server.client.post(f"{path}/events", json={"type": "a", "level": "info"})
    assert event.json()["taskId"] == task_id


async def test_a_lone_surrogate_travels_as_its_escape_and_halves_join(server: Any) -> None:
    task = await server.task()
    piece = (
        b'{"type":"t","level":"info","data":{"delta":"%b"},'
        b'"seriesId":"s","seriesMode":"accumulate"}'
    )
    for half in (b"\\ud83d", b"\\ude00"):
        answer = await server.client.post(f"/tasks/{task}/events", content=piece % half)
        assert half in answer.content
    whole = await server.client.get(f"/tasks/{task}/events/history?seriesFormat=accumulated")
    assert msgspec.json.decode(whole.content)[0]["data"] == {"delta": "😀"}
