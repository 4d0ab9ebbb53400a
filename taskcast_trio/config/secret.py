"""Text that never shows itself: not in ``repr``, ``str``, logs or error messages."""

from __future__ import annotations

import hmac
import re
from typing import Final

REDACTED: Final = "********"


class Secret:
    """A secret text. ``reveal()`` is the only way to read it; equality takes constant time."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("must not be empty")
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __str__(self) -> str:
        return REDACTED

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = (s._text.encode(errors="surrogatepass") for s in (self, other))
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash(self._text)


class SecretUrl(Secret):
    """A URL that may carry credentials; ``str`` shows scheme, host and path, never the rest."""

    __slots__ = ()

    def __str__(self) -> str:
        scheme, separator, rest = self._text.partition("://")
        if not separator:
            return REDACTED
        # From the last "@" on: a password may hold "@", "/" and "?", all unescaped.
        _, at, place = rest.rpartition("@")
        shown = re.sub(r"=[^&;]*", f"={REDACTED}", place)
        return f"{scheme}://{REDACTED}@{shown}" if at else f"{scheme}://{shown}"
