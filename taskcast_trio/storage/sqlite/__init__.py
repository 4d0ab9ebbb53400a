"""The embedded durable store: one SQLite file, one writer with group commit, a few readers."""

from ..records import StoreRefused
from .backend import SqliteBackend, open_sqlite
from .schema import Synchronous

__all__ = ["SqliteBackend", "StoreRefused", "Synchronous", "open_sqlite"]
