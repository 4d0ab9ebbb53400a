"""The order of the rooms: an import arrow runs only downward, and the core stays pure."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import taskcast_trio

PACKAGE = Path(taskcast_trio.__file__).parent
NAME = "taskcast_trio"

MAY_IMPORT = {
    "core": {"core"},
    "config": {"config", "core.addresses", "core.cleanup", "core.errors"},
    "storage": {"storage", "core", "config"},
    "engine": {"engine", "storage", "core", "config"},
    "server": {"server", "engine", "storage", "core", "config", "logs"},
    "client": {"client", "core"},
    "worker": {"worker", "client", "core"},
    "logs": set[str](),
    "cli": {"cli", "server", "engine", "storage", "client", "core", "config", "logs"},
    "testing": {"testing", "server", "engine", "storage", "client", "core", "config"},
    # The facade and `python -m`: what a user of the package sees first.
    "__init__": {"server.background", "server.mount", "engine", "core", "config"},
    "__main__": {"cli"},
}
ANYWHERE = {"__version__"}

THIRD_PARTY_IN_CORE = {"msgspec"}
IMPURE = {
    "_thread", "asyncio", "concurrent", "fcntl", "glob", "http", "io", "logging",
    "mmap", "multiprocessing", "os", "pathlib", "queue", "random", "sched", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess",
    "sys", "tempfile", "threading", "time", "uuid",
}  # fmt: skip

CLOCK_READS = {"now", "today", "utcnow"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> tuple[str, ...]:
    """Return the dotted place of a file inside the package: ``("core", "model")``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts


def imports(path: Path, source: str) -> Iterator[str]:
    """Yield every module or name that a file imports, absolute; function bodies count too."""
    package = (NAME, *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def offences(path: Path, source: str) -> list[str]:
    """List the imports of one file that break the order of the rooms or the purity of the core."""
    room = module_of(path)[0]
    found = []
    for name in imports(path, source):
        top, _, rest = name.partition(".")
        if top == NAME:
            allowed = MAY_IMPORT[room] | ANYWHERE
            if not any(rest == place or rest.startswith(f"{place}.") for place in allowed):
                found.append(name)
        elif room == "core":
            is_foreign = top not in sys.stdlib_module_names and top not in THIRD_PARTY_IN_CORE
            if is_foreign or top in IMPURE:
                found.append(name)
    if room == "core":
        names = (
            node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)
        )
        found += [name for name in names if name in CLOCK_READS]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_only_downward(path: Path) -> None:
    assert offences(path, path.read_text(encoding="utf-8")) == []


def test_every_room_stands_in_the_order() -> None:
    assert {module_of(path)[0] for path in FILES} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/x.py", "import trio"),
        ("core/x.py", "from time import monotonic"),
        ("core/x.py", "from datetime import datetime\n\nx = datetime.now()"),
        ("core/x.py", "def f():\n    import httpx"),
        ("core/x.py", "from ..engine import TaskEngine"),
        ("storage/x.py", "from taskcast_trio.engine import TaskEngine"),
        ("storage/x.py", "from .. import engine"),
        ("engine/x.py", "import taskcast_trio.server.app"),
        ("server/x.py", "if TYPE_CHECKING:\n    from taskcast_trio.cli import main"),
        ("client/x.py", "from taskcast_trio.engine import TaskEngine"),
        ("client/x.py", "from taskcast_trio import open_engine"),
        ("client/x.py", "from taskcast_trio.worker import Worker"),
        ("worker/x.py", "from taskcast_trio.engine import TaskEngine"),
        ("config/x.py", "from taskcast_trio.core.model import Task"),
        ("engine/x.py", "from taskcast_trio.testing import anything"),
    ],
)
def test_the_guard_sees_an_arrow_that_runs_upward(file: str, source: str) -> None:
    assert offences(PACKAGE / file, source) != []
