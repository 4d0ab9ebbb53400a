"""What a worker is given to begin with, checked: a slip is told at once, and secrets never."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

_TOKEN: Final = re.compile(r"[!-~]+")
_URL: Final = re.compile(r"https?://[!-~]+")


def checked_url(url: str) -> str:
    """Where the server is.

    Raises:
        ValueError: it can't be there.
    """
    if not _URL.fullmatch(url):
        raise ValueError("url begins with http:// or https://, and has no spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"url can't be read: {error}") from None
    if not parts.hostname or port == 0:
        raise ValueError("url names no host, or no port of one")
    if "@" in parts.netloc:
        raise ValueError("url has a user or password: workers show a token, see token=")
    if parts.query or parts.fragment:
        raise ValueError("url ends with a path: what follows ? or # is no part of it")
    return url.rstrip("/")


def checked_token(token: str | None) -> str | None:
    """What is sent with every request.

    Raises:
        ValueError: no header can hold it. It is not shown.
    """
    if token is not None and not _TOKEN.fullmatch(token):
        raise ValueError("token is empty, or has spaces, line breaks or others that are not ASCII")
    return token


def checked_times(**times_s: float | None) -> None:
    """Refuse (ValueError) times that are none; ``grace_s`` and ``drain_s`` may be 0."""
    for name, time_s in times_s.items():
        if time_s is None:
            continue
        if not (time_s > 0 or (time_s == 0 and name in ("grace_s", "drain_s"))):
            raise ValueError(f"{name} is a number of seconds, above 0")
