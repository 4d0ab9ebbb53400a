"""The contract of a log: dense indexes, stored order, series values, times that never go back."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import KeyReused, TaskEnded, TaskFull, TaskNotFound
from taskcast_trio.core.model import Draft
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import LogLimits

from .conftest import OpenBackend
from .support import (
    NOW,
    append,
    assert_dense,
    draft,
    event,
    key,
    latest,
    piece,
    read_all,
    read_all_places,
    task,
    text,
    value,
)


@pytest.fixture
async def log(store: ShortTermStore) -> ShortTermStore:
    """The store, with one task ``t``."""
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    return store


async def test_parallel_appends_get_contiguous_indexes_without_repeats(log):
    commits = []

    async def publish(name: int) -> None:
        for number in range(5):
            drafts = [draft([name, number, part]) for part in range(1 + number % 3)]
            commits.append(await append(log, *drafts))

    async with trio.open_nursery() as nursery:
        for name in range(20):
            nursery.start_soon(publish, name)

    entries = await read_all(log, limit=7)
    assert_dense(entries)
    assert len(entries) == sum(len(commit.entries) for commit in commits)
    for commit in commits:
        batch = entries[commit.first_index : commit.record.next_index]
        assert [value(entry) for entry in batch] == [value(entry) for entry in commit.entries]
        assert len({tuple(value(entry)[:2]) for entry in batch}) == 1, "a batch is not torn apart"
    for name in range(20):
        mine = [value(entry)[1:] for entry in entries if value(entry)[0] == name]
        assert mine == sorted(mine), "one publisher's events stay in order"


async def test_an_event_is_stored_as_it_was_given(log):
    data = b'{"a": 1.0,  "a":18446744073709551616, "s":"\\ud83d\\u0000"}'
    given_draft = Draft(
        type="llm.delta",
        level="warn",
        data=Raw(data),
        series_id="s",
        series_mode="keep-all",
        series_acc_field="f",
    )
    await append(log, given_draft, Draft(type="", level="debug"))
    full, bare = [entry.event for entry in await read_all(log)]
    assert full.data == Raw(data)
    fields = (full.task_id, full.type, full.level, full.series_id, full.series_mode)
    assert fields == ("t", "llm.delta", "warn", "s", "keep-all")
    assert full.series_acc_field == "f"
    assert full.timestamp == NOW
    assert bare == type(bare)(
        id=bare.id, task_id="t", index=1, timestamp=NOW, type="", level="debug"
    )


async def test_a_page_says_whether_there_is_more_and_how_far_the_log_reaches(log):
    await append(log, *[draft(number) for number in range(5)])
    page = await log.read("t", after=0, limit=3)
    assert [entry.index for entry in page.entries] == [1, 2, 3]
    assert (page.more, page.record.next_index) == (True, 5)
    page = await log.read("t", after=3, limit=3)
    assert ([entry.index for entry in page.entries], page.more) == ([4], False)
    page = await log.read("t", after=99, limit=3)
    assert (list(page.entries), page.more) == ([], False)


async def test_latest_takes_the_stored_place_of_the_value_that_it_replaces(log):
    first = await append(log, draft("a"), latest("1"), draft("b"))
    await append(log, latest("2"))
    await append(log, draft("c"), latest("3"))
    assert [entry.index for entry in await read_all_places(log, limit=2)] == [0, 5, 2, 4]
    assert [entry.index for entry in await read_all(log, limit=2)] == [0, 2, 4, 5]
    assert (await log.snapshot("t")).record.next_index == 6
    assert await log.find("t", first.entries[1].id) is None, "a replaced event is gone"
    found = await log.find("t", first.entries[2].id)
    assert found is not None
    assert (found.index, found.place) == (2, 2)


async def test_the_place_of_a_latest_event_is_told_when_it_is_committed_and_when_it_is_read(log):
    await append(log, draft("a"), latest("1"))
    commit = await append(log, latest("2"))
    assert [(entry.index, entry.place) for entry in commit.entries] == [(2, 1)]
    found = await log.find("t", commit.entries[0].id)
    assert found is not None
    assert (found.index, found.place) == (2, 1)


async def test_latest_replaces_within_one_batch(log):
    await append(log, latest("1"), latest("2"), latest("3", "other"), latest("4"))
    assert [text(entry) for entry in await read_all_places(log)] == ["4", "3"]


async def test_the_value_of_an_accumulate_series_is_its_text_joined_in_order(log):
    async def publish(letter: str) -> None:
        for _ in range(10):
            await append(log, piece(letter), piece(letter, "other"))

    async with trio.open_nursery() as nursery:
        for letter in "abcde":
            nursery.start_soon(publish, letter)

    snapshot = await log.snapshot("t")
    entries = await read_all(log)
    for series in ("s", "other"):
        pieces = [entry for entry in entries if entry.event.series_id == series]
        assert text(snapshot.values[series]) == "".join(map(text, pieces))
        assert snapshot.values[series].id == pieces[-1].id
    assert snapshot.record.next_index == len(entries) == 100


async def test_an_accumulate_event_joins_onto_a_latest_one_and_latest_replaces_the_last_piece(log):
    await append(log, latest("L"), piece("a"), piece("b"))
    assert text((await log.snapshot("t")).values["s"]) == "Lab"
    await append(log, latest("M"))
    assert text((await log.snapshot("t")).values["s"]) == "M"
    assert [text(entry) for entry in await read_all_places(log)] == ["L", "a", "M"]


async def test_keep_all_events_and_half_given_series_have_no_value(log):
    await append(log, draft(1, "s", "keep-all"), Draft(type="x", level="info", series_id="s"))
    await append(log, Draft(type="x", level="info", series_mode="latest"))
    await append(log, Draft(type="x", level="info", series_mode="latest", series_id=""))
    assert (await log.snapshot("t")).values == {}
    assert_dense(await read_all(log))


async def test_values_that_were_read_do_not_change_under_their_reader(log):
    await append(log, piece("a"))
    before = await log.snapshot("t")
    entries = await read_all(log)
    await append(log, piece("b"))
    assert text(before.values["s"]) == "a"
    assert before.record.next_index == len(entries) == 1


async def test_timestamps_do_not_go_back_when_the_clock_does(log):
    for at in (NOW + 50, NOW + 10, NOW - 1_000, NOW + 60, NOW):
        await append(log, draft(), at=at)
    record = (await log.snapshot("t")).record
    running = task(status="running", at=NOW)
    await log.transition(running, [draft()], revision=record.revision, epoch=record.epoch, now_ms=5)
    stamps = [entry.event.timestamp for entry in await read_all(log)]
    assert stamps == [NOW + 50, NOW + 50, NOW + 50, NOW + 60, NOW + 60, NOW + 60]


async def test_no_event_is_older_than_its_task(store):
    await store.create(task(at=NOW), epoch="EPOCH001", now_ms=NOW)
    commit = await append(store, draft(), at=NOW - 1)
    assert commit.entries[0].event.timestamp == NOW


@pytest.mark.parametrize("step", ["append", "read", "read_places", "find", "snapshot"])
async def test_every_step_on_an_unknown_task_says_so(store, step):
    steps = {
        "append": partial(store.append, "nope", [draft()], now_ms=NOW),
        "read": partial(store.read, "nope", after=-1, limit=1),
        "read_places": partial(store.read_places, "nope", after_place=-1, after_index=-1, limit=1),
        "find": partial(store.find, "nope", "id"),
        "snapshot": partial(store.snapshot, "nope"),
    }
    with pytest.raises(TaskNotFound):
        await steps[step]()


async def test_find_knows_no_other_ids_than_those_stored(log):
    commit = await append(log, draft())
    known = commit.entries[0].id
    for unknown in ("", "nope", known.lower(), known[:-1] + "Z", "0" * 26, known + "0"):
        assert await log.find("t", unknown) is None


drafts = st.one_of(
    st.builds(draft, st.integers(0, 9)),
    st.builds(piece, st.text("ab", max_size=2), st.sampled_from(["s", "r"])),
    st.builds(latest, st.text("cd", max_size=2), st.sampled_from(["s", "r"])),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(st.lists(drafts, min_size=1, max_size=4), max_size=8),
    after_place=st.integers(-2, 20),
    after_index=st.integers(-2, 20),
    limit=st.integers(1, 6),
)
def test_reads_agree_with_a_list(open_backend, batches, after_place, after_index, limit):
    """Both reads, at any cursor and page size, are what sorting and filtering a list gives."""

    async def main() -> None:
        opened: OpenBackend = open_backend
        async with opened() as backend:
            store = backend.store
            await store.create(task(), epoch="EPOCH001", now_ms=NOW)
            stored: dict[int, Entry] = {}
            newest: dict[str, Entry] = {}
            texts: dict[str, str] = {}
            for batch in batches:
                for entry in (await append(store, *batch)).entries:
                    series = entry.event.series_id
                    if isinstance(series, str):
                        replaced = entry.event.series_mode == "latest"
                        if replaced and series in newest:
                            assert entry.place == newest[series].place
                            del stored[entry.place]
                        texts[series] = ("" if replaced else texts.get(series, "")) + text(entry)
                        newest[series] = entry
                    stored[entry.place] = entry
            by_place = [stored[place].id for place in sorted(stored)]
            assert [entry.id for entry in await read_all_places(store, limit=limit)] == by_place
            by_index = sorted(stored.values(), key=lambda entry: entry.index)
            ids = [entry.id for entry in by_index]
            assert [entry.id for entry in await read_all(store, limit=limit)] == ids

            page = await store.read("t", after=after_index, limit=limit)
            wanted = [entry.id for entry in by_index if entry.index > after_index]
            assert [entry.id for entry in page.entries] == wanted[:limit]
            page = await store.read_places(
                "t", after_place=after_place, after_index=after_index, limit=limit
            )
            wanted = [
                stored[place].id
                for place in sorted(stored)
                if place > after_place and stored[place].index > after_index
            ]
            assert [entry.id for entry in page.entries] == wanted[:limit]
            assert page.more == (len(wanted) > limit)

            values = (await store.snapshot("t")).values
            assert {series: text(entry) for series, entry in values.items()} == texts
            assert {series: entry.id for series, entry in values.items()} == {
                series: entry.id for series, entry in newest.items()
            }

    trio.run(main)


# Law 6: the limits of a log

ROOMY = 1_000_000


def data_bytes(entries):
    return sum(len(entry.event.data) for entry in entries)


async def test_an_append_that_would_go_over_is_refused_whole_and_told_why(store, announced):
    log, limits = store, LogLimits(events=3, bytes=ROOMY)
    await log.create(task(), epoch="EPOCH001", now_ms=NOW)
    await log.append("t", [draft(1), draft(2)], now_ms=NOW, limits=limits)
    with pytest.raises(TaskFull, match=r"3 events .* 2 already") as refused:
        await log.append("t", [draft(3), draft(4)], now_ms=NOW, limits=limits)
    assert (refused.value.status, refused.value.code) == (413, "task_full")
    await log.append("t", [draft(5)], now_ms=NOW, limits=limits)
    with pytest.raises(TaskFull, match="3 already"):
        await log.append("t", [draft(6)], now_ms=NOW, limits=limits)

    entries = await read_all(log)
    assert_dense(entries)
    assert [value(entry) for entry in entries] == [1, 2, 5]
    told = await announced.first(3)
    assert [len(commit.entries) for commit in told] == [0, 2, 1]
    await append(log, draft(7))
    assert len(await read_all(log)) == 4, "without limits there are none"


async def test_the_bytes_of_a_log_are_those_of_its_data(log):
    limits = LogLimits(events=ROOMY, bytes=10)
    await log.append("t", [draft("abcd")], now_ms=NOW, limits=limits)  # 6 with its quotes
    with pytest.raises(TaskFull, match=r"10 bytes of data .* 6 already"):
        await log.append("t", [draft("def")], now_ms=NOW, limits=limits)
    nothing = Draft(type="x", level="info")
    await log.append("t", [draft("de"), nothing, nothing], now_ms=NOW, limits=limits)
    with pytest.raises(TaskFull):
        await log.append("t", [draft(0)], now_ms=NOW, limits=limits)


async def test_a_latest_event_counts_in_place_of_the_one_it_replaced(log):
    limits = LogLimits(events=2, bytes=60)
    await log.append("t", [latest("x" * 40)], now_ms=NOW, limits=limits)
    for number in range(20):
        texts = [latest(str(number)), latest("y" * 40)]
        await log.append("t", texts, now_ms=NOW, limits=limits)
    assert len(await read_all(log)) == 1
    with pytest.raises(TaskFull, match="bytes"):
        await log.append("t", [latest("z" * 60)], now_ms=NOW, limits=limits)
    await log.append("t", [latest("z")], now_ms=NOW, limits=limits)
    await log.append("t", [piece("p" * 20, "other")], now_ms=NOW, limits=limits)
    with pytest.raises(TaskFull, match="events"):
        await log.append("t", [latest("a", "third")], now_ms=NOW, limits=limits)


async def test_events_of_a_transition_are_never_refused_but_count(log):
    limits = LogLimits(events=1, bytes=ROOMY)
    await log.append("t", [draft(1)], now_ms=NOW, limits=limits)
    running = task(status="running")
    told = await log.transition(running, [draft(2)], revision=0, epoch="EPOCH001", now_ms=NOW)
    assert told.first_index == 1
    with pytest.raises(TaskFull, match="2 already"):
        await log.append("t", [draft(3)], now_ms=NOW, limits=limits)


async def test_an_imported_log_counts(log):
    await log.import_task(task("t"), [event(0), event(1)], epoch="EPOCH002", overwrite=True)
    with pytest.raises(TaskFull, match="2 already"):
        await log.append("t", [draft(3)], now_ms=NOW, limits=LogLimits(2, ROOMY))
    await log.append("t", [draft(3)], now_ms=NOW, limits=LogLimits(3, ROOMY))


async def test_a_repeat_answers_as_before_where_the_log_is_full(log):
    limits = LogLimits(events=1, bytes=ROOMY)
    step = partial(log.append, "t", now_ms=NOW, limits=limits)
    first = await step([draft(1)], idempotency=key())
    again = await step([draft(1)], idempotency=key())
    assert again.repeated
    assert [entry.id for entry in again.entries] == [entry.id for entry in first.entries]
    with pytest.raises(KeyReused):
        await step([draft(2)], idempotency=key("k", b"other"))

    with pytest.raises(TaskFull):
        await step([draft(3)], idempotency=key("new"))
    assert await log.repeated("t", key("new"), now_ms=NOW) is None, "a refusal is no answer"


async def test_a_task_that_has_ended_is_ended_also_where_it_is_full(log):
    limits = LogLimits(events=1, bytes=ROOMY)
    ended = task(status="completed")
    await log.transition(ended, [draft(1)], revision=0, epoch="EPOCH001", now_ms=NOW)
    with pytest.raises(TaskEnded):
        await log.append("t", [draft(2)], now_ms=NOW, limits=limits)


async def test_parallel_appends_do_not_go_over_together(log):
    refused = []

    async def publish(number):
        try:
            await log.append("t", [draft(number)] * 2, now_ms=NOW, limits=LogLimits(7, ROOMY))
        except TaskFull:
            refused.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(publish, number)
    assert len(await read_all(log)) == 6
    assert len(refused) == 7


SIZED = st.builds(
    lambda make, text, series: make(text, series),
    st.sampled_from([piece, latest, partial(draft, mode="keep-all")]),
    st.text("x", max_size=30),
    st.sampled_from(["", "a", "b"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    batches=st.lists(st.lists(SIZED, min_size=1, max_size=4), max_size=10),
    limits=st.builds(LogLimits, st.integers(1, 12), st.integers(1, 250)),
)
@example([[latest("x" * 10)], [latest("x" * 40), latest("")]], LogLimits(1, 22))
@example([[latest("")], [latest("x" * 40), latest("x" * 40)]], LogLimits(1, 60))
@example(
    [[piece("x"), draft("x" * 40, "s", "keep-all"), latest("x" * 40)]], LogLimits(2, 42 + 12 + 39)
)
@example([[piece("x" * 20), latest("x" * 20), piece("y" * 20)]], LogLimits(2, 64))
def test_an_append_is_refused_exactly_where_the_log_would_be_over(
    open_backend: OpenBackend, batches: list[list[Draft]], limits: LogLimits
) -> None:
    """Against a twin without limits that is given only what the first one took, and looked at."""

    async def main() -> None:
        async with open_backend() as backend:
            store = backend.store
            await store.create(task(), epoch="EPOCH001", now_ms=NOW)
            taken: list[list[Draft]] = []
            for number, batch in enumerate(batches):
                twin = f"twin-{number}"
                await store.create(task(twin), epoch="EPOCH001", now_ms=NOW)
                for each in [*taken, batch]:
                    await append(store, *each, id_=twin)
                after = await read_all(store, twin)
                fits = len(after) <= limits.events and data_bytes(after) <= limits.bytes
                before = [entry.id for entry in await read_all(store)]
                try:
                    await store.append("t", batch, now_ms=NOW, limits=limits)
                except TaskFull:
                    assert not fits
                    assert [entry.id for entry in await read_all(store)] == before
                else:
                    assert fits
                    taken.append(batch)

    trio.run(main)
