"""One server per database file: an advisory lock beside it, held for as long as it is open.

SQLite would let two processes write in turns, but each would keep to itself what it announces.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..records import StoreRefused


@contextmanager
def only_server(path: Path) -> Iterator[None]:
    """Hold ``<path>.lock``. The file stays behind; the kernel frees the lock of a dead process.

    Raises:
        StoreRefused: another server holds it, or the file can't be made.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreRefused(f"Can't open the database {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreRefused(f"The database {path} is in use by another server") from None
        except OSError as error:
            raise StoreRefused(f"Can't lock the database {path}: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)
