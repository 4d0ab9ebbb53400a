"""Who calls, what they may do, and what they may see. Deny by default.

A caller has scopes (``*`` has them all) and may be limited to some tasks. A task may have rules of
its own, in ``authConfig``::

    {"rules": [{"match": {"scope": ["event:publish"]},
                "require": {"sub": ["alice"], "claims": {"team": "red"}}}]}

For a request under a scope, every rule that names the scope (or ``*``) must hold: ``sub`` contains
the caller's subject, and each of ``claims`` equals the caller's claim, or is in it where that is a
list.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from .errors import BadRequest, Forbidden
from .jsontext import fields_of
from .model import Task

ANY: Final = "*"
MAX_RULES_BYTES: Final = 16 * 1024
"""Larger ones allow nothing: judging them would take too long."""
_REMEMBERED_BYTES: Final = 4096


class Caller(Struct, frozen=True, kw_only=True):
    """Who a request comes from. Without arguments: somebody who may do nothing.

    ``task_ids`` None means no limit. Times are Unix seconds. ``open`` is a caller of a server that
    asks for nothing: no scope is looked at, no rule evaluated, nothing redacted. ``service`` is the
    name of a trusted service.
    """

    scopes: frozenset[str] = frozenset()
    task_ids: frozenset[str] | None = None
    sub: str | None = None
    jti: str | None = None
    worker_id: str | None = None
    claims: Mapping[str, Any] = {}
    issued_at: float | None = None
    expires_at: float | None = None
    service: str | None = None
    open: bool = False

    def has(self, scope: str) -> bool:
        return self.open or scope in self.scopes or ANY in self.scopes

    def reaches(self, task_id: str) -> bool:
        """Whether the task is within the caller's ``task_ids``."""
        return self.task_ids is None or task_id in self.task_ids

    def require(self, scope: str, task_id: str | None = None) -> None:
        """Refuse (Forbidden) what the scopes and the task ids of the caller do not allow."""
        if not self.has(scope):
            raise Forbidden(f"The scope {scope} is needed")
        if task_id is not None and not self.reaches(task_id):
            raise Forbidden(f"Task {task_id} is not among the tasks of this caller")

    def may(self, scope: str, task: Task) -> bool:
        """Whether the caller may use the task under ``scope``, by its ids and the task's rules."""
        return self.has(scope) and self.reaches(task.id) and self._keeps_rules(scope, task)

    def require_rules(self, scope: str, task: Task) -> None:
        """Refuse (Forbidden) what the task's own rules do not allow."""
        if not self._keeps_rules(scope, task):
            raise Forbidden(f"The rules of task {task.id} do not allow {scope} to this caller")

    def _keeps_rules(self, scope: str, task: Task) -> bool:
        if self.open or task.auth_config is UNSET:
            return True
        text = bytes(task.auth_config)
        if len(text) > MAX_RULES_BYTES:
            return False
        try:
            rules = _remembered(text) if len(text) <= _REMEMBERED_BYTES else _rules(text)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False  # rules that can't be read allow nothing
        return all(
            rule.require.met_by(self)
            for rule in rules
            if scope in rule.match.scope or ANY in rule.match.scope
        )


OPEN: Final = Caller(open=True)
"""The caller of a server, or of the engine, that asks for nothing."""
NOBODY: Final = Caller()


class _Match(Struct, frozen=True, forbid_unknown_fields=True):
    scope: list[str]


class _Require(Struct, frozen=True, forbid_unknown_fields=True):
    sub: list[str] | UnsetType = UNSET
    claims: dict[str, Any] | UnsetType = UNSET

    def met_by(self, caller: Caller) -> bool:
        if self.sub is not UNSET and caller.sub not in self.sub:
            return False
        if self.claims is UNSET:
            return True
        return all(
            name in caller.claims and _holds(caller.claims[name], wanted)
            for name, wanted in self.claims.items()
        )


class _Rule(Struct, frozen=True, forbid_unknown_fields=True):
    match: _Match
    require: _Require


class _AuthConfig(Struct, frozen=True):
    rules: list[_Rule] = []


def _rules(text: bytes) -> list[_Rule]:
    return msgspec.json.decode(text, type=_AuthConfig).rules


_remembered = lru_cache(maxsize=1024)(_rules)


def _holds(claim: Any, wanted: Any) -> bool:
    return _same(claim, wanted) or (
        isinstance(claim, list) and any(_same(each, wanted) for each in claim)
    )


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values: true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def check_rules(auth_config: Raw | UnsetType, where: str = "$.authConfig") -> None:
    """Refuse (BadRequest, naming the place) rules that nobody could ever keep."""
    if auth_config is UNSET:
        return
    if len(bytes(auth_config)) > MAX_RULES_BYTES:
        raise BadRequest(f"Expected at most {MAX_RULES_BYTES} bytes - at `{where}`")
    try:
        _rules(bytes(auth_config))
    except msgspec.ValidationError as error:
        place = "" if "`$" in str(error) else f" - at `{where}`"
        raise BadRequest(str(error).replace("`$", f"`{where}") + place) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequest(f"The rules can't be read - at `{where}`") from None


def shown(task: Task, caller: Caller) -> Task:
    """The task as ``caller`` may see it: secrets of webhooks never, rules with ``task:manage``."""
    if caller.open:
        return task
    changes: dict[str, Any] = {}
    if task.webhooks is not UNSET:
        changes["webhooks"] = [_without_secret(webhook) for webhook in task.webhooks]
    if task.auth_config is not UNSET and not caller.may("task:manage", task):
        changes["auth_config"] = UNSET
    return msgspec.structs.replace(task, **changes) if changes else task


def exported(task: Task, caller: Caller) -> Task:
    """As `shown`, for an archive: who may manage the task gets all of it, to import it again."""
    return task if caller.may("task:manage", task) else shown(task, caller)


def _without_secret(webhook: Raw) -> Raw:
    members = fields_of(bytes(webhook))
    if members is None:
        return Raw(b"{}")
    members.pop(b'"secret"', None)
    return Raw(b"{%b}" % b",".join(b"%b:%b" % member for member in members.items()))
