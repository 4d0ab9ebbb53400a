"""Command line options made from the configuration's types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from taskcast_trio.config import Config, Loaded
from taskcast_trio.config.keys import KEYS, Key
from taskcast_trio.config.show import rows
from taskcast_trio.config.values import describe

_PROMINENT: Final = frozenset(
    {"port", "host", "storage", "redis.url", "processes", "dbPath", "logLevel", "logFormat"}
)
_EXTRA_NAMES: Final = {
    "server.http2": "--http2/--no-http2",
    "workers.enabled": "--workers-api/--no-workers-api",
}


class ConfigOption(click.Option):
    """An option that sets one configuration key; its text is checked by the loader, not here."""

    def __init__(self, key: Key, *names: str, **attributes: Any) -> None:
        self.path = key.path
        flag = key.flag
        kind: dict[str, Any] = {"type": str, "metavar": "VALUE"}
        if key.bare is bool:
            flag, kind = f"{flag}/--no-{flag[2:]}", {"is_flag": True}
        super().__init__([flag, *names], default=None, **(kind | attributes))


class StartCommand(click.Command):
    """A command whose help lists the generated options in a section of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        main: list[tuple[str, str]] = []
        generated: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                is_generated = isinstance(param, ConfigOption) and param.path not in _PROMINENT
                (generated if is_generated else main).append(record)
        with formatter.section("Options"):
            formatter.write_dl(main)
        with formatter.section(
            "Configuration options (also keys of the file, and TASKCAST_... variables)"
        ):
            formatter.write_dl(generated)


def prominent(path: str, *names: str, help: str) -> ConfigOption:
    """Make the option of a key that stands among the command's own."""
    return ConfigOption(KEYS[path], *names, help=help, metavar="VALUE")


def generated() -> Iterator[ConfigOption]:
    """Make an option for every other key that one text can give, with its default in the help."""
    defaults = {path: text for path, text, _ in rows(Loaded(Config(), {}, (), None))}
    for path, key in KEYS.items():
        if path in _PROMINENT or not (key.is_scalar or key.is_text_list):
            continue
        names = [_EXTRA_NAMES[path]] if path in _EXTRA_NAMES else []
        text = describe(key.type)
        if key.is_text_list:
            text += ", by commas"
        if path in defaults:
            text += f"  [{defaults[path]}]"
        yield ConfigOption(key, *names, help=text)


def flags_of(ctx: click.Context, params: Iterable[click.Parameter]) -> dict[str, object]:
    """Collect what was given on the command line by key; None where nothing was."""
    return {p.path: ctx.params[p.name] for p in params if isinstance(p, ConfigOption) and p.name}
