"""Trimming what is archived: as the short-term stores do it, never undone by what comes late; and
the due list of cleanup.
"""

from __future__ import annotations

from msgspec.structs import replace

from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.storage.postgres import open_postgres

from ..support import NOW, append, draft, latest, piece, task, text
from .server import psql
from .support import EPOCH, archive, assert_alike, record_of


async def ended(hot, id_="t", *, drafts=()):
    await hot.create(task(id_), epoch=EPOCH, now_ms=NOW)
    commit = await append(hot, *drafts, id_=id_)
    end = replace(commit.record.task, status="completed", completed_at=NOW)
    await hot.transition(end, [draft("end")], revision=0, epoch=EPOCH, now_ms=NOW)


SERIES = (
    piece("a"), latest("1", "bar"), draft(1), piece("b"), latest("2", "bar"), piece("c"), draft(2),
)  # fmt: skip


async def test_what_is_trimmed_reads_as_in_the_memory_store(store):
    hot = MemoryStore()
    await ended(hot, drafts=SERIES)
    await archive(hot, store)
    for indexes in ([3], [5, 2], [], [99, -1, 3, 2**70], [4], [0, 1, 7]):
        count = await hot.trim("t", indexes, epoch=EPOCH)
        assert await store.trim("t", indexes, epoch=EPOCH) == count
        assert await store.trim("t", indexes, epoch=EPOCH) == 0
        await assert_alike(hot, store)
        archived = await store.load("t")
        assert archived is not None
        known = await hot.get("t")
        assert known is not None
        assert (archived.trimmed, archived.trims) == (known.trimmed, known.trims)
    assert (await store.snapshot("t")).values == {}


async def test_the_text_stays_whole_over_many_pages_of_pieces(store, monkeypatch):
    monkeypatch.setattr("taskcast_trio.storage.postgres.store.SERIES_EVENTS", 3)
    hot = MemoryStore()
    await ended(hot, drafts=[piece(c) for c in "abcdefghij"])
    await archive(hot, store)
    for index in (9, 4, 0, 1):
        assert await store.trim("t", [index], epoch=EPOCH) == 1
        assert text((await store.snapshot("t")).values["s"]) == "abcdefghij"


async def test_only_the_log_that_is_meant_is_trimmed(store):
    hot = MemoryStore()
    await hot.create(task(), epoch=EPOCH, now_ms=NOW)
    await append(hot, draft(1))
    await archive(hot, store)
    assert await store.trim("t", [0], epoch=EPOCH) == 0, "it lives"
    assert await store.trim("t", [0], epoch="OTHER001") == 0
    assert await store.trim("u", [0], epoch=EPOCH) == 0


async def test_a_page_that_comes_late_brings_nothing_back(store, url):
    hot = MemoryStore()
    await ended(hot, drafts=SERIES)
    page = await hot.read("t", after=-1, limit=99)
    await archive(hot, store)
    await store.trim("t", [0, 6, 7], epoch=EPOCH)
    async with open_postgres(url) as other:
        assert await other.save(page.record, page.entries)
    kept = (await store.read("t", after=-1, limit=99)).entries
    assert [entry.index for entry in kept] == [2, 3, 4, 5]
    assert text((await store.snapshot("t")).values["s"]) == "abc"


async def test_what_was_trimmed_before_it_was_archived_is_not_owed(store):
    hot = MemoryStore()
    await ended(hot, drafts=[draft(0), piece("a"), piece("b"), piece("c"), *map(draft, range(4))])
    await hot.trim("t", [0, 2, 6, 8], epoch=EPOCH)
    page = await hot.read("t", after=-1, limit=99)
    values = [*(await hot.snapshot("t")).values.values()]
    await store.save(page.record, page.entries, through=8, values=values)
    await assert_alike(hot, store)
    archived = await store.load("t")
    assert (archived.next_index, archived.trimmed, archived.trims) == (9, 8, 4)
    assert text((await store.snapshot("t")).values["s"]) == "abc"


async def test_values_and_due_times_go_with_their_task(store, url):
    hot = MemoryStore()
    await ended(hot, drafts=SERIES)
    await archive(hot, store)
    await store.trim("t", [0], epoch=EPOCH)
    await store.set_due("t", NOW, epoch=EPOCH)
    assert psql(url, "SELECT count(*) FROM taskcast_values") != "0"
    await store.delete("t")
    assert await store.next_due("cleanup") is None
    assert psql(url, "SELECT count(*) FROM taskcast_values WHERE task_id = 't'") == "0"


async def test_due_times_are_set_taken_once_and_listed_in_their_order(store, url):
    hot = MemoryStore()
    for n, id_ in enumerate(("due-a", "due-b", "due-c", "due-d")):
        await ended(hot, id_, drafts=[draft(1)])
        page = await hot.read(id_, after=-1, limit=99)
        await store.save(page.record, page.entries, due_ms=NOW - n)
    assert not await store.set_due("due-a", 1, epoch="OTHER001")
    assert await store.set_due("due-d", None, epoch=EPOCH)
    assert await store.next_due("cleanup") == NOW - 2
    listed = await store.list_due("cleanup", now_ms=NOW - 1, limit=9)
    assert [(timer.task_id, timer.due_ms) for timer in listed] == [
        ("due-c", NOW - 2),
        ("due-b", NOW - 1),
    ]
    async with open_postgres(url) as other:
        (first,) = await store.take_due("cleanup", now_ms=NOW, lease_ms=60, limit=1)
        rest = await other.take_due("cleanup", now_ms=NOW, lease_ms=60, limit=9)
    assert (first.task_id, first.due_ms) == ("due-c", NOW + 60)
    assert [timer.task_id for timer in rest] == ["due-b", "due-a"]
    assert await store.take_due("cleanup", now_ms=NOW, lease_ms=60, limit=9) == []
    assert await store.next_due("cleanup") == NOW + 60
    # A task that is written again keeps its due time; a new life of it has none.
    page = await hot.read("due-a", after=-1, limit=99)
    await store.save(replace(page.record, revision=9), [])
    assert await store.set_due("due-a", NOW + 5, epoch=EPOCH)
    assert await store.next_due("cleanup") == NOW + 5
    await store.save(replace(record_of(task("due-a")), epoch="OTHER001", imported=True), [])
    assert await store.next_due("cleanup") == NOW + 60


async def test_ended_tasks_are_listed_page_by_page(store):
    hot = MemoryStore()
    for id_ in ("end-b", "end-a", "end-c"):
        await ended(hot, id_, drafts=[draft(1)])
        page = await hot.read(id_, after=-1, limit=99)
        await store.save(page.record, page.entries)
    await hot.create(task("end-bb"), epoch=EPOCH, now_ms=NOW)
    await store.save((await hot.read("end-bb", after=-1, limit=1)).record, [])
    seen: list[str] = []
    after = "end"
    while page := await store.list_ended(after=after, limit=2):
        seen += [record.task.id for record in page]
        after = seen[-1]
    assert [id_ for id_ in seen if id_.startswith("end-")] == ["end-a", "end-b", "end-c"]


async def test_a_mark_is_kept(store):
    assert await store.mark("m") is None
    await store.put_mark("m", "1")
    await store.put_mark("m", "2")
    assert await store.mark("m") == "2"
