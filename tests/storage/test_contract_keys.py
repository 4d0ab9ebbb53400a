"""The contract of idempotency keys: a repeat gets the first answer and stores nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import trio

from taskcast_trio.core.errors import KeyReused, TaskEnded, TaskExists

from .support import DAY, NOW, append, assert_dense, draft, key, read_all, task, value


@pytest.fixture
async def steps(store):
    """Each step that takes a key, on a task that is there (but for create) and ``running`` next."""

    async def prepare(name):
        if name != "create":
            await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        return {
            "create": partial(store.create, task(), epoch="EPOCH001"),
            "append": partial(store.append, "t", [draft("x")]),
            "transition": partial(
                store.transition,
                task(status="running"),
                [draft("x")],
                revision=0,
                epoch="EPOCH001",
            ),
        }[name]

    return prepare


every_step = pytest.mark.parametrize("name", ["create", "append", "transition"])


@every_step
async def test_a_repeat_brings_the_first_answer_and_stores_nothing(store, steps, announced, name):
    step = await steps(name)
    first = await step(now_ms=NOW, idempotency=key())
    state = await store.get("t")
    second = await step(now_ms=NOW + 5, idempotency=key())
    assert second.repeated
    assert not first.repeated
    assert second.record == first.record
    assert [entry.id for entry in second.entries] == [entry.id for entry in first.entries]
    assert await store.get("t") == state
    assert not any(commit.repeated for commit in announced.commits), "a repeat is not announced"
    assert len(await read_all(store)) == len(first.entries)


async def test_a_repeated_transition_brings_back_what_was_told_beside_the_record(store, steps):
    step = await steps("transition")
    told = replace(key(), aside="the worker é")
    assert not (await step(now_ms=NOW, idempotency=told)).aside
    assert (await step(now_ms=NOW + 5, idempotency=key())).aside == told.aside
    looked = await store.repeated("t", key(), now_ms=NOW + 5)
    assert looked.aside == told.aside


@every_step
async def test_a_key_with_another_request_is_refused_and_stores_nothing(store, steps, name):
    step = await steps(name)
    await step(now_ms=NOW, idempotency=key("k", b"one"))
    state = await store.get("t")
    with pytest.raises(KeyReused):
        await step(now_ms=NOW, idempotency=key("k", b"two"))
    assert await store.get("t") == state


async def test_a_key_is_kept_for_a_day_and_then_forgotten(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    publish = partial(store.append, "t", [draft()], idempotency=key())
    await publish(now_ms=NOW)
    assert (await publish(now_ms=NOW + DAY - 1)).repeated
    assert not (await publish(now_ms=NOW + DAY)).repeated
    assert (await publish(now_ms=NOW + DAY + 1)).repeated, "it is a new first answer"
    assert_dense(await read_all(store))
    assert len(await read_all(store)) == 2
    reused = key("k", b"another request")
    assert not (await store.append("t", [], now_ms=NOW + 3 * DAY, idempotency=reused)).repeated


async def test_each_key_has_its_own_day(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    for number in range(3):
        await store.append("t", [draft(number)], now_ms=NOW + number, idempotency=key(f"k{number}"))
    at = NOW + DAY + 1
    assert await store.repeated("t", key("k0"), now_ms=at) is None
    assert await store.repeated("t", key("k1"), now_ms=at) is None
    last = await store.repeated("t", key("k2"), now_ms=at)
    assert last is not None
    assert [value(entry) for entry in last.entries] == [2]


async def test_a_key_has_its_day_even_where_the_clock_went_back_between(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    for name, at in (("later", NOW + 100), ("earlier", NOW)):
        await store.append("t", [draft()], now_ms=at, idempotency=key(name))
    assert await store.repeated("t", key("earlier"), now_ms=NOW + DAY) is None
    assert await store.repeated("t", key("later"), now_ms=NOW + DAY) is not None


async def test_one_key_is_one_request_whatever_the_step(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW, idempotency=key("k", b"create"))
    with pytest.raises(KeyReused):
        await store.append("t", [draft()], now_ms=NOW, idempotency=key("k", b"append"))
    with pytest.raises(KeyReused):
        await store.transition(
            task(status="running"),
            [],
            revision=0,
            epoch="EPOCH001",
            now_ms=NOW,
            idempotency=key("k", b"move"),
        )
    assert await read_all(store) == []


async def test_a_key_belongs_to_one_task(store):
    for name in ("t", "other"):
        await store.create(task(name), epoch="EPOCH001", now_ms=NOW)
    await store.append("t", [draft()], now_ms=NOW, idempotency=key("k", b"one"))
    other = await store.append("other", [draft()], now_ms=NOW, idempotency=key("k", b"two"))
    assert not other.repeated


async def test_a_key_is_looked_at_before_the_revision_and_the_end_of_the_task(store, steps):
    move = await steps("transition")
    await append(store, draft())
    first = await move(now_ms=NOW, idempotency=key("move"))
    published = await store.append("t", [draft(7)], now_ms=NOW, idempotency=key("publish"))
    ended = task(status="completed")
    await store.transition(ended, [], revision=1, epoch="EPOCH001", now_ms=NOW)
    assert (await move(now_ms=NOW, idempotency=key("move"))).record == first.record
    again = await store.append("t", [draft(7)], now_ms=NOW, idempotency=key("publish"))
    assert again.repeated
    assert again.record == published.record
    with pytest.raises(TaskEnded):
        await store.append("t", [draft(7)], now_ms=NOW, idempotency=key("new"))


async def test_repeated_looks_without_storing(store):
    assert await store.repeated("t", key(), now_ms=NOW) is None
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    assert await store.repeated("t", key(), now_ms=NOW) is None
    first = await store.append("t", [draft()], now_ms=NOW, idempotency=key())
    answer = await store.repeated("t", key(), now_ms=NOW)
    assert answer is not None
    assert answer.repeated
    assert answer.record == first.record
    with pytest.raises(KeyReused):
        await store.repeated("t", key("k", b"other"), now_ms=NOW)


async def test_a_step_that_was_refused_leaves_its_key_free(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    with pytest.raises(TaskExists):
        await store.create(task(), epoch="EPOCH002", now_ms=NOW, idempotency=key())
    commit = await store.append("t", [draft()], now_ms=NOW, idempotency=key("k", b"other"))
    assert not commit.repeated


async def test_of_parallel_steps_with_one_key_one_is_stored_and_all_get_its_answer(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    commits = []

    async def publish(number: int) -> None:
        commits.append(await store.append("t", [draft(number)], now_ms=NOW, idempotency=key()))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(publish, number)
    entries = await read_all(store)
    assert len(entries) == 1
    assert [commit.repeated for commit in commits].count(False) == 1
    assert {commit.entries[0].id for commit in commits} == {entries[0].id}
