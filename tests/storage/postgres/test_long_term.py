"""The contract of the long-term store, on a real PostgreSQL.

What is archived comes back byte for byte, in both orders, with the same values of series as the
memory store has; a repeat changes nothing, what is older never wins, and what has ended stays so.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import RevisionConflict, TaskNotFound
from taskcast_trio.core.model import (
    BlockedRequest,
    Cleanup,
    Draft,
    SeriesMode,
    Task,
    TaskError,
)
from taskcast_trio.storage.long_term import Extent, Summary, UnwritableRows
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.storage.postgres import open_postgres
from taskcast_trio.storage.postgres import store as store_module
from taskcast_trio.storage.postgres.rows import given as given_back
from taskcast_trio.storage.postgres.rows import jsonb, packed, stored, unpacked
from taskcast_trio.storage.records import CountLimits, Former, Publishers, TaskRecord

from ..support import NOW, append, counted, draft, latest, piece, task, text
from .server import psql
from .support import EPOCH, archive, assert_alike, record_of

_examples = count()


def new_epoch() -> str:
    """An epoch for a life of its own."""
    return f"EX{next(_examples):06}"


EXACT = (
    b'{"a": 1.0,  "a":18446744073709551616, "s":"\\ud83d\\u0000"}',
    b'"\\u0000"',
    b"null",
    b'{"k":1,"k":2}',
    b"1e308",
    b' \t{"a" : 1}\r\n ',
    b"1e-99999",
    b"-0.0",
    '"\\ud83d\\ude00 \U0001f600 \x7f \'; DROP TABLE x --"'.encode(),
    b"[" * 120 + b"]" * 120,
)


async def test_a_log_of_series_is_read_back_as_the_memory_store_has_it(store):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    await append(hot, piece("Hel"), latest("10 %", "bar"), draft(1), piece("lo"))
    await archive(hot, store)
    await append(hot, latest("50 %", "bar"), piece(", "), latest("90 %", "bar"), draft(2))
    await archive(hot, store, page=2)
    await append(hot, piece("world"), latest("100 %", "bar"))
    await archive(hot, store)
    await assert_alike(hot, store)
    assert text((await store.snapshot("t")).values["s"]) == "Hello, world"
    assert [e.index for e in (await store.read("t", after=-1, limit=9)).entries] == [
        0, 2, 3, 5, 7, 8, 9,
    ]  # fmt: skip


SERIES: st.SearchStrategy[tuple[str, SeriesMode]] = st.tuples(
    st.sampled_from("ab"), st.sampled_from(("keep-all", "accumulate", "latest"))
)
JSON = st.one_of(
    st.sampled_from(EXACT),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ).map(msgspec.json.encode),
    st.text(max_size=4).map(lambda s: msgspec.json.encode({"delta": s, "f": s})),
).map(Raw)


FIELDS: st.SearchStrategy[Any] = st.sampled_from((UNSET, "f", "", "\0"))


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    series, mode = draw(st.one_of(st.just((UNSET, UNSET)), SERIES, st.just(("", "latest"))))
    return Draft(
        type=draw(st.text(max_size=5)),
        level=draw(st.sampled_from(("debug", "info", "warn", "error"))),
        data=draw(st.one_of(st.just(UNSET), JSON)),
        series_id=series,
        series_mode=mode,
        series_acc_field=draw(FIELDS),
    )


@given(batches=st.lists(st.lists(drafts(), min_size=1, max_size=5), max_size=5), data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_log_archived_in_any_pages_is_read_back_alike(url, batches, data):
    hot = MemoryStore()
    await hot.create(task(), epoch=new_epoch(), now_ms=NOW)
    async with open_postgres(url) as store:
        for batch in batches:
            await append(hot, *batch)
            if data.draw(st.booleans()):
                await archive(hot, store, page=data.draw(st.integers(1, 4)))
        await archive(hot, store)
        await assert_alike(hot, store)


RAW = st.one_of(st.just(UNSET), JSON)
WORD = st.one_of(st.just(UNSET), st.text(max_size=6))
NUMBER = st.one_of(st.just(UNSET), st.integers(0, 2**53))
TASKS = st.builds(
    Task,
    id=st.text(min_size=1, max_size=9),
    status=st.sampled_from(("pending", "blocked", "failed")),
    created_at=st.integers(0, 2**53),
    updated_at=st.integers(0, 2**53),
    type=WORD,
    params=RAW,
    metadata=RAW,
    ttl=NUMBER,
    webhooks=st.one_of(st.just(UNSET), st.lists(JSON, max_size=2)),
    cleanup=st.one_of(st.just(UNSET), st.builds(Cleanup, rules=st.lists(JSON, max_size=2))),
    auth_config=RAW,
    tags=st.one_of(st.just(UNSET), st.lists(st.text(max_size=5), max_size=2)),
    assign_mode=st.sampled_from((UNSET, "pull")),
    cost=NUMBER,
    disconnect_policy=st.sampled_from((UNSET, "mark")),
    result=RAW,
    error=st.one_of(
        st.just(UNSET), st.builds(TaskError, message=st.text(max_size=5), code=WORD, details=RAW)
    ),
    completed_at=NUMBER,
    reason=WORD,
    resume_at=NUMBER,
    blocked_request=st.one_of(
        st.just(UNSET), st.builds(BlockedRequest, type=st.text(max_size=5), data=RAW)
    ),
    assigned_worker=WORD,
)


@given(task_=TASKS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_task_is_read_back_as_it_was(url, task_):
    record = TaskRecord(task_, revision=3, epoch=new_epoch(), next_index=0, imported=True)
    async with open_postgres(url) as store:
        assert await store.save(record, ())
        assert await store.load(task_.id) == record


@given(task_=TASKS)
def test_packing_a_task_leaves_no_byte_of_the_callers_own_behind(task_):
    assert unpacked(*packed(task_)) == task_


@given(st.text(st.characters(codec=None)))
def test_escaped_text_has_no_nul_and_comes_back(any_text):
    row = stored(any_text)
    assert "\0" not in row
    row.encode()
    assert given_back(row) == any_text


@pytest.mark.parametrize("data", EXACT, ids=range(len(EXACT)))
async def test_what_jsonb_cannot_hold_exactly_comes_back_byte_for_byte(store, url, data):
    given_task = task(params=Raw(data), result=Raw(data))
    hot = MemoryStore()
    await hot.create(given_task, epoch=EPOCH, now_ms=NOW)
    await append(hot, Draft(type="x", level="info", data=Raw(data)))
    await archive(hot, store)
    [entry] = (await store.read("t", after=-1, limit=9)).entries
    assert entry.event.data == Raw(data)
    record = await store.load("t")
    assert record is not None
    assert (record.task.params, record.task.result) == (Raw(data), Raw(data))
    is_there = psql(url, "SELECT data IS NOT NULL FROM taskcast_events")
    assert is_there == ("t" if jsonb(data) else "f"), "what jsonb can hold can be queried"


async def test_an_event_without_data_is_not_one_with_null(store):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    bare = Draft(type="x", level="info")
    await append(hot, bare, replace(bare, data=Raw(b"null")))
    await archive(hot, store)
    page = await store.read("t", after=-1, limit=9)
    assert [entry.event.data for entry in page.entries] == [UNSET, Raw(b"null")]


async def test_writing_the_same_again_in_any_order_changes_nothing(store, url):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    pages = []
    for drafts_ in ([latest("1"), draft(1)], [latest("2"), draft(2)], [latest("3")]):
        commit = await append(hot, *drafts_)
        pages.append((commit.record, commit.entries))
    for page in pages:
        assert await store.save(*page)
    rows = "SELECT md5(string_agg(e::text, ',' ORDER BY idx)) FROM taskcast_events e"
    before = psql(url, rows)
    async with trio.open_nursery() as nursery:
        for page in [*pages, *reversed(pages)]:
            nursery.start_soon(store.save, *page)
    assert psql(url, rows) == before
    await assert_alike(hot, store)
    assert await store.archived_index("t", EPOCH) == 4


async def test_an_older_revision_never_overwrites_a_newer_one(store):
    newer = record_of(task(status="completed"), revision=5)
    assert await store.save(newer, ())
    assert await store.save(record_of(task(status="running"), revision=4), ())
    assert await store.load("t") == newer


async def test_the_archive_reaches_as_far_as_its_writer_says(store):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    commit = await append(hot, draft(0), draft(1), draft(2))
    assert await store.archived_index("t", EPOCH) == -1
    await store.save(commit.record, commit.entries[:1])
    assert await store.archived_index("t", EPOCH) == 0
    record = await store.load("t")
    assert record is not None
    assert record.next_index == 1, "what is not archived is not there"
    await store.save(commit.record, commit.entries[1:2], through=2)
    assert await store.archived_index("t", EPOCH) == 2
    assert await store.archived_index("t", "OTHER001") == -1


async def test_a_new_life_replaces_an_older_one_with_all_its_events(store, monkeypatch):
    monkeypatch.setattr(store_module, "PURGE_EVENTS", 3)
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    old = await append(hot, *[draft(n) for n in range(10)])
    await archive(hot, store)
    await hot.delete("t")
    await hot.create(task(at=NOW + 1), epoch="EPOCH002", now_ms=NOW + 1)
    await append(hot, draft("new"))
    await archive(hot, store)
    await assert_alike(hot, store)
    assert not await store.save(old.record, old.entries), "the older life is over"
    await assert_alike(hot, store)


async def test_a_life_that_began_earlier_does_not_replace_a_later_one_but_an_import_does(store):
    late, early = task(at=NOW + 1), task(at=NOW)
    assert await store.save(record_of(late, epoch="LATER001"), ())
    assert not await store.save(record_of(early, epoch="EARLY001"), ())
    imported = replace(record_of(early, epoch="EARLY002"), imported=True)
    assert await store.save(imported, ())
    assert await store.load("t") == imported


async def test_a_deleted_task_stays_deleted(store, url, monkeypatch):
    monkeypatch.setattr(store_module, "PURGE_EVENTS", 3)
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    commit = await append(hot, *[draft(n) for n in range(9)])
    await archive(hot, store)
    assert await store.exists("t")
    assert await store.delete("t")
    assert not await store.delete("t")
    assert not await store.save(commit.record, commit.entries), "a late write"
    assert await store.load("t") is None
    assert not await store.exists("t")
    assert await store.archived_index("t", EPOCH) == -1
    assert await store.list_tasks(limit=9) == []
    assert psql(url, "SELECT count(*) FROM taskcast_events") == "0"
    for ask in (
        store.read("t", after=-1, limit=1),
        store.find("t", commit.entries[0].id),
        store.snapshot("t"),
        store.renew("t", epoch=EPOCH, new_epoch="EPOCH002"),
    ):
        with pytest.raises(TaskNotFound):
            await ask


async def test_a_life_that_was_never_archived_can_be_ended_too(store):
    assert not await store.delete("t", epoch=EPOCH)
    assert not await store.save(record_of(task()), ())
    assert not await store.exists("t")


async def test_a_delete_that_was_cut_is_complete_for_readers_and_can_be_finished(
    store, url, monkeypatch
):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    await append(hot, *[draft(n) for n in range(5)])
    await archive(hot, store)

    async def cut(task_id: str) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(store, "_purge", cut)
        with pytest.raises(ConnectionError):
            await store.delete("t")
    assert psql(url, "SELECT count(*) FROM taskcast_events") == "5"
    assert not await store.exists("t")
    assert await store.list_tasks(limit=9) == []
    assert not await store.delete("t")
    assert psql(url, "SELECT count(*) FROM taskcast_events") == "0"


async def test_deletions_that_were_cut_are_found_among_all_others(store, url, monkeypatch):
    monkeypatch.setattr(store_module, "TOMBS", 2)
    purge = store._purge
    hot = MemoryStore()
    for id_ in (f"t{n}" for n in range(9)):
        await hot.create(task(id_), epoch=EPOCH, now_ms=NOW)
        await append(hot, draft(1), id_=id_)
        await archive(hot, store, id_)

    async def cut(task_id: str) -> None:
        if task_id not in ("t3", "t7"):
            await purge(task_id)

    with monkeypatch.context() as patched:
        patched.setattr(store, "_purge", cut)
        for n in range(8):
            assert await store.delete(f"t{n}")
    ids = "SELECT task_id FROM taskcast_events ORDER BY task_id"
    assert psql(url, ids) == "t3\nt7\nt8"
    await store.finish_deletions()
    assert psql(url, ids) == "t8"
    assert await store.exists("t8")


async def test_a_log_goes_on_in_a_new_epoch_where_its_archive_ends(store):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    first = await append(hot, piece("a"), piece("b"), latest("1", "bar"))
    await archive(hot, store)
    lost = await append(hot, piece("lost"))

    record = await store.renew("t", epoch=EPOCH, new_epoch="EPOCH002")
    former = (Former("EPOCH001", 3),)
    assert record == replace(first.record, epoch="EPOCH002", former=former)
    assert await store.renew("t", epoch=EPOCH, new_epoch="EPOCH002") == record, "a repeat"
    with pytest.raises(RevisionConflict):
        await store.renew("t", epoch=EPOCH, new_epoch="EPOCH003")
    assert not await store.save(lost.record, lost.entries), "the old epoch is over"
    assert await store.archived_index("t", "EPOCH002") == 2

    [last] = lost.entries
    other = Entry(replace(last.event, id="other", data=Raw(b'{"delta":"c"}')), last.index)
    moved = Entry(replace(first.entries[2].event, id="moved", index=4), 2)
    await store.save(replace(record, next_index=5), [other, moved])
    page = await store.read("t", after=-1, limit=9)
    assert [e.id for e in page.entries] == [e.id for e in first.entries[:2]] + ["other", "moved"]
    places = await store.read_places("t", after_place=-1, after_index=-1, limit=9)
    assert [e.id for e in places.entries] == [e.id for e in first.entries[:2]] + ["moved", "other"]
    assert text((await store.snapshot("t")).values["s"]) == "abc"


async def test_a_task_that_is_deleted_again_leaves_the_one_made_since_alone(store):
    await store.save(record_of(task()), ())
    assert await store.delete("t", epoch=EPOCH)
    later = record_of(task(at=NOW + 1), epoch="EPOCH002")
    assert await store.save(later, ())
    assert not await store.delete("t", epoch=EPOCH)
    assert await store.load("t") == later
    assert await store.delete("t", epoch="EPOCH002")
    assert not await store.exists("t")


async def test_how_far_tasks_are_archived_is_told_for_many_at_once(store):
    assert await store.extents(["t", "other"]) == {}
    assert await store.summary() == Summary(0, 0, None)
    await store.save(record_of(task("t\0")), (), through=4)
    await store.save(record_of(task("u", at=NOW + 5), revision=3, epoch="EPOCH002"), ())
    await store.save(record_of(task("gone")), ())
    await store.delete("gone")
    assert await store.extents(["t\0", "u", "gone", "none"]) == {
        "t\0": Extent(EPOCH, 0, 5),
        "u": Extent("EPOCH002", 3, 0),
    }
    assert await store.summary() == Summary(2, 5, NOW + 5)


async def test_of_two_that_renew_one_log_one_wins(store):
    await store.save(record_of(task()), ())
    won = []

    async def renew(epoch: str) -> None:
        with suppress(RevisionConflict):
            won.append((await store.renew("t", epoch=EPOCH, new_epoch=epoch)).epoch)

    async with trio.open_nursery() as nursery:
        for n in range(6):
            nursery.start_soon(renew, f"RENEWED{n}")
    assert len(won) == 1
    record = await store.load("t")
    assert record is not None
    assert [record.epoch] == won


async def test_events_are_found_by_ids_of_our_own_and_by_foreign_ones(store):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    commit = await append(hot, draft(0), latest("1"), latest("2"))
    await archive(hot, store)
    found = await store.find("t", commit.entries[0].id)
    assert found is not None
    assert found.event == commit.entries[0].event
    assert await store.find("t", commit.entries[1].id) is None, "it was replaced"
    long_id = "foreign\0" * 1000
    foreign = Entry(replace(commit.entries[0].event, id=long_id, index=3), 3)
    await store.save(commit.record, [foreign])
    found = await store.find("t", long_id)
    assert found is not None
    assert found.event == foreign.event
    for unknown in ("", "\ud83d", "x" * 26, "0" * 26, long_id[:-1]):
        assert await store.find("t", unknown) is None


async def test_tasks_are_listed_in_the_order_of_creation_page_by_page(store):
    tasks = [
        task("b", at=NOW),
        task("a", at=NOW + 1),
        task("Z", at=NOW + 1, type="llm"),
        task("ä", at=NOW + 1, status="completed", type="llm"),
        task("c", at=NOW + 2, status="failed"),
        task("d", at=5),
    ]
    for one in tasks:
        await store.save(record_of(one), ())

    async def listed(limit: int, **filters: Any) -> list[str]:
        ids: list[str] = []
        after: tuple[int, str] | None = None
        while True:
            page = await store.list_tasks(after=after, limit=limit, **filters)
            ids += [record.task.id for record in page]
            if len(page) < limit:
                return ids
            after = (page[-1].task.created_at, page[-1].task.id)

    assert await listed(2) == await listed(100) == ["d", "b", "Z", "a", "ä", "c"]
    assert await listed(1, statuses=frozenset({"completed", "failed"})) == ["ä", "c"]
    assert await listed(1, type_="llm") == ["Z", "ä"]
    assert await listed(1, type_="llm", statuses=frozenset({"pending"})) == ["Z"]
    assert await listed(1, statuses=frozenset()) == []


async def test_rows_that_cannot_be_written_are_named_and_the_rest_can_be(store):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    commit = await append(hot, *[draft(n) for n in range(6)])
    entries = list(commit.entries)
    entries[1] = Entry(replace(entries[1].event, timestamp=2**63), 1)
    entries[3] = Entry(replace(entries[3].event, data=Raw(b'"\xff"')), 3)
    entries[5] = Entry(replace(entries[5].event, data=Raw(b'"\0"')), 5)
    with pytest.raises(UnwritableRows) as caught:
        await store.save(commit.record, entries)
    assert (caught.value.indexes, caught.value.task) == ((1, 3, 5), False)
    assert not await store.exists("t"), "nothing was written"
    rest = [entry for entry in entries if entry.index not in caught.value.indexes]
    assert await store.save(commit.record, rest, through=5)
    assert await store.archived_index("t", EPOCH) == 5


async def test_rows_that_only_the_server_refuses_are_named_too(store, url):
    psql(url, "ALTER TABLE taskcast_events ADD CHECK (1 / (idx - 4) IS NOT NULL)")
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    commit = await append(hot, *[draft(n) for n in range(7)])
    with pytest.raises(UnwritableRows) as caught:
        await store.save(commit.record, commit.entries)
    assert caught.value.indexes == (4,)
    rest = [entry for entry in commit.entries if entry.index != 4]
    assert await store.save(commit.record, rest)


async def test_a_value_that_jsonb_refuses_after_all_is_kept_as_text_alone(store, url, monkeypatch):
    monkeypatch.setattr("taskcast_trio.storage.postgres.rows.jsonb", lambda text: True)
    bad = Raw(b'"\\u0000"')
    hot = MemoryStore()
    await hot.create(task(params=bad), epoch=EPOCH, now_ms=NOW)
    await append(hot, draft(1), Draft(type="x", level="info", data=bad), draft(2))
    await archive(hot, store)
    await assert_alike(hot, store)
    in_jsonb = psql(url, "SELECT string_agg(coalesce(data::text, '-'), ' ') FROM taskcast_events")
    assert in_jsonb == "1 - 2"


async def test_a_task_that_cannot_be_written_is_said_so(store):
    for wrong in (task(at=2**64), task(params=Raw(b'"\xff"'))):
        with pytest.raises(UnwritableRows) as caught:
            await store.save(record_of(wrong), ())
        assert caught.value.task


async def test_publishers_are_archived_and_their_seqs_never_go_back(store):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    drafts = [counted(0), counted(0, "you\0"), counted(1), counted(2)]
    await hot.append("t", drafts, now_ms=NOW, counting=CountLimits())
    await archive(hot, store)
    await assert_alike(hot, store)
    record = await hot.get("t")
    assert record is not None
    assert await store.publishers("t") == Publishers(record, {})
    expected = {"me": 3, "you\0": 1}
    assert await store.save(record, [], publishers=expected)
    assert await store.publishers("t") == Publishers(record, expected)
    assert await store.save(record, [], publishers={"me": 2, "new": 1})
    assert (await store.publishers("t")).expected == {**expected, "new": 1}
    with pytest.raises(TaskNotFound):
        await store.publishers("u")


async def test_another_life_of_a_task_knows_no_publisher_of_the_one_before(store):
    one = record_of(task())
    assert await store.save(one, [], publishers={"me": 3})
    other = replace(record_of(task(), epoch="EPOCH002"), imported=True)
    assert await store.save(other, [], publishers={"you": 1})
    assert (await store.publishers("t")).expected == {"you": 1}
    assert await store.delete("t", epoch="EPOCH002")
    with pytest.raises(TaskNotFound):
        await store.publishers("t")
