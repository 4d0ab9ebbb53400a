"""Query parameters, as the wire contract reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite, nan
from urllib.parse import parse_qsl

from taskcast_trio.core.errors import BadRequest

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_LEADING_INTEGER = re.compile(r"\s*([+-]?\d{1,15})")


class Query:
    """The parameters of one request; a declared one may be given once only."""

    def __init__(self, query_string: bytes, declared: frozenset[str]) -> None:
        values: dict[str, str] = {}
        text = query_string.decode("latin-1")
        try:
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=1000)
        except (UnicodeDecodeError, ValueError):
            raise BadRequest("The query string is not percent-encoded UTF-8, or too long") from None
        for name, value in pairs:
            if name not in declared:
                continue
            if name in values:
                raise BadRequest(f"Query parameter {name} is given twice")
            values[name] = value
        self._values: Mapping[str, str] = values

    def get(self, name: str) -> str | None:
        return self._values.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def number(self, name: str) -> float | None:
        """A number; an empty one counts as 0, None where it is absent.

        Raises:
            BadRequest: it is no number.
        """
        text = self.get(name)
        if text is None:
            return None
        if not text.strip():
            return 0.0
        number = float(text) if _NUMBER.fullmatch(text) else nan
        if not isfinite(number):
            raise BadRequest(f"Query parameter {name} is not a number")
        return number

    def seconds(self, name: str, most: int) -> float:
        """A time from 0, which is also what is absent or empty, to ``most``.

        Raises:
            BadRequest: it is none.
        """
        number = self.number(name) or 0.0
        if not 0 <= number <= most:
            raise BadRequest(f"Query parameter {name} is not from 0 to {most} seconds")
        return number

    def lenient_number(self, name: str) -> float | None:
        """As :meth:`number`, but None for what is no number (streams)."""
        try:
            return self.number(name)
        except BadRequest:
            return None

    def limit(self, name: str = "limit") -> int | None:
        """A count; None (no limit) for what does not begin with a whole number above 0."""
        found = _LEADING_INTEGER.match(self.get(name) or "")
        number = int(found[1]) if found else 0
        return number if number > 0 else None

    def flag(self, name: str) -> bool:
        return self.get(name) == "true"
