"""What a person at a terminal reads: the running text of a series, and other events between.

Times are of a clock of the test's own; nothing waits.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from msgspec import UNSET, Raw

from taskcast_trio.cli.event_text import line_of, readable
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.views import BLOCK_CHARS, MAX_SERIES, MAX_WAITING, QUIET_S, Reading
from taskcast_trio.core.model import Event

OUT = Out()  # of no terminal: no colours


class Screen:
    """A reading view, what it has written, and its clock."""

    def __init__(self, *, with_task: bool = False) -> None:
        self.text = ""
        self.now = 100.0
        self.view = Reading(OUT, self._put, lambda: self.now, with_task=with_task)

    def _put(self, text: str) -> None:
        self.text += text

    def lines(self) -> list[str]:
        """The lines without their times."""
        return [re.sub(r"^\d\d:\d\d:\d\d\.\d{3} ", "", line) for line in self.text.split("\n")]


def event(type_: str = "note", data: Any = UNSET, **fields: Any) -> Event:
    raw = data if data is UNSET else Raw(json.dumps(data).encode())
    given = {"id": "e", "task_id": "t", "index": 0, "timestamp": 0, "level": "info", **fields}
    return Event(type=type_, data=raw, **given)


def piece(text: str, series: str = "answer", **fields: Any) -> Event:
    return event("llm.delta", {"delta": text}, series_id=series, series_mode="accumulate", **fields)


def status(word: str, **fields: Any) -> Event:
    return event("taskcast:status", {"status": word}, **fields)


def test_pieces_are_one_text_below_a_heading() -> None:
    screen = Screen()
    for each in (
        status("running"),
        piece("The sea "),
        piece("is\nwide"),
        piece("."),
        status("completed"),
    ):
        screen.view.show(each)
    screen.view.close()
    assert screen.lines() == [
        "info  taskcast:status  running",
        "info  llm.delta answer:",
        "The sea is",
        "wide.",
        "info  taskcast:status  completed",
        "",
    ]


def test_each_piece_is_on_the_screen_at_once() -> None:
    screen = Screen()
    for text in ("a", "b", "c"):
        screen.view.show(piece(text))
        assert screen.text.endswith(text)


def test_another_event_stands_between_and_the_text_goes_on_below_it() -> None:
    screen = Screen()
    for each in (piece("one "), event("tool.call", {"name": "x"}), piece("two")):
        screen.view.show(each)
    screen.view.close()
    assert screen.lines() == [
        "info  llm.delta answer:",
        "one ",
        'info  tool.call  {"name":"x"}',
        "info  llm.delta answer goes on:",
        "two",
        "",
    ]


def test_two_series_at_once_are_shown_in_blocks() -> None:
    screen = Screen(with_task=True)
    view = screen.view
    view.show(piece("a1 ", task_id="A"))
    view.show(piece("b1 ", task_id="B"))
    view.show(piece("a2 ", task_id="A"))
    view.show(piece("b2 ", task_id="B"))
    assert screen.lines()[1:] == ["a1 a2 "]  # B waits
    assert view.due() == screen.now + QUIET_S
    screen.now += QUIET_S
    view.settle()
    assert screen.lines() == [
        "A info  llm.delta answer:",
        "a1 a2 ",
        "B info  llm.delta answer:",
        "b1 b2 ",
    ]
    assert view.due() is None
    view.show(piece("b3", task_id="B"))
    view.show(piece("a" * BLOCK_CHARS, task_id="A"))  # enough to be read, though B has not paused
    assert screen.lines()[3:] == [
        "b1 b2 b3",
        "A info  llm.delta answer goes on:",
        "a" * BLOCK_CHARS,
    ]


def test_what_waits_is_shown_before_the_end_of_its_task() -> None:
    screen = Screen(with_task=True)
    for each in (piece("a", task_id="A"), piece("b", task_id="B"), status("failed", task_id="B")):
        screen.view.show(each)
    assert screen.lines() == [
        "A info  llm.delta answer:",
        "a",
        "B info  llm.delta answer:",
        "b",
        "B info  taskcast:status  failed",
        "",
    ]


def test_what_waits_is_shown_soon_after_a_line_that_came_between() -> None:
    screen = Screen(with_task=True)
    for each in (piece("a", task_id="A"), piece("b", task_id="B"), event(task_id="A")):
        screen.view.show(each)
    due = screen.view.due()
    assert due is not None
    assert due <= screen.now
    screen.view.settle()
    assert screen.lines()[-1] == "b"


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_closing_shows_what_waits_and_ends_the_line(order: str) -> None:
    screen = Screen(with_task=True)
    for task in order:
        screen.view.show(piece(task.lower(), task_id=task))
    screen.view.close()
    assert screen.lines()[1::2] == [*order.lower()]
    assert screen.text.endswith("\n")


def test_a_snapshot_begins_anew() -> None:
    screen = Screen()
    screen.view.show(piece("stale"))
    screen.view.forget()
    screen.view.show(piece("whole text", series_snapshot=True))
    screen.view.show(piece(", and more"))
    assert screen.lines()[2:] == ["info  llm.delta answer:", "whole text, and more"]


def test_a_character_cut_in_two_between_pieces_is_whole() -> None:
    screen = Screen()
    screen.view.show(piece("\ud83d"))
    screen.view.show(piece("\ude00!"))
    screen.view.close()
    assert screen.lines()[1] == "\N{GRINNING FACE}!"


def test_another_field_is_the_text_where_the_event_says_so() -> None:
    screen = Screen()
    fields = {"series_id": "s", "series_mode": "accumulate", "series_acc_field": "text"}
    screen.view.show(event("x", {"text": "yes", "delta": "no"}, **fields))
    assert screen.lines() == ["info  x s:", "yes"]
    screen.view.show(event("x", {"delta": "no text there"}, **fields))
    assert screen.lines()[2] == 'info  x [s]  {"delta":"no text there"}'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tabs\tand\nlines", "tabs\tand\nlines"),
        ("dos\r\nlines", "dos\nlines"),
        ("\x1b[2J\x07\x9b", "\\x1b[2J\\x07\\x9b"),
        ("\u202eturned", "\\u202eturned"),
        ("half \ud83d", "half \ufffd"),
        ("全角\u3000と é 👩\u200d👧", "全角\u3000と é 👩\u200d👧"),
    ],
)
def test_running_text_does_nothing_to_a_terminal(text: str, shown: str) -> None:
    assert readable(text) == shown


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (event(), "info  note"),
        (event("no\x1bte", "a\nb", level="error"), "error no\\x1bte  a\\nb"),
        (event(data=None), "info  note  null"),
        (event(data={"é": [1, "\x1b"]}), 'info  note  {"é":[1,"\\u001b"]}'),
        (event(data=7, series_id="s\n", series_mode="latest"), "info  note [s\\n]  7"),
        (status("failed"), "info  taskcast:status  failed"),
        (
            event("taskcast:status", {"status": "failed", "error": {"message": "no \x1b"}}),
            "info  taskcast:status  failed: no \\x1b",
        ),
        (event("taskcast:status", {"status": {}}), 'info  taskcast:status  {"status":{}}'),
        (event("taskcast:status", [1]), "info  taskcast:status  [1]"),
    ],
)
def test_an_event_is_one_line(shown: Event, line: str) -> None:
    assert line_of(shown, OUT, with_task=False).split(" ", 1)[1] == line


def test_a_time_that_is_none_is_no_error() -> None:
    assert line_of(event(timestamp=10**18), OUT, with_task=True) == "--:--:--.--- t info  note"


def test_texts_of_ever_more_tasks_are_shown_and_not_kept() -> None:
    """Where --types leaves out how tasks end, and one task never pauses."""
    screen = Screen(with_task=True)
    for number in range(3 * MAX_SERIES):
        screen.now += 0.01
        screen.view.show(piece("on and on ", task_id="busy"))
        screen.view.show(piece(f"text {number};", task_id=f"t{number}"))
        assert len(screen.view._texts) <= MAX_WAITING + 2
        assert len(screen.view._begun) <= MAX_SERIES + 1
    screen.view.close()
    assert re.findall(r"text (\d+);", screen.text) == [str(n) for n in range(3 * MAX_SERIES)]
    assert screen.text.count("on and on") == 3 * MAX_SERIES
