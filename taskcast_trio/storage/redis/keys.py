"""The names of keys, and which of 256 buckets a task belongs to.

Keys of one bucket carry its hash tag, so that a cluster keeps them on one node.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from zlib import crc32

from .resp import bulk

BUCKETS: Final = 256
TASK_KEYS: Final = (
    "head",
    "bodies",
    "log",
    "moved",
    "series",
    "foreign",
    "answers",
    "expiries",
    "notes",
)


def bucket_of(name: str) -> int:
    """The bucket of a task, or of a note."""
    return crc32(name.encode()) & (BUCKETS - 1)


class Keys:
    """Names under one prefix."""

    def __init__(self, prefix: str) -> None:
        if not prefix or not prefix.isprintable() or set(prefix) & set("{}"):
            raise ValueError("a prefix is printable text without braces")
        self.stems: Final = [f"{prefix}:{{{bucket:02x}}}:" for bucket in range(BUCKETS)]
        self.order = [f"{stem}order" for stem in self.stems]
        """By bucket: its tasks in the order of creation."""
        self.channels = [f"{stem}commits" for stem in self.stems]
        self.number = f"{self.stems[0]}number"
        """Counts the tasks that were created."""
        self.store = f"{self.stems[0]}store"
        """Says which store this is, until its data is lost."""
        self.peers = f"{self.stems[0]}peers"
        self.messages = f"{self.stems[0]}messages"
        self.told = f"{self.stems[0]}told"
        """The channel that says that there is a message."""
        self.of_task = lru_cache(maxsize=4096)(self._of_task)
        self.everywhere = lru_cache(maxsize=64)(self._everywhere)

    def head(self, task_id: str) -> str:
        return f"{self.stems[bucket_of(task_id)]}head:{task_id}"

    def notes(self, task_id: str) -> str:
        return f"{self.stems[bucket_of(task_id)]}notes:{task_id}"

    def note(self, name: str) -> str:
        return f"{self.stems[bucket_of(name)]}note:{name}"

    def table(self, name: str) -> str:
        return f"{self.stems[0]}table:{name}"

    def peer(self, name: str) -> str:
        return f"{self.stems[bucket_of(name)]}peer:{name}"

    def tokens(self, name: str) -> str:
        return f"{self.stems[bucket_of(name)]}tokens:{name}"

    def due(self, bucket: int, kind: str) -> str:
        return f"{self.stems[bucket]}due:{kind}"

    def step(self, bucket: int, request: bytes) -> bytes:
        """Under which the reply of a step is remembered for a while."""
        return b"%bstep:%b" % (self.stems[bucket].encode(), request)

    def _of_task(self, task_id: str) -> tuple[int, bytes]:
        """The bucket, and the keys of lua/parts/keys.lua up to STEP, as they are sent."""
        bucket = bucket_of(task_id)
        stem = self.stems[bucket]
        names: Iterable[str] = (
            *(f"{stem}{name}:{task_id}" for name in TASK_KEYS),
            self.order[bucket],
            f"{stem}text:{len(task_id)}:{task_id}:",
            f"{stem}due:",
            self.channels[bucket],
        )
        return bucket, b"".join(map(bulk, names))

    def _everywhere(self, name: str) -> bytes:
        """The keys of that name in all buckets, as they are sent."""
        return b"".join(bulk(f"{stem}{name}") for stem in self.stems)


TASK_KEY_COUNT: Final = len(TASK_KEYS) + 5
