"""The Lua scripts: each is a file, with the parts that its header says it uses put in front."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Final

from .resp import bulk

_USE: Final = re.compile(r"^-- Use: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A script, and how a command that runs it begins: by its digest, or with its text, which also
    makes it known.
    """

    name: str
    text: str
    by_digest: bytes = field(init=False)
    by_text: bytes = field(init=False)

    def __post_init__(self) -> None:
        digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "by_digest", bulk("EVALSHA") + bulk(digest))
        object.__setattr__(self, "by_text", bulk("EVAL") + bulk(self.text))


@cache
def script(name: str) -> Script:
    """The script of ``lua/<name>.lua``."""
    folder = files(__package__) / "lua"
    text = (folder / f"{name}.lua").read_text("utf-8")
    used = _USE.search(text)
    names = used[1].split() if used else ()
    parts = [(folder / "parts" / f"{part}.lua").read_text("utf-8") for part in names]
    return Script(name, "\n".join([*parts, text]))
