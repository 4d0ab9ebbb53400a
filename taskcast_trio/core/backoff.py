"""How long to wait before the next try: retry schedules, and a receiver's ``Retry-After``."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct, field

Kind: TypeAlias = Literal["fixed", "linear", "exponential"]
_Millis: TypeAlias = Annotated[int, Meta(ge=0, le=9_007_199_254_740_991)]

JITTER: Final = 0.2
RETRY_AFTER_LIMIT_MS: Final = 86_400_000

_MAX_DOUBLINGS: Final = 53


class Backoff(Struct, frozen=True, rename="camel"):
    """A retry schedule, as in the ``retry`` of a webhook; ``kind`` is called ``backoff`` there.

    ``retries`` counts the tries after the first one. ``timeout_ms`` limits one try as a whole.
    """

    kind: Kind = field(default="exponential", name="backoff")
    retries: Annotated[int, Meta(ge=0)] = 3
    initial_delay_ms: _Millis = 1000
    max_delay_ms: _Millis = 30_000
    timeout_ms: Annotated[int, Meta(ge=1)] = 5000

    def may_retry(self, failed_tries: int) -> bool:
        """Tell whether another try follows after this many failed ones."""
        return failed_tries <= self.retries

    def delay_ms(self, attempt: int, *, jitter: float) -> int:
        """Return the wait in ms before retry number ``attempt`` (1 is the first retry).

        fixed: always ``initial_delay_ms``; linear: that times ``attempt``; exponential: doubled for
        each retry; none above ``max_delay_ms``. ``jitter`` in [0, 1), drawn by the caller, takes up
        to 20 % off: the wait is in (80 %, 100 %] of the schedule. Only downwards, so that the many
        who wait for the maximum are spread too. Without jitter (0) waits never shrink from one
        retry to the next. Raises ValueError for an ``attempt`` below 1 or ``jitter`` out of range.
        """
        if attempt < 1 or not 0 <= jitter < 1:
            raise ValueError("attempt counts from 1, and jitter is in [0, 1)")
        match self.kind:
            case "fixed":
                planned = self.initial_delay_ms
            case "linear":
                planned = self.initial_delay_ms * attempt
            case "exponential":
                planned = self.initial_delay_ms << min(attempt - 1, _MAX_DOUBLINGS)
        planned = min(planned, self.max_delay_ms)
        return planned - int(planned * JITTER * jitter)


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = f"(?P<month>{'|'.join(_MONTHS)})"
_DAY_NAME: Final = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY_NAME: Final = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_TIME: Final = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# RFC 9110, 5.6.7: IMF-fixdate, and the two obsolete forms that a recipient must accept.
_HTTP_DATES: Final = tuple(
    re.compile(form)
    for form in (
        f"{_DAY_NAME}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
        f"{_LONG_DAY_NAME}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        f"{_DAY_NAME} {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_TIME} (?P<year>[0-9]{{4}})",
    )
)
_DELTA_SECONDS: Final = re.compile("[0-9]+")


def retry_after_ms(value: str, now_s: float, *, limit_ms: int = RETRY_AFTER_LIMIT_MS) -> int | None:
    """Return the wait in ms that a ``Retry-After`` header asks for, at most ``limit_ms``.

    ``value`` is a number of seconds or an HTTP-date (RFC 9110, 10.2.3); a date is read against
    ``now_s`` (Unix seconds), and one that has passed is 0. ``None`` when it is neither.
    """
    value = value.strip(" \t")
    if _DELTA_SECONDS.fullmatch(value):
        digits = value.lstrip("0") or "0"
        # int() refuses thousands of digits, and a header may hold them.
        return limit_ms if len(digits) > 15 else min(int(digits) * 1000, limit_ms)
    at_s = _http_date_s(value, now_s)
    if at_s is None:
        return None
    return min(max(0, round((at_s - now_s) * 1000)), limit_ms)


def _http_date_s(value: str, now_s: float) -> float | None:
    for form in _HTTP_DATES:
        if found := form.fullmatch(value):
            break
    else:
        return None
    year = int(found["year"])
    if len(found["year"]) == 2:
        # RFC 9110, 5.6.7: what seems more than 50 years ahead is the last year with these digits.
        earliest = datetime.fromtimestamp(now_s, UTC).year - 49
        year = earliest + (year - earliest) % 100
    try:
        return datetime(
            year,
            _MONTHS.index(found["month"]) + 1,
            int(found["day"]),
            int(found["hour"]),
            int(found["minute"]),
            min(int(found["second"]), 59),  # 60 is a leap second, which Unix time has not
            tzinfo=UTC,
        ).timestamp()
    except ValueError:
        return None
