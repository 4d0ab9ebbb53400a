"""One value of one key: from text or a parsed file to its type, with errors fit for a person."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.keys import Key, bare, fields_of, is_section, limits
from taskcast_trio.config.secret import Secret

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})
_MISFIT: Final = re.compile(
    r"(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?\Z", re.DOTALL
)
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>.*)`\Z")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<name>.*)`\Z", re.DOTALL)


def parse_text(key: Key, text: str, source: str) -> Any:
    """Turn the text of a variable or flag into the value of `key`.

    A list of texts is comma-separated, or JSON in brackets; mappings and lists of them are JSON.

    Raises:
        ConfigError: the text does not fit; the message names `source` and the key, not the text.
    """
    kind = key.bare
    raw: Any = text
    if kind is bool:
        word = text.strip().lower()
        raw = True if word in _TRUE else False if word in _FALSE else text
    elif kind in (int, float):
        try:
            raw = kind(text)
        except ValueError:
            raw = text
    elif key.is_text_list and not text.lstrip().startswith("["):
        raw = [part.strip() for part in text.split(",") if part.strip()]
    elif not key.is_scalar:
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError(f"{source}: {key.path}: expected JSON") from None
    return convert(key, raw, source)


def convert(key: Key, raw: Any, source: str) -> Any:
    """Check a parsed value against the type of `key` and return it as that type.

    Raises:
        ConfigError: as :func:`parse_text`.
    """
    try:
        return msgspec.convert(raw, key.type, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(key, str(error))}") from None


def unknown(path: str, known: list[str]) -> str:
    """Say that a key is unknown, and which one may have been meant."""
    parent, dot, name = path.rpartition(".")
    line = f"{path}: unknown key"
    if near := get_close_matches(name, known, n=1):
        line += f' (did you mean "{parent}{dot}{near[0]}"?)'
    return line


def describe(annotation: Any) -> str:
    """Name a type the way a person would: "a whole number from 0 to 65535"."""
    kind, bounds = bare(annotation), limits(annotation)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        noun = "a whole number" if kind is int else "a number"
        if bounds.gt is not None:
            return f"{noun} above {bounds.gt} and up to {bounds.le}"
        return noun if bounds.ge is None else f"{noun} from {bounds.ge} to {bounds.le}"
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return "a list of " + ("texts" if item is str else "mappings")
    return "text"


def _decode(kind: type, raw: Any) -> Any:
    if issubclass(kind, Secret):
        if not isinstance(raw, str):
            raise TypeError("Expected text")
        return kind(raw)
    raise TypeError(f"no configuration type: {kind}")


def _explain(key: Key, message: str) -> str:
    """Turn the message of msgspec into ``path: reason``, free of the value it may quote."""
    match = _MISFIT.match(message)
    what, place = (match["what"], match["path"] or "") if match else (message, "")
    path = f"{key.path}{place}"
    if surplus := _UNKNOWN.match(what):
        item = get_args(key.bare)[0]
        known = list(fields_of(item)) if is_section(item) else []
        return unknown(f"{path}.{surplus['name']}", known)
    if not place and not what.startswith("must "):
        return f"{path}: expected {describe(key.type)}"
    if what.startswith("Invalid enum value"):
        what = "not one of the known values"
    if missing := _MISSING.match(what):
        return f"{path}.{missing['name']}: is missing"
    return f"{path}: {what[:1].lower()}{what[1:].replace('`', '')}"
