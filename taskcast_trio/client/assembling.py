"""The current text of each series, made of the events of a subscription."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Self, overload

from msgspec import UNSET

from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.core.model import Envelope
from taskcast_trio.core.series import DEFAULT_FIELD

from .composing import value
from .following import Gap, Received
from .subscription import Subscription
from .sync_subscription import SyncSubscription

DEFAULT_MAX_LENGTH: Final = 64 * 1024 * 1024

_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_CUT: Final = re.compile("[\ud800-\udbff]\\Z")


class TextTooLong(TaskcastError):
    """The texts of a task's series are longer together than the caller takes."""

    code = "text_too_long"


class _Text:
    """A text that grows: adding a piece is O(piece), and what has been joined once stays joined."""

    __slots__ = ("_held", "_pieces", "field", "length")

    def __init__(self, field: str) -> None:
        self.field = field
        self._pieces: list[str] = []
        self._held = ""
        self.length = 0

    def add(self, piece: str) -> str:
        """What this adds: half an emoji at the end waits for the other half."""
        piece = self._held + piece
        self._held = ""
        if not piece.isascii() and _SURROGATES.search(piece):
            if cut := _CUT.search(piece):
                piece, self._held = piece[: cut.start()], cut[0]
            piece = piece.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if piece:
            self._pieces.append(piece)
            self.length += len(piece)
        return piece

    def __str__(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""


class Update:
    """What an event did to the text of its series.

    Attributes:
        series: the id of the series.
        added: what came to the end of the text; all of it where it was ``replaced``.
        replaced: whether the text begins anew: a terminal that has printed what was before has to
            print it again.
        event: the event.
    """

    __slots__ = ("_length", "_text", "added", "event", "replaced", "series")

    def __init__(
        self, series: str, text: _Text, added: str, event: Envelope, *, replaced: bool
    ) -> None:
        self.series = series
        self.added = added
        self.replaced = replaced
        self.event = event
        self._text = text
        self._length = text.length

    def __repr__(self) -> str:
        return f"<Update {self.series} {self.added!r}{' replaced' if self.replaced else ''}>"

    @property
    def text(self) -> str:
        """The whole text as of this event."""
        return str(self._text)[: self._length]


class Texts:
    """The texts of one task's series, brought up to date event by event.

    Of an ``accumulate`` series it is the joined text, of a ``latest`` one that of its newest event.

    Args:
        accumulated: whether each event holds the whole text, as with
            ``series_format="accumulated"``.
        max_length: characters that all texts may have together.
    """

    def __init__(self, *, accumulated: bool = False, max_length: int = DEFAULT_MAX_LENGTH) -> None:
        self._accumulated = accumulated
        self._max_length = max_length
        self._texts: dict[str, _Text] = {}
        self._length = 0
        self._before: set[str] = set()
        """Series that had a text before a gap took it."""

    def __getitem__(self, series: str) -> str:
        return str(self._texts[series])

    @property
    def all(self) -> Mapping[str, str]:
        """The text of each series, now."""
        return MappingProxyType({series: str(text) for series, text in self._texts.items()})

    def take(self, item: Received) -> Update | None:
        """Take the next item of a subscription; None where it is of no series.

        Raises:
            TextTooLong: the texts are longer than they may be.
        """
        if isinstance(item, Gap):
            self._before |= self._texts.keys()
            self._texts.clear()
            self._length = 0
            return None
        if not item.series_id or item.series_mode in (UNSET, "keep-all"):
            return None
        series, mode = item.series_id, item.series_mode
        field = item.series_acc_field or DEFAULT_FIELD
        found, known = _text_of(item, field), self._texts.get(series)
        self._length -= 0 if known is None else known.length
        whole = self._accumulated or item.series_snapshot is True or mode == "latest"
        if known is not None and known.field == field and found is not None and not whole:
            text, added, replaced = known, known.add(found), False
        else:
            text = _Text(field)
            added = text.add(found or "")
            old = "" if known is None else str(known)
            replaced = series in self._before or not str(text).startswith(old)
            if not replaced:
                added = added[len(old) :]
            self._texts[series] = text
        self._before.discard(series)
        self._length += text.length
        if self._length > self._max_length:
            raise TextTooLong(f"The texts are over {self._max_length} characters")
        return Update(series, text, added, item, replaced=replaced)


def _text_of(event: Envelope, field: str) -> str | None:
    """The text in the data of an event; None for none."""
    data = value(event.data)
    if isinstance(data, dict):
        data = data.get(field)
    return data if isinstance(data, str) else None


class Assembly:
    """The updates of a subscription, as an asynchronous iterator."""

    def __init__(self, stream: Subscription[Any], texts: Texts) -> None:
        self.texts = texts
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Update:
        while (item := await self._stream.receive()) is not None:
            if (update := self.texts.take(item)) is not None:
                return update
        raise StopAsyncIteration


class SyncAssembly:
    """The updates of a subscription, as an iterator."""

    def __init__(self, stream: SyncSubscription[Any], texts: Texts) -> None:
        self.texts = texts
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Update:
        while (item := self._stream.receive()) is not None:
            if (update := self.texts.take(item)) is not None:
                return update
        raise StopIteration


@overload
def assemble(stream: Subscription[Any], *, max_length: int = ...) -> Assembly: ...
@overload
def assemble(stream: SyncSubscription[Any], *, max_length: int = ...) -> SyncAssembly: ...
def assemble(
    stream: Subscription[Any] | SyncSubscription[Any], *, max_length: int = DEFAULT_MAX_LENGTH
) -> Assembly | SyncAssembly:
    """The text of each series of an entered subscription, as it grows: iterate the `Update`\\ s.

    ::

        async with client.subscribe(task_id) as stream:
            async for update in assemble(stream):
                print(update.added, end="")

    ``texts`` of the result has them all. Events of no series are passed over, and so are gaps, as
    each text begins anew after one (``replaced``): it raises no ``EventsLost``, and the ``gaps`` of
    the subscription have what it passed over.
    """
    texts = Texts(accumulated=stream.follow.accumulated, max_length=max_length)
    if isinstance(stream, Subscription):
        return Assembly(stream, texts)
    return SyncAssembly(stream, texts)
