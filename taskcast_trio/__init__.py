"""taskcast_trio: follow long jobs. Tasks with an event log that any number of subscribers replay
and stream.

::

    async with open_engine() as engine:
        task = await engine.create()
        async with engine.subscribe(task.id) as events:
            ...

Beside a program that does not run on Trio, a server in a thread::

    with background() as url:
        ...

What is named here is loaded when it is used: who imports only the client loads no server, and the
command line and pytest start without Trio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .config import Config
    from .engine import TaskEngine, open_engine, open_runtime
    from .server.background import Background, background
    from .server.mount import Mount

__version__ = "0.1.0"

__all__ = [
    "Background",
    "Config",
    "Mount",
    "TaskEngine",
    "__version__",
    "background",
    "open_engine",
    "open_runtime",
]

_HOMES: Final = {
    "Background": "server.background",
    "Config": "config",
    "Mount": "server.mount",
    "TaskEngine": "engine",
    "background": "server.background",
    "open_engine": "engine",
    "open_runtime": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
