"""What the memory store promises beyond the contract."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import trio

from taskcast_trio.core import series
from taskcast_trio.storage.memory import MemoryBackend, MemoryStore
from taskcast_trio.storage.records import Commit

from .support import NOW, append, draft, latest, piece, task, text


async def read_and_joined_bytes(monkeypatch: pytest.MonkeyPatch, pieces: int) -> tuple[int, int]:
    """Bytes of JSON text that are looked into, and that are built, while pieces are added."""
    looked_into = built = 0
    fields_of = series.fields_of  # type: ignore[attr-defined]
    joined = series.SeriesValue.joined

    def counting_fields_of(text: bytes) -> dict[bytes, bytes] | None:
        nonlocal looked_into
        looked_into += len(text)
        return fields_of(text)

    def counting_joined(value, pieces, count, text):
        nonlocal built
        built += len(text)
        joined(value, pieces, count, text)

    monkeypatch.setattr(series, "fields_of", counting_fields_of)
    monkeypatch.setattr(series.SeriesValue, "joined", counting_joined)
    store = MemoryStore()
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    for _ in range(pieces // 100):
        await append(store, *[piece("0123456789")] * 100)
    snapshot = await store.snapshot("t")
    assert len(text(snapshot.values["s"])) == 10 * pieces
    monkeypatch.undo()
    return looked_into, built


async def test_a_piece_is_looked_into_once_and_the_text_is_built_once(monkeypatch):
    """5,000, 10,000 and 20,000 pieces: the bytes handled grow with the pieces, not with their
    square.
    """
    one_piece = len(b'{"delta":"0123456789"}')
    for pieces in (5_000, 10_000, 20_000):
        looked_into, built = await read_and_joined_bytes(monkeypatch, pieces)
        assert looked_into == pieces * one_piece
        assert built == 10 * pieces


async def test_20_000_values_of_a_latest_series_leave_one_event_and_cheap_reads():
    store = MemoryStore()
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    for _ in range(200):
        await append(store, *[latest("x")] * 100)
    page = await store.read_places("t", after_place=-1, after_index=-1, limit=10)
    assert [(entry.index, entry.place) for entry in page.entries] == [(19_999, 0)]


async def test_announcements_reach_the_sink_inside_the_step_and_nobody_after_its_end():
    backend = MemoryBackend()
    told: list[Commit] = []

    class Sink:
        def committed(self, commit: Commit) -> None:
            told.append(commit)

        def interrupted(self, task_ids: Iterable[str] | None = None) -> None:
            raise AssertionError

    async with trio.open_nursery() as nursery:
        await nursery.start(backend.broadcast.run, Sink())
        await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        assert [commit.created for commit in told] == [True]
        nursery.cancel_scope.cancel()
    await append(backend.store, draft())
    assert len(told) == 1
