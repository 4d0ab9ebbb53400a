"""How a function that makes a call becomes a method of a client: its signature, made once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)


def described(method: F, make: Callable[..., Any], returns: str | None = None) -> F:
    """The method with the name, the text and the signature of the function; it ``returns`` what the
    call that the function makes is of, where nothing else is said.
    """
    update_wrapper(method, make)
    signature = inspect.signature(make)
    parameters = [_SELF, *signature.parameters.values()]
    if returns is None:
        returns = re.sub(r"^Call\[(.*)\]$", r"\1", str(signature.return_annotation))
    shown = signature.replace(parameters=parameters, return_annotation=returns)
    method.__signature__ = shown  # type: ignore[attr-defined]
    return method
