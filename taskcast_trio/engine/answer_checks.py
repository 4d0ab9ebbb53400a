"""Where schemas and answers are checked: what is small at once, all else in a thread.

A check may take a tenth of a second and more. That long no stream of this process may wait; beside
a thread they have the processor every few milliseconds.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.model import BlockedRequest

from . import answer_schema
from .answer_schema import TooMuch
from .serial_thread import SerialThread

SMALL_SCHEMA_BYTES: Final = 256
SMALL_ANSWER_BYTES: Final = 1024
STEPS_AT_ONCE: Final = 1000
"""What even something small may take here: some milliseconds."""

_thread: Final = SerialThread("checks of answers")


async def request_checked(request: BlockedRequest | UnsetType, where: str) -> None:
    """As :func:`answer_schema.check_request`. Cancelled, it ends when the check has."""
    if request is UNSET or request.schema is UNSET:
        return
    check = partial(answer_schema.check_request, request, where)
    if _is_small(request):
        check()
    else:
        await _thread.run(check)


async def answer_checked(
    request: BlockedRequest | UnsetType, data: Raw | UnsetType, where: str = "$.data"
) -> None:
    """As :func:`answer_schema.check_answer`. Cancelled, it ends when the check has."""
    if request is UNSET or request.schema is UNSET:
        return
    if _is_small(request) and (data is UNSET or len(bytes(data)) <= SMALL_ANSWER_BYTES):
        try:
            answer_schema.hold(request, data, where, steps=STEPS_AT_ONCE)
        except TooMuch:
            pass  # for here: it may be none too much for a thread
        else:
            return
    check = partial(answer_schema.check_answer, request, data, where)
    await _thread.run(check)


def _is_small(request: BlockedRequest) -> bool:
    schema = request.schema
    return schema is UNSET or len(bytes(schema)) <= SMALL_SCHEMA_BYTES
