"""Receive webhooks: verify each signature, drop repeats, and miss nothing, whatever dies.

    python examples/webhook_receiver.py [--events N]
    python examples/webhook_receiver.py --listen PORT --secret SECRET

The second form is a receiver and nothing else: it prints what a server sends it. The first form is
the proof: it starts a server on a database file and a receiver, registers a webhook, publishes,
kills the server with `kill -9` in the middle, starts it again, and checks that every event arrived,
in order. Then the exit code is 0, else 1.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

TOLERANCE_S = 300
"""A signature older than this may be somebody's recording."""
PATIENCE_S = 60
TASK = "proof"


# The receiver: all that yours needs ---------------------------------------------------------------


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> str:
    """Check a delivery by the Standard Webhooks headers; its id.

    Raises ValueError for what was not signed with the secret, or too long ago.
    """
    id_, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE_S:
        raise ValueError("the timestamp is missing, or not of now")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{id_}.{timestamp}.".encode() + body
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    # Two secrets may be in use while one replaces the other: any of the signatures will do.
    given = headers.get("webhook-signature", "").split()
    if not any(hmac.compare_digest(f"v1,{expected}".encode(), one.encode()) for one in given):
        raise ValueError("no signature is by this secret")
    return id_


class Inbox:
    """What has arrived, each event once, in the order of arrival.

    A real one keeps the ids where it keeps the rest: in the same transaction, so that an event is
    not taken twice though the receiver dies as well.
    """

    def __init__(self, secret: str, show: Callable[[dict[str, Any]], None]) -> None:
        self.events: list[dict[str, Any]] = []
        self.repeats = 0
        self.refused = 0
        self._secret = secret
        self._show = show
        self._ids: set[str] = set()
        self._lock = threading.Lock()

    def take(self, headers: Mapping[str, str], body: bytes) -> int:
        """Take a delivery; the status to answer with. Only a 2xx makes the sender go on."""
        try:
            id_ = verify(self._secret, headers, body)
        except ValueError:
            self.refused += 1
            return 401
        with self._lock:
            if id_ in self._ids:
                self.repeats += 1
            else:
                self._ids.add(id_)
                self.events.append(json.loads(body))
                self._show(self.events[-1])
        return 204


def receiver(inbox: Inbox, port: int = 0) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps the connection: many times as fast
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:  # the sender died in the middle of it
                self.close_connection = True
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(inbox.take(headers, body))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return _Server(("127.0.0.1", port), Handler)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a sender that was killed: it comes again."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


# The proof ----------------------------------------------------------------------------------------


class Server:
    """A server process on a database file; started again, it has the same port."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._port = "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "taskcast_trio", "--port", self._port]
        command += ["--storage", "sqlite", "--db-path", str(self._database)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TASKCAST_")}
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--log-level", "error"],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/docs", line):
                self._port = found[1]
                return
        raise RuntimeError("the server did not start")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Clock:
    """Says what happens, and when."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, who: str, what: str) -> None:
        print(f"{time.monotonic() - self._began:5.1f} s  {who:<8}  {what}", flush=True)


def publish(client: httpx.Client, numbers: range) -> None:
    for number in numbers:
        event = {"type": "step", "level": "info", "data": {"number": number}}
        client.post(f"/tasks/{TASK}/events", json=event).raise_for_status()


def wait_for(met: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not met() and time.monotonic() < until:
        time.sleep(0.01)


def prove(events: int) -> bool:
    clock = Clock()
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    # A little work for each event, so that the server dies with deliveries still to make.
    inbox = Inbox(secret, lambda event: time.sleep(0.005))
    http = receiver(inbox)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory, "proof.db"))
        try:
            with httpx.Client(base_url=server.url) as client:
                hook = {"url": f"http://127.0.0.1:{http.server_port}/", "secret": secret}
                task = {"id": TASK, "webhooks": [hook]}
                client.post("/tasks", json=task).raise_for_status()
                status = f"/tasks/{TASK}/status"
                client.patch(status, json={"status": "running"}).raise_for_status()
                clock.say("server", "runs; a webhook is registered")
                publish(client, range(events // 2))
            server.end(signal.SIGKILL)
            clock.say("server", f"is killed: {events // 2} published, {len(inbox.events)} arrived")
            server.start()
            clock.say("server", "runs again")
            with httpx.Client(base_url=server.url) as client:
                publish(client, range(events // 2, events))
                client.patch(status, json={"status": "completed"}).raise_for_status()
                log = client.get(f"/tasks/{TASK}/events/history").json()
            clock.say("server", f"has {len(log)} events in the log of the task, which is completed")
            wait_for(lambda: len(inbox.events) >= len(log))
        finally:
            server.end(signal.SIGTERM)
            http.shutdown()
            http.server_close()
    arrived = [event["index"] for event in inbox.events]
    clock.say("receiver", f"has {len(arrived)} events; {inbox.repeats} repeats were dropped")
    if inbox.refused:
        clock.say("receiver", f"refused {inbox.refused} deliveries for their signatures")
    whole = inbox.events == log and inbox.refused == 0
    clock.say("receiver", "nothing is missing, all in order" if whole else "THEY ARE NOT THE SAME")
    return whole


def listen(port: int, secret: str) -> None:
    inbox = Inbox(secret, lambda event: print(json.dumps(event), flush=True))
    with receiver(inbox, port) as http:
        print(f"listening on http://127.0.0.1:{http.server_port}/", file=sys.stderr)
        http.serve_forever()


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=400, help="to publish in the proof")
    parser.add_argument("--listen", type=int, metavar="PORT", help="only receive")
    parser.add_argument("--secret", default=os.environ.get("WEBHOOK_SECRET"), help="for --listen")
    arguments = parser.parse_args()
    if arguments.listen is None:
        return 0 if prove(arguments.events) else 1
    if not arguments.secret:
        parser.error("--listen needs --secret, or WEBHOOK_SECRET")
    try:
        listen(arguments.listen, arguments.secret)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
