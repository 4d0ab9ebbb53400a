"""taskcast_trio: follow long jobs. Tasks with an event log that any number of subscribers replay
and stream.

::

    async with open_engine() as engine:
        task = await engine.create()
        async with engine.subscribe(task.id) as events:
            ...
"""

__version__ = "0.1.0"

from .engine import TaskEngine, open_engine, open_runtime

__all__ = ["TaskEngine", "__version__", "open_engine", "open_runtime"]
