"""What a group of exceptions comes down to."""

from __future__ import annotations


def sole_cause(error: BaseException) -> BaseException:
    """The exception that groups of one stand for: a nursery wraps even a lone one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
