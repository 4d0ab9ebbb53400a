"""A bounded memory of what was used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps values up to a total weight, and forgets first what was used longest ago.

    The newest value is kept whatever its weight. Any thread may use it.
    """

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._weight = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            known = self._values.get(key)
            if known is None:
                return None
            self._values.move_to_end(key)
            return known[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep the value in the place of the one that was there."""
        with self._lock:
            self._remove(key)
            self._values[key] = (value, weight)
            self._weight += weight
            while self._weight > self._max_weight and len(self._values) > 1:
                self._remove(next(iter(self._values)))

    def drop(self, key: K) -> None:
        with self._lock:
            self._remove(key)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
            self._weight = 0

    def _remove(self, key: K) -> None:
        known = self._values.pop(key, None)
        if known is not None:
            self._weight -= known[1]
