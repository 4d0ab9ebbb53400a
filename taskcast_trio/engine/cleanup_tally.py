"""What a run of the cleaner removed, or would remove, by rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from taskcast_trio.core.cleanup import Target
from taskcast_trio.core.model import Task
from taskcast_trio.storage.records import TaskRecord

from .cleanup_plan import PlannedRule

NAMED_TASKS: Final = 100


@dataclass(slots=True)
class RuleTally:
    """How many tasks one rule takes something of, and how many events."""

    label: str
    target: Target
    tasks: int = 0
    events: int = 0


@dataclass(slots=True)
class Tally:
    """By rule what goes, the first tasks that it goes of, and whether there is more to do.

    The events of a task that goes whole are those that it has had, but for trimmed ones.
    """

    named: Callable[[Task], bool] | None = None
    """Which tasks may be named; None for all."""
    more: bool = False
    tasks: list[str] = field(default_factory=list)
    _rules: dict[tuple[str, Target], RuleTally] = field(default_factory=dict)

    @property
    def rules(self) -> list[RuleTally]:
        return list(self._rules.values())

    def deleted(self, rule: PlannedRule, record: TaskRecord) -> None:
        """A task goes whole."""
        self._add((rule.label, rule.rule.target), record.next_index - record.trims)
        self._name(record.task)

    def trimmed(self, record: TaskRecord, counts: Mapping[PlannedRule, int]) -> None:
        """Events of a task go."""
        by_key: Counter[tuple[str, Target]] = Counter()
        for rule, events in counts.items():
            by_key[rule.label, rule.rule.target] += events
        for key, events in by_key.items():
            if events:
                self._add(key, events)
        if by_key.total():
            self._name(record.task)

    def _add(self, key: tuple[str, Target], events: int) -> None:
        of_rule = self._rules.setdefault(key, RuleTally(*key))
        of_rule.tasks += 1
        of_rule.events += events

    def _name(self, task: Task) -> None:
        if len(self.tasks) < NAMED_TASKS and (self.named is None or self.named(task)):
            self.tasks.append(task.id)
