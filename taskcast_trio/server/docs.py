"""``/docs``: the OpenAPI document for people, with all its assets from this package."""

from __future__ import annotations

from functools import cache
from html import escape
from importlib import resources
from typing import Final

_MEDIA_TYPES: Final = {
    "docs.js": "text/javascript; charset=utf-8",
    "rapidoc-min.js": "text/javascript; charset=utf-8",
    "rapidoc-min.js.LICENSE.txt": "text/plain; charset=utf-8",
    "rapidoc.LICENSE.txt": "text/plain; charset=utf-8",
}


def page(prefix: str = "") -> bytes:
    """The page, UTF-8 HTML.

    Its links are relative to the path ``/docs``, so that they hold wherever the app is mounted; a
    ``prefix`` (``/api``) makes them absolute instead.
    """
    base = f"{prefix.rstrip('/')}/" if prefix else ""
    return _read("docs.html").replace(b"{base}", escape(base).encode())


def asset(name: str) -> tuple[bytes, str] | None:
    """Content and media type of an asset of the page; None for any name that is not one of them."""
    media_type = _MEDIA_TYPES.get(name)
    return None if media_type is None else (_read(name), media_type)


@cache
def _read(name: str) -> bytes:
    return (resources.files(__package__) / "static" / name).read_bytes()
