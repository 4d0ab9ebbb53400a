"""What one process tells, each listener of each process hears once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import trio

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.engine.bulletin import Bulletin


class Board:
    """Peers that hand every message to all, its teller included."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[bytes], None]] = []
        self.away = False
        self.count = 2

    async def tell(self, message: bytes) -> None:
        if self.away:
            raise StoreUnavailable("away")
        for hear in self.listeners:
            hear(message)

    async def run(self, hear, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        raise NotImplementedError

    async def audience(self, task_ids: Sequence[str]) -> list[int]:
        raise NotImplementedError

    async def audience_told(self) -> None:
        raise NotImplementedError

    async def take_tokens(self, key: str, *, want: int, per_second: int) -> int:
        raise NotImplementedError


def bulletin_on(board: Board) -> Bulletin:
    bulletin = Bulletin(board)
    board.listeners.append(bulletin.heard)
    return bulletin


async def test_every_listener_of_the_topic_hears_it_once_here_and_elsewhere():
    board, heard = Board(), list[tuple[str, bytes]]()
    here, there = bulletin_on(board), bulletin_on(board)
    for bulletin, name in ((here, "here"), (there, "there")):
        for topic, as_ in (("a", name), ("b", "another topic")):
            bulletin.listen(topic, partial(lambda as_, told: heard.append((as_, told)), as_))
    await here.tell("a", b"\0any\0bytes")
    assert heard == [("here", b"\0any\0bytes"), ("there", b"\0any\0bytes")]


async def test_alone_it_tells_itself():
    heard: list[bytes] = []
    bulletin = Bulletin(None)
    bulletin.listen("a", heard.append)
    await bulletin.tell("a", b"x")
    await bulletin.tell("nobody listens to", b"x")
    assert heard == [b"x"]


async def test_where_others_may_not_have_been_told_it_says_so_and_has_told_itself():
    board, heard = Board(), list[bytes]()
    bulletin = bulletin_on(board)
    bulletin.listen("a", heard.append)
    board.away = True
    with pytest.raises(StoreUnavailable):
        await bulletin.tell("a", b"x")
    assert heard == [b"x"]


async def test_what_another_version_says_is_no_end_of_this_one():
    board, heard = Board(), list[bytes]()
    bulletin = bulletin_on(board)

    def understand(message: bytes) -> None:
        heard.append(message.decode("ascii").encode())

    bulletin.listen("a", understand)
    for strange in (b"", b"\0", b"12345678\xff\0x", b"12345678a\0\xff", b"12345678other\0x"):
        bulletin.heard(strange)
    bulletin.heard(b"12345678a\0plain")
    assert heard == [b"plain"]
