"""Stream a text, token by token, to three readers, of which only one sits still.

    python examples/stream_file.py [--url URL] [--pace TOKENS_PER_SECOND] [FILE]

A writer appends the tokens of FILE to the log of a new task, as one accumulate series. Reader A
follows from the start. Reader B drops its connection on the way and resumes by its cursor. Reader C
joins when half of it is over. In the end all three must hold the text of the file: then the exit
code is 0, else 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from taskcast_trio.client import AsyncTaskcastClient, Gap, Received, ServerUnavailable
from taskcast_trio.core.errors import TaskcastError

DEFAULT_FILE = Path(__file__).with_name("the_log.txt")
DEFAULT_URL = "http://127.0.0.1:3721"
SERIES = "answer"

B_DROPS_AT, C_JOINS_AT, B_RESUMES_AT = 0.3, 0.5, 0.6
"""When it happens, as shares of the text."""

REFRESH_S = 0.1


@dataclass
class Reader:
    """One subscriber, and what it has made of the events that it saw."""

    name: str
    role: str
    state: str = "waiting"
    text: str = ""
    connections: int = 0
    pieces: int = 0
    snapshots: int = 0
    connected: trio.Event = field(default_factory=trio.Event)

    def take(self, item: Received) -> None:
        """Assemble: a snapshot is the whole text so far, any other piece goes to its end."""
        if isinstance(item, Gap):
            self.text = ""
        elif item.series_id == SERIES:
            delta = json.loads(bytes(item.data))["delta"]  # type: ignore[arg-type]
            if item.series_snapshot is True:
                self.snapshots += 1
                self.text = delta
            else:
                self.pieces += 1
                self.text += delta


@dataclass
class Run:
    """A task with its text on the way, and the moments that readers wait for."""

    client: AsyncTaskcastClient
    task_id: str
    text: str
    console: Console
    started_at: float
    written: int = 0
    c_joins: trio.Event = field(default_factory=trio.Event)
    b_resumes: trio.Event = field(default_factory=trio.Event)

    def say(self, who: str, what: str) -> None:
        elapsed_s = trio.current_time() - self.started_at
        self.console.print(f"{elapsed_s:5.1f} s  {who:<6}  {what}", highlight=False, markup=False)

    def note_written(self, characters: int) -> None:
        self.written += characters
        if self.written >= C_JOINS_AT * len(self.text):
            self.c_joins.set()
        if self.written >= B_RESUMES_AT * len(self.text):
            self.b_resumes.set()


def tokens_of(text: str) -> list[str]:
    """The text in pieces of the size that language models emit."""
    return re.findall(r"\s*\S{1,6}|\s+\Z", text)


async def write(run: Run, pace: float) -> None:
    """Publish the text at ``pace`` tokens per second (0: as fast as it goes), and end the task."""
    tokens = tokens_of(run.text)
    await run.client.transition(run.task_id, "running")
    run.say("writer", f"starts on {len(tokens):,} tokens")
    started_at = trio.current_time()
    for number, token in enumerate(tokens, 1):
        await run.client.publish(
            run.task_id, "llm.delta", {"delta": token}, series=SERIES, mode="accumulate"
        )
        run.note_written(len(token))
        if pace:
            await trio.sleep_until(started_at + number / pace)
    await run.client.transition(run.task_id, "completed")
    took_s = trio.current_time() - started_at
    run.say("writer", f"is done: {len(tokens):,} tokens in {took_s:.1f} s")


async def read(
    run: Run,
    reader: Reader,
    *,
    cursor: str | None = None,
    until: float = math.inf,
) -> str | None:
    """Follow the task to its end, or until the reader has ``until`` characters; its cursor then."""
    async with run.client.subscribe(run.task_id, last_event_id=cursor, gaps="deliver") as stream:
        reader.connections += 1
        reader.state = "reading"
        reader.connected.set()
        async for item in stream:
            reader.take(item)
            if not isinstance(item, Gap) and item.series_snapshot is True:
                run.say(reader.name, f"gets {len(reader.text):,} characters in one snapshot")
            if len(reader.text) >= until:
                break
        reader.state = stream.done or "dropped"
        return stream.last_event_id


async def read_with_a_drop(run: Run, reader: Reader) -> None:
    until = B_DROPS_AT * len(run.text)
    cursor = await read(run, reader, until=until)
    run.say(reader.name, f"drops its connection after {reader.pieces:,} pieces, cursor {cursor}")
    await run.b_resumes.wait()
    run.say(reader.name, f"resumes; the writer is {run.written - len(reader.text):,} characters on")
    await read(run, reader, cursor=cursor)


async def read_late(run: Run, reader: Reader) -> None:
    await run.c_joins.wait()
    run.say(reader.name, "joins")
    await read(run, reader)


def progress(run: Run, readers: list[Reader]) -> Table:
    """The state of the run, for a terminal."""
    table = Table.grid(padding=(0, 2))
    rows = [("writer", "", run.written), *((r.name, r.state, len(r.text)) for r in readers)]
    for name, state, characters in rows:
        bar = ProgressBar(total=len(run.text), completed=characters, width=40)
        table.add_row(name, bar, f"{characters:,}", state)
    return table


@asynccontextmanager
async def shown(run: Run, readers: list[Reader]) -> AsyncIterator[None]:
    """Show the progress live on a terminal; elsewhere the lines that ``run.say`` prints must do."""
    if not run.console.is_terminal:
        yield
        return
    with Live(progress(run, readers), console=run.console, auto_refresh=False) as live:

        async def refresh() -> None:
            while True:
                await trio.sleep(REFRESH_S)
                live.update(progress(run, readers), refresh=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh)
            yield
            nursery.cancel_scope.cancel()
        live.update(progress(run, readers), refresh=True)


async def stream_file(
    client: AsyncTaskcastClient, text: str, pace: float, console: Console
) -> list[Reader]:
    """Write and read ``text`` as the module says; the readers, when all are done."""
    task = await client.create(type="example.stream_file")
    run = Run(client, task.id, text, console, trio.current_time())
    a = Reader("A", "follows")
    b = Reader("B", "resumes")
    c = Reader("C", "joins late")
    run.say("task", task.id)
    async with shown(run, [a, b, c]), trio.open_nursery() as nursery:
        nursery.start_soon(read, run, a)
        nursery.start_soon(read_with_a_drop, run, b)
        nursery.start_soon(read_late, run, c)
        await a.connected.wait()
        await b.connected.wait()
        await write(run, pace)
    return [a, b, c]


def report(readers: list[Reader], text: str, console: Console) -> bool:
    """Print what each reader saw; whether all hold the text."""
    columns = "reader", "connects", "pieces", "snapshots", "characters", "sha-256", "text"
    table = Table(*columns, box=box.SIMPLE)
    for reader in readers:
        numbers = reader.connections, reader.pieces, reader.snapshots, len(reader.text)
        digest = hashlib.sha256(reader.text.encode()).hexdigest()[:8]
        verdict = "same" if reader.text == text else "DIFFERENT"
        name = f"{reader.name} {reader.role}"
        table.add_row(name, *(f"{number:,}" for number in numbers), digest, verdict)
    console.print(table)
    return all(reader.text == text for reader in readers)


async def run_example(url: str, token: str | None, text: str, pace: float) -> bool:
    console = Console(width=None if sys.stdout.isatty() else 100)
    async with AsyncTaskcastClient(url, token=token) as client:
        readers = await stream_file(client, text, pace, console)
    same = report(readers, text, console)
    if same:
        console.print(
            f"All three hold the same {len(text):,} characters as the file.", highlight=False
        )
    return same


def parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT_FILE, metavar="FILE")
    parser.add_argument("--url", default=os.environ.get("TASKCAST_URL", DEFAULT_URL))
    parser.add_argument("--token", default=os.environ.get("TASKCAST_TOKEN"))
    parser.add_argument(
        "--pace", type=float, default=60, help="tokens per second; 0: as fast as it goes"
    )
    return parser.parse_args()


def first_of(group: BaseExceptionGroup[TaskcastError]) -> TaskcastError:
    """Any of the errors will do: the first made the others."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first


def main() -> int:
    arguments = parse_arguments()
    try:
        text = arguments.file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        print(f"Can't read {arguments.file}: {error}", file=sys.stderr)
        return 1
    if not text:
        print(f"{arguments.file} is empty", file=sys.stderr)
        return 1
    status = 1
    try:
        if trio.run(run_example, arguments.url, arguments.token, text, arguments.pace):
            status = 0
        else:
            print("A reader does not hold the text of the file.", file=sys.stderr)
    except* ServerUnavailable as group:
        print(first_of(group), file=sys.stderr)
        print("Is a server running there? Start one with: taskcast-trio", file=sys.stderr)
    except* TaskcastError as group:
        print(first_of(group), file=sys.stderr)
    except* KeyboardInterrupt:
        status = 130
    return status


if __name__ == "__main__":
    sys.exit(main())
