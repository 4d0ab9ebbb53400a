"""Finding and reading a configuration file, and replacing ``${NAME}`` in its texts."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from taskcast_trio.config.errors import ConfigError

NAMES: Final = ("taskcast.config.yaml", "taskcast.config.yml", "taskcast.config.json")
FOREIGN_NAMES: Final = ("taskcast.config.ts", "taskcast.config.js", "taskcast.config.mjs")
MAX_BYTES: Final = 1_048_576
MAX_VALUES: Final = 100_000
"""Aliases let a small YAML file stand for an endless one; this bounds what we walk."""

_VARIABLE: Final = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_QUOTED: Final = re.compile(r"'[^'<]{2,}'|\"[^\"]{2,}\"")


class Interpolated(str):
    """A text that came, in part, from the environment: it is parsed by its key's type."""

    __slots__ = ()


def find(cwd: Path, home: Path) -> Path | None:
    """Return the first configuration file in `cwd`, then in ``~/.taskcast``, or None."""
    places = [folder / name for folder in (cwd, home / ".taskcast") for name in NAMES]
    return next((place for place in places if place.is_file()), None)


def read(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file; an empty one is an empty mapping.

    Raises:
        ConfigError: the file is missing, unreadable, too large, no UTF-8, not well-formed, holds a
            key twice, or is no mapping. The message holds nothing of the contents.
    """
    if path.suffix in {".ts", ".js", ".mjs"}:
        raise ConfigError(f"{path}: programs are not read; write it as YAML or JSON")
    try:
        with path.open("rb") as file:
            blob = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(blob) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        text = blob.decode("utf-8-sig")
        is_json = path.suffix == ".json"
        found = _parse_json(text) if is_json else yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{path}: {where}: not JSON: {error.msg}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_explain_yaml(error)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deep") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top")
    return found


def interpolate(
    tree: dict[str, Any], env: Mapping[str, str], source: str
) -> tuple[dict[str, Any], frozenset[str]]:
    """Replace ``${NAME}`` in every text by the variable; ``$${NAME}`` stands for itself.

    Returns the new tree, and the names that were used.

    Raises:
        ConfigError: a variable is not set, a key is no text, or aliases make the tree endless.
    """
    used: set[str] = set()
    count = 0

    def text(value: str, path: str) -> str:
        def look_up(match: re.Match[str]) -> str:
            if match[1]:
                return match[0][1:]
            if (name := match[2]) not in env:
                raise ConfigError(f"{source}: {path}: environment variable {name} is not set")
            used.add(name)
            return env[name]

        replaced = _VARIABLE.sub(look_up, value)
        if replaced == value:
            return value
        return Interpolated(replaced)

    def walk(value: Any, path: str) -> Any:
        nonlocal count
        count += 1
        if count > MAX_VALUES:
            raise ConfigError(f"{source}: more than {MAX_VALUES} values (aliases of aliases?)")
        match value:
            case str():
                return text(value, path)
            case dict():
                for key in value:
                    if not isinstance(key, str):
                        raise ConfigError(f"{source}: {path or 'top'}: a key is no text")
                return {k: walk(v, f"{path}.{k}" if path else k) for k, v in value.items()}
            case list():
                return [walk(item, f"{path}[{n}]") for n, item in enumerate(value)]
            case _:
                return value

    try:
        return walk(tree, ""), frozenset(used)
    except RecursionError:
        raise ConfigError(f"{source}: nested too deep") from None


def _parse_json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(mapping := dict(items)) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{twice}: the key is there twice")
        return mapping

    def constant(_: str) -> NoReturn:
        raise ValueError("NaN and Infinity are no JSON")

    if not text.strip():
        return None
    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may not be there twice (PyYAML lets the last one win)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:str":
                if key.value in seen:
                    problem = f"{key.value}: the key is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _explain_yaml(error: yaml.YAMLError) -> str:
    """Say where and what, without the piece of the file that PyYAML likes to quote."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "not YAML: it holds characters that YAML does not allow"
    mark = error.problem_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{_QUOTED.sub('(hidden)', error.problem or 'malformed')}"
