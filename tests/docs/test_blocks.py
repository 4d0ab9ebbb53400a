"""Every code block of the README and of docs/ does what a reader expects of it.

See ``blocks`` for how each language is run. A block is run unless it is named here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .blocks import ROOT, Block, Failed, Reader, blocks_of, reader

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONS = {"README.md": ("--workers-api",), "workers.md": ("--workers-api",)}
"""Of the server that a page's blocks are run against."""

NOT_RUN = {
    ("README.md", "# run it: http://127.0.0.1:3721"): "installs from an index; .ci/run does it",
    ("README.md", "# pass its checks and tests"): "would run this test; .ci/run does it",
    ("docs/deployment.md", "upstream taskcast {"): "tests/test_deployment.py runs nginx with it",
    ("docs/deployment.md", "appendonly yes"): "tests/test_deployment.py runs Redis with it",
    ("docs/deployment.md", "user taskcast on >SECRET resetchannels"): "the same",
    ("docs/deployment.md", "[Unit]"): "needs a machine with systemd",
}
"""By page and what they start with: the blocks that are not run here, and why."""

SERVE = {
    ("README.md", ".venv/bin/taskcast-trio --storage sqlite"): "-p 0",
    ("docs/auth.md", ".venv/bin/python examples/browser_page.py"): "--port 0 --pace 0",
    ("docs/storage.md", "taskcast-trio --storage sqlite"): "-p 0",
}
"""The blocks that serve until Ctrl-C, and options that make them listen on a free port."""

RECEIVED = """
import time
from taskcast_trio.core.signature import standard_headers
secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b"{}"
headers = standard_headers([secret], message_id="m", timestamp_s=int(time.time()), body=body)
"""
WORKED = """
import os, signal, threading, time
import httpx

async def model(prompt):
    for word in ("The ", "sea"):
        yield word

def ask():
    with httpx.Client(base_url=os.environ["TASKCAST_URL"], trust_env=False) as http:
        task = {"id": "worked", "type": "llm.chat", "params": {"prompt": "?"}}
        http.post("/tasks", json={**task, "assignMode": "ws-offer"}).raise_for_status()
        while http.get("/tasks/worked").json()["status"] != "completed":
            time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=ask, daemon=True).start()
"""
GIVEN = {
    ("docs/webhooks.md", "from standardwebhooks import Webhook"): RECEIVED,
    ("README.md", "import trio\nfrom taskcast_trio.worker"): WORKED,
    ("docs/workers.md", "import trio\nfrom taskcast_trio.worker"): WORKED,
}
"""What fragments take as given."""


def named(block: Block, table: dict[tuple[str, str], str]) -> str | None:
    """What a table says of a block."""
    found = [
        said
        for (page, start), said in table.items()
        if page == block.page and block.text.startswith(start)
    ]
    return found[0] if found else None


def try_out(one: Reader, block: Block) -> None:
    if named(block, NOT_RUN) is not None:
        return
    options = named(block, SERVE)
    if options is None:
        one.run(block, named(block, GIVEN) or "")
    else:
        one.serves(block, options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    failures = []
    with reader(tmp_path, *OPTIONS.get(page.name, ())) as one:
        for block in blocks_of(page):
            try:
                try_out(one, block)
            except Failed as failure:
                failures.append(str(failure))
    if failures:
        pytest.fail("\n\n".join(failures), pytrace=False)


def test_the_tables_name_blocks_that_are_there() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page)]
    for page, start in [*NOT_RUN, *SERVE, *GIVEN]:
        assert any(b.page == page and b.text.startswith(start) for b in blocks), (page, start)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```sh\nfalse\n```\n", "exit status 1"),
        ("```sh\nfalse &\n```\n", "exit status 1"),
        ("```sh\ncurl -s $SERVER/tasks/none\n```\n", "Task not found"),
        ("```sh\ncurl -s $SERVER/health   # 400: never\n```\n", "was not refused"),
        ("```python\nassert 1 == 2\n```\n", "AssertionError"),
        ("```python\n# test_it.py\ndef test_it():\n    assert 1 == 2\n```\n", "1 failed"),
        ("```py\nawait trio.lowlevel.checkpoint()\n1 / 0\n```\n", 'page.md", line 4'),
        ("```yaml\nprot: 1\n```\n", "unknown key"),
        ("```json\n[]\n```\n", "bad_request"),
        ("```cobol\n```\n", "no way to run"),
    ],
)
def test_what_does_not_run_is_named_with_page_and_line(
    text: str, said: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n{text}")
    (block,) = blocks_of(page)
    with reader(tmp_path) as one, pytest.raises(Failed) as caught:
        one.run(block)
    assert str(caught.value).startswith("page.md:3: ```")
    assert said in str(caught.value)


def test_a_block_in_a_list_is_one_too_and_none_is_passed_over(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("1. first\n\n   ```sh\n   false\n   ```\n\n```python \n1 / 0\n```\n")
    assert [(b.line, b.language, b.text) for b in blocks_of(page)] == [
        (4, "sh", "false\n"),
        (8, "python", "1 / 0\n"),
    ]
    for text in ("~~~sh\nfalse\n~~~\n", "> ```sh\n> false\n> ```\n", "```sh\nfalse\n"):
        page.write_text(text)
        with pytest.raises(ValueError, match="fence"):
            blocks_of(page)
