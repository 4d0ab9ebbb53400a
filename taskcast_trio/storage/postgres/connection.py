"""What is used of an asyncpg connection (asyncpg has no types of its own)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Row: TypeAlias = Mapping[str, Any]


class Connection(Protocol):
    """Queries are asyncio functions, the rest are plain ones."""

    async def execute(self, query: str, *arguments: object) -> str:
        """Execute it, without arguments any number of statements; the status of the last."""

    async def fetch(self, query: str, *arguments: object) -> Sequence[Row]: ...

    async def fetchrow(self, query: str, *arguments: object) -> Row | None: ...

    async def fetchval(self, query: str, *arguments: object) -> Any: ...

    def is_closed(self) -> bool: ...

    def is_in_transaction(self) -> bool: ...

    def terminate(self) -> None:
        """Close it at once, without a word from the server; whoever waits for one is told."""
