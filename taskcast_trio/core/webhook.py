"""Webhooks as values: what a definition means, and what each delivery says and is answered.

A definition is one element of a task's ``webhooks``. It is stored as it came, usable or not, so it
is read again by whoever needs it: :func:`read` says why one can't be used, :func:`parse` refuses
it. No error and no ``repr`` holds a URL or a secret.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from ipaddress import AddressValueError, IPv6Address
from typing import Final, Literal, TypeAlias, get_args
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from .backoff import Backoff, Kind
from .entry import Entry
from .errors import BadRequest
from .filter import EventFilter
from .signature import TASKCAST_SIGNATURE, secret_key, standard_headers, taskcast_signature

Outcome: TypeAlias = Literal["delivered", "gone", "failed"]

EVENT: Final = "X-Taskcast-Event"
TIMESTAMP: Final = "X-Taskcast-Timestamp"
DELIVERY: Final = "X-Taskcast-Delivery"

MAX_URL: Final = 8192
MAX_SECRETS: Final = 4
MAX_RETRIES: Final = 100
MAX_DELAY_MS: Final = 86_400_000
MAX_TIMEOUT_MS: Final = 60_000
"""A try holds one of few connections, so none may hold it for long."""
MAX_EVENT_HEADER: Final = 1024
RETRY_AFTER_LIMIT_MS: Final = 3_600_000
"""Of what a receiver may ask for: the events behind wait as long."""

_URL: Final = re.compile(r"(?i:https?)://(?P<authority>[^/?#]*)")
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\[\]@]*\]|[^\[\]@:]*)(?::(?P<port>[0-9]{0,5}))?")
_HOST: Final = re.compile(r"[A-Za-z0-9._\-\u0080-\U0010ffff]+")
_NOT_IN_URLS: Final = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
_CUT: Final = quote("…")


class Webhook(Struct, frozen=True, kw_only=True):
    """A definition that can be used. Without ``secrets`` deliveries are not signed."""

    url: str
    secrets: tuple[str, ...] = ()
    filter: EventFilter = EventFilter()
    wrap: bool = False
    retry: Backoff = Backoff()

    def __repr__(self) -> str:
        return f"<Webhook to {self.host}>"

    @property
    def host(self) -> str:
        """The host of the URL in small letters, all that may be shown of it; IPv6 in brackets."""
        return host_of(self.url)


class Unusable(Struct, frozen=True):
    """Why a definition can't be used, as the sentence of a 400: it names the place."""

    reason: str


class _Retry(Struct, frozen=True, rename="camel"):
    # Numbers as the wire writes them: 5000, 5e3 and 5000.0 are one.
    retries: float | UnsetType = UNSET
    backoff: str | UnsetType = UNSET
    initial_delay_ms: float | UnsetType = UNSET
    max_delay_ms: float | UnsetType = UNSET
    timeout_ms: float | UnsetType = UNSET


class _Definition(Struct, frozen=True, rename="camel"):
    url: str
    secret: str | tuple[str, ...] | UnsetType = UNSET
    filter: EventFilter = EventFilter()
    wrap: bool = False
    retry: _Retry = _Retry()


def read(definition: Raw, default: Backoff, *, place: str = "webhook") -> Webhook | Unusable:
    """Read one definition, or say why it can't be used."""
    try:
        return parse(definition, default, place=place)
    except BadRequest as refusal:
        return Unusable(str(refusal))


def parse(definition: Raw, default: Backoff, *, place: str = "webhook") -> Webhook:
    """Read one definition; what its ``retry`` does not say is as in ``default``.

    ``secret`` is one text or, during a rotation, a list with the newest first. Unknown members are
    passed over.

    Raises:
        BadRequest: it can't be used; the message names the place below ``$.{place}``.
    """
    try:
        found = msgspec.json.decode(definition, type=_Definition)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        raise _refusal(reason, place + path.rstrip("`")) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _refusal("The webhook can't be read", place) from None
    try:
        host_of(found.url)
    except ValueError as error:
        raise _refusal(str(error), f"{place}.url") from None
    return Webhook(
        url=found.url,
        secrets=_secrets(found.secret, f"{place}.secret"),
        filter=found.filter,
        wrap=found.wrap,
        retry=_schedule(found.retry, default, f"{place}.retry"),
    )


def _refusal(reason: str, place: str) -> BadRequest:
    return BadRequest(f"{reason} - at `$.{place}`")


def host_of(url: str) -> str:
    """Return the host of a URL that may be called; else ValueError, which says why not."""
    if len(url) > MAX_URL:
        raise ValueError(f"Expected a URL of at most {MAX_URL} characters")
    if _NOT_IN_URLS.search(url):
        raise ValueError("Expected a URL without blanks, control characters and backslashes")
    if not (found := _URL.match(url)):
        raise ValueError("Expected a URL of http or https")
    if "@" in found["authority"]:
        raise ValueError("Expected a URL without user and password")
    if not (authority := _AUTHORITY.fullmatch(found["authority"])):
        raise ValueError("Expected a URL with a valid host and port")
    host, port = authority["host"], authority["port"]
    if not host:
        raise ValueError("Expected a URL with a host")
    if not (_is_ipv6(host[1:-1]) if host[0] == "[" else _HOST.fullmatch(host)):
        raise ValueError("Expected a URL with a valid host")
    if port and not 0 < int(port) <= 65535:
        raise ValueError("Expected a URL with a port from 1 to 65535")
    return host.lower().rstrip(".")


def _is_ipv6(text: str) -> bool:
    try:
        return IPv6Address(text).scope_id is None
    except AddressValueError:
        return False


def _secrets(given: str | tuple[str, ...] | UnsetType, place: str) -> tuple[str, ...]:
    if given is UNSET:
        return ()
    secrets = (given,) if isinstance(given, str) else given
    if not 0 < len(secrets) <= MAX_SECRETS:
        raise _refusal(f"Expected 1 to {MAX_SECRETS} secrets", place)
    try:
        for secret in secrets:
            secret_key(secret)
    except ValueError as error:
        text = str(error)
        raise _refusal(text[0].upper() + text[1:], place) from None
    return secrets


def _schedule(given: _Retry, default: Backoff, place: str) -> Backoff:
    def number(name: str, value: float | UnsetType, otherwise: int, least: int, most: int) -> int:
        if value is UNSET:
            return otherwise
        if not least <= value <= most or value != value // 1:
            raise _refusal(f"Expected a whole number from {least} to {most}", f"{place}.{name}")
        return int(value)

    kind = default.kind if given.backoff is UNSET else given.backoff
    if kind not in get_args(Kind):
        raise _refusal("Expected fixed, linear or exponential", f"{place}.backoff")
    return Backoff(
        kind=kind,  # type: ignore[arg-type]  # one of Kind
        retries=number("retries", given.retries, default.retries, 0, MAX_RETRIES),
        initial_delay_ms=number(
            "initialDelayMs", given.initial_delay_ms, default.initial_delay_ms, 0, MAX_DELAY_MS
        ),
        max_delay_ms=number(
            "maxDelayMs", given.max_delay_ms, default.max_delay_ms, 0, MAX_DELAY_MS
        ),
        timeout_ms=number("timeoutMs", given.timeout_ms, default.timeout_ms, 1, MAX_TIMEOUT_MS),
    )


def delivery_id(task_id: str, number: int, event_id: str) -> str:
    """The id by which a receiver drops repeats: the same in all tries and after any restart.

    ``number`` is the webhook's place in its task. 32 hexadecimal digits: ids of tasks and events
    may hold anything, headers not.
    """
    return sha256(msgspec.json.encode((task_id, number, event_id))).hexdigest()[:32]


def body_of(webhook: Webhook, entry: Entry, filtered_index: int) -> bytes:
    """What is sent: the stored event, or its envelope with ``wrap``."""
    return entry.envelope(filtered_index) if webhook.wrap else entry.bare()


def headers_for(
    secrets: Sequence[str], *, event_type: str, delivery: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """All headers of one try that are not the transport's; every value is printable ASCII.

    ``timestamp_s`` is the time of this try. Without secrets there is no signature, and so none of
    the Standard Webhooks headers.
    """
    headers = {
        "Content-Type": "application/json",
        EVENT: event_header(event_type),
        TIMESTAMP: str(timestamp_s),
        DELIVERY: delivery,
    }
    if secrets:
        headers[TASKCAST_SIGNATURE] = taskcast_signature(secrets[0], body)
        headers |= standard_headers(
            secrets, message_id=delivery, timestamp_s=timestamp_s, body=body
        )
    return headers


def event_header(type_: str) -> str:
    """An event type as a header: visible ASCII as it is but for ``%``, the rest percent-encoded.

    Decoding gives the type. One beyond 1024 characters would be refused by common servers: it is
    cut and ends in an encoded ``…``; the body has all of it.
    """
    encoded = quote(type_[: MAX_EVENT_HEADER + 1], safe=_VISIBLE)
    if len(encoded) <= MAX_EVENT_HEADER:
        return encoded
    kept, room = [], MAX_EVENT_HEADER - len(_CUT)
    for char in type_:
        piece = quote(char, safe=_VISIBLE)
        if (room := room - len(piece)) < 0:
            break
        kept.append(piece)
    return "".join(kept) + _CUT


def outcome_of(status: int) -> Outcome:
    """What an answer's status means.

    2xx: delivered. 410: gone, nothing is sent any more. All else is a failure that may be tried
    again, also 3xx: redirects are not followed.
    """
    if 200 <= status < 300:
        return "delivered"
    return "gone" if status == 410 else "failed"


def heeds_retry_after(status: int) -> bool:
    """Tell whether an answer with this status may say when to come back."""
    return status in (429, 503)


def next_try_ms(
    retry: Backoff, failed_tries: int, *, jitter: float, retry_after_ms: int | None = None
) -> int | None:
    """Return the wait in ms before the next try after this many failed ones; None: no more.

    ``jitter`` is as in :meth:`Backoff.delay_ms`. What the receiver asked for can only lengthen the
    wait, to an hour at most.
    """
    if not retry.may_retry(failed_tries):
        return None
    planned = retry.delay_ms(failed_tries, jitter=jitter)
    return max(planned, min(retry_after_ms or 0, RETRY_AFTER_LIMIT_MS))
