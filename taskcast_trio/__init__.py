"""taskcast_trio: follow long jobs. Tasks with an event log that any number of subscribers replay
and stream.

::

    async with open_engine() as engine:
        task = await engine.create()
        async with engine.subscribe(task.id) as events:
            ...

What is named here is loaded when it is used: who imports only the client loads no server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .engine import TaskEngine, open_engine, open_runtime

__all__ = ["TaskEngine", "__version__", "open_engine", "open_runtime"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.engine"), name)


def __dir__() -> list[str]:
    return __all__
