"""A check of a schema or an answer holds up others for a few steps, however many it takes."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import trio

from taskcast_trio.core.errors import BadRequest, NotBlocked
from taskcast_trio.core.model import BlockedRequest, CreateTask, Transition
from taskcast_trio.engine import answer_checks, answer_schema
from taskcast_trio.engine.answer_checks import (
    SMALL_ANSWER_BYTES,
    SMALL_SCHEMA_BYTES,
    STEPS_AT_ONCE,
    answer_checked,
    request_checked,
)
from taskcast_trio.testing import open_test_runtime

from .support import raw
from .test_answer_schema import FORM, asking

PATIENCE_S = 30.0
LOOPS = {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}
LARGE_FORM = {**FORM, "description": "x" * 1000}
CASES: dict[str, tuple[Any, Any]] = {
    "form": (FORM, {"ok": True, "count": 3}),
    "wrong": (FORM, {"ok": True, "count": 2}),
    "large schema": (LARGE_FORM, {"ok": True}),
    "large schema, wrong": (LARGE_FORM, {"ok": 1}),
    "large answer": ({"items": {"type": "integer"}}, [1] * 1500),
    "large answer, wrong": ({"items": {"type": "integer"}}, [1] * 1500 + ["x"]),
    "too large": ({}, "x" * 70_000),
    "many steps": ({"allOf": [{"items": {"enum": [1]}}] * 8}, [1] * 300),
    "many steps, wrong": ({"allOf": [{"items": {"enum": [1]}}] * 8}, [1] * 300 + [2]),
    "loop": ({"$ref": "#"}, 1),
    "loops": (LOOPS, 1),
    "never ends": ({"allOf": [{"items": {}}] * 9}, [1] * 20_000),
    "no answer": ({"required": ["a"]}, None),
    "depth": ({"items": {"$ref": "#"}}, json.loads("[" * 100 + "]" * 100)),
    "no schema": ({"type": "person"}, 1),
    "parts": ({"allOf": [{"not": {"not": {}}}] * 800}, 1),
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that each check has taken in the thread of the loop."""
    taken: list[int] = []
    loop = threading.get_ident()
    begin, spend = answer_schema._Budget.__init__, answer_schema._Budget.spend

    def begun(self: Any, *args: Any) -> None:
        if threading.get_ident() == loop:
            taken.append(0)
        begin(self, *args)

    def spent(self: Any, steps: int, *values: Any) -> None:
        spend(self, steps, *values)  # raises where they are not taken
        if threading.get_ident() == loop:
            taken[-1] += steps

    monkeypatch.setattr(answer_schema._Budget, "__init__", begun)
    monkeypatch.setattr(answer_schema._Budget, "spend", spent)
    answer_schema._compiled.cache_clear()
    return taken


async def verdict(schema: Any, data: Any) -> str:
    request = asking(schema)
    try:
        await request_checked(request, "$.blockedRequest")
        if data is not None:
            await answer_checked(request, raw(data))
    except BadRequest as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("case", CASES)
async def test_the_loop_waits_for_few_steps_of_a_check(case, here):
    schema, data = CASES[case]
    await verdict(schema, data)
    is_small = len(json.dumps(schema)) <= SMALL_SCHEMA_BYTES
    is_short = len(json.dumps(data)) <= SMALL_ANSWER_BYTES
    of_schema, of_answer = ([*here, 0, 0][:2]) if is_small else (0, sum(here))
    assert of_answer <= (STEPS_AT_ONCE if is_small and is_short else 0)
    # Of so small a schema there is not much to be checked either.
    assert of_schema <= 5 * STEPS_AT_ONCE


@pytest.mark.parametrize("case", CASES)
async def test_the_verdict_is_the_same_wherever_it_is_found(case, monkeypatch):
    schema, data = CASES[case]
    found = await verdict(schema, data)
    monkeypatch.setattr(answer_checks, "SMALL_SCHEMA_BYTES", -1)
    answer_schema._compiled.cache_clear()
    assert await verdict(schema, data) == found
    assert bool(found) == (
        "wrong" in case
        or case in ("too large", "loop", "loops", "never ends", "no schema", "parts")
    )


class Held:
    """Holds checks in their thread until it is told to let them go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = trio.Event()
        self._go_on = threading.Event()
        self._loop = threading.get_ident()
        self._first_error = answer_schema._first_error
        monkeypatch.setattr(answer_schema, "_first_error", self)

    def __call__(self, *args: Any) -> Any:
        if threading.get_ident() != self._loop:
            trio.from_thread.run_sync(self.begun.set)
            assert self._go_on.wait(PATIENCE_S), "the loop stands still"
        return self._first_error(*args)

    def let_go(self) -> None:
        self._go_on.set()


async def test_others_go_on_while_a_large_answer_is_checked(monkeypatch):
    """The task too, which may be answered meanwhile: whose answer is stored first wins."""
    answers: list[object] = []

    async def answer(engine: Any, data: Any) -> None:
        try:
            answers.append((await engine.resolve("t", raw(data))).result)
        except NotBlocked as error:
            answers.append(type(error))

    async with open_test_runtime() as runtime, trio.open_nursery() as nursery:
        engine = runtime.engine
        await engine.create(CreateTask(id="t"))
        await engine.transition("t", Transition(status="running"))
        request = BlockedRequest(type="t", schema=raw({"type": "object"}))
        await engine.transition("t", Transition(status="blocked", blocked_request=request))
        held = Held(monkeypatch)
        nursery.start_soon(answer, engine, {"text": "x" * SMALL_ANSWER_BYTES})
        await held.begun.wait()
        await answer(engine, {"text": "short"})
        held.let_go()
    assert answers == [raw({"text": "short"}), NotBlocked]
