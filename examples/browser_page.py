"""A web page that follows a task of a server that asks for tokens.

    python examples/browser_page.py        # then open the address that it prints

It starts a taskcast server with a secret of its own, and a small web site. The site's backend holds
the secret: it publishes the words of a text, and lends each visitor a ticket for that one task. The
page gives the ticket to an ``EventSource``, which can't send headers, and asks for another one
when it is no longer good: it goes on after the last event that it saw.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import jwt

TASK = "poem"
TEXT = "The sea is wide, and whoever listens from the middle hears all of it."
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Following a task</title>
<p id="text"></p>
<p id="state">connecting</p>
<script>
let last = "";
async function follow() {
  const answer = await fetch("/ticket", { method: "POST" }).catch(() => null);
  if (!answer || !answer.ok) return setTimeout(follow, 1000);
  const { url } = await answer.json();
  const events = new EventSource(url + (last && "&last_event_id=" + encodeURIComponent(last)));
  const text = document.getElementById("text"), state = document.getElementById("state");
  const again = () => { events.close(); setTimeout(follow, 1000); };
  events.onopen = () => { state.textContent = "live"; };
  events.addEventListener("taskcast.event", message => {
    last = message.lastEventId;
    const event = JSON.parse(message.data);
    if (event.type !== "llm.delta") return;
    if (event.seriesSnapshot) text.textContent = event.data.delta;  // the whole text so far
    else text.textContent += event.data.delta;
  });
  events.addEventListener("taskcast.done", message => {
    events.close();
    state.textContent = JSON.parse(message.data).reason;
  });
  // The token behind the ticket has expired, or was revoked:
  events.addEventListener("taskcast.error", again);
  // The ticket itself has expired, so that the browser gave up:
  events.onerror = () => { if (events.readyState === EventSource.CLOSED) again(); };
}
follow();
</script>
"""


class Backend:
    """What the site may do with its secret."""

    def __init__(self, url: str, secret: str) -> None:
        self._url = url
        self._secret = secret
        self._client = httpx.Client(base_url=url)

    def _ask(self, method: str, path: str, scope: str, body: object) -> dict[str, str]:
        claims = {"sub": "site", "scope": [scope], "exp": int(time.time()) + 60}
        token = jwt.encode(claims, self._secret, algorithm="HS256")
        answer = self._client.request(
            method, path, json=body, headers={"Authorization": f"Bearer {token}"}
        )
        answer.raise_for_status()
        found: dict[str, str] = answer.json()
        return found

    def stream_url(self) -> str:
        """Where a visitor may follow the task, for the next minute."""
        ticket = self._ask("POST", "/tickets", "event:subscribe", {"taskIds": [TASK]})["ticket"]
        return f"{self._url}/tasks/{TASK}/events?ticket={ticket}"

    def write(self, pace_s: float) -> None:
        """Publish the text, word by word."""
        self._ask("POST", "/tasks", "task:create", {"id": TASK})
        self._ask("PATCH", f"/tasks/{TASK}/status", "task:manage", {"status": "running"})
        for word in TEXT.split():
            event = {
                "type": "llm.delta",
                "level": "info",
                "data": {"delta": f"{word} "},
                "seriesId": "text",
                "seriesMode": "accumulate",
            }
            self._ask("POST", f"/tasks/{TASK}/events", "event:publish", event)
            time.sleep(pace_s)
        self._ask("PATCH", f"/tasks/{TASK}/status", "task:manage", {"status": "completed"})


def site(backend: Backend, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("text/html; charset=utf-8", PAGE.encode())

        def do_POST(self) -> None:
            # Here a real site looks at its own session: who is it, and may they see the task?
            self._answer("application/json", json.dumps({"url": backend.stream_url()}).encode())

        def _answer(self, media_type: str, body: bytes) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_taskcast(port: int, secret: str, origin: str) -> subprocess.Popen[bytes]:
    settings = {
        "TASKCAST_AUTH_MODE": "jwt",
        "TASKCAST_JWT_SECRET": secret,
        "TASKCAST_CORS_ORIGINS": origin,
    }
    command = [sys.executable, "-m", "taskcast_trio", "start", "-p", str(port)]
    command += ["--host", "127.0.0.1"]
    server = subprocess.Popen(
        command,
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health/ready").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.05)
        else:
            return server
    server.kill()
    raise SystemExit("the taskcast server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="of the web site  [8000]")
    parser.add_argument("--pace", type=float, default=0.5, metavar="S", help="between two words")
    options = parser.parse_args()
    port, secret = free_port(), secrets.token_urlsafe(32)
    backend = Backend(f"http://127.0.0.1:{port}", secret)
    with site(backend, options.port) as pages:
        address = f"http://127.0.0.1:{pages.server_port}"
        server = start_taskcast(port, secret, address)
        try:
            threading.Thread(target=backend.write, args=(options.pace,), daemon=True).start()
            print(f"open {address} (Ctrl-C ends it)", flush=True)
            pages.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


if __name__ == "__main__":
    main()
