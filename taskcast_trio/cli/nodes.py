"""The file of nodes: servers by name, with their tokens, and which one is meant without a name.

It is ``$TASKCAST_NODES``, else ``nodes.json`` in ``$XDG_CONFIG_HOME/taskcast``, which is
``~/.config/taskcast`` unless set. Only its owner may read it, and a change replaces it whole.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import msgspec

from taskcast_trio.cli.failures import FAILED, USAGE, Failed, printable
from taskcast_trio.config import Secret

NODES_ENV: Final = "TASKCAST_NODES"
FILE_MODE: Final = 0o600
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Node(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A server that has a name here."""

    url: str
    token: Secret | None = None


class Nodes(msgspec.Struct, kw_only=True):
    """What the file holds."""

    current: str | None = None
    nodes: dict[str, Node] = {}

    def find(self, name: str) -> Node:
        """The node of this name.

        Raises:
            Failed: there is none.
        """
        if name in self.nodes:
            return self.nodes[name]
        near = get_close_matches(name, self.nodes, n=1)
        hint = f"did you mean {near[0]}?" if near else "`taskcast-trio node list` shows those known"
        raise Failed(f"no node {printable(name)}: {hint}", USAGE)


def home() -> Path:
    """The home directory; one that is not there for a user that has none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def nodes_file(env: Mapping[str, str]) -> Path:
    """Where the file is, or would be."""
    if own := env.get(NODES_ENV):
        return Path(own)
    base = env.get("XDG_CONFIG_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    config = Path(base) if base.startswith("/") else home() / ".config"
    return config / "taskcast" / "nodes.json"


def read_nodes(path: Path) -> Nodes:
    """What the file holds; nothing where it is not there.

    Raises:
        Failed: it can't be read, or is no such file.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return Nodes()
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}", FAILED) from None
    try:
        return msgspec.json.decode(text, type=Nodes, dec_hook=_secret)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        # Their messages may quote what is in it.
        raise Failed(f"{path} is not a file of nodes: mend or remove it", USAGE) from None


def open_to_others(path: Path) -> bool:
    """Whether others than its owner may read the file."""
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    except OSError:
        return False


@contextmanager
def edited(path: Path) -> Iterator[Nodes]:
    """What the file holds, to be changed and written back; one process at a time.

    Raises:
        Failed: it can't be read or written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Failed(f"{path.parent}: {error.strerror}", FAILED) from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        nodes = read_nodes(path)
        yield nodes
        try:
            _write(path.resolve(), nodes)
        except OSError as error:
            raise Failed(f"{path}: {error.strerror}", FAILED) from None
    finally:
        os.close(directory)


def _write(path: Path, nodes: Nodes) -> None:
    text = msgspec.json.format(msgspec.json.encode(nodes, enc_hook=_reveal), indent=2)
    # A file of mkstemp is its owner's alone from the first byte on.
    number, name = tempfile.mkstemp(prefix=".nodes-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            os.fchmod(number, FILE_MODE)
            file.write(text + b"\n")
            file.flush()
            os.fsync(number)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check_name(name: str) -> str:
    """The name, if it may be one: never mistaken for a URL or an option.

    Raises:
        Failed: it may not.
    """
    if not _NAME.fullmatch(name):
        raise Failed(
            f"{printable(name)} can't be a name: up to 64 letters, digits, dots, underscores and "
            "hyphens, the first a letter or digit",
            USAGE,
        )
    return name


def _secret(type_: type, value: Any) -> Any:
    if type_ is not Secret or not isinstance(value, str):
        raise NotImplementedError
    return Secret(value)


def _reveal(value: Any) -> str:
    assert isinstance(value, Secret)
    return value.reveal()
