"""Whoever watches at a terminal is told once that the server is away, and once that it is back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from taskcast_trio.cli.outages import AWAY, PATIENT_S, Outages
from tests.integration.fleet import fleet

from .commands import environment, terminal
from .test_watch import Publisher


async def test_who_publishes_at_a_terminal_is_shown_that_the_server_is_away(tmp_path: Path) -> None:
    sqlite = ("-s", "sqlite", "--db-path", str(tmp_path / "tasks.db"))
    arguments = ("publish", "--new", "--type", "llm.delta")
    with fleet(1, *sqlite) as (server,):
        env = environment(tmp_path, TASKCAST_URL=server.url)
        async with terminal(*arguments, env=env, columns=100, fed=True) as screen:
            await screen.feed(b"before")
            await screen.until("publishing: 1 events")
            server.process.kill()
            server.process.wait()
            await screen.feed(b"meanwhile")
            await screen.until("publishing: 1 events; the server is away: what comes waits")
            with fleet(1, *sqlite, "-p", server.url.rpartition(":")[2]):
                await screen.until("publishing: 2 events")
                await screen.feed_no_more()
                assert await screen.end() == 0


@dataclass
class Stream:
    connected: bool = True
    reconnects: int = 0

    async def be_away(self, seconds: float) -> None:
        self.connected = False
        await trio.sleep(seconds)
        self.connected = True
        self.reconnects += 1
        await trio.sleep(1)


@pytest.mark.parametrize("back", ["it is back", None])
async def test_an_outage_is_told_once_and_a_moment_is_none(
    back: str | None, autojump_clock: trio.testing.MockClock
) -> None:
    notes: list[tuple[str, int]] = []
    outages = Outages(lambda text: notes.append((text, stream.reconnects)), back=back)
    stream = Stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outages.tell)
        await trio.sleep(10)
        outages.of(cast(Any, stream))
        await stream.be_away(PATIENT_S / 2)
        assert (notes, outages.told) == ([], 0)
        await stream.be_away(300)
        await stream.be_away(PATIENT_S / 2)
        await stream.be_away(PATIENT_S * 2)
        nursery.cancel_scope.cancel()
    told = [(AWAY, 1), (back, 2), (AWAY, 3), (back, 4)]
    assert notes == [each for each in told if each[0]]
    assert outages.told == (0 if back is None else 4)


@pytest.mark.parametrize(
    ("watching", "says"),
    [
        (("logs", "t", "--follow"), "the connection is back: nothing is missing"),
        (("tail",), "the connection was lost: reading what came meanwhile"),
    ],
)
async def test_a_terminal_shows_that_the_server_is_away(
    tmp_path: Path, watching: tuple[str, ...], says: str
) -> None:
    sqlite = ("-s", "sqlite", "--db-path", str(tmp_path / "tasks.db"), "--sse-retry-ms", "300")
    with fleet(1, *sqlite) as (server,):
        env = environment(tmp_path, TASKCAST_URL=server.url)
        async with Publisher(server.url) as publisher:
            await publisher.create("t")
            async with terminal(*watching, env=env, columns=100) as screen:
                await screen.until("running" if watching[0] == "logs" else "following every task")
                server.process.kill()
                server.process.wait()
                await screen.until(AWAY)
                with fleet(1, *sqlite, "-p", server.url.rpartition(":")[2]):
                    await screen.until(says)
                    async with Publisher(server.url) as after:
                        await after.publish("t", "here it is")
                    await screen.until("here it is")
                    screen.interrupt()
                    assert await screen.end() == 130
        assert screen.text.count(AWAY) == screen.text.count(says) == 1
        assert "was lost, and is back" not in screen.text
