"""The effective configuration as lines for a person, secrets hidden."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from taskcast_trio.config.keys import KEYS, fields_of
from taskcast_trio.config.loader import Loaded
from taskcast_trio.config.schema import Section
from taskcast_trio.config.secret import Secret

_QUOTED_FROM: Final = frozenset(" \t\r\n\"'#")


def rows(loaded: Loaded, *, reveal: bool = False) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and source of every key that has a value, in the order of the types.

    ``reveal`` shows secrets as they are.
    """
    for path in KEYS:
        value = _look_up(loaded, path)
        source = loaded.sources.get(path, "default")
        if path == "host" and value is None:
            value = loaded.config.listen_host
        if value is not None:
            yield path, render(value, reveal=reveal), source


def tree(loaded: Loaded, *, reveal: bool = False) -> dict[str, Any]:
    """The same as values for JSON: all of them, and the sources of those that are no defaults."""

    def told(value: Any) -> str:
        return value.reveal() if reveal and isinstance(value, Secret) else str(value)

    return {
        "file": loaded.file and str(loaded.file),
        "values": msgspec.to_builtins(loaded.config, enc_hook=told),
        "sources": dict(loaded.sources),
    }


def render(value: Any, *, reveal: bool = False) -> str:
    """Write a value on one line; no :class:`Secret` in it is readable, without ``reveal``."""

    def told(secret: Any) -> str:
        return secret.reveal() if reveal and isinstance(secret, Secret) else str(secret)

    if isinstance(value, Secret):
        return told(value)
    if isinstance(value, str) and value.isprintable() and value and not _QUOTED_FROM & set(value):
        return value
    return json.dumps(msgspec.to_builtins(value, enc_hook=told))


def _look_up(loaded: Loaded, path: str) -> Any:
    found: Any = loaded.config
    for wire in path.split("."):
        section: type[Section] = type(found)
        found = getattr(found, fields_of(section)[wire][0])
    return found
