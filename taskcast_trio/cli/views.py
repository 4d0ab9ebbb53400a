"""Events for a person, or one a line.

A person wants to read the answer, not its pieces: on a terminal the pieces of an accumulate series
become running text below a heading, and other events stand between on lines of their own. Where
several series run at once, one is shown as it comes, and the others in blocks, whenever it pauses
or they have enough to be read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from taskcast_trio.cli.event_text import ends_task, head_of, line_of, piece_of, readable
from taskcast_trio.cli.failures import printable
from taskcast_trio.cli.output import Out, write, write_json
from taskcast_trio.core.model import Event

QUIET_S: Final = 0.5
"""How long the series that is shown may say nothing while others have something to say."""
BLOCK_CHARS: Final = 400
"""As much of another series is shown though the one that is has not paused."""

MAX_WAITING: Final = 100
"""So many series may wait for their turn; where there are more, the one that waited longest has it
now.
"""
MAX_SERIES: Final = 1000
"""Of so many series it is known that their text goes on."""


class View(ABC):
    """Where events go, in the order in which they came."""

    @abstractmethod
    def show(self, event: Event) -> None:
        """Show the next event."""

    def due(self) -> float | None:
        """When :meth:`settle` has something to do, by the view's clock; None: not by itself."""
        return None

    def settle(self) -> None:  # noqa: B027
        """Show what has waited long enough."""

    def forget(self) -> None:  # noqa: B027
        """What was shown of each series is over: it comes again, or anew."""

    def interrupt(self) -> None:  # noqa: B027
        """End the line: something else is written now."""

    def close(self) -> None:  # noqa: B027
        """Show what waits, and end the line."""


class JsonLines(View):
    """One event a line, as the history of a task has it."""

    def show(self, event: Event) -> None:
        write_json(event)


class Lines(View):
    """One event a line, for a person who reads it later."""

    def __init__(self, out: Out, *, with_task: bool) -> None:
        self._out = out
        self._with_task = with_task

    def show(self, event: Event) -> None:
        write(
            (line_of(event, self._out, with_task=self._with_task) + "\n").encode(errors="replace")
        )


class _Key(NamedTuple):
    task: str
    series: str


class _Text:
    """What of a series has not been shown yet."""

    def __init__(self, head: Event) -> None:
        self.head = head
        self.waiting = ""
        self.half = ""
        """The first half of a character that was cut in two between pieces."""

    def add(self, piece: str) -> None:
        text = self.half + piece
        self.half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        self.waiting += text[: len(text) - len(self.half)]

    def take(self) -> str:
        text, self.waiting = self.waiting, ""
        return text


class Reading(View):
    """For a person at a terminal, who reads what comes."""

    def __init__(
        self, out: Out, put: Callable[[str], None], clock: Callable[[], float], *, with_task: bool
    ) -> None:
        """``put`` writes text to the terminal; ``clock`` is in seconds."""
        self._out = out
        self._put = put
        self._clock = clock
        self._with_task = with_task
        self._texts: dict[_Key, _Text] = {}
        """The series that have something to be shown, and the one that is open."""
        self._open: _Key | None = None
        self._shown_at = 0.0
        self._at_start = True
        self._begun: dict[_Key, None] = {}
        """The series whose text was begun, those last shown last: what follows goes on with it."""

    def show(self, event: Event) -> None:
        piece = piece_of(event)
        if piece is not None:
            self._take(event, piece)
            return
        if ends_task(event):
            self._flush(event.task_id)
            for key in [key for key in self._begun if key.task == event.task_id]:
                del self._begun[key]
        self._break()
        self._line(line_of(event, self._out, with_task=self._with_task))

    def _take(self, event: Event, piece: str) -> None:
        key = _Key(event.task_id, str(event.series_id))
        if event.series_snapshot is True:
            self._begun.pop(key, None)
            if self._open == key:
                self._break()
        text = self._texts.setdefault(key, _Text(event))
        text.add(piece)
        now = self._clock()
        quiet = now - self._shown_at >= QUIET_S
        if self._open in (None, key) or quiet or len(text.waiting) >= BLOCK_CHARS:
            self._switch(key, now)
        while len(self._texts) > MAX_WAITING + 1:
            self._finish(next(key for key in self._texts if key != self._open))

    def _switch(self, key: _Key, now: float) -> None:
        """Show what waits of this series, which is the open one from now on."""
        text = self._texts[key]
        if self._open != key:
            self._break()
            self._line(self._heading(text.head, goes_on=key in self._begun))
            self._open = key
            self._begun.pop(key, None)
            self._begun[key] = None
            if len(self._begun) > MAX_SERIES:
                del self._begun[next(iter(self._begun))]
        self._write(readable(text.take()))
        self._shown_at = now

    def due(self) -> float | None:
        if not any(self._waiting()):
            return None
        return self._shown_at + (QUIET_S if self._open else 0)

    def settle(self) -> None:
        due = self.due()
        if due is not None and self._clock() >= due:
            self._switch(next(self._waiting()), self._clock())

    def _waiting(self) -> Iterator[_Key]:
        return (key for key, text in self._texts.items() if text.waiting)

    def forget(self) -> None:
        self._break()
        self._texts.clear()
        self._begun.clear()

    def interrupt(self) -> None:
        self._break()

    def close(self) -> None:
        self._flush(None)
        self._break()

    def _flush(self, task_id: str | None) -> None:
        """Show what waits of a task, or of all, to the last half of a character."""
        for key in [key for key in self._texts if task_id in (None, key.task)]:
            if key in self._texts:  # else it was the open one, and all of it shown
                self._finish(key)

    def _finish(self, key: _Key) -> None:
        """Show what waits of a series, to the last half of a character."""
        text = self._texts[key]
        text.waiting += text.half
        text.half = ""
        if text.waiting:
            self._switch(key, self._clock())
        elif key != self._open:
            del self._texts[key]

    def _break(self) -> None:
        """End the open text, and its line."""
        if not self._at_start:
            self._write("\n")
        if self._open is not None:
            text = self._texts.get(self._open)
            if text is not None and not text.waiting and not text.half:
                del self._texts[self._open]
            self._open = None

    def _heading(self, event: Event, *, goes_on: bool) -> str:
        series = printable(str(event.series_id)) + (" goes on" if goes_on else "")
        return head_of(event, self._out, with_task=self._with_task) + self._out.styled(
            f" {series}:", bold=True
        )

    def _line(self, text: str) -> None:
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        if text:
            # First: Ctrl-C may come while it is written, and then the line has to be ended.
            self._at_start = text.endswith("\n")
            self._put(text)
