"""One line per event, always parseable, without tokens, payloads or live control characters."""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from taskcast_trio.logs import (
    LEVELS,
    MAX_TEXT,
    access_lines,
    hide_and_escape,
    setup_logging,
)

pytestmark = pytest.mark.usefixtures("logging_restored")

PLANTED = "hush-planted"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_off_a_terminal_each_event_is_one_json_line_with_its_context(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging("info")
    with bound_contextvars(request_id="r1", task_id="t1"):
        structlog.get_logger("here").info("published", count=2)
        logging.getLogger("quart.app").warning("from %s", "the library")
    structlog.get_logger("here").debug("too quiet")
    ours, theirs = lines(capsys)
    assert {k: ours[k] for k in ("event", "level", "logger", "request_id", "task_id", "count")} == {
        "event": "published",
        "level": "info",
        "logger": "here",
        "request_id": "r1",
        "task_id": "t1",
        "count": 2,
    }
    assert (theirs["event"], theirs["request_id"]) == ("from the library", "r1")
    assert theirs["timestamp"].endswith("Z")


def test_a_second_setup_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("debug")
    setup_logging("error")
    structlog.get_logger().warning("not this")
    structlog.get_logger().error("this")
    assert [line["event"] for line in lines(capsys)] == ["this"]


def test_a_client_library_does_not_log_urls_at_info(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("info")
    logging.getLogger("httpx").info("HTTP Request: GET http://h/?ticket=%s", PLANTED)
    assert lines(capsys) == []


def test_fields_that_promise_secrets_or_payloads_are_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging("info")
    structlog.get_logger().info(
        "event", token=PLANTED, data={"x": PLANTED}, nested={"Authorization": PLANTED, "ok": 1}
    )
    logging.getLogger("x").info("plain")
    first, _ = lines(capsys)
    assert PLANTED not in str(first)
    assert first["nested"]["ok"] == 1


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_value_can_forge_a_line_or_steer_a_terminal(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    setup_logging("info", log_format)
    evil = 'x\r\n{"event": "forged"}\x1b[2J\x9b\u2028\u202e\ud800\x00'
    structlog.get_logger().info(evil, path=evil, items=[evil], **{"a\nb": evil})
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert text.rstrip("\n").isprintable()
    assert "forged" in text


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_exception_is_logged_with_its_trace_and_no_local_values(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    setup_logging("info", log_format)
    local_value = PLANTED
    try:
        raise ValueError("broken\x1b[2J" + "!" * len(local_value))
    except ValueError:
        structlog.get_logger().exception("crashed")
    text = capsys.readouterr().err
    assert "test_logs.py" in text
    assert "ValueError: broken" in text
    assert "\x1b" not in text
    assert PLANTED not in text
    if log_format == "json":
        assert len(text.splitlines()) == 1


def test_a_warning_of_the_interpreter_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        setup_logging("info")
        warnings.warn("mind this", UserWarning, stacklevel=1)
    assert "mind this" in lines(capsys)[0]["event"]


def test_a_long_text_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("info")
    structlog.get_logger().info("x", path="y" * 1_000_000)
    assert len(lines(capsys)[0]["path"]) <= MAX_TEXT + 3


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


@given(VALUES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_value_the_line_is_strict_json(value: object) -> None:
    def no_constant(_: str) -> None:
        raise AssertionError("NaN or Infinity")

    text = json.dumps(hide_and_escape(None, "info", {"event": "x", "value": value}))
    json.loads(text, parse_constant=no_constant)
    assert text.isprintable()


def test_the_levels_are_those_of_the_configuration() -> None:
    assert set(LEVELS) == {"debug", "info", "warn", "error"}


def test_a_line_per_request_is_json_with_the_same_frame_and_heeds_the_level(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for level in ("debug", "info", "warn"):
        logger = access_lines(level, "json")
        assert logger is not None
        logger.debug("request", path="/health")
        logger.info("request", path="/tasks", status=200)
        logger.flush()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["debug", "info", "info"]
    assert lines[1].pop("timestamp").endswith("Z")
    assert lines[1] == {
        "path": "/tasks",
        "status": 200,
        "event": "request",
        "level": "info",
        "logger": "taskcast_trio.access",
    }


@pytest.mark.parametrize(
    ("variable", "no_color", "coloured"),
    [("", False, True), ("1", False, False), ("", True, False)],
)
def test_colours_are_for_terminals_of_people_who_want_them(
    variable: str,
    no_color: bool,
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NO_COLOR", variable)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    setup_logging("info", no_color=no_color)
    structlog.get_logger("tests").info("hello")
    assert ("\x1b[" in capsys.readouterr().err) is coloured


@pytest.mark.parametrize(
    ("log_format", "is_terminal", "as_json"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("json", True, True),
        ("text", False, False),
    ],
)
def test_lines_are_json_where_that_is_asked_for_or_nobody_reads_along(
    log_format: str,
    is_terminal: bool,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    setup_logging("info", log_format)
    structlog.get_logger("tests").info("hello")
    assert capsys.readouterr().err.startswith("{") is as_json
    assert (access_lines("info", log_format) is not None) is as_json
