"""What the page on the clients shows runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .real_server import running_server

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "clients.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
SAID = ["Hello, world", "progress 50\n"]


@pytest.mark.parametrize(("block", "said"), list(zip(BLOCKS, SAID, strict=True)))
def test_a_block_runs_and_prints(block: str, said: str) -> None:
    with running_server() as url:
        code = block.replace("http://127.0.0.1:3721", url)
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
        )
    assert (run.stdout, run.stderr) == (said, "")
