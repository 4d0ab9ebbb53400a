"""Which cleanup rules a task has, those of the configuration and its own, and when they are due."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec
import structlog
from msgspec import UNSET, Struct

from taskcast_trio.core.cleanup import CleanupRule, due_at_ms, usable_rules
from taskcast_trio.core.model import Task

CLEANUP: Final = "cleanup"
"""The kind of timer that is due where a rule is for a task that has ended."""

MAX_FAULTS: Final = 8
"""How many unusable rules of one task are logged."""

TASK_RULES: Final = "the task's own"

log = structlog.get_logger(__name__)


class PlannedRule(Struct, frozen=True):
    """A rule that is due for a task at ``due_ms``.

    ``label`` is its name, else its place in the configuration; rules of tasks share one: what
    clients name them is theirs.
    """

    due_ms: int
    rule: CleanupRule
    label: str

    @property
    def digest(self) -> str:
        """Tells it from other rules."""
        return _digest(self.rule)

    @property
    def deletes(self) -> bool:
        """Whether the whole task goes."""
        return self.rule.target != "events"


class CleanupPlan:
    """The rules of the configuration, which every task is under."""

    def __init__(self, rules: Sequence[CleanupRule] = ()) -> None:
        self._rules = [
            (rule, f"cleanup.rules[{number}]" if rule.name is UNSET else rule.name)
            for number, rule in enumerate(rules)
        ]
        self.digest = _digest(rules)
        """Another one with other rules."""

    def of(self, task: Task) -> list[PlannedRule]:
        """The rules that select the task, the earliest first."""
        if not task.terminal:
            return []
        rules = self._rules
        if task.cleanup is not UNSET:
            own, _ = usable_rules(task.cleanup.rules)
            rules = rules + [(rule, TASK_RULES) for rule in own]
        type_ = None if task.type is UNSET else task.type
        due = (
            (due_at_ms(rule, type_, task.status, task.ended_at), rule, label)
            for rule, label in rules
        )
        planned = [PlannedRule(at, rule, label) for at, rule, label in due if at is not None]
        return sorted(planned, key=lambda each: each.due_ms)

    def due_of(self, task: Task) -> int | None:
        """When the first rule is due; None while the task lives, or where none selects it."""
        planned = self.of(task)
        return planned[0].due_ms if planned else None

    def judge(self, task: Task) -> None:
        """Say what of a new task's own rules can't be used, and why: they are passed over."""
        if task.cleanup is UNSET:
            return
        _, faults = usable_rules(task.cleanup.rules)
        for fault in faults[:MAX_FAULTS]:
            log.warning("cleanup_rule_ignored", task=task.id, reason=fault)


def _digest(rules: CleanupRule | Sequence[CleanupRule]) -> str:
    return blake2b(msgspec.json.encode(rules), digest_size=8).hexdigest()
