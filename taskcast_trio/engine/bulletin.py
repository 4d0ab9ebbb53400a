"""What the processes of one store tell each other, by topic."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable
from typing import Final

import structlog

from taskcast_trio.storage.protocols import Peers

_NAME_BYTES: Final = 8

log = structlog.get_logger(__name__)


class Bulletin:
    """Messages for whoever listens, in every process; where there is one only, in that."""

    def __init__(self, peers: Peers | None) -> None:
        self._peers = peers
        self._name = secrets.token_bytes(_NAME_BYTES)
        self._listeners: defaultdict[str, list[Callable[[bytes], None]]] = defaultdict(list)

    def listen(self, topic: str, hear: Callable[[bytes], None]) -> None:
        """Call ``hear`` with each message of the topic from now on; it must not wait."""
        self._listeners[topic].append(hear)

    async def tell(self, topic: str, message: bytes) -> None:
        """Tell all listeners: those of this process at once, those of others within a second.

        Raises:
            StoreUnavailable: others may not have been told.
        """
        self._hand_over(topic, message)
        if self._peers is not None:
            await self._peers.tell(self._name + topic.encode() + b"\0" + message)

    def heard(self, told: bytes) -> None:
        """Take what the store brings, but for what this process has told itself."""
        if told.startswith(self._name):
            return
        topic, _, message = told[_NAME_BYTES:].partition(b"\0")
        try:
            self._hand_over(topic.decode(), message)
        except Exception as error:
            # Another version may say what this one does not understand.
            log.warning("message_not_understood", error=type(error).__name__)

    def _hand_over(self, topic: str, message: bytes) -> None:
        for hear in self._listeners.get(topic, ()):
            hear(message)
