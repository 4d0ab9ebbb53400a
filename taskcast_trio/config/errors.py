"""The one error of this room."""

from __future__ import annotations

from taskcast_trio.core.errors import TaskcastError


class ConfigError(TaskcastError):
    """The configuration cannot be used; ``str(error)`` is one line naming source, key and reason.

    The line never holds a configured value: it may be a secret in the wrong place. What is not
    printable in it (keys and paths may hold anything) is escaped.
    """

    code = "config_error"

    def __init__(self, line: str) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))
