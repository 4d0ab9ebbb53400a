"""Redis as short-term store and broadcast of many processes. Importing this imports redis-py and
trio-asyncio, which patches asyncio: do so only where Redis is configured.
"""

from __future__ import annotations

from ..records import StoreRefused
from .backend import RedisBackend, open_redis

__all__ = ["RedisBackend", "StoreRefused", "open_redis"]
