"""A receiver of webhooks for tests: it listens on a real port, verifies what it gets, and fails as
it is told to.

It runs in threads and needs no event loop, so that it goes with every kind of test.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from taskcast_trio.core.signature import (
    TASKCAST_SIGNATURE,
    WEBHOOK_ID,
    InvalidSignature,
    verify_standard,
    verify_taskcast,
)

SECRET: Final = "whsec_dGhlIHNlY3JldCBvZiBhIHRlc3QsIDMyIGJ5dGVz"
WAIT_S: Final = 10.0
SILENCE_S: Final = 10.0
"""How long a sender may be silent within a request."""
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
FOREVER: Final = -1


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was taken: answered with a 2xx, the first time that it came."""

    id: str
    """The same for every try: to drop repeats by."""
    event: Any
    """The body, decoded."""
    headers: Mapping[str, str]
    """By their names in small letters."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request, whatever became of it."""

    id: str
    status: int
    """What it was answered."""
    refused: str | None
    """Why its signature was refused (a 401), if it was."""
    headers: Mapping[str, str]
    body: bytes


@dataclass
class _Mood:
    status: int = HTTPStatus.NO_CONTENT
    left: int = 0
    retry_after_s: int | None = None
    delay_s: float = 0.0


class WebhookSink:
    """Receives webhooks on 127.0.0.1 and a free port, for as long as the context.

    It takes each delivery that is signed with ``secret`` and keeps it in ``deliveries``; repeats
    are answered and dropped. ``fail()``, ``gone()`` and ``slow()`` change what it answers, and
    ``accept()`` changes it back. Everything may be called from any thread.
    """

    def __init__(self, secret: str | None = SECRET) -> None:
        self.secret = secret
        """None takes unsigned deliveries too, and verifies none."""
        self._changed = threading.Condition()
        self._deliveries: list[Delivery] = []
        self._attempts: list[Attempt] = []
        self._mood = _Mood()
        self._closing = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="webhook sink", daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/hook"

    def webhook(self, **fields: Any) -> dict[str, Any]:
        """A webhook that points here, for the ``webhooks`` of a task; ``fields`` come on top.

        It is tried again three times, at once.
        """
        retry = {"retries": 3, "backoff": "fixed", "initialDelayMs": 1, "timeoutMs": 5000}
        signed = {} if self.secret is None else {"secret": self.secret}
        return {"url": self.url, **signed, "retry": retry, **fields}

    @property
    def deliveries(self) -> list[Delivery]:
        """What was taken so far, in the order it came, each once."""
        with self._changed:
            return list(self._deliveries)

    @property
    def attempts(self) -> list[Attempt]:
        """All requests that were answered so far, in order."""
        with self._changed:
            return list(self._attempts)

    def accept(self) -> None:
        """Take what comes, at once: as in the beginning."""
        self._feel(_Mood())

    def fail(
        self, times: int = FOREVER, *, status: int = 500, retry_after_s: int | None = None
    ) -> None:
        """Answer the next ``times`` requests, or all, with ``status``."""
        if not 300 <= status <= 599:
            raise ValueError(f"{status} is no failure")
        self._feel(_Mood(status, times, retry_after_s))

    def gone(self) -> None:
        """Answer 410: a webhook that gets it is disabled."""
        self.fail(status=HTTPStatus.GONE)

    def slow(self, seconds: float) -> None:
        """Take what comes, ``seconds`` after it came."""
        self._feel(_Mood(delay_s=seconds))

    def wait(self, count: int = 1, *, timeout_s: float = WAIT_S) -> list[Delivery]:
        """Wait until ``count`` deliveries were taken in all, and return them. It blocks the thread.

        Raises:
            TimeoutError: they were not within ``timeout_s``; the message says what there was.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(self._deliveries) < count:
                left = deadline - time.monotonic()
                if left <= 0 or self._closing.is_set():
                    raise TimeoutError(self._lacking(count, timeout_s))
                self._changed.wait(left)
            return self._deliveries[:count]

    async def arrived(self, count: int = 1, *, timeout_s: float = WAIT_S) -> list[Delivery]:
        """The same for async tests, on asyncio and Trio: it lets others run. It may be cancelled.

        Raises:
            TimeoutError: as :meth:`wait`.
        """
        from anyio import sleep

        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                if len(self._deliveries) >= count:
                    return self._deliveries[:count]
                if time.monotonic() >= deadline:
                    raise TimeoutError(self._lacking(count, timeout_s))
            await sleep(0.005)

    def close(self) -> None:
        """Stop listening, and end what is still being answered."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _feel(self, mood: _Mood) -> None:
        with self._changed:
            self._mood = mood

    def _answer(self) -> tuple[int, int | None, float]:
        """The status of the next answer, its Retry-After, and how long it takes."""
        with self._changed:
            mood = self._mood
            if mood.status == HTTPStatus.NO_CONTENT:
                return mood.status, None, mood.delay_s
            if mood.left == 0:
                self._mood = _Mood()
                return HTTPStatus.NO_CONTENT, None, 0.0
            if mood.left != FOREVER:
                mood.left -= 1
            return mood.status, mood.retry_after_s, mood.delay_s

    def _refusal(self, headers: Mapping[str, str], body: bytes) -> str | None:
        if self.secret is None:
            return None
        try:
            verify_standard([self.secret], headers, body, now_s=time.time())
            verify_taskcast([self.secret], body, headers.get(TASKCAST_SIGNATURE.lower()))
        except InvalidSignature as error:
            return str(error)
        return None

    def _take(self, headers: Mapping[str, str], body: bytes) -> tuple[int, int | None]:
        """Keep a request, and say how it is answered."""
        status, retry_after_s, delay_s = self._answer()
        refused = self._refusal(headers, body)
        event: Any = None
        if refused is not None:
            status, retry_after_s = HTTPStatus.UNAUTHORIZED, None
        else:
            try:
                event = json.loads(body)
            except ValueError:
                status, retry_after_s = HTTPStatus.BAD_REQUEST, None
        if self._closing.wait(delay_s):
            status, retry_after_s = HTTPStatus.SERVICE_UNAVAILABLE, None
        identity = headers.get(WEBHOOK_ID) or headers.get("x-taskcast-delivery", "")
        with self._changed:
            self._attempts.append(Attempt(identity, status, refused, headers, body))
            known = any(each.id == identity for each in self._deliveries) and identity != ""
            if status == HTTPStatus.NO_CONTENT and not known:
                self._deliveries.append(Delivery(identity, event, headers, body))
            self._changed.notify_all()
        return status, retry_after_s

    def _lacking(self, count: int, timeout_s: float) -> str:
        answers = ", ".join(
            f"{each.status}" + (f" ({each.refused})" if each.refused else "")
            for each in self._attempts[-10:]
        )
        return (
            f"{len(self._deliveries)} of {count} deliveries within {timeout_s:g} s; "
            f"{len(self._attempts)} requests were answered" + (f": {answers}" if answers else "")
        )


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False  # joined by server_close(), so that no socket is left

    def __init__(self, sink: WebhookSink) -> None:
        self.sink = sink
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Let no handler wait for a sender."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a sender that leaves is what a test may be about."""


class _Handler(BaseHTTPRequestHandler):
    timeout = SILENCE_S
    server: _Server

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        if length > MAX_BODY_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        body = self.rfile.read(length)
        if len(body) < length:
            return  # the sender has left
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, retry_after_s = self.server.sink._take(headers, body)
        self.send_response(status)
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """A test's output is its own."""
