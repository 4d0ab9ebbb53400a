"""Writes docs/configuration.md from the types of the configuration: ``python -m
tests.docs.reference``.

What a key means is the text below it in ``taskcast_trio/config/schema.py``.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from taskcast_trio.cli.options import ConfigOption
from taskcast_trio.cli.start import start
from taskcast_trio.config import schema
from taskcast_trio.config.keys import ENV_ALIASES, KEYS, Key, bare, fields_of, is_section
from taskcast_trio.config.schema import Config, Section, TrustedService
from taskcast_trio.config.secret import Secret, SecretUrl
from taskcast_trio.config.show import render
from taskcast_trio.config.values import describe

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
HEAD: Final = """\
# Configuration

<!-- Written by `python -m tests.docs.reference` from taskcast_trio/config/schema.py: edit that. -->

A value comes from, in this order: the command line, the environment, the file, the default. The
file is `-c FILE`, or `taskcast.config.yaml`, `.yml` or `.json` in the working directory, or else
in `~/.taskcast/`. In it, `a.bC` is `bC` below `a`, and `${NAME}` stands for an environment
variable (`$${NAME}` for itself). Lists of texts are written with commas in the environment and on
the command line, lists of mappings as JSON in the environment.

`taskcast-trio --check-config` prints every value that is in force and where it comes from, without
secrets. A value that does not fit, or a key that is not known, stops the start with one line that
names it. From Python, `taskcast_trio.config.load_config` reads all of these, and `Config(...)`
takes the same keys in `snake_case`.
"""
COLUMNS: Final = (
    "| key | type | default | environment, command line | meaning |",
    "| --- | --- | --- | --- | --- |",
)
UNITS: Final = {"Ms": "ms", "Seconds": "s", "Bytes": "bytes"}
FIELDS: Final = {"trustedServices": TrustedService}
"""Keys that hold a list of mappings, and the type of these."""


def meanings() -> Mapping[tuple[str, str], str]:
    """The text below each field of a section, by the names of both."""
    found = {}
    for node in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[node.name, field.target.id] = markdown(text)
    return found


def markdown(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section with its path, the top first."""

    def below(path: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
        yield path, section
        for wire, (_, annotation) in fields_of(section).items():
            if is_section(annotation):
                yield from below(f"{path}.{wire}" if path else wire, annotation)

    return below("", Config)


def default_of(section: type[Section], attribute: str) -> str:
    value = getattr(section(), attribute)
    return "" if value is None or value == () else f"`{render(value)}`"


def type_of(annotation: Any, wire: str) -> str:
    kind = bare(annotation)
    if isinstance(kind, type) and issubclass(kind, Secret):
        return "URL, kept secret" if issubclass(kind, SecretUrl) else "text, kept secret"
    words = describe(annotation)
    if words.startswith("one of "):
        words = ", ".join(f"`{word}`" for word in words.removeprefix("one of ").split(", "))
    for ending, unit in UNITS.items():
        if wire.endswith(ending):
            words += f", in {unit}"
    return words


def names(key: Key, options: Mapping[str, str]) -> str:
    """The environment variables and the option that set a key."""
    older = [name for name, path in ENV_ALIASES.items() if path == key.path]
    lines = [f"`{name}`" for name in [key.env, *older]]
    if key.path in options:
        lines.append(f"`{options[key.path]}`")
    return "<br>".join(lines)


def option_names() -> Mapping[str, str]:
    """How the command line spells each key."""
    found = {}
    for option in start.params:
        if isinstance(option, ConfigOption):
            both = [*option.opts, *option.secondary_opts]
            found[option.path] = "`, `".join(both)
    return found


def table(
    path: str, section: type[Section], texts: Mapping[tuple[str, str], str], missing: list[str]
) -> list[str]:
    options = option_names()
    rows = []
    for wire, (attribute, annotation) in fields_of(section).items():
        if is_section(annotation):
            continue
        place = f"{path}.{wire}" if path else wire
        text = texts.get((section.__name__, attribute), "")
        if not text:
            missing.append(place)
        cells = (
            f"`{place}`",
            type_of(annotation, wire),
            default_of(section, attribute),
            names(KEYS[place], options),
            text,
        )
        rows.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return rows


def items_of(path: str, item: type[Section], texts: Mapping[tuple[str, str], str]) -> str:
    """The keys of the mappings in a list, as one line."""
    parts = [
        f"`{wire}` ({type_of(annotation, wire)}): {texts[item.__name__, attribute]}"
        for wire, (attribute, annotation) in fields_of(item).items()
    ]
    return f"Each of `{path}`: " + " ".join(parts)


def page() -> str:
    """The whole page.

    Raises:
        LookupError: a key has no text that says what it means.
    """
    texts, missing = meanings(), list[str]()
    parts = [HEAD]
    for path, section in sections():
        rows = table(path, section, texts, missing)
        if not rows:
            continue
        title = f"`{path}`" if path else "At the top"
        parts.append(f"## {title}\n")
        doc = section.__dict__.get("__doc__")
        if path and doc:
            parts.append(f"{markdown(doc)}\n")
        parts.append("\n".join([*COLUMNS, *rows]) + "\n")
        parts += [f"{items_of(key, item, texts)}\n" for key, item in FIELDS.items() if not path]
    if missing:
        raise LookupError(f"no text in schema.py says what these mean: {', '.join(missing)}")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
