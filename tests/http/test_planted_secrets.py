"""A busy server gives away none of the secrets that are planted in it: no answer, no log line."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import httpx
import jwt
import pytest
import trio
from trio_websocket import wrap_client_stream

import taskcast_trio

PATIENCE_S = 60
BODY_LIMIT = 20_000

JWT_SECRET = "planted-jwt-secret-of-32-bytes-or-more"
ADMIN_TOKEN = "planted-admin-token"
SERVICE_KEY = "planted-service-key"
OTHER_KEY = "planted-other-key"
DSN_PASSWORD = "planted-dsn-password"
OF_THE_SERVER = (JWT_SECRET, ADMIN_TOKEN, SERVICE_KEY, OTHER_KEY, DSN_PASSWORD)
WEBHOOK_SECRET = "planted-webhook-secret"
WEBHOOK_PATH = "planted-webhook-path"
"""Part of URLs that are delivered to: for who may manage the task, and no log."""
RULE = "planted-rule-subject"
PAYLOAD = "planted-payload"
"""Begins every marker in what callers store or send."""
PLANTED = "planted-"
"""Begins everything that no log line may hold."""

CONFIG = {
    "port": 0,
    "host": "127.0.0.1",
    "logLevel": "debug",
    "storage": "memory",
    "adminApi": True,
    "adminToken": ADMIN_TOKEN,
    "auth": {"mode": "jwt", "jwt": {"secret": JWT_SECRET}},
    "trustedServices": [
        {"name": "one", "key": SERVICE_KEY, "scope": ["event:subscribe", "event:history"]},
        {"name": "two", "key": OTHER_KEY, "scope": ["*"]},
    ],
    "redis": {"url": f"redis://user:{DSN_PASSWORD}@127.0.0.1:1/0"},
    "limits": {"bodyBytes": BODY_LIMIT},
    "webhook": {"allow": ["127.0.0.1"], "defaultRetry": {"retries": 1, "initialDelayMs": 10}},
}
TASK = {
    "id": "t",
    "type": "job",
    "params": {"prompt": f"{PAYLOAD}-params"},
    "metadata": {"note": f"{PAYLOAD}-metadata"},
    "webhooks": [
        {"url": "https://hooks.example/", "secret": WEBHOOK_SECRET},
        {"url": "https://hooks.example/2", "s_cret": 1, "secret": [WEBHOOK_SECRET]},
        {"url": f"http://127.0.0.1:1/{WEBHOOK_PATH}?{WEBHOOK_PATH}", "secret": WEBHOOK_SECRET},
        {"url": f"http://planted-user:planted-pass@h/{WEBHOOK_PATH}", "secret": WEBHOOK_SECRET},
        {"url": f"http://10.0.0.1/{WEBHOOK_PATH}", "secret": [WEBHOOK_SECRET]},
        {"url": f"http://127.0.0.1/{WEBHOOK_PATH}", "secret": {"planted-x": WEBHOOK_SECRET}},
        {"url": f"http://127.0.0.1/{WEBHOOK_PATH}", "retry": {"backoff": "planted-backoff"}},
    ],
    "authConfig": {"rules": [{"match": {"scope": ["webhook:create"]}, "require": {"sub": [RULE]}}]},
}
EVENT = {"type": "llm.delta", "level": "info", "data": {"text": f"{PAYLOAD}-data"}}


def token(*scopes: str, **claims: Any) -> str:
    return jwt.encode({"scope": scopes, **claims}, JWT_SECRET, "HS256")


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


READ = token("event:subscribe", "event:history", "task:resolve", "metrics:read")
MANAGE = token("*", sub="manager")
STRANGER = token("*", taskIds=["another"])
BARE = token()
FORGED = jwt.encode({"scope": ["*"]}, "planted-forged-secret-of-32-bytes-or-more", "HS256")
EXPIRED = token("*", exp=1)
ODD_TICKET = "tkt_" + "planted-ticket-".ljust(43, "x")
CALLERS: dict[str, dict[str, str]] = {
    "nobody": {},
    "bare": bearer(BARE),
    "stranger": bearer(STRANGER),
    "forged": bearer(FORGED),
    "expired": bearer(EXPIRED),
    "no token": bearer("planted-no-token"),
    "basic": {"Authorization": "Basic planted-basic", "Cookie": "session=planted-cookie"},
    "wrong key": {"X-Taskcast-Service-Key": "planted-wrong-key"},
    "reader": bearer(READ),
    "service": {"X-Taskcast-Service-Key": SERVICE_KEY},
    "manager": bearer(MANAGE),
    "all-service": {"X-Taskcast-Service-Key": OTHER_KEY},
}
OUTSIDERS = ("nobody", "bare", "stranger", "forged", "expired", "no token", "basic", "wrong key")
"""Those who may see nothing of the task."""
MANAGERS = ("manager", "all-service")
TOKENS = (READ, MANAGE, STRANGER, BARE, FORGED, EXPIRED)


@dataclass
class Answer:
    who: str
    what: str
    status: int
    text: str


@dataclass
class Busy:
    """A server in a process of its own, all it has answered, and all it has logged."""

    client: httpx.AsyncClient
    port: int
    answers: list[Answer] = field(default_factory=list)
    tickets: list[str] = field(default_factory=list)
    made_tokens: list[str] = field(default_factory=list)

    async def ask(self, who: str, method: str, path: str, **options: Any) -> Answer:
        headers = {**CALLERS[who], **options.pop("headers", {})}
        got = await self.client.request(method, path, headers=headers, **options)
        return self.note(who, f"{method} {path}", got.status_code, f"{got.headers}\n{got.text}")

    def note(self, who: str, what: str, status: int, text: str) -> Answer:
        self.answers.append(Answer(who, what, status, text))
        return self.answers[-1]

    def of(self, *callers: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.who in callers]


@asynccontextmanager
async def running(directory: Path, http: str, *, terminal: bool) -> AsyncIterator[tuple[Busy, Any]]:
    """A server, and a function that ends it and gives all that it has written."""
    file = directory / "taskcast.config.json"
    file.write_text(json.dumps({**CONFIG, "http": http}))
    ours, theirs = os.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "taskcast_trio", "start", "--config", str(file)]
    logged = bytearray()
    log_ended = trio.Event()

    async def read_log() -> None:
        async with trio.lowlevel.FdStream(ours) as stream:
            try:
                async for part in stream:
                    logged.extend(part)
            except trio.BrokenResourceError:
                pass  # EIO is how a terminal tells of its end
        log_ended.set()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(
                command, stdout=subprocess.PIPE, stderr=theirs, env=environment(directory)
            )
            os.close(theirs)
            nursery.start_soon(read_log)
            assert process.stdout is not None
            printed = b""
            while b"docs" not in printed:
                part = await process.stdout.receive_some()
                assert part, (printed, logged)
                printed += part
            url = printed.split(b"http://")[1].split()[0].decode()
            port = int(url.strip("/").rsplit(":", 1)[1])

            async def ended() -> str:
                process.send_signal(signal.SIGTERM)
                rest = b""
                assert process.stdout is not None
                async for part in process.stdout:
                    rest += part
                assert await process.wait() == 0
                await log_ended.wait()
                return (printed + rest + logged).decode()

            try:
                # A refusal may come before the body was sent, and ends its connection then.
                async with httpx.AsyncClient(
                    base_url=f"http://127.0.0.1:{port}",
                    timeout=PATIENCE_S,
                    limits=httpx.Limits(max_keepalive_connections=0),
                ) as client:
                    yield Busy(client, port), ended
            finally:
                if process.returncode is None:
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()


def environment(home: Path) -> dict[str, str]:
    root = Path(taskcast_trio.__file__).parents[1]
    return {"PYTHONPATH": str(root), "HOME": str(home), "NO_PROXY": "*", "TERM": "dumb"}


async def be_busy(server: Busy) -> None:
    """Every route, by everybody, in good ways and in bad ones."""
    assert (await server.ask("manager", "POST", "/tasks", json=TASK)).status == 201
    async with trio.open_nursery() as nursery:
        for who in ("reader", "service", "manager"):
            await nursery.start(_follow_all, server, who)
        await _work(server)
    await _look_at_webhooks(server)
    await _read_everything(server)
    await _err(server)
    await _raw(server)
    await _administrate(server)


async def _follow_all(server: Busy, who: str, *, task_status: trio.TaskStatus[None]) -> None:
    path = "/events?existing=true"
    fields = {"Host": "h", **CALLERS[who]}
    parser = h11.Connection(h11.CLIENT)
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as peer:
        get = h11.Request(method="GET", target=path, headers=list(fields.items()))
        await peer.send_all((parser.send(get) or b"") + (parser.send(h11.EndOfMessage()) or b""))
        text = ""
        while "last-one" not in text:
            match parser.next_event():
                case h11.NEED_DATA:
                    parser.receive_data(await peer.receive_some())
                case h11.Data(data=data):
                    text += bytes(data).decode()
                case h11.Response() as head:
                    assert head.status_code == 200
                    task_status.started()
                case ended:
                    raise AssertionError(ended)
    server.note(who, path, 200, text)


async def _work(server: Busy) -> None:
    by = "manager"
    again = {"Idempotency-Key": "planted-idempotency-key"}
    for _ in range(2):
        body = {"metadata": {"x": f"{PAYLOAD}-again"}, "webhooks": TASK["webhooks"]}
        await server.ask(by, "POST", "/tasks", json=body, headers=again)
    reused = await server.ask(by, "POST", "/tasks", json={"type": PAYLOAD}, headers=again)
    assert reused.status == 422
    await server.ask(by, "POST", "/tasks/t/events", json=[EVENT, EVENT], headers=again)
    await server.ask(by, "PATCH", "/tasks/t/status", json={"status": "running"})
    await _ndjson(server)
    await _socket(server)
    asks = {"type": "question", "data": {"text": f"{PAYLOAD}-question"}}
    blocked = {"status": "blocked", "blockedRequest": asks, "reason": f"{PAYLOAD}-reason"}
    await server.ask(by, "PATCH", "/tasks/t/status", json=blocked)
    await server.ask("reader", "GET", "/tasks/t/request")
    await server.ask(by, "POST", "/tasks/t/resolve", json={"data": {"a": f"{PAYLOAD}-answer"}})
    archive = await server.client.get("/tasks/t/archive", headers=CALLERS[by])
    moved = json.loads(archive.text.replace('"t"', '"u"'))
    got = await server.ask(by, "POST", "/tasks/import", json={"archive": moved})
    assert got.status == 200, got.text
    await server.ask(by, "POST", "/tasks/import", json={"archive": moved})
    failed = {"message": f"{PAYLOAD}-error", "details": {"trace": f"{PAYLOAD}-details"}}
    await server.ask(by, "PATCH", "/tasks/u/status", json={"status": "failed", "error": failed})
    await server.ask(
        by,
        "PATCH",
        "/tasks/t/status",
        json={"status": "completed", "result": {"text": f"{PAYLOAD}-result"}},
    )
    await server.ask(by, "POST", "/tasks", json={"id": "live"})
    last = {"type": "last-one", "level": "info"}
    await server.ask(by, "POST", "/tasks/live/events", json=last)


async def _ndjson(server: Busy) -> None:
    line = json.dumps(EVENT)
    for last in (line, "{planted-bad-line", '{"type":"planted-type"}', PAYLOAD * 3000):
        for who in ("manager", *OUTSIDERS):
            await server.ask(
                who,
                "POST",
                "/tasks/t/events",
                content=f"{line}\n{last}\n".encode(),
                headers={"Content-Type": "application/x-ndjson"},
            )


async def _socket(server: Busy) -> None:
    headers = [(name.encode(), value.encode()) for name, value in CALLERS["manager"].items()]
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with stream, trio.open_nursery() as nursery:
        socket = await wrap_client_stream(
            nursery, stream, "h", "/tasks/t/events/ws", extra_headers=headers
        )
        for text in (json.dumps(EVENT), "{planted-bad-line", '{"type":"planted-type"}'):
            await socket.send_message(text)
            server.note("manager", "ws", 101, str(await socket.get_message()))
        await socket.aclose()


async def _look_at_webhooks(server: Busy) -> None:
    """Once one of them has failed for good, and has been asked to try again."""
    found: dict[str, Any] = {}
    while not found.get("deadLetters"):
        answer = await server.ask("manager", "GET", "/tasks/t/webhooks")
        found = json.loads(answer.text.split("\n", 1)[1])["webhooks"][2]
        await trio.sleep(0.02)
    for who in CALLERS:
        await server.ask(who, "GET", "/tasks/t/webhooks")
        await server.ask(who, "GET", "/tasks/gone/webhooks?token=planted-token")
        for number in (*range(7), "x"):
            path = f"/tasks/t/webhooks/{number}"
            await server.ask(who, "GET", f"{path}/deliveries")
            await server.ask(who, "POST", f"{path}/redeliver", json={"fromIndex": "planted-index"})
            await server.ask(who, "POST", f"{path}/redeliver")


async def _read_everything(server: Busy) -> None:
    for who in CALLERS:
        for task in ("t", "u"):
            for path in ("", "/events", "/events/history", "/archive", "/request", "/events/ws"):
                await server.ask(who, "GET", f"/tasks/{task}{path}")
        await server.ask(who, "GET", "/tasks")
        await server.ask(who, "GET", "/tasks?status=completed,failed&limit=1")
        await server.ask(who, "GET", "/tasks/gone")
        await server.ask(who, "GET", "/gone?token=planted-token")
        for path in ("/", "/health", "/health/detail", "/openapi.json", "/docs", "/metrics"):
            await server.ask(who, "GET", path)
        await server.ask(who, "GET", "/metrics", headers={"X-Forwarded-For": "203.0.113.7"})
        for name in ("token", "access_token", "authorization", "ticket", "adminToken"):
            await server.ask(who, "GET", f"/tasks/t?{name}={MANAGE}")
        await server.ask(who, "GET", f"/tasks/u/events?ticket={ODD_TICKET}")
        await server.ask(who, "GET", "/tasks/t/events?since.id=planted-id&limit=planted-limit")
        await server.ask(who, "GET", "/tasks/t/events", headers={"Last-Event-ID": "planted-id"})
        issued = await server.client.post("/tickets", json={"taskIds": ["t"]}, headers=CALLERS[who])
        if issued.status_code == 201:
            ticket = issued.json()["ticket"]
            server.tickets.append(ticket)
            await server.ask("nobody", "GET", f"/tasks/u/events?ticket={ticket}")
            opened = await server.client.get(f"/tasks/t/events?ticket={ticket}")
            server.note(who, "a stream by ticket", opened.status_code, opened.text)


async def _err(server: Busy) -> None:
    bad: list[dict[str, Any]] = [
        {"content": b'{"type":"planted-bad-json'},
        {"content": b'"planted-text"'},
        {"json": {"type": 1, "planted-unknown": PAYLOAD, "level": PAYLOAD, "status": PAYLOAD}},
        {"json": {"status": "blocked", "blockedRequest": PAYLOAD, "data": PAYLOAD * BODY_LIMIT}},
        {"content": f'{{"params":"{PAYLOAD}\xff"}}'.encode("latin-1")},
        {"json": {"webhooks": {"secret": WEBHOOK_SECRET}, "authConfig": {"rules": [PAYLOAD]}}},
        {"json": {"authConfig": {"rules": [{"match": {"scope": PAYLOAD}}]}}},
        {"json": {}, "headers": {"Idempotency-Key": "planted-key" * 50}},
    ]
    routes = (
        ("POST", "/tasks"),
        ("POST", "/tasks/t/events"),
        ("PATCH", "/tasks/t/status"),
        ("POST", "/tasks/t/resolve"),
        ("POST", "/tasks/t/storage/release"),
        ("POST", "/tasks/import"),
        ("POST", "/tickets"),
        ("POST", "/events"),
    )
    for who in ("manager", "stranger", "forged"):
        for method, path in routes:
            for options in bad:
                await server.ask(who, method, path, **options)


async def _raw(server: Busy) -> None:
    """Requests that no client library would send."""
    heads = (
        "GET /tasks?ticket=planted-line HTTP/9.9\r\nHost: h",
        "GET /tasks/t?a=planted-line b HTTP/1.1\r\nHost: h",
        "GET /tasks HTTP/1.1\r\nHost: h\r\nAuthorization planted-field",
        "GET /tasks HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer planted-\x01byte",
        "GET http://user:planted-password@h/tasks HTTP/1.1\r\nHost: h",
        "GET /tasks HTTP/1.1\r\nHost: user:planted-password@h",
        f"GET /tasks HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {'planted-long' * 5000}",
        "POST /tasks HTTP/1.1\r\nHost: h\r\nContent-Length: planted-length",
        "GET /tasks/t/events/ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: planted-key\r\n"
        "Sec-WebSocket-Protocol: planted-protocol\r\nAuthorization: Bearer planted-bearer",
        "planted-no-request",
    )
    for head in heads:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as peer:
            text = b""
            try:
                await peer.send_all(f"{head}\r\nConnection: close\r\n\r\n".encode("latin-1"))
                async for part in peer:
                    text += part
            except trio.BrokenResourceError:
                pass  # it was refused before it was read to its end
            server.note("nobody", head[:40], 0, text.decode())


async def _administrate(server: Busy) -> None:
    for admin, scopes in (
        (ADMIN_TOKEN, ["task:create"]),
        ("planted-wrong-admin", ["*"]),
        (["planted-wrong-admin"], ["*"]),
        (ADMIN_TOKEN, "planted-scope"),
    ):
        body = {"adminToken": admin, "scopes": scopes}
        made = await server.client.post("/admin/token", json=body)
        if made.status_code == 200:
            server.made_tokens.append(made.json()["token"])
        else:
            server.note("nobody", "POST /admin/token", made.status_code, made.text)
        revoked = {"adminToken": admin, "sub": "planted-subject", "jti": 1}
        await server.ask("nobody", "POST", "/admin/revoke", json=revoked)
    await server.ask("nobody", "POST", "/admin/token", content=f"{{{ADMIN_TOKEN}".encode())
    good = {"adminToken": ADMIN_TOKEN, "sub": "planted-subject"}
    assert (await server.ask("nobody", "POST", "/admin/revoke", json=good)).status == 204
    assert len(server.made_tokens) == 1


@pytest.mark.parametrize(("http", "terminal"), [("httptools", False), ("h11", True)])
async def test_neither_answers_nor_logs_of_a_busy_server_hold_what_was_planted(
    tmp_path: Path, http: str, terminal: bool
) -> None:
    async with running(tmp_path, http, terminal=terminal) as (server, ended):
        await be_busy(server)
        log = await ended()

    for answer in server.answers:
        for secret in (*OF_THE_SERVER, *server.tickets, *server.made_tokens, *TOKENS):
            assert secret not in answer.text, (answer, secret)
        if not (answer.who in MANAGERS and answer.what.endswith("/archive")):
            assert WEBHOOK_SECRET not in answer.text, answer
        if answer.who not in MANAGERS:
            assert RULE not in answer.text, answer
    for answer in server.of(*OUTSIDERS):
        sent_it_itself = answer.who == "stranger" and answer.what.startswith(("POST", "PATCH"))
        assert sent_it_itself or PAYLOAD not in answer.text, answer
    for answer in server.answers:
        if answer.what.startswith(("GET /metrics", "GET /health", "GET /openapi", "GET /docs")):
            assert PLANTED not in answer.text, answer

    views = [answer for answer in server.answers if "/webhooks" in answer.what]
    for answer in views:
        assert answer.who in MANAGERS or WEBHOOK_PATH not in answer.text, answer
        assert PAYLOAD not in answer.text, answer
    assert any(a.who in MANAGERS and WEBHOOK_PATH in a.text for a in views)
    assert any(a.who == "reader" and '"host":"127.0.0.1"' in a.text for a in views)
    assert "webhook_dead_letter" in log

    # That they were there to be seen: else nothing was tested.
    archives = [a.text for a in server.of(*MANAGERS) if a.what == "GET /tasks/t/archive"]
    assert len(archives) == 2
    assert all(WEBHOOK_SECRET in text and RULE in text for text in archives)
    for part in ("params", "metadata", "data", "result", "error", "reason", "answer"):
        assert any(f"{PAYLOAD}-{part}" in a.text for a in server.of("reader")), part
    assert sum(a.what == "/events?existing=true" and PAYLOAD in a.text for a in server.answers) == 3
    assert {200, 201, 204, 400, 401, 403, 404, 409, 413, 422} <= {a.status for a in server.answers}

    assert log.count("/tasks/t/events") > 20
    assert PLANTED not in log, log[log.index(PLANTED) - 300 :][:600]
    for secret in (*server.tickets, *server.made_tokens, *TOKENS):
        assert not any(part in log for part in secret.split(".")[1:] or [secret]), secret
    assert "ticket=" not in log
    assert base64.b64encode(PLANTED.encode()).decode()[:8] not in log


def said(directory: Path, config: dict[str, Any]) -> tuple[int, str]:
    """What ``--check-config`` makes of a configuration."""
    file = directory / "taskcast.config.json"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "taskcast_trio", "start", "-c", str(file), "--check-config"]
    done = subprocess.run(
        command, env=environment(directory), capture_output=True, timeout=PATIENCE_S, check=False
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def test_a_shown_configuration_hides_its_secrets(tmp_path: Path) -> None:
    status, text = said(tmp_path, CONFIG)
    assert (status, text.splitlines()[-1]) == (0, "OK")
    assert "redis://" in text
    assert PLANTED not in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"postgres": {"url": f"mysql://user:{DSN_PASSWORD}@127.0.0.1/db", "maxConnections": 0}},
        {"auth": {"mode": "jwt", "jwt": {"secret": "planted-short"}}},
        {"auth": {"mode": "jwt", "jwt": {"algorithm": "RS256", "publicKey": "planted-key"}}},
        {"adminToken": {"planted-token": "planted-token"}},
        {"trustedServices": [{"name": "one", "key": ["planted-key"]}]},
        {"trustedServices": [{"name": "one", "key": "planted-key", "scope": 1}]},
    ],
)
def test_a_refused_configuration_does_not_show_its_secrets(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    status, text = said(tmp_path, CONFIG | wrong)
    assert status == 2
    assert len(text.splitlines()) == 1
    assert DSN_PASSWORD not in text
    assert "planted-short" not in text
    assert "planted-key" not in text
