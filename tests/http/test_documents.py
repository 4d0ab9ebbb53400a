"""What README and pages show works as shown."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from taskcast_trio.config import Config, Secret
from taskcast_trio.config.schema import Auth, Jwt
from taskcast_trio.core.model import CreateTask, Transition

from .conftest import start_server

ROOT = Path(__file__).resolve().parents[2]
PAGES = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [code for code in blocks("python") if "open_engine" in code])
async def test_a_python_block_runs(code: str) -> None:
    with trio.fail_after(60):
        done = await trio.run_process(
            [sys.executable, "-c", code], capture_stdout=True, capture_stderr=True
        )
    assert b'log b\'{"line":"hello"}\'' in done.stdout
    assert b"Done(reason='completed')" in done.stdout
    assert not done.stderr


async def test_the_tour_with_curl_shows_the_whole_text_to_who_comes_late(
    server: Any, tmp_path: Path
) -> None:
    (tour,) = [block for block in blocks("sh") if "answer-1" in block]
    assert "localhost:3721" in tour
    script = "set -e\n" + tour.replace("localhost:3721", f"127.0.0.1:{server.port}")
    # The second stream must be there before the task ends, as it is when a person types.
    (last,) = re.findall(r"^curl .* -d '\{\"status\": \"completed\"", script, re.MULTILINE)
    two_follow = f"curl -s {server.url}/tasks/answer-1 | grep -q '\"subscriberCount\":2'"
    script = script.replace(last, f"until {two_follow}; do :; done\n{last}")
    done = await trio.run_process(
        ["bash", "-c", script + "\nwait\n"], capture_stdout=True, stderr=subprocess.STDOUT
    )
    text = done.stdout.decode()
    assert text.count("event: taskcast.done") == 2
    assert '"delta":"Hello, you"' in text.replace(" ", "").replace("Hello,you", "Hello, you")


async def test_a_stream_is_published_line_by_line(server: Any) -> None:
    (script,) = [block for block in blocks("sh") if "x-ndjson" in block]
    done = await trio.run_process(
        ["bash", "-c", script.replace("localhost:3721", f"127.0.0.1:{server.port}")],
        capture_stdout=True,
        capture_stderr=True,
    )
    answer = done.stdout.decode().splitlines()[-1]
    assert json.loads(answer) == {"accepted": 2, "firstIndex": 3, "lastIndex": 4}


async def test_a_token_a_ticket_and_a_stream_are_three_lines() -> None:
    (script,) = [block for block in blocks("sh") if "/admin/token" in block]
    admin_token = "the admin token of this test"
    auth = Auth(mode="jwt", jwt=Jwt(secret=Secret("a secret of thirty-two bytes or more")))
    config = Config(auth=auth, admin_api=True, admin_token=Secret(admin_token))
    async with start_server(config) as server:
        await server.runtime.engine.create(CreateTask(id="answer-3"))
        await server.runtime.engine.transition("answer-3", Transition(status="cancelled"))
        done = await trio.run_process(
            ["bash", "-c", "set -e\n" + script],
            env={**os.environ, "SERVER": server.url, "ADMIN_TOKEN": admin_token},
            capture_stdout=True,
            capture_stderr=True,
        )
    assert b"event: taskcast.done" in done.stdout


async def test_the_example_of_a_web_page_follows_with_tickets() -> None:
    example = [sys.executable, str(ROOT / "examples" / "browser_page.py")]
    with trio.fail_after(60):
        site = await trio.lowlevel.open_process(
            [*example, "--port", "0", "--pace", "0"], stdout=subprocess.PIPE
        )
        assert site.stdout is not None
        try:
            said = b""
            while not said.endswith(b"\n"):
                said += await site.stdout.receive_some()
            address = said.decode().split()[1]
            async with httpx.AsyncClient() as browser:
                page = await browser.get(address)
                assert "new EventSource(url" in page.text
                url = (await browser.post(f"{address}/ticket")).json()["url"]
                stream = await browser.get(url, headers={"Origin": address})
            assert stream.headers["access-control-allow-origin"] == address
            assert "event: taskcast.done" in stream.text
            text = "".join(re.findall(r'"delta":"([^"]*)"', stream.text))
            assert "The sea is wide" in text
            assert "hears all of it." in text
        finally:
            site.send_signal(signal.SIGINT)
            with trio.CancelScope(deadline=trio.current_time() + 10, shield=True):
                await site.stdout.aclose()
                await site.wait()
    assert site.returncode == 0


async def test_the_example_streams_a_file_to_three_subscribers(server: Any) -> None:
    command = [sys.executable, str(ROOT / "examples" / "stream_file.py")]
    done = await trio.run_process(
        [*command, "--url", server.url, "--pace", "0"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


async def test_the_example_of_a_receiver_misses_nothing_though_the_server_is_killed() -> None:
    command = [sys.executable, str(ROOT / "examples" / "webhook_receiver.py"), "--events", "200"]
    with trio.fail_after(60):
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert b"nothing is missing, all in order" in done.stdout


def test_the_example_of_a_receiver_takes_a_delivery_that_breaks_off_for_no_forgery() -> None:
    example = runpy.run_path(str(ROOT / "examples" / "webhook_receiver.py"))
    inbox = example["Inbox"]("whsec_AAAA", print)
    with example["receiver"](inbox) as http:
        serving = threading.Thread(target=http.serve_forever)
        serving.start()
        try:
            with socket.create_connection(http.server_address) as sender:
                sender.sendall(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
                sender.shutdown(socket.SHUT_WR)
                assert sender.recv(1) == b""
        finally:
            http.shutdown()
            serving.join()
    assert inbox.refused == 0
