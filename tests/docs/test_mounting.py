"""The sites of docs/mounting.md, served by uvicorn: they follow, and they end."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from .blocks import ROOT, blocks_of, end, free_port, until

PATIENCE_S = 60
PROMPT_S = 15.0
"""Within what time a site ends that has nothing to wait for."""


def save(folder: Path, name: str) -> None:
    texts = [block.text for block in blocks_of(ROOT / "docs" / "mounting.md")]
    (text,) = (text for text in texts if text.startswith(f"# {name}.py\n"))
    (folder / f"{name}.py").write_text(text)


def uvicorn(folder: Path, application: str, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), application]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def said(folder: Path) -> str:
    return (folder / "log").read_text()


@pytest.mark.parametrize(
    ("name", "application", "method"),
    [("fastapi_site", "app", "POST"), ("django_site", "application", "GET")],
)
def test_a_stream_beside_a_site_ends_cleanly_with_the_site(
    name: str, application: str, method: str, tmp_path: Path
) -> None:
    save(tmp_path, name)
    port = free_port()
    site = uvicorn(tmp_path, f"{name}:{application}", port)
    try:
        until(lambda: "Uvicorn running" in said(tmp_path) or site.poll() is not None)
        answer = httpx.request(method, f"http://localhost:{port}/ask", trust_env=False)
        url = answer.raise_for_status().json()["follow"]
        opened, lines = threading.Event(), list[str]()

        def follow() -> None:
            with httpx.stream("GET", url, timeout=PATIENCE_S, trust_env=False) as stream:
                opened.set()
                lines.extend(stream.iter_lines())  # raises where it is cut
                lines.append("ended cleanly")

        follower = threading.Thread(target=follow)
        follower.start()
        assert opened.wait(PATIENCE_S)
        begin = time.monotonic()
        site.terminate()
        site.wait(PATIENCE_S)
        assert time.monotonic() - begin < PROMPT_S
        follower.join(PATIENCE_S)
        assert lines[-1] == "ended cleanly"
    finally:
        end(site)
    assert "Traceback" not in said(tmp_path)


def test_a_site_whose_server_cannot_start_does_not_start(tmp_path: Path) -> None:
    save(tmp_path, "django_site")
    file = tmp_path / "django_site.py"
    text = file.read_text()
    wrong = 'Background(taskcast_trio.Config(storage="sqlite", db_path="/nowhere/at/all.db"))'
    assert "Background()" in text
    file.write_text(text.replace("Background()", wrong))
    site = uvicorn(tmp_path, "django_site:application", free_port())
    try:
        assert site.wait(PATIENCE_S) != 0
    finally:
        end(site)
    assert re.search("ERROR: .*/nowhere/at", said(tmp_path))
