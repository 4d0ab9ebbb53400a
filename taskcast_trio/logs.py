"""Structured logs on stderr: one line per event, readable on a terminal, JSON elsewhere.

Lines carry what is bound to the context (``request_id``, ``task_id``). They never carry payloads or
tokens: fields whose names promise either are hidden, whoever logs them. Control characters in
values are escaped, so that no value can forge a line or move a terminal's cursor.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
MAX_TEXT: Final = 4096
"""Longer texts are cut: a log line is no place for a document. Tracebacks have ten times that."""
MAX_DEPTH: Final = 4
MAX_HELD_LINES: Final = 64

HIDDEN: Final = "[hidden]"
_HIDDEN_FIELDS: Final = frozenset(
    {
        "admin_token",
        "authorization",
        "body",
        "cookie",
        "data",
        "headers",
        "metadata",
        "params",
        "password",
        "payload",
        "result",
        "secret",
        "service_key",
        "ticket",
        "token",
    }
)
_META_FIELDS: Final = frozenset({"_record", "_from_structlog"})
# C0, DEL, C1, line and paragraph separators, bidirectional overrides, lone surrogates.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CHATTY: Final = ("httpx", "httpcore", "h11", "h2", "hpack", "asyncio", "trio-websocket")


request_fields: ContextVar[dict[str, str] | None] = ContextVar("request_fields", default=None)
"""What ties the lines of one request together; bound by the access log."""


def merge_request_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Processor: add what is bound to the request."""
    fields = request_fields.get()
    return {**fields, **event} if fields else event


def is_json(log_format: str) -> bool:
    """Whether lines are JSON, with a ``logFormat`` of the configuration."""
    return not sys.stderr.isatty() if log_format == "auto" else log_format == "json"


def setup_logging(level: str, log_format: str = "auto", *, no_color: bool = False) -> None:
    """Route structlog and the standard library's logging to stderr as one stream of lines.

    Calling it again replaces the set-up. Warnings of the interpreter become log lines too.

    Args:
        level: ``debug``, ``info``, ``warn`` or ``error``.
        log_format: ``json``, ``text``, or ``auto``: JSON unless stderr is a terminal.
        no_color: no colours on a terminal either; ``NO_COLOR`` says so too.
    """
    shared: list[Processor] = [
        merge_request_fields,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide_and_escape,
    ]
    if is_json(log_format):
        renderer: Processor = structlog.processors.JSONRenderer(ensure_ascii=True)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            # no-color.org
            colors=sys.stderr.isatty() and not no_color and not os.environ.get("NO_COLOR"),
            exception_formatter=structlog.dev.plain_traceback,
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.WARNING))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


class PlainLines:
    """A logger for fields that are harmless as they are: JSON lines without processors.

    A line costs a tenth of one through structlog, which matters for one per request. Lines are held
    back until there are some, or until :meth:`flush`, which its owner calls from time to time.
    """

    def __init__(self, name: str, level: str) -> None:
        self._name = name
        self._level = LEVELS[level]
        self._lines: list[bytes] = []

    def debug(self, event: str, **fields: object) -> None:
        if self._level <= logging.DEBUG:
            self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        if self._level <= logging.INFO:
            self._write("info", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        fields["event"] = event
        fields["level"] = level
        fields["logger"] = self._name
        fields["timestamp"] = datetime.now(UTC)
        self._lines.append(msgspec.json.encode(fields))
        if len(self._lines) >= MAX_HELD_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what is held back."""
        if self._lines:
            lines, self._lines = self._lines, []
            sys.stderr.buffer.write(b"\n".join(lines) + b"\n")
            sys.stderr.buffer.flush()


ACCESS_LOG: Final = "taskcast_trio.access"


def access_lines(level: str, log_format: str = "auto") -> PlainLines | None:
    """The logger of requests where ``setup_logging`` makes the others JSON; None elsewhere."""
    return PlainLines(ACCESS_LOG, level) if is_json(log_format) else None


def hide_and_escape(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Processor: hide fields that promise payloads or tokens; make the rest harmless to print."""
    meta = {name: value for name, value in event.items() if name in _META_FIELDS}
    rest = {_text(name): _field(name, value) for name, value in event.items() if name not in meta}
    return {**rest, **meta}


def _field(name: str, value: Any) -> Any:
    if name == "exception" and isinstance(value, str):
        lines = value[: 10 * MAX_TEXT].split("\n")
        return "\n".join(_UNSAFE.sub(_escape, line) for line in lines)
    return HIDDEN if name.lower() in _HIDDEN_FIELDS else _harmless(value, MAX_DEPTH)


def _harmless(value: Any, depth: int) -> Any:
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return _text(value)
        case Mapping() if depth:
            items = ((str(key), item) for key, item in value.items())
            return {
                _text(key): HIDDEN if key.lower() in _HIDDEN_FIELDS else _harmless(item, depth - 1)
                for key, item in items
            }
        case list() | tuple() | set() | frozenset() if depth:
            return [_harmless(item, depth - 1) for item in value]
        case _:
            return _text(repr(value))


def _text(value: str) -> str:
    cut = value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}..."
    return _UNSAFE.sub(_escape, cut)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
