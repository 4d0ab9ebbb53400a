"""The error tree of the docstring is the tree of the classes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import pytest

from taskcast_trio.core import errors
from taskcast_trio.core.errors import RevisionConflict, TaskcastError

_LINE = re.compile(r"^( +)(\w+)(?: +(\d{3}) (\w+))?(?: {2,}.*)?$")


def documented() -> Iterator[tuple[str, str, int, str]]:
    """Name, parent, status and code of each class in the docstring's drawing."""
    drawing = (errors.__doc__ or "").partition("::\n")[2].partition("\n``status``")[0]
    above: list[tuple[int, str]] = []
    for line in filter(str.strip, drawing.splitlines()):
        match = _LINE.match(line)
        assert match, line
        indent, name = len(match[1]), match[2]
        while above and above[-1][0] >= indent:
            above.pop()
        if above:
            yield name, above[-1][1], int(match[3]), match[4]
        above.append((indent, name))


def classes() -> dict[str, type[TaskcastError]]:
    return {
        name: member
        for name, member in inspect.getmembers(errors, inspect.isclass)
        if issubclass(member, TaskcastError)
    }


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn = set(documented())
    tree = {
        (name, error.__mro__[1].__name__, error.status, error.code)
        for name, error in classes().items()
        if error is not TaskcastError
    }
    assert len(drawn) > 15
    assert drawn == tree


def test_every_code_is_one_errors_own() -> None:
    codes = [error.code for error in classes().values()]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_every_error_but_the_base_is_one_that_http_can_answer_with() -> None:
    assert TaskcastError.status == 500
    for error in classes().values():
        if error is not TaskcastError:
            assert 400 <= error.status <= 599
            assert error.status != 500


def test_only_what_may_go_better_later_is_retryable() -> None:
    retryable = {name for name, error in classes().items() if error.retryable}
    assert retryable == {
        "RevisionConflict",
        "SeqGap",
        "RequestTimeout",
        "RateLimited",
        "StoreUnavailable",
        "KeysUnavailable",
        "AuthUnavailable",
        "Draining",
    }


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.TaskEnded("a/b", "failed"), ("a/b", "failed")),
        (errors.NotBlocked("a/b", "running"), ("a/b", "running")),
        (errors.TaskNotFound("a/b"), ("a/b",)),
        (errors.RequestNotFound("a/b"), ("a/b",)),
        (errors.WorkerNotFound("w1"), ("w1",)),
        (errors.TaskExists("a/b"), ("a/b",)),
        (errors.InvalidTransition("a/b", "failed", "running", ()), ("a/b", "failed", "running")),
        (RevisionConflict("a/b"), ("a/b",)),
        (errors.KeyReused("a/b"), ("a/b", "Idempotency-Key")),
        (errors.SeqGap("a/b", "me", 7, expected=5), ("a/b", "me", "7", "5")),
        (errors.SeqStale("a/b", "me", 7, expected=9), ("a/b", "me", "7", "9")),
    ],
)
def test_messages_name_what_they_are_about(error: TaskcastError, words: tuple[str, ...]) -> None:
    for word in words:
        assert word in str(error)
