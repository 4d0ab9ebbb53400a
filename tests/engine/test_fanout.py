"""The fan-out tells its broadcast what is followed here, and cuts only whom a loss concerns."""

from __future__ import annotations

import pytest

from taskcast_trio.core.errors import Draining
from taskcast_trio.engine.fanout import Fanout
from taskcast_trio.engine.metrics import Metrics


class Heard:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []

    def attached(self, task_id: str | None, *, counts: bool = True) -> None:
        self.calls.append(("+", task_id))

    def detached(self, task_id: str | None, *, counts: bool = True) -> None:
        self.calls.append(("-", task_id))


def test_each_attach_and_detach_is_told_once():
    heard = Heard()
    fanout = Fanout(Metrics(), audience=heard)
    one, two, everything = fanout.attach("t"), fanout.attach("t"), fanout.attach(None)
    fanout.detach("t", one)
    fanout.detach("t", one)
    fanout.detach(None, everything)
    fanout.detach(None, everything)
    fanout.detach("t", two)
    fanout.detach("unknown", two)
    assert heard.calls == [
        ("+", "t"), ("+", "t"), ("+", None), ("-", "t"), ("-", None), ("-", "t"),
    ]  # fmt: skip


def test_nobody_is_told_of_whom_a_closed_fan_out_refuses():
    heard = Heard()
    fanout = Fanout(Metrics(), audience=heard)
    fanout.close()
    with pytest.raises(Draining):
        fanout.attach("t")
    assert heard.calls == []


def test_a_loss_that_names_tasks_cuts_their_inboxes_and_those_that_follow_all():
    fanout = Fanout(Metrics())
    one, other, everything = fanout.attach("t"), fanout.attach("u"), fanout.attach(None)
    fanout.interrupted(["t", "not followed"])
    assert [inbox.waiting for inbox in (one, other, everything)] == [True, False, True]
    fanout.interrupted()
    assert other.waiting
