"""The contract of timers and of the small values that live as long as their task."""

from __future__ import annotations

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskcast_trio.core.errors import TaskFull
from taskcast_trio.storage.records import PARKED_MS, LogLimits, Timer

from .support import NOW, append, draft, event, key, task

LEASE = 30_000


async def take(store, kind="a", *, at=NOW, limit=100):
    return await store.take_due(kind, now_ms=at, lease_ms=LEASE, limit=limit)


async def create(store, id_="t", timers=None, **fields):
    return await store.create(
        task(id_, **fields), epoch=f"EPOCH{id_[:1].upper()}01", now_ms=NOW, timers=timers or {}
    )


async def test_a_timer_is_due_at_its_time_and_not_before(store):
    await create(store, timers={"a": NOW + 10})
    assert await take(store, at=NOW + 9) == []
    assert await take(store, at=NOW + 10) == [Timer("t", "a", NOW + 10 + LEASE)]


async def test_who_takes_a_timer_has_it_until_its_lease_ends(store):
    await create(store, timers={"a": NOW})
    assert await take(store)
    assert await take(store, at=NOW + LEASE - 1) == []
    assert await take(store, at=NOW + LEASE) == [Timer("t", "a", NOW + 2 * LEASE)]


async def test_a_taker_clears_what_it_was_given(store):
    await create(store, timers={"a": NOW})
    (taken,) = await take(store)
    assert await store.set_timer("t", "a", None, if_due=taken.due_ms)
    assert await store.next_due("a") is None
    assert not await store.set_timer("t", "a", None, if_due=taken.due_ms), "there is none"


async def test_a_timer_that_was_set_anew_meanwhile_is_not_cleared(store):
    await create(store, timers={"a": NOW})
    (taken,) = await take(store)
    await store.append("t", [draft()], now_ms=NOW + 1, wake={"a": NOW + 1})
    assert not await store.set_timer("t", "a", None, if_due=taken.due_ms)
    assert await take(store, at=NOW + 1), "what woke it was lost"


async def test_the_earliest_comes_first_and_the_limit_cuts(store):
    for id_, due in (("x", 3), ("y", 1), ("z", 2)):
        await create(store, id_, {"a": NOW + due})
    assert await store.next_due("a") == NOW + 1
    assert [t.task_id for t in await take(store, at=NOW + 5, limit=2)] == ["y", "z"]
    assert [t.task_id for t in await take(store, at=NOW + 5, limit=2)] == ["x"]


async def test_kinds_do_not_touch_each_other(store):
    await create(store, timers={"a": NOW, "b": NOW + 1})
    await store.set_timer("t", "a", None)
    assert await store.next_due("a") is None
    assert await store.next_due("b") == NOW + 1
    assert await store.next_due("c") is None


async def test_a_set_replaces_earlier_and_later_alike(store):
    await create(store, timers={"a": NOW + 10})
    assert await store.set_timer("t", "a", NOW + 20)
    assert await store.next_due("a") == NOW + 20
    assert await store.set_timer("t", "a", NOW + 5)
    assert await store.next_due("a") == NOW + 5
    assert await store.set_timer("t", "a", NOW + 30)
    assert await take(store, at=NOW + 29) == [], "an older time still stood"


async def test_an_append_wakes_earlier_and_never_later(store):
    await create(store, timers={"a": NOW + 10})
    await store.append("t", [draft()], now_ms=NOW, wake={"a": NOW + 20, "b": NOW + 20})
    assert (await store.next_due("a"), await store.next_due("b")) == (NOW + 10, NOW + 20)
    await store.append("t", [draft()], now_ms=NOW, wake={"a": NOW + 5})
    assert await store.next_due("a") == NOW + 5


async def test_a_transition_sets_and_clears_with_the_change(store):
    await create(store, timers={"a": NOW + 10, "b": NOW + 10})
    await store.transition(
        task(status="running"),
        [],
        revision=0,
        epoch="EPOCHT01",
        now_ms=NOW,
        timers={"a": NOW + 20, "b": None},
    )
    assert (await store.next_due("a"), await store.next_due("b")) == (NOW + 20, None)


async def test_what_is_parked_is_hastened_by_an_append_and_by_a_transition(store):
    await create(store, timers={"a": PARKED_MS, "b": PARKED_MS})
    assert await store.next_due("a") == PARKED_MS
    await store.append("t", [draft()], now_ms=NOW, hasten={"a": NOW + 5})
    assert (await store.next_due("a"), await store.next_due("b")) == (NOW + 5, PARKED_MS)
    await store.transition(
        task(status="running"),
        [draft()],
        revision=0,
        epoch="EPOCHT01",
        now_ms=NOW,
        timers={"a": PARKED_MS},
        hasten={"a": NOW + 6, "b": NOW + 7},
    )
    assert (await store.next_due("a"), await store.next_due("b")) == (NOW + 6, NOW + 7)


async def test_nothing_else_is_hastened(store):
    """A lease is not cut short, what is due later stays so, and no timer is made."""
    await create(store, timers={"a": NOW, "b": NOW + 50})
    (taken,) = await take(store)
    hasten = {"a": NOW + 1, "b": NOW + 1, "c": NOW + 1}
    await store.append("t", [draft()], now_ms=NOW, hasten=hasten)
    await store.transition(
        task(status="running"), [], revision=0, epoch="EPOCHT01", now_ms=NOW, hasten=hasten
    )
    due = [await store.next_due(kind) for kind in "abc"]
    assert due == [taken.due_ms, NOW + 50, None]


async def test_who_has_not_seen_the_whole_log_does_not_park(store):
    await create(store, timers={"a": NOW})
    (taken,) = await take(store)
    await store.append("t", [draft()], now_ms=NOW, hasten={"a": NOW})
    assert not await store.set_timer("t", "a", PARKED_MS, if_due=taken.due_ms, if_next=0)
    assert await store.next_due("a") == taken.due_ms
    assert await store.set_timer("t", "a", PARKED_MS, if_due=taken.due_ms, if_next=1)
    assert await store.next_due("a") == PARKED_MS


async def test_a_value_is_kept_only_under_the_lease_that_it_names(store):
    await create(store, timers={"a": NOW})
    (taken,) = await take(store)
    lease = {"a": taken.due_ms}
    assert await store.put_task_note("t", "n", b"1", epoch="EPOCHT01", if_due=lease)
    assert not await store.put_task_note(
        "t", "n", b"2", epoch="EPOCHT01", timers={"b": NOW}, if_due={"a": NOW}
    )
    assert not await store.put_task_note("t", "n", b"2", epoch="EPOCHT01", if_due={"c": NOW})
    await take(store, at=taken.due_ms)
    assert not await store.put_task_note("t", "n", None, epoch="EPOCHT01", if_due=lease)
    assert await store.task_notes("t") == {"n": b"1"}
    assert await store.next_due("b") is None


async def test_a_step_that_stores_nothing_sets_nothing(store):
    await create(store, timers={"p": PARKED_MS})
    await store.append("t", [draft()], now_ms=NOW, idempotency=key())
    again = {"wake": {"a": NOW}, "hasten": {"p": NOW}}
    await store.append("t", [draft()], now_ms=NOW, idempotency=key(), **again)
    try:
        await store.append(
            "t", [draft()], now_ms=NOW, limits=LogLimits(events=1, bytes=9), wake={"a": NOW}
        )
    except TaskFull:
        pass
    else:
        raise AssertionError("it had no room")
    assert await store.next_due("a") is None
    assert await store.next_due("p") == PARKED_MS


async def test_a_task_that_is_not_there_has_no_timers(store):
    assert not await store.set_timer("t", "a", NOW)
    assert await store.next_due("a") is None


async def test_timers_and_values_go_with_their_task(store):
    await create(store, timers={"a": NOW})
    await store.put_task_note("t", "n", b"v", epoch="EPOCHT01")
    await store.delete("t")
    assert await store.next_due("a") is None
    await create(store)
    assert await take(store) == []
    assert await store.task_notes("t") == {}


async def test_an_import_over_a_task_has_its_own_timers_only(store):
    await create(store, timers={"a": NOW, "b": NOW})
    await store.put_task_note("t", "n", b"v", epoch="EPOCHT01")
    await store.import_task(
        task(), [event(0)], epoch="EPOCH002", overwrite=True, timers={"b": NOW + 7}
    )
    assert (await store.next_due("a"), await store.next_due("b")) == (None, NOW + 7)
    assert await store.task_notes("t") == {}


async def test_of_many_takers_one_gets_each_timer(store):
    for n in range(20):
        await create(store, f"t{n}", {"a": NOW})
    got: list[Timer] = []

    async def taker() -> None:
        while taken := await take(store, limit=3):
            got.extend(taken)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(taker)
    assert sorted(t.task_id for t in got) == sorted(f"t{n}" for n in range(20))


async def test_values_of_a_task_are_kept_by_name_with_their_timers(store):
    await create(store)
    assert await store.task_note("t", "n") is None
    assert await store.put_task_note("t", "n", b"\x00v", epoch="EPOCHT01", timers={"a": NOW + 3})
    assert await store.put_task_note("t", "m", b"", epoch="EPOCHT01")
    assert await store.task_note("t", "n") == b"\x00v"
    assert await store.task_notes("t") == {"n": b"\x00v", "m": b""}
    assert await store.next_due("a") == NOW + 3
    assert await store.put_task_note("t", "n", None, epoch="EPOCHT01", timers={"a": None})
    assert await store.task_notes("t") == {"m": b""}
    assert await store.next_due("a") is None


async def test_a_value_for_another_life_of_the_task_is_not_kept(store):
    assert not await store.put_task_note("t", "n", b"v", epoch="EPOCHT01", timers={"a": NOW})
    await create(store)
    assert not await store.put_task_note("t", "n", b"v", epoch="OTHER001", timers={"a": NOW})
    assert await store.task_notes("t") == {}
    assert await store.next_due("a") is None


async def test_values_are_announced_to_nobody(store, announced):
    await create(store)
    await store.put_task_note("t", "n", b"v", epoch="EPOCHT01", timers={"a": NOW})
    await take(store)
    await append(store, draft())
    assert len(await announced.first(2)) == 2


TASKS = st.sampled_from(["t0", "t1", "t2"])
TIMES = st.integers(0, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), TASKS, st.none() | TIMES | st.just(PARKED_MS)),
        st.tuples(st.just("wake"), TASKS, TIMES),
        st.tuples(st.just("hasten"), TASKS, TIMES),
        st.tuples(st.just("take"), TIMES, st.integers(1, 3)),
        st.tuples(st.just("delete"), TASKS, st.none()),
        st.tuples(st.just("create"), TASKS, TIMES),
    ),
    max_size=30,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_steps_give_what_a_dict_would_give(open_backend, steps):
    async def compare() -> None:
        due: dict[str, int | None] = {}
        async with open_backend() as backend:
            store = backend.store
            for step, one, two in steps:
                if step == "set":
                    assert await store.set_timer(one, "a", two) == (one in due)
                    if one in due:
                        due[one] = two
                elif step == "wake" and one in due:
                    await store.append(one, [], now_ms=NOW, wake={"a": two})
                    known = due[one]
                    due[one] = two if known is None else min(known, two)
                elif step == "hasten" and one in due:
                    await store.append(one, [], now_ms=NOW, hasten={"a": two})
                    due[one] = two if due[one] == PARKED_MS else due[one]
                elif step == "take":
                    taken = await store.take_due("a", now_ms=one, lease_ms=50, limit=two)
                    ready = sorted(d for d in due.values() if d is not None and d <= one)
                    assert len(taken) == min(two, len(ready))
                    for timer in taken:
                        known = due[timer.task_id]
                        assert known is not None
                        assert known <= ready[len(taken) - 1]
                        assert timer.due_ms == one + 50
                        due[timer.task_id] = timer.due_ms
                elif step == "delete":
                    assert await store.delete(one) == (one in due)
                    due.pop(one, None)
                elif step == "create" and one not in due:
                    await store.create(task(one), epoch="EPOCH001", now_ms=NOW, timers={"a": two})
                    due[one] = two
                times = [d for d in due.values() if d is not None]
                assert await store.next_due("a") == min(times, default=None)

    trio.run(compare)
