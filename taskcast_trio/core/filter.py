"""Which events a subscriber wants: type patterns, levels, and whether status changes count.

A pattern is an exact type, ``prefix.*`` (every type that starts with ``prefix.``, so not ``prefix``
itself), or ``*``. Nothing else is special: ``llm*``, ``*.call`` and ``taskcast:*`` are ordinary
exact types, and blanks are never trimmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final, Self

from msgspec import Struct

STATUS_TYPE: Final = "taskcast:status"


def _anything(_: str) -> bool:
    return True


def _always(_type: str, _level: str) -> bool:
    return True


def compile_types(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a predicate over event types that is true when any of ``patterns`` matches.

    Its cost does not grow with the number of exact patterns. No patterns match nothing.
    """
    if "*" in patterns:
        return _anything
    exact = frozenset(p for p in patterns if not p.endswith(".*"))
    prefixes = tuple({p[:-1] for p in patterns if p.endswith(".*")})
    if not prefixes:
        return exact.__contains__
    return lambda type_: type_ in exact or type_.startswith(prefixes)


def matches_type(patterns: Sequence[str], type_: str) -> bool:
    """Tell whether any of ``patterns`` matches ``type_``; without compiling them first."""
    return any(
        pattern in ("*", type_) or (pattern.endswith(".*") and type_.startswith(pattern[:-1]))
        for pattern in patterns
    )


def split_list(value: str) -> tuple[str, ...]:
    """Split a comma list of a query; empty parts are dropped, blanks stay."""
    return tuple(part for part in value.split(",") if part)


# A __dict__ is what lets the frozen struct keep its compiled predicate.
class EventFilter(Struct, frozen=True, rename="camel", omit_defaults=True, dict=True):
    """What a subscriber or a webhook lets through.

    ``types`` and ``levels``: ``None`` lets everything through, an empty tuple nothing.
    ``include_status`` false drops events of type ``taskcast:status`` and no other built-in event.
    """

    types: tuple[str, ...] | None = None
    levels: tuple[str, ...] | None = None
    include_status: bool = True

    @classmethod
    def from_query(
        cls,
        types: str | None,
        levels: str | None,
        include_status: str | None,
        *,
        empty_is_absent: bool = False,
    ) -> Self:
        """Read the query parameters ``types``, ``levels``, ``includeStatus``; ``None`` is absent.

        An empty list matches nothing; with ``empty_is_absent`` (the stream of all tasks) an empty
        parameter is as good as none. Only exactly ``false`` switches status events off.
        """

        def names(value: str | None) -> tuple[str, ...] | None:
            if value is None or (empty_is_absent and not value):
                return None
            return split_list(value)

        return cls(names(types), names(levels), include_status != "false")

    def matches(self, type_: str, level: str) -> bool:
        """Tell whether an event passes; made to run once per event and subscriber."""
        return self.predicate(type_, level)

    @property
    def passes_all(self) -> bool:
        """True when no event can be refused, so a caller need not ask for each."""
        return self.predicate is _always

    @cached_property
    def predicate(self) -> Callable[[str, str], bool]:
        """The compiled form of :meth:`matches`, built once; a hot loop may hold it."""
        levels = None if self.levels is None else frozenset(self.levels)
        wanted = None if self.types is None or "*" in self.types else compile_types(self.types)
        with_status = self.include_status
        if levels is None and wanted is None and with_status:
            return _always
        accepts = wanted or _anything

        def accept(type_: str, level: str) -> bool:
            return (
                (levels is None or level in levels)
                and (with_status or type_ != STATUS_TYPE)
                and accepts(type_)
            )

        return accept
