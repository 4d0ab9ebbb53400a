"""Opening and closing a database file as a backend."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Final

import trio

from ..memory import MemoryBroadcast
from .lock import only_server
from .schema import Synchronous, connect_reader, connect_writer
from .store import SqliteStore

READERS: Final = 3


class SqliteBackend:
    """A store in a database file, and the broadcast it announces to: this process is the only one
    that has the file open.
    """

    provider = "sqlite"
    durability: Final = "durable"
    peers: Final = None

    def __init__(self, store: SqliteStore, broadcast: MemoryBroadcast) -> None:
        self.store = store
        self.broadcast = broadcast

    def link(self) -> None:
        """It is in this process."""


class _Files:
    """The lock and the connections; the writer's is the last one to be closed, which moves what the
    write-ahead log holds into the file.
    """

    def __init__(self, path: Path, synchronous: Synchronous, max_pages: int | None) -> None:
        path = path.resolve()  # the lock is of the file, whichever link leads to it
        with ExitStack() as stack:
            stack.enter_context(only_server(path))
            self.writer = stack.enter_context(
                closing(connect_writer(path, synchronous=synchronous, max_pages=max_pages))
            )
            self.readers = [
                stack.enter_context(closing(connect_reader(path))) for _ in range(READERS)
            ]
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()


@asynccontextmanager
async def open_sqlite(
    path: str | os.PathLike[str],
    *,
    synchronous: Synchronous = "full",
    max_pages: int | None = None,
) -> AsyncIterator[SqliteBackend]:
    """Open the database file ``path``, made if it is not there, for as long as the context.

    With ``synchronous="full"`` a step is answered after its fsync and survives the loss of power;
    with ``"normal"`` it survives the death of the process. Beyond ``max_pages`` pages of 4 KiB the
    file is like one on a full disk. ``<path>.lock`` is held meanwhile, so that no other server
    opens the file.

    Leaving the context, also by a cancellation, finishes the batch that is being written and closes
    the file. A crash of the writer cancels the body and is raised from here, in an ExceptionGroup;
    the body's own exception is raised as it is.

    Raises:
        StoreRefused: the file is in use, damaged, of another program or of a newer version, or
            can't be opened.
    """
    files = await trio.to_thread.run_sync(_Files, Path(path), synchronous, max_pages)
    try:
        broadcast = MemoryBroadcast()
        store = SqliteStore(files.writer, files.readers, broadcast.announce)
        raised: Exception | None = None
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            await nursery.start(store.writer.run, name="sqlite writer")
            try:
                yield SqliteBackend(store, broadcast)
            except Exception as error:
                raised = error
            finally:
                store.writer.close()
        if raised is not None:
            raise raised
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(files.close)
