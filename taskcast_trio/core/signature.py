"""Signatures of webhook deliveries, made and checked.

Two schemes go out with every delivery. ``X-Taskcast-Signature`` is ``sha256=`` and the hex
HMAC-SHA256 of the body under the secret's text; it carries no time. ``webhook-id``,
``webhook-timestamp`` and ``webhook-signature`` follow the Standard Webhooks specification 1.0 and
also protect against replay. Times are Unix seconds, handed in by the caller. No error holds a
secret, a signature or a body.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Final

from .errors import Unauthorized

TASKCAST_SIGNATURE: Final = "X-Taskcast-Signature"
WEBHOOK_ID: Final = "webhook-id"
WEBHOOK_TIMESTAMP: Final = "webhook-timestamp"
WEBHOOK_SIGNATURE: Final = "webhook-signature"
TOLERANCE_S: Final = 300

_SECRET_PREFIX: Final = "whsec_"
_MESSAGE_ID: Final = re.compile(r"[!-\-/-~]+")  # printable ASCII without blank and dot
_TIMESTAMP: Final = re.compile(r"[0-9]{1,15}")


class InvalidSignature(Unauthorized):
    """A delivery that was not signed with any of the secrets, or not recently."""

    code = "invalid_signature"


def secret_key(secret: str) -> bytes:
    """Return the HMAC key of a Standard Webhooks secret.

    Base64 behind ``whsec_``, else the text's UTF-8 bytes. Raises ValueError when the secret is
    empty or not decodable.
    """
    if not secret.startswith(_SECRET_PREFIX):
        return _text_key(secret)
    encoded = secret.removeprefix(_SECRET_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a webhook secret behind whsec_ must be base64") from None
    if not key:
        raise ValueError("a webhook secret must not be empty")
    return key


def taskcast_signature(secret: str, body: bytes) -> str:
    """Return the value of ``X-Taskcast-Signature``.

    The key is the secret's text, ``whsec_`` and all. During a rotation it is made with the first
    secret, as the header has room for one. Raises ValueError when the secret is empty.
    """
    return "sha256=" + hmac.new(_text_key(secret), body, "sha256").hexdigest()


def verify_taskcast(secrets: Sequence[str], body: bytes, signature: str | None) -> None:
    """Check a received ``X-Taskcast-Signature`` (``None``: missing) against each of ``secrets``.

    Raises :class:`InvalidSignature`, and ValueError when a secret is empty.
    """
    given = (signature or "").encode("utf-8", "replace")
    if not _any_equal([taskcast_signature(secret, body).encode() for secret in secrets], [given]):
        raise InvalidSignature(f"{TASKCAST_SIGNATURE} does not match")


def standard_headers(
    secrets: Sequence[str], *, message_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """Return the three Standard Webhooks headers of one attempt.

    Each secret gives one signature, in order; two of them are a rotation. ``message_id`` stays the
    same over all attempts, ``timestamp_s`` is the time of this attempt. Raises ValueError without
    secrets, for a secret that is no key, a time before 1970, or an id that is empty, not printable
    ASCII or has a dot (the signed text is joined by dots).
    """
    if not secrets:
        raise ValueError("a signature needs a secret")
    timestamp = str(timestamp_s)
    if not _MESSAGE_ID.fullmatch(message_id) or not _TIMESTAMP.fullmatch(timestamp):
        raise ValueError("a webhook id is printable ASCII without dots, its time Unix seconds")
    return {
        WEBHOOK_ID: message_id,
        WEBHOOK_TIMESTAMP: timestamp,
        WEBHOOK_SIGNATURE: " ".join(_v1(s, message_id, timestamp, body) for s in secrets),
    }


def verify_standard(
    secrets: Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now_s: float,
    tolerance_s: float = TOLERANCE_S,
) -> None:
    """Check the Standard Webhooks headers of a received delivery; names of headers in any case.

    One signature by one of ``secrets`` is enough; versions other than ``v1`` are passed over.
    Raises :class:`InvalidSignature` when none is, a header is missing or malformed, or the
    timestamp is further than ``tolerance_s`` seconds from ``now_s``, and ValueError when a secret
    is no key.
    """
    by_name = {name.lower(): value for name, value in headers.items()}
    message_id = by_name.get(WEBHOOK_ID, "")
    timestamp = by_name.get(WEBHOOK_TIMESTAMP, "")
    if not _MESSAGE_ID.fullmatch(message_id):
        raise InvalidSignature(f"{WEBHOOK_ID} is missing or malformed")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise InvalidSignature(f"{WEBHOOK_TIMESTAMP} is missing or malformed")
    # Texts are compared, not what they decode to: base64 has several spellings of one signature.
    given = by_name.get(WEBHOOK_SIGNATURE, "").encode("utf-8", "replace").split(b" ")
    expected = [_v1(secret, message_id, timestamp, body).encode() for secret in secrets]
    if not _any_equal(expected, given):
        raise InvalidSignature(f"{WEBHOOK_SIGNATURE} does not match")
    if abs(now_s - int(timestamp)) > tolerance_s:
        raise InvalidSignature(f"{WEBHOOK_TIMESTAMP} is too old or too new")


def _v1(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret_key(secret), signed, "sha256")).decode()


def _text_key(secret: str) -> bytes:
    if not secret:
        raise ValueError("a webhook secret must not be empty")
    try:
        return secret.encode()
    except UnicodeEncodeError:  # it would carry the secret
        raise ValueError("a webhook secret must be valid Unicode") from None


def _any_equal(expected: Sequence[bytes], given: Sequence[bytes]) -> bool:
    return any([hmac.compare_digest(a, b) for a in expected for b in given])  # noqa: C419
