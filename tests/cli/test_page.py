"""What the page on the command line shows works as shown."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.integration.fleet import fleet

from .commands import ROOT, environment


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """One in which `taskcast-trio` is on the path, and its server is there."""
    program = tmp_path / "bin" / "taskcast-trio"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m taskcast_trio "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    with fleet(1) as (server,):
        yield environment(tmp_path, TASKCAST_URL=server.url, PATH=path)


async def test_a_pipe_is_published_followed_and_looked_at(env: dict[str, str]) -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    (script,) = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with trio.fail_after(60):
        done = await trio.run_process(
            ["bash", "-ec", script],
            env=env,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert b"task answer-4\nfollow it: taskcast-trio logs answer-4 --follow\n" in done.stderr
    text = done.stdout.decode()
    assert text.count("The sea is wide") == 3  # logs, inspect, tail
    assert re.search(r"^answer-4  completed", text, re.MULTILINE)
    assert "ok      stream" in text
