"""Reads the code blocks of the pages, and runs them as a reader would.

What a block is run as follows from its language:

- ``sh``: in bash, in the order of the page, against a server started for the page. A comment ``#
  4xx`` behind a command says that it is refused; everything else has to succeed. What goes on in
  the background is waited for, and has to succeed too, unless it follows without an end.
- ``python``: as a program; one that starts with ``# some_name.py`` is saved under that name first,
  and a ``test_*.py`` is run by pytest.
- ``py``: a fragment, on Trio where it awaits something; what it takes as given may be given to it.
- ``yaml``: a configuration that loads without a warning. Where the first line of an ``sh`` block
  says "the server runs with the configuration above", it does.
- ``json``: the body of a ``POST /tasks``, which is answered with a 201.
- ``js``: checked for its syntax, where there is a node.
- ``text``: shows something, and is not run.

Ports are replaced: 3721 by that of the page's server, others by free ones.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE_S: Final = 60.0
FOLLOW_S: Final = 5.0
"""How long what follows in the background may go on when the rest of its block is done."""
PORTS: Final = ("8000", "8001", "8002")
CONFIGURED: Final = "the server runs with the configuration above"
VARIABLES: Final = {
    "ADMIN_TOKEN": "admin-token-of-the-pages",
    "BILLING_KEY": "billing-key-of-the-pages",
    "DATABASE_URL": "postgresql://taskcast@127.0.0.1/taskcast",
    "JWT_SECRET": "a secret of the pages, of 32 bytes and more",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "TASKCAST_JWT_SECRET": "a secret of the pages, of 32 bytes and more",
    "TASKCAST_POSTGRES_URL": "postgresql://taskcast@127.0.0.1/taskcast",
    "TASKCAST_REDIS_URL": "redis://127.0.0.1:6379/0",
}
"""What configurations of the pages take from the environment."""

_BLOCK: Final = re.compile(r"^( *)(```+)([^\n`]*)\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
_FENCE: Final = re.compile(r"^\s*(?:>\s*)*(?:```|~~~)", re.MULTILINE)
_NAME: Final = re.compile(r"# (\w+\.py)\b")
_REFUSED: Final = re.compile(r"^(\S.*?) +# 4\d\d\b.*$", re.MULTILINE)
_BEFORE: Final = """\
jobs= last=
true & wait $!
trap 'if [ "$!" != "$last" ]; then last=$!; jobs="$jobs $!"; fi' DEBUG
"""
_AFTER: Final = """\
trap - DEBUG
touch DONE
failed=0
for job in $jobs; do
  code=0
  wait $job 2>/dev/null || code=$?
  case $code in 0|127|143) ;; *) failed=$code;; esac  # 127, 143: waited for, or ended, by the block
done
exit $failed
"""
_FRAGMENT: Final = """\
import ast, inspect, sys
import trio
from taskcast_trio import *
from taskcast_trio.client import *
given, text = sys.stdin.read().split(chr(0))
exec(given)
found = eval(compile(text, sys.argv[1], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
async def awaited():
    await found
if inspect.iscoroutine(found):
    trio.run(awaited)
"""


@dataclass(frozen=True)
class Block:
    """One code block of a page."""

    page: str
    line: int
    """Where its text begins."""
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]


class Failed(Exception):
    """A block does not do what it should."""

    def __init__(self, block: Block, why: str) -> None:
        super().__init__(f"{block.place}: ```{block.language}\n{why.rstrip()}")


def variables(text: str) -> dict[str, str]:
    """Those that a configuration asks for; the server would take others as meant for it."""
    return {name: value for name, value in VARIABLES.items() if f"${{{name}}}" in text}


def blocks_of(page: Path) -> list[Block]:
    """Every code block of a page, in order.

    Raises:
        ValueError: there are fences that are no block, as this reads it: one would not be run.
    """
    text = page.read_text("utf-8")
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name
    blocks, fences = [], 0
    for match in _BLOCK.finditer(text):
        fences += len(_FENCE.findall(match[0]))
        line = text.count("\n", 0, match.start(4)) + 1
        blocks.append(Block(name, line, match[3].strip(), textwrap.dedent(match[4])))
    if fences < len(_FENCE.findall(text)):
        raise ValueError(f"{name}: a fence that no block begins or ends with")
    return blocks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Reader:
    """Someone who tries what a page says, in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._options = options
        self._port = free_port()
        self._ports = {port: str(free_port()) for port in PORTS}
        self._server: subprocess.Popen[bytes] | None = None
        self._running_with: str | None = None
        self._configuration: str | None = None
        self._left: list[subprocess.Popen[bytes]] = []
        self._output = folder / ".output"
        (folder / ".curlrc").write_text('fail-with-body\nmax-time = 30\nnoproxy = "*"\n')
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "examples").symlink_to(ROOT / "examples")
        paths = [str(Path(sys.prefix) / "bin"), os.environ["PATH"]]
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("TASKCAST_", "PYTEST"))},
            **{name: text for name, text in VARIABLES.items() if "TASKCAST" not in name},
            "CURL_HOME": str(folder),
            "HOME": str(folder),
            "NO_PROXY": "*",
            "PATH": os.pathsep.join(paths),
            "SERVER": self.url,
            "TASKCAST_URL": self.url,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def run(self, block: Block, given: str = "") -> None:
        """Run it. ``given`` is a program that comes before a fragment.

        Raises:
            Failed: it does not do what it should, or nobody knows how to run it.
        """
        how: dict[str, Callable[[Block], None]] = {
            "sh": self._sh,
            "python": self._python,
            "py": partial(self._fragment, given=given),
            "yaml": self._yaml,
            "json": self._json,
            "js": self._js,
            "text": lambda block: None,
        }
        if block.language not in how:
            raise Failed(block, "no way to run this language is known: see tests/docs/blocks.py")
        how[block.language](block)

    def serves(self, block: Block, options: str) -> None:
        """Run a block of ``sh`` that serves until Ctrl-C: it says where, and ends with 0."""
        with self._output.open("wb+") as output:
            process = self._bash(f"exec {block.text.rstrip()} {options}", output)
            try:
                until(lambda: "http://127.0.0.1:" in self._said() or process.poll() is not None)
                process.send_signal(signal.SIGINT)
                code = process.wait(PATIENCE_S)
            finally:
                end(process)
        if code:
            raise Failed(block, f"exit status {code}\n{self._said()}")

    def close(self) -> None:
        for process in self._left:
            end(process)
        self._end_server()

    def _sh(self, block: Block) -> None:
        configured = CONFIGURED in block.first_line
        self._serve(block, self._configuration if configured else None)
        text = _REFUSED.sub(r"if \1; then echo 'was not refused'; exit 97; fi", block.text)
        done = self.folder / ".done"
        done.unlink(missing_ok=True)
        script = f"{_BEFORE}{text}\n{_AFTER.replace('DONE', str(done))}"
        with self._output.open("wb+") as output:
            process = self._bash(script, output)
            self._left.append(process)
            until(lambda: done.exists() or process.poll() is not None)
            if done.exists():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(FOLLOW_S)
            code = process.poll()
        if code is None and not done.exists():
            raise Failed(block, f"it does not end\n{self._said()}")
        if code:
            raise Failed(block, f"exit status {code}\n{self._said()}")

    def _python(self, block: Block) -> None:
        match = _NAME.match(block.text)
        name = match[1] if match else f"block_{block.line}.py"
        (self.folder / name).write_text(self._swap(block.text))
        command = [sys.executable, name]
        if name == "conftest.py":
            return
        if name.startswith("test_"):
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        self._serve(block, None)
        self._run(block, command)

    def _fragment(self, block: Block, given: str) -> None:
        self._serve(block, None)
        # In its own line of the page, for tracebacks.
        text = given + "\0" + "\n" * (block.line - 1) + self._swap(block.text)
        self._run(block, [sys.executable, "-c", _FRAGMENT, block.page], text)

    def _yaml(self, block: Block) -> None:
        self._configuration = block.text
        file = self.folder / "taskcast.yaml"
        file.write_text(block.text)
        code = (
            "import os, pathlib, sys\n"
            "from taskcast_trio.config import load_config, require_available\n"
            "here = pathlib.Path.cwd()\n"
            "loaded = load_config(\n"
            "    path=here / sys.argv[1], flags={}, env=os.environ, cwd=here, home=here\n"
            ")\n"
            "require_available(loaded.config)\n"
            "sys.exit('\\n'.join(loaded.warnings) or None)"
        )
        environment = {**self._environment, **variables(block.text)}
        del environment["TASKCAST_URL"]
        self._run(block, [sys.executable, "-c", code, file.name], environment=environment)

    def _json(self, block: Block) -> None:
        self._serve(block, None)
        self._run(block, ["curl", "-sS", f"{self.url}/tasks", "-d", block.text])

    def _js(self, block: Block) -> None:
        (self.folder / "block.mjs").write_text(block.text)
        self._run(block, ["node", "--check", "block.mjs"])

    def _run(
        self,
        block: Block,
        command: list[str],
        text: str = "",
        *,
        environment: dict[str, str] | None = None,
    ) -> None:
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=environment or self._environment,
                input=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
        except FileNotFoundError:
            if command[0] == "node":
                return
            raise
        except subprocess.TimeoutExpired as error:
            said = error.output or b""
            raise Failed(block, f"it does not end\n{said.decode()}") from None
        if done.returncode:
            raise Failed(block, f"exit status {done.returncode}\n{done.stdout}")

    def _bash(self, text: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            ["bash", "-eu", "-o", "pipefail", "-c", self._swap(text)],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return process

    def _swap(self, text: str) -> str:
        text = re.sub(r"(?<=:)3721\b", str(self._port), text)
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text

    def _said(self) -> str:
        return self._output.read_text("utf-8", "replace")

    def _serve(self, block: Block, configuration: str | None) -> None:
        """Have the page's server run, as the page has it."""
        if self._server is not None and configuration == self._running_with:
            return
        self._end_server()
        self._running_with = configuration
        options = list(self._options)
        if configuration is not None:
            file = self.folder / "server.yaml"
            file.write_text(configuration)
            options = ["-c", str(file)]
        command = [sys.executable, "-m", "taskcast_trio", *options, "-p", str(self._port)]
        log = self.folder / ".server"
        with log.open("wb") as output:
            environment = {**self._environment, **variables(configuration or "")}
            self._server = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--log-level", "error"],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = self._server
        until(lambda: b"/docs\n" in log.read_bytes() or server.poll() is not None)
        if server.poll() is not None:
            raise Failed(block, f"the server has not started\n{log.read_text()}")

    def _end_server(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None


@contextmanager
def reader(folder: Path, *options: str) -> Iterator[Reader]:
    """A reader of one page; what they started is ended with the context."""
    one = Reader(folder, *options)
    try:
        yield one
    finally:
        one.close()


def until(holds: Callable[[], bool]) -> None:
    """Return when ``holds()``, or patience is at its end."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
