"""Which workers may have a task, and in which order they are asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

from .filter import matches_type

BLACKLIST_KEY: Final = "_blacklistedWorkers"
DEFAULT_COST: Final = 1

_OPEN: Final = frozenset({"idle", "busy"})


class TagRule(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Conditions on a task's tags; absent ones always hold.

    ``all``: the task has every one. ``any``: it has at least one, so an empty list never holds.
    ``none``: it has not one of them.
    """

    all: tuple[str, ...] | UnsetType = UNSET
    any: tuple[str, ...] | UnsetType = UNSET
    none: tuple[str, ...] | UnsetType = UNSET

    def holds(self, tags: Collection[str]) -> bool:
        """Tell whether a task with ``tags`` satisfies all three conditions."""
        present = frozenset(tags)
        return (
            (self.all is UNSET or present.issuperset(self.all))
            and (self.any is UNSET or not present.isdisjoint(self.any))
            and (self.none is UNSET or present.isdisjoint(self.none))
        )


class MatchRule(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a worker takes; an empty rule takes everything.

    ``task_types`` are patterns like those of event filters; a task without a type fits none of
    them, ``*`` included.
    """

    task_types: tuple[str, ...] | UnsetType = UNSET
    tags: TagRule | UnsetType = UNSET


class Candidate(Struct, frozen=True, kw_only=True):
    """A worker as the choice sees it.

    ``since_ms`` orders workers that are otherwise equal, the smallest first: when the worker
    connected (offers) or began to wait (pull), in any one unit. ``status`` is idle, busy, draining
    or offline.
    """

    worker_id: str
    rule: MatchRule
    capacity: int
    used_slots: int
    weight: float
    since_ms: float
    status: str = "idle"

    @property
    def free_slots(self) -> int:
        return self.capacity - self.used_slots


def fits(rule: MatchRule, task_type: str | None, tags: Collection[str] = ()) -> bool:
    """Tell whether a task with this type and these tags falls under ``rule``."""
    if rule.task_types is not UNSET and (
        task_type is None or not matches_type(rule.task_types, task_type)
    ):
        return False
    return rule.tags is UNSET or rule.tags.holds(tags)


def has_room(capacity: int, used_slots: int, cost: int | None = None) -> bool:
    """Tell whether a task of ``cost`` slots (``None``: 1) fits beside the ones held."""
    return used_slots + (DEFAULT_COST if cost is None else cost) <= capacity


def rank(
    workers: Iterable[Candidate],
    *,
    task_type: str | None,
    tags: Collection[str] = (),
    cost: int | None = None,
    blacklist: Collection[str] = (),
    declined: Collection[str] = (),
) -> list[Candidate]:
    """Return the workers that may have the task, the one to ask first in front.

    Left out: draining and offline ones, those without room, those whose rule does not fit, and the
    ids in ``blacklist``. Order: most weight, most free slots, smallest ``since_ms``, then the id so
    that every process agrees. The ids in ``declined`` come behind all others.
    """
    able = (
        worker
        for worker in workers
        if worker.status in _OPEN
        and worker.worker_id not in blacklist
        and has_room(worker.capacity, worker.used_slots, cost)
        and fits(worker.rule, task_type, tags)
    )
    return sorted(
        able,
        key=lambda w: (
            w.worker_id in declined,
            -w.weight,
            -w.free_slots,
            w.since_ms,
            w.worker_id,
        ),
    )


def blacklist_of(metadata: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the worker ids that a task's metadata bars.

    Metadata is the caller's own, so whatever is no list of strings there bars nobody.
    """
    listed = (metadata or {}).get(BLACKLIST_KEY)
    if not isinstance(listed, list | tuple):
        return frozenset()
    return frozenset(worker_id for worker_id in listed if isinstance(worker_id, str))


def with_blacklisted(metadata: Mapping[str, Any] | None, worker_id: str) -> dict[str, Any]:
    """Return a copy of ``metadata`` that bars ``worker_id`` too, behind those barred before."""
    changed = dict(metadata or {})
    listed = changed.get(BLACKLIST_KEY)
    kept = [w for w in listed if isinstance(w, str)] if isinstance(listed, list | tuple) else []
    changed[BLACKLIST_KEY] = kept if worker_id in kept else [*kept, worker_id]
    return changed
