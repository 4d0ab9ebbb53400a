"""The contract of notes: one value per key, there until its expiry, taken by one."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskcast_trio.storage.memory_notes import MemoryNotes

from .support import DAY, NOW, append, draft, read_all, task


async def test_a_note_is_there_until_its_expiry_and_not_at_it(store):
    await store.put_note("k", b"value", expires_ms=NOW + 1000, now_ms=NOW)
    assert await store.note("k", now_ms=NOW) == b"value"
    assert await store.note("k", now_ms=NOW + 999) == b"value", "a read takes nothing away"
    assert await store.note("k", now_ms=NOW + 1000) is None


async def test_an_expired_note_can_not_be_taken(store):
    await store.put_note("k", b"value", expires_ms=NOW + 1000, now_ms=NOW)
    assert await store.take_note("k", now_ms=NOW + 1000) is None


async def test_a_note_without_expiry_stays(store):
    await store.put_note("k", b"value", expires_ms=None, now_ms=NOW)
    await store.put_note("other", b"", expires_ms=NOW + 20_000 * DAY, now_ms=NOW + 10_000 * DAY)
    assert await store.note("k", now_ms=NOW + 10_000 * DAY) == b"value"


async def test_a_note_that_has_expired_when_it_is_put_replaces_and_is_not_there(store):
    await store.put_note("k", b"old", expires_ms=None, now_ms=NOW)
    await store.put_note("k", b"new", expires_ms=NOW, now_ms=NOW)
    assert await store.note("k", now_ms=NOW) is None


async def test_a_key_that_has_no_note_gives_none(store):
    assert await store.note("k", now_ms=NOW) is None
    assert await store.take_note("k", now_ms=NOW) is None
    assert await store.drop_note("k") is False


async def test_a_put_replaces_the_value_and_its_expiry(store):
    await store.put_note("k", b"old", expires_ms=NOW + 10, now_ms=NOW)
    await store.put_note("k", b"new", expires_ms=NOW + 1000, now_ms=NOW)
    await store.put_note("other", b"", expires_ms=NOW + 2000, now_ms=NOW + 500)
    assert await store.note("k", now_ms=NOW + 500) == b"new", "the old expiry took the new note"
    await store.put_note("k", b"for ever", expires_ms=None, now_ms=NOW + 500)
    await store.put_note("other", b"", expires_ms=NOW + 2000, now_ms=NOW + 1500)
    assert await store.note("k", now_ms=NOW + 1500) == b"for ever"
    await store.put_note("k", b"short", expires_ms=NOW + 1600, now_ms=NOW + 1500)
    assert await store.note("k", now_ms=NOW + 1600) is None


async def test_a_note_is_taken_once_and_leaves_its_key_free(store):
    await store.put_note("k", b"value", expires_ms=NOW + 1000, now_ms=NOW)
    assert await store.take_note("k", now_ms=NOW) == b"value"
    assert await store.take_note("k", now_ms=NOW) is None
    assert await store.note("k", now_ms=NOW) is None
    await store.put_note("k", b"again", expires_ms=NOW + 2000, now_ms=NOW)
    await store.put_note("other", b"", expires_ms=None, now_ms=NOW + 1000)
    assert await store.note("k", now_ms=NOW + 1000) == b"again"


async def test_a_dropped_note_is_gone(store):
    await store.put_note("k", b"value", expires_ms=None, now_ms=NOW)
    assert await store.drop_note("k") is True
    assert await store.note("k", now_ms=NOW) is None
    assert await store.drop_note("k") is False


async def test_of_many_takers_exactly_one_gets_the_note(store):
    await store.put_note("k", b"value", expires_ms=NOW + 1000, now_ms=NOW)
    got: list[bytes | None] = []

    async def take() -> None:
        got.append(await store.take_note("k", now_ms=NOW))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(take)
    assert sorted(got, key=bool) == [None] * 19 + [b"value"]


async def test_values_are_any_bytes_and_keys_do_not_touch_each_other(store):
    values = {"a": b"", "A": bytes(range(256)), "a:b": b"\x00", "a%": b"1", "a\u00e9*": b"2"}
    for key, value in values.items():
        await store.put_note(key, value, expires_ms=None, now_ms=NOW)
    assert {key: await store.note(key, now_ms=NOW) for key in values} == values
    await store.drop_note("a")
    assert await store.note("a:b", now_ms=NOW) == values["a:b"]


async def test_notes_and_tasks_of_one_name_do_not_meet(store):
    await store.create(task("t"), epoch="EPOCH001", now_ms=NOW)
    await store.put_note("t", b"note", expires_ms=None, now_ms=NOW)
    await append(store, draft())
    assert await store.drop_note("t")
    assert len(await read_all(store)) == 1
    await store.put_note("t", b"note", expires_ms=None, now_ms=NOW)
    await store.delete("t")
    assert await store.note("t", now_ms=NOW) == b"note"
    assert await store.count() == 0


async def test_notes_are_announced_to_nobody(store, announced):
    await store.put_note("k", b"value", expires_ms=NOW + 1, now_ms=NOW)
    await store.take_note("k", now_ms=NOW)
    await trio.testing.wait_all_tasks_blocked()
    assert announced.commits == []


async def test_a_step_under_a_cancelled_scope_is_not_begun(store):
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.put_note("k", b"value", expires_ms=None, now_ms=NOW)
    assert scope.cancelled_caught
    assert await store.note("k", now_ms=NOW) is None


KEYS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.none() | st.integers(-2, 8), st.integers(0, 3)),
        st.tuples(st.sampled_from(["note", "take", "drop"]), KEYS, st.none(), st.integers(0, 3)),
    ),
    max_size=30,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_steps_give_what_a_dict_with_expiries_would_give(open_backend, steps):
    """The clock moves on between steps, and each put may expire in the past, now, or never."""

    async def compare() -> None:
        async with open_backend() as backend:
            store, model = backend.store, dict[str, tuple[bytes, float]]()
            now = NOW
            for number, (step, key, life, passed) in enumerate(steps):
                now += passed
                value, expires = model.get(key, (b"", 0))
                living = value if now < expires else None
                if step == "put":
                    at = None if life is None else now + life
                    new = b"%d" % number
                    await store.put_note(key, new, expires_ms=at, now_ms=now)
                    model[key] = (new, float("inf") if at is None else at)
                elif step == "note":
                    assert await store.note(key, now_ms=now) == living
                elif step == "take":
                    assert await store.take_note(key, now_ms=now) == living
                    model.pop(key, None)
                else:
                    dropped = await store.drop_note(key)
                    assert dropped or living is None
                    assert not dropped or key in model
                    model.pop(key, None)

    trio.run(compare)


async def test_the_memory_of_expired_notes_is_given_back_as_others_are_put():
    notes = MemoryNotes()
    for number in range(10_000):
        now = NOW + number
        await notes.put_note(f"k{number}", b"x", expires_ms=now + 100, now_ms=now)
    assert len(notes._notes) == 100
    assert len(notes._expiries) <= 2 * 100 + 65


async def test_notes_that_are_replaced_taken_or_dropped_leave_no_growing_garbage():
    notes = MemoryNotes()
    for number in range(10_000):
        await notes.put_note("same", b"x", expires_ms=NOW + DAY + number, now_ms=NOW)
        await notes.put_note("taken", b"x", expires_ms=NOW + DAY, now_ms=NOW)
        await notes.take_note("taken", now_ms=NOW)
        await notes.put_note("dropped", b"x", expires_ms=NOW + DAY, now_ms=NOW)
        await notes.drop_note("dropped")
        assert len(notes._notes) == 1
        assert len(notes._expiries) <= 2 * 2 + 65
