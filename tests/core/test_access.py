"""Who may do what: deny by default, every rule that matches must hold, secrets stay hidden."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from taskcast_trio.core.access import (
    MAX_RULES_BYTES,
    NOBODY,
    OPEN,
    Caller,
    check_rules,
    exported,
    shown,
)
from taskcast_trio.core.errors import BadRequest, Forbidden
from taskcast_trio.core.model import Task

SCOPES = ("task:create", "task:manage", "event:publish", "event:subscribe", "webhook:create")
CACHE_LIMIT = 4096
"""Rules of longer texts are read anew each time."""

texts = st.text(max_size=12)
scopes = st.sampled_from(SCOPES)
leaves = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "1", "red", "blue"])
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=5,
)
claims = st.dictionaries(st.sampled_from(["team", "level"]), values, max_size=2)
subs = st.sampled_from(["ann", "bob", ""])
rules = st.fixed_dictionaries(
    {
        "match": st.fixed_dictionaries(
            {"scope": st.lists(st.sampled_from([*SCOPES[:3], "*"]), max_size=2)}
        ),
        "require": st.fixed_dictionaries(
            {}, optional={"sub": st.lists(subs, max_size=2), "claims": claims}
        ),
    }
)


def task(auth_config: Any = UNSET, *, id: str = "t", **fields: Any) -> Task:
    if isinstance(auth_config, bytes):
        fields["auth_config"] = Raw(auth_config)
    elif auth_config is not UNSET:
        fields["auth_config"] = Raw(json.dumps(auth_config).encode())
    return Task(id=id, status="pending", created_at=1, updated_at=1, **fields)


def of(*names: str, **fields: Any) -> Caller:
    return Caller(scopes=frozenset(names), **fields)


def one_rule(require: Any, *scope: str) -> Any:
    return {"rules": [{"match": {"scope": list(scope) or ["*"]}, "require": require}]}


def refused(caller: Caller, scope: str, subject: Task) -> bool:
    try:
        caller.require_rules(scope, subject)
    except Forbidden:
        return True
    return False


@given(scopes | texts, texts)
def test_nobody_may_nothing(scope: str, id: str) -> None:
    assert not NOBODY.has(scope)
    assert not NOBODY.may(scope, task(id=id))
    with pytest.raises(Forbidden, match="scope"):
        NOBODY.require(scope)


@given(st.sets(scopes), scopes, st.none() | st.sets(texts), texts)
def test_a_scope_and_the_task_are_both_needed(
    has: set[str], wanted: str, task_ids: set[str] | None, id: str
) -> None:
    limit = None if task_ids is None else frozenset(task_ids)
    caller = of(*has, task_ids=limit)
    allowed = wanted in has and (task_ids is None or id in task_ids)
    assert caller.may(wanted, task(id=id)) == allowed
    if allowed:
        caller.require(wanted, id)
    else:
        with pytest.raises(Forbidden):
            caller.require(wanted, id)
    assert caller.has(wanted) == (wanted in has)


@given(scopes | texts)
def test_a_star_has_every_scope_and_lifts_no_other_limit(scope: str) -> None:
    assert of("*").has(scope)
    assert of("*").may(scope, task())
    assert not of("*", task_ids=frozenset()).may(scope, task())
    assert not of("*", task_ids=frozenset({"*"})).may(scope, task())
    assert not of("*").may(scope, task(one_rule({"sub": ["ann"]})))


@pytest.mark.parametrize("scope", ["task:*", "task", "TASK:MANAGE", "task:manage ", "**", ""])
def test_nothing_but_the_whole_name_is_a_scope(scope: str) -> None:
    assert not of(scope).has("task:manage")


def test_a_refusal_says_what_is_missing() -> None:
    with pytest.raises(Forbidden, match="task:manage"):
        of("task:create").require("task:manage")
    with pytest.raises(Forbidden, match="Task other"):
        of("*", task_ids=frozenset({"t"})).require("task:manage", "other")
    with pytest.raises(Forbidden, match="rules of task t"):
        of("*").require_rules("task:manage", task(one_rule({"sub": ["ann"]})))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _holds(caller: Caller, require: Any) -> bool:
    if "sub" in require and caller.sub not in require["sub"]:
        return False
    for name, wanted in require.get("claims", {}).items():
        if name not in caller.claims:
            return False
        claim = caller.claims[name]
        accepted = [claim, *(claim if isinstance(claim, list) else [])]
        if _text(wanted) not in map(_text, accepted):
            return False
    return True


@given(
    st.lists(rules, max_size=4), scopes, st.none() | subs, claims, st.sampled_from([0, CACHE_LIMIT])
)
def test_every_rule_that_matches_must_hold(
    given_rules: list[Any], scope: str, sub: str | None, held: dict[str, Any], padding: int
) -> None:
    caller = of("*", sub=sub, claims=held)
    expected = all(
        _holds(caller, rule["require"])
        for rule in given_rules
        if scope in rule["match"]["scope"] or "*" in rule["match"]["scope"]
    )
    subject = task({"rules": given_rules, "note": "n" * padding})
    check_rules(subject.auth_config)
    assert caller.may(scope, subject) == expected
    assert refused(caller, scope, subject) == (not expected)
    assert OPEN.may(scope, subject)


@pytest.mark.parametrize(
    ("claim", "wanted", "held"),
    [
        (True, 1, False),
        (1, True, False),
        (0, False, False),
        (False, None, False),
        ([True], 1, False),
        ([[1]], [True], False),
        ({"a": [1]}, {"a": [True]}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ("red", ["red"], False),
        ("redder", "red", False),
        ("1", 1, False),
        (None, None, True),
        (1, 1.0, True),
        ("red", "red", True),
        (["blue", "red"], "red", True),
        (["blue", "red"], ["blue", "red"], True),
        (["blue", "red"], ["red", "blue"], False),
        ([["red"], "blue"], ["red"], True),
        ([["red"]], "red", False),
        ({"a": [{"b": "x"}]}, {"a": [{"b": "x"}]}, True),
        ([{"a": 1}], {"a": 1}, True),
        ([], [], True),
        ([], None, False),
    ],
)
def test_a_claim_is_equal_or_holds_it(claim: Any, wanted: Any, held: bool) -> None:
    subject = task(one_rule({"claims": {"team": wanted}}))
    assert of("*", claims={"team": claim}).may("task:manage", subject) == held
    assert not of("*").may("task:manage", subject)


@pytest.mark.parametrize("sub", [None, "bob", "", "Ann"])
def test_a_rule_of_subjects_refuses_every_other(sub: str | None) -> None:
    subject = task(one_rule({"sub": ["ann"]}, "event:publish"))
    assert of("*", sub="ann").may("event:publish", subject)
    assert not of("*", sub=sub).may("event:publish", subject)
    assert of("*", sub=sub).may("event:subscribe", subject)
    assert not of("*", sub=sub).may("task:manage", task(one_rule({"sub": []})))


@pytest.mark.parametrize("config", [{}, {"rules": []}, {"note": 1}, one_rule({})])
def test_a_task_without_requirements_is_for_everybody_with_the_scope(config: Any) -> None:
    check_rules(task(config).auth_config)
    assert of("task:manage").may("task:manage", task(config))
    assert not of("task:create").may("task:manage", task(config))


FAULTY = [
    ({"rules": {}}, "$.authConfig.rules"),
    ({"rules": None}, "$.authConfig.rules"),
    ({"rules": [1]}, "$.authConfig.rules[0]"),
    ({"rules": [{}]}, "$.authConfig.rules[0]"),
    ({"rules": [{"match": {"scope": ["*"]}}]}, "$.authConfig.rules[0]"),
    (one_rule({}) | {"rules": [{"match": {}, "require": {}}]}, "$.authConfig.rules[0].match"),
    (one_rule({"sub": "ann"}), "$.authConfig.rules[0].require.sub"),
    (one_rule({"sub": [1]}), "$.authConfig.rules[0].require.sub[0]"),
    (one_rule({"claims": ["team"]}), "$.authConfig.rules[0].require.claims"),
    (one_rule({"subs": ["ann"]}), "$.authConfig.rules[0].require"),
    ({"rules": [{"match": {"scope": "*"}, "require": {}}]}, "$.authConfig.rules[0].match.scope"),
    (
        {"rules": [{"match": {"scope": ["*"], "sub": ["ann"]}, "require": {}}]},
        "$.authConfig.rules[0].match",
    ),
    (
        {"rules": [{"match": {"scope": ["*"]}, "require": {}, "deny": True}]},
        "$.authConfig.rules[0]",
    ),
]


@pytest.mark.parametrize("padding", [0, CACHE_LIMIT])
@pytest.mark.parametrize(("config", "where"), FAULTY)
def test_rules_that_cannot_be_read_are_refused_by_place_and_allow_nothing(
    config: Any, where: str, padding: int
) -> None:
    subject = task({**config, "note": "n" * padding})
    with pytest.raises(BadRequest) as caught:
        check_rules(subject.auth_config)
    assert str(caught.value).endswith(f"at `{where}`")
    with pytest.raises(BadRequest, match=r"at `\$\.archive\.task\.authConfig"):
        check_rules(subject.auth_config, "$.archive.task.authConfig")
    assert not of("*", sub="ann").may("task:manage", subject)
    assert refused(of("*", sub="ann"), "task:manage", subject)
    assert OPEN.may("task:manage", subject)


@pytest.mark.parametrize("text", [b'{"rules":', b"[]", b"1", b'{"rules":[{"match":"\\ud800"}]}'])
def test_text_that_is_no_set_of_rules_allows_nothing(text: bytes) -> None:
    with pytest.raises(BadRequest):
        check_rules(Raw(text))
    assert not of("*").may("task:manage", task(text))
    assert OPEN.may("task:manage", task(text))


def test_no_rules_are_no_fault() -> None:
    check_rules(UNSET)


MANAGER = of("task:manage")
READER = of("event:subscribe", "event:history")


def webhooks_seen(*webhooks: bytes, caller: Caller = MANAGER) -> list[bytes]:
    seen = shown(task(webhooks=[Raw(each) for each in webhooks]), caller).webhooks
    assert seen is not UNSET
    return [bytes(each) for each in seen]


@pytest.mark.parametrize("caller", [NOBODY, READER, MANAGER, of("*")])
@pytest.mark.parametrize(
    ("webhook", "left"),
    [
        (rb'{"secret":"planted"}', b"{}"),
        (rb'{"s\u0065cret":"planted","url":"u"}', b'{"url":"u"}'),
        (rb'{"\u0073\u0065\u0063\u0072\u0065\u0074":{"planted":1}}', b"{}"),
        (rb'{"secret":"planted","url":"u","secret":["planted"]}', b'{"url":"u"}'),
        (rb'{ "url" : "u" , "secret" : "planted" }', b'{"url":"u"}'),
        (rb'{"secret":"planted","note":"\ud800"}', rb'{"note":"\ud800"}'),
        (rb'{"\ud800":1,"s\u0065cret":"planted"}', rb'{"\ud800":1}'),
        (rb'{"filter":{"a": [1.50, "\u0041"]},"secret":1}', rb'{"filter":{"a": [1.50, "\u0041"]}}'),
        (rb'"planted"', b"{}"),
        (rb'["planted"]', b"{}"),
        (rb"null", b"{}"),
    ],
)
def test_no_spelling_of_a_webhook_secret_is_shown_to_anybody(
    webhook: bytes, left: bytes, caller: Caller
) -> None:
    assert webhooks_seen(webhook, b'{"url":"v"}', caller=caller) == [left, b'{"url":"v"}']


@st.composite
def spelled(draw: st.DrawFn, name: str) -> str:
    """A key of JSON text, some of its characters as escapes."""
    escaped = draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    pairs = zip(name, escaped, strict=True)
    return '"' + "".join(f"\\u{ord(c):04x}" if is_escape else c for c, is_escape in pairs) + '"'


members = st.tuples(
    st.sampled_from(["secret", "secret", "Secret", "secrets", "url", "headers"]).flatmap(spelled),
    st.sampled_from(
        ['"x"', "1.50", "1e2", "[ 1,2 ]", '{"secret" : "in"}', r'"\u0041\ud83d"', "null"]
    ),
    st.sampled_from(["", " ", "  "]),
)


@given(st.lists(members, max_size=6))
def test_what_is_not_the_secret_is_kept_byte_for_byte(parts: list[tuple[str, str, str]]) -> None:
    text = "{" + ",".join(f"{space}{key}{space}:{value}" for key, value, space in parts) + "}"
    expected = {json.loads(key): value for key, value, _ in parts}
    expected.pop("secret", None)
    (seen,) = webhooks_seen(text.encode())
    # A lone surrogate is masked for the decoder of this test by its own length in bytes.
    kept = msgspec.json.decode(seen.replace(b"\\ud83d", b"#ud83d"), type=dict[str, Raw])
    assert {key: bytes(v).replace(b"#", b"\\").decode() for key, v in kept.items()} == expected


def test_rules_are_shown_to_who_may_manage_the_task_only() -> None:
    rule = {"match": {"scope": ["event:publish"]}, "require": {"sub": ["ann"]}}
    subject = task({"rules": [rule]})
    for caller in (MANAGER, of("*"), OPEN):
        assert shown(subject, caller).auth_config == subject.auth_config
    for caller in (NOBODY, READER, of("task:create", "event:publish")):
        assert shown(subject, caller).auth_config is UNSET


def test_who_is_denied_to_manage_a_task_by_its_rules_sees_neither_rules_nor_secrets() -> None:
    rule = {"match": {"scope": ["task:manage"]}, "require": {"sub": ["ann"]}}
    subject = task({"rules": [rule]}, webhooks=[Raw(b'{"secret":"s"}')])
    for view in (shown, exported):
        seen = view(subject, of("*"))
        assert seen.auth_config is UNSET
        assert seen.webhooks == [Raw(b"{}")]


def test_rules_that_are_too_long_to_judge_allow_nothing_and_are_refused_at_first() -> None:
    long = {"rules": [], "note": "x" * MAX_RULES_BYTES}
    assert not of("*").may("event:publish", task(long))
    assert OPEN.may("event:publish", task(long))
    with pytest.raises(BadRequest, match=r"at most 16384 bytes - at `\$\.authConfig`"):
        check_rules(task(long).auth_config)


def test_the_task_itself_is_not_changed_by_being_shown() -> None:
    subject = task({}, webhooks=[Raw(b'{"secret":"s"}')], params=Raw(b'{"secret":"own"}'))
    seen = shown(subject, READER)
    assert subject.webhooks == [Raw(b'{"secret":"s"}')]
    assert seen == msgspec.structs.replace(subject, webhooks=[Raw(b"{}")], auth_config=UNSET)
    assert shown(task(), READER) == task()


def test_an_archive_has_everything_for_who_may_manage_the_task_only() -> None:
    subject = task({}, webhooks=[Raw(b'{"secret":"s"}')])
    for caller in (MANAGER, of("*"), OPEN):
        assert exported(subject, caller) == subject
    for caller in (NOBODY, READER, of("event:history", "webhook:create")):
        assert exported(subject, caller) == shown(subject, caller) != subject
