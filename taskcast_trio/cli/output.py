"""What a command writes: for a person on a terminal, for a pipe, or as JSON."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TextIO

import click
import msgspec

from taskcast_trio.cli.ctrl_c import writing
from taskcast_trio.cli.failures import printable

EMPTY: Final = "-"
GAP: Final = 2
FAIR_WIDTH: Final = 20
_UNSAFE: Final = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Out:
    """Where the output goes and how it may look."""

    as_json: bool = False
    no_color: bool = False

    @property
    def is_terminal(self) -> bool:
        """Whether a person sees the output as it comes."""
        return is_terminal(sys.stdout)

    @property
    def colored(self) -> bool:
        plain = self.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return self.is_terminal and not plain

    def styled(self, text: str, **style: Any) -> str:
        """The text in a style of :func:`click.style`, where colours are wanted."""
        return click.style(text, **style) if self.colored and style else text

    def say(self, text: str) -> None:
        """A line of output."""
        click.echo(text, color=self.colored)

    def json(self, value: object) -> None:
        """A value as one line of JSON; what was JSON text stays as it came."""
        write_json(value)

    def note(self, text: str) -> None:
        """A line beside the output: on stderr."""
        dim = is_terminal(sys.stderr) and not self.no_color and not os.environ.get("NO_COLOR")
        click.echo(click.style(text, dim=True) if dim else text, err=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        less: Sequence[str] = (),
        fold: bool = False,
    ) -> None:
        """Aligned columns. On a terminal they fit its width: first those named in ``less`` go, one
        by one, then what is too long is cut (with ``fold`` goes on below), the first column last.
        In a pipe all is there.
        """
        cells = [[cell(value) for value in row] for row in rows]
        if not self.is_terminal:
            for text in aligned(columns, cells):
                click.echo(text)
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(no_color=not self.colored, highlight=False)
        for column in less:
            if _fair_width(columns, cells) <= console.width:
                break
            place = columns.index(column)
            columns = [*columns[:place], *columns[place + 1 :]]
            cells = [[*line[:place], *line[place + 1 :]] for line in cells]
        overflow: Literal["fold", "ellipsis"] = "fold" if fold else "ellipsis"
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        for number, column in enumerate(columns):
            head = Text(column, no_wrap=True, overflow="ellipsis")
            table.add_column(head, no_wrap=not number)
        for line in cells:
            table.add_row(
                *(
                    Text(text, STATUS_STYLES.get(text, ""), no_wrap=not fold, overflow=overflow)
                    for text in line
                )
            )
        console.print(table)

    @contextmanager
    def progress(self, text: str, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
        """Around what may take long: a sign of life on a terminal, and nothing in a pipe.

        What it yields replaces the text. ``quiet``: the terminal is used for something else.
        """
        if not is_terminal(sys.stderr) or self.as_json or quiet:
            yield lambda _: None
            return
        from rich.console import Console
        from rich.markup import escape

        console = Console(stderr=True, no_color=self.no_color or None, highlight=False)
        with console.status(escape(text)) as status:
            yield lambda now: status.update(escape(now))


STATUS_STYLES: Final = {
    "completed": "green",
    "failed": "red",
    "timeout": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "blocked": "magenta",
    "paused": "magenta",
}


def is_terminal(stream: TextIO | None) -> bool:
    """Whether it is one; a stream that was closed before the start is None."""
    return stream is not None and stream.isatty()


def write(text: bytes) -> None:
    """Write bytes to stdout, and let them go at once."""
    if sys.stdout:
        with writing():
            sys.stdout.buffer.write(text)
            sys.stdout.buffer.flush()


def write_json(value: object) -> None:
    """Write a value as one line of JSON; at a terminal it does nothing but be read."""
    text = msgspec.json.encode(value, enc_hook=str)
    if is_terminal(sys.stdout):
        # JSON escapes the controls of ASCII only.
        told = text.decode(errors="replace")
        text = _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", told).encode()
    write(text + b"\n")


def _fair_width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """As wide as a table is to be: what is long may be cut, but in the first column."""
    lines = [columns, *cells]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    return widths[0] + sum(GAP + min(width, FAIR_WIDTH) for width in widths[1:])


def aligned(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of a width each, two spaces between them."""
    lines = [columns, *cells]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        yield "  ".join(padded).rstrip()


def cell(value: object) -> str:
    """A value as text that does nothing to a terminal."""
    if value is None or value is msgspec.UNSET:
        return EMPTY
    return printable(str(value))


def moment(at_ms: float | msgspec.UnsetType | None) -> str:
    """A time as a person here reads it."""
    if at_ms is None or at_ms is msgspec.UNSET:
        return EMPTY
    try:
        return datetime.fromtimestamp(at_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # an import may say anything
        return EMPTY
