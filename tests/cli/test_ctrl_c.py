"""Ctrl-C cancels what talks to a server where it next waits, and ends at once what cannot write."""

from __future__ import annotations

import signal
import sys
import types
from typing import NoReturn

import pytest
import trio

from taskcast_trio.cli.ctrl_c import run_on_trio
from taskcast_trio.cli.output import write


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_first_is_raised_when_all_is_put_away() -> None:
    done = []

    async def work() -> None:
        try:
            interrupt()
            done.append("on to where it waits")
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            done.append("put away")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_on_trio(work)
    assert done == ["on to where it waits", "put away"]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_is_raised_where_it_comes() -> None:
    async def work() -> NoReturn:
        interrupt()
        try:
            await trio.sleep_forever()
        finally:
            interrupt()
            pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        run_on_trio(work)


def test_it_is_not_forgotten_where_the_work_waits_no_more() -> None:
    async def work() -> None:
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        run_on_trio(work)


def test_it_ends_a_write_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def held_up(text: bytes) -> NoReturn:
        interrupt()
        pytest.fail("it still waits for a reader")

    stdout = types.SimpleNamespace(buffer=types.SimpleNamespace(write=held_up))

    async def work() -> None:
        write(b"x")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sys, "stdout", stdout)
        run_on_trio(work)


def test_where_it_is_ignored_it_stays_so() -> None:
    async def work() -> str:
        interrupt()
        await trio.lowlevel.checkpoint()
        return "done"

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_on_trio(work) == "done"
    finally:
        signal.signal(signal.SIGINT, before)
