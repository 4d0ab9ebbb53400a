"""The JSON Schema of what a blocked task asks: checked itself, and held against answers.

Schema and answer come from callers, so what they may cost is bounded: their size; the steps of a
check; patterns by RE2, whose time is linear in the text. References lead only to places in the
schema itself, and nothing is ever fetched. Keywords that the library evaluates in ways that can't
be bounded so are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, TypeAlias

import re2
from jsonschema import (
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
    ValidationError,
)
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY as SPECIFICATIONS
from msgspec import UNSET, Raw, UnsetType
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.model import BlockedRequest

MAX_SCHEMA_BYTES: Final = 16 * 1024
MAX_ANSWER_BYTES: Final = 64 * 1024
STEPS: Final = 20_000
PATTERN_MEMORY: Final = 256 * 1024
SHOWN_CHARACTERS: Final = 120

REFUSED: Final = (
    "patternProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$recursiveRef",
    "$dynamicRef",
)
_COSTS: Final = {"$dynamicRef": 20}
"""The meta-schema of 2020-12 has it, and to find what it means takes long."""

_Errors: TypeAlias = Iterable[ValidationError] | None
_Keyword: TypeAlias = Callable[[Any, Any, Any, Any], _Errors]


class TooMuch(Exception):
    """The check would take too many steps."""


class _Budget:
    """How many steps a check may take. What a keyword costs grows with all that is below it: the
    library puts that into its messages.
    """

    def __init__(self, steps: int, *values: Any) -> None:
        self._left = steps
        self._sizes: dict[int, int] = {}
        for value in values:
            self._measure(value)

    def _measure(self, value: Any) -> int:
        if isinstance(value, str):
            return 1 + len(value) // 16
        if not isinstance(value, list | dict):
            return 1
        size = 1 + sum(map(self._measure, value.values() if isinstance(value, dict) else value))
        if isinstance(value, dict):
            size += sum(map(self._measure, value))
        self._sizes[id(value)] = size
        return size

    def spend(self, steps: int, *values: Any) -> None:
        self._left -= steps
        for value in values:
            if isinstance(value, str):
                self._left -= len(value) // 64
            else:
                self._left -= self._sizes.get(id(value), 0) // 4
        if self._left < 0:
            raise TooMuch


_budget: ContextVar[_Budget] = ContextVar("_budget")


def _counted(keyword: _Keyword, steps: int) -> _Keyword:
    def count(validator: Any, value: Any, instance: Any, schema: Any) -> _Errors:
        _budget.get().spend(steps, value, instance)
        return keyword(validator, value, instance, schema)

    return count


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = PATTERN_MEMORY
    return options


_PATTERNS: Final = _options()


def _match_pattern(
    validator: Any, pattern: Any, text: Any, schema: Any
) -> Iterator[ValidationError]:
    if validator.is_type(text, "string") and not _finds(pattern, text):
        yield ValidationError("The pattern is not found")


def _finds(pattern: str, text: str) -> bool:
    compiled = re2.compile(pattern, _PATTERNS)  # which remembers some
    _budget.get().spend(compiled.programsize * len(text) // 500)
    try:
        return compiled.search(text) is not None
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _unique(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if wanted and validator.is_type(instance, "array"):
        seen = {_identity(item) for item in instance}
        if len(seen) < len(instance):
            yield ValidationError("The items are not unique")


def _identity(value: Any) -> Any:
    """Equal for JSON values that are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, bool):
        return (bool, value)
    if isinstance(value, list):
        return (list, tuple(map(_identity, value)))
    if isinstance(value, dict):
        return (dict, frozenset((key, _identity(each)) for key, each in value.items()))
    return value


def _bounded(dialect: Any) -> Any:
    keywords = {**dialect.VALIDATORS, "pattern": _match_pattern, "uniqueItems": _unique}
    return extend(
        dialect,
        {name: _counted(keyword, _COSTS.get(name, 1)) for name, keyword in keywords.items()},
    )


_DIALECTS: Final = {
    dialect.META_SCHEMA["$id"].rstrip("#"): _bounded(dialect)
    for dialect in (Draft202012Validator, Draft201909Validator, Draft7Validator, Draft6Validator)
}
_DEFAULT: Final = Draft202012Validator.META_SCHEMA["$id"]


def _without_dialect(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Where the library meets a `$schema` it goes on with the dialect as it has it, which does not
    count.
    """
    return {name: value for name, value in schema.items() if name != "$schema"}


_METAS: Final = Registry().with_resources(
    (uri, specification_with(meta["$schema"]).create_resource(_without_dialect(meta)))
    for uri, meta in ((uri, SPECIFICATIONS.contents(uri)) for uri in SPECIFICATIONS)
)


def check_request(request: BlockedRequest | UnsetType, where: str) -> None:
    """Refuse (BadRequest, naming the place) a schema that can't be held against an answer."""
    if request is not UNSET and request.schema is not UNSET:
        _compiled(bytes(request.schema), f"{where}.schema")


def check_answer(
    request: BlockedRequest | UnsetType, data: Raw | UnsetType, where: str = "$.data"
) -> None:
    """Refuse (BadRequest, naming the path below ``where`` that failed) an answer that breaks the
    request's schema.

    An answer without data is an empty object.
    """
    try:
        hold(request, data, where, steps=STEPS)
    except TooMuch:
        raise BadRequest(
            f"The schema takes too long to be held against this answer - at `{where}`"
        ) from None


def hold(
    request: BlockedRequest | UnsetType, data: Raw | UnsetType, where: str, *, steps: int
) -> None:
    """As :func:`check_answer`, in at most so many steps; TooMuch where that is not enough."""
    if request is UNSET or request.schema is UNSET:
        return
    text = b"{}" if data is UNSET else bytes(data)
    if len(text) > MAX_ANSWER_BYTES:
        raise BadRequest(f"Expected at most {MAX_ANSWER_BYTES} bytes - at `{where}`")
    validator = _compiled(bytes(request.schema), "$.blockedRequest.schema")
    try:
        instance = json.loads(text)
        error = _first_error(validator, instance, _Budget(steps, validator.schema, instance))
    except (RecursionError, Unresolvable):
        raise TooMuch from None
    if error is not None:
        place = _path(where, error.absolute_path)
        raise BadRequest(f"{_wanted(error)} - at `{place}`")


def _first_error(validator: Any, instance: Any, budget: _Budget) -> ValidationError | None:
    token = _budget.set(budget)
    try:
        return best_match(validator.iter_errors(instance))
    finally:
        _budget.reset(token)


def _wanted(error: ValidationError) -> str:
    """What the schema wants; nothing of the answer, which may be confidential."""
    keyword, value = error.validator, error.validator_value
    if keyword is None:
        return "The schema allows nothing here"
    if keyword == "required":
        value = [name for name in value if name not in error.instance]
    wanted = json.dumps({keyword: value})[1:-1]
    return f"Expected {wanted if len(wanted) <= SHOWN_CHARACTERS else json.dumps(keyword)}"


def _path(root: str, parts: Iterable[str | int]) -> str:
    path = root
    for part in parts:
        is_plain = isinstance(part, str) and part.isascii() and part.isidentifier()
        path += f".{part}" if is_plain else f"[{json.dumps(part)}]"
    return path if len(path) <= 4 * SHOWN_CHARACTERS else f"{path[: 4 * SHOWN_CHARACTERS]}..."


# -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _compiled(text: bytes, where: str) -> Any:
    """What holds answers against the schema.

    Raises:
        BadRequest: the schema is none, or one that is refused.
    """
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"Expected at most {MAX_SCHEMA_BYTES} bytes - at `{where}`")
    schema = json.loads(text)
    if not isinstance(schema, dict | bool):
        raise BadRequest(f"Expected `object | bool` - at `{where}`")
    name = schema.get("$schema", _DEFAULT) if isinstance(schema, dict) else _DEFAULT
    dialect = _DIALECTS.get(name.rstrip("#")) if isinstance(name, str) else None
    if dialect is None:
        raise BadRequest(f"Expected one of {', '.join(_DIALECTS)} - at `{where}.$schema`")
    if isinstance(schema, bool):
        return dialect(schema, registry=Registry())
    schema = _without_dialect(schema)
    try:
        meta = dialect(_without_dialect(dialect.META_SCHEMA), registry=_METAS)
        error = _first_error(meta, schema, _Budget(STEPS, schema))
    except (TooMuch, RecursionError):
        raise BadRequest(f"The schema has too many parts - at `{where}`") from None
    if error is not None:
        # That a type is one of these words, or several, says less than the words.
        error = next((each for each in error.context or () if each.validator == "enum"), error)
        raise BadRequest(f"{_wanted(error)} - at `{_path(where, error.absolute_path)}`")
    root = specification_with(name).create_resource(schema)
    resolver = Registry().resolver_with_root(root)
    checked = set(_schemas(root))
    for part, place in _objects(schema, where):
        _check_part(part, place, resolver, checked, is_root=part is schema)
    return dialect(schema, registry=Registry())


def _schemas(resource: Resource[Any]) -> Iterator[int]:
    """The identities of the schemas inside, which are what the meta-schema has looked at."""
    yield id(resource.contents)
    for each in resource.subresources():
        yield from _schemas(each)


def _objects(value: Any, place: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Every object inside, whatever it stands for."""
    if isinstance(value, dict):
        yield value, place
        for name, each in value.items():
            yield from _objects(each, _path(place, [name]))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _objects(each, _path(place, [number]))


def _check_part(
    part: dict[str, Any], place: str, resolver: Any, checked: Set[int], *, is_root: bool
) -> None:
    for name in REFUSED:
        if name in part:
            raise BadRequest(f"{name} is not supported - at `{_path(place, [name])}`")
    for name in ("$schema", "$id"):
        if not is_root and isinstance(part.get(name), str):
            raise BadRequest(f"{name} can stand at the top only - at `{_path(place, [name])}`")
    reference = part.get("$ref")
    if isinstance(reference, str):
        _check_reference(reference, _path(place, ["$ref"]), resolver, checked)
    pattern = part.get("pattern")
    if isinstance(pattern, str):
        try:
            re2.compile(pattern, _PATTERNS)
        except (re2.error, UnicodeEncodeError):
            raise BadRequest(
                f"Expected a pattern that RE2 can search for - at `{_path(place, ['pattern'])}`"
            ) from None


def _check_reference(reference: str, place: str, resolver: Any, checked: Set[int]) -> None:
    if not reference.startswith("#"):
        raise BadRequest(f"A reference can't lead out of the schema - at `{place}`")
    try:
        target = resolver.lookup(reference).contents
    except (Unresolvable, ValueError):
        raise BadRequest(f"The reference leads nowhere - at `{place}`") from None
    if not isinstance(target, bool) and id(target) not in checked:
        raise BadRequest(f"The reference leads to no schema: use $defs - at `{place}`")
