"""Webhook signatures: published vectors, an independent library, rotation, and tampering."""

from __future__ import annotations

import base64
import hmac
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from taskcast_trio.core.signature import (
    InvalidSignature,
    secret_key,
    standard_headers,
    taskcast_signature,
    verify_standard,
    verify_taskcast,
)

# The vector in the tests of every Standard Webhooks library.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP_S = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
OLD_SECRET = "whsec_" + base64.b64encode(b"a key of the time before").decode()


def signed(*secrets: str, timestamp_s: int = TIMESTAMP_S) -> dict[str, str]:
    return standard_headers(
        secrets or [SECRET], message_id=MESSAGE_ID, timestamp_s=timestamp_s, body=BODY
    )


def test_the_published_vector_comes_out() -> None:
    assert signed() == {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": str(TIMESTAMP_S),
        "webhook-signature": SIGNATURE,
    }
    verify_standard([SECRET], signed(), BODY, now_s=TIMESTAMP_S)


def test_the_vector_of_rfc_4231_comes_out() -> None:
    """RFC 4231, 4.3: the body under the text of the secret."""
    expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    body = b"what do ya want for nothing?"
    assert taskcast_signature("Jefe", body) == expected
    verify_taskcast(["other", "Jefe"], body, expected)


def test_a_receiver_with_the_standard_library_accepts_a_delivery_during_a_rotation() -> None:
    headers = standard_headers(
        [SECRET, OLD_SECRET], message_id=MESSAGE_ID, timestamp_s=int(time.time()), body=BODY
    )
    for secret in (SECRET, OLD_SECRET):
        assert Webhook(secret).verify(BODY, headers) == {"test": 2432232314}


@given(
    key=st.binary(min_size=1, max_size=64),
    message_id=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True),
    timestamp_s=st.integers(0, 4_000_000_000),
    body=st.text(),
)
def test_signatures_equal_those_of_the_standard_library(
    key: bytes, message_id: str, timestamp_s: int, body: str
) -> None:
    """Law: for any key, id, time and body both implementations give one signature."""
    secret = "whsec_" + base64.b64encode(key).decode()
    ours = standard_headers(
        [secret], message_id=message_id, timestamp_s=timestamp_s, body=body.encode()
    )
    theirs = Webhook(secret).sign(message_id, datetime.fromtimestamp(timestamp_s, UTC), body)
    assert ours["webhook-signature"] == theirs


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        ("whsec_AAEC/w==", b"\x00\x01\x02\xff"),
        ("whsec_AAEC/w", b"\x00\x01\x02\xff"),
        ("plain", b"plain"),
        ("AAEC/w==", b"AAEC/w=="),
        ("pâte", "pâte".encode()),
    ],
)
def test_a_secret_is_base64_only_behind_its_prefix(secret: str, key: bytes) -> None:
    assert secret_key(secret) == key


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_==", "whsec_SeCrEt!", "whsec_a", "whsec_é", "SeCrEt\ud800"]
)
def test_a_secret_that_is_no_key_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="webhook secret") as caught:
        standard_headers([secret], message_id="m", timestamp_s=0, body=b"")
    assert "SeCrEt" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_taskcast_signature_is_keyed_by_the_text_of_the_secret() -> None:
    expected = hmac.new(b"whsec_AAEC/w==", b"x", "sha256").hexdigest()
    assert taskcast_signature("whsec_AAEC/w==", b"x") == f"sha256={expected}"
    with pytest.raises(InvalidSignature):
        verify_taskcast(["AAEC/w=="], b"x", taskcast_signature("whsec_AAEC/w==", b"x"))
    with pytest.raises(ValueError, match="empty"):
        taskcast_signature("", b"x")


def test_two_secrets_give_two_signatures_and_either_is_enough() -> None:
    headers = signed(SECRET, OLD_SECRET)
    first, second = headers["webhook-signature"].split(" ")
    assert first == SIGNATURE
    assert second == signed(OLD_SECRET)["webhook-signature"]
    verify_standard([SECRET], headers, BODY, now_s=TIMESTAMP_S)
    verify_standard([OLD_SECRET], headers, BODY, now_s=TIMESTAMP_S)
    verify_standard(["unrelated", OLD_SECRET], signed(OLD_SECRET), BODY, now_s=TIMESTAMP_S)
    with pytest.raises(InvalidSignature):
        verify_standard(["unrelated"], headers, BODY, now_s=TIMESTAMP_S)
    with pytest.raises(InvalidSignature):
        verify_standard([], headers, BODY, now_s=TIMESTAMP_S)


def test_header_names_come_in_any_case_and_other_versions_are_passed_over() -> None:
    headers = {
        "Webhook-Id": MESSAGE_ID,
        "WEBHOOK-TIMESTAMP": str(TIMESTAMP_S),
        "Webhook-Signature": f"v1a,xyz {SIGNATURE} v2,abc",
    }
    verify_standard([SECRET], headers, BODY, now_s=TIMESTAMP_S)


@pytest.mark.parametrize(("off_s", "accepted"), [(0, 1), (300, 1), (-300, 1), (301, 0), (-301, 0)])
def test_a_delivery_is_refused_when_it_is_older_or_newer_than_the_tolerance(
    off_s: int, accepted: bool
) -> None:
    now_s = TIMESTAMP_S + off_s
    if accepted:
        verify_standard([SECRET], signed(), BODY, now_s=now_s)
    else:
        with pytest.raises(InvalidSignature, match="too old or too new"):
            verify_standard([SECRET], signed(), BODY, now_s=now_s)
    verify_standard([SECRET], signed(), BODY, now_s=now_s, tolerance_s=301)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", None),
        ("webhook-id", ""),
        ("webhook-id", "msg.1"),
        ("webhook-id", "é"),
        ("webhook-timestamp", None),
        ("webhook-timestamp", ""),
        ("webhook-timestamp", f"{TIMESTAMP_S}.0"),
        ("webhook-timestamp", f"+{TIMESTAMP_S}"),
        ("webhook-timestamp", f" {TIMESTAMP_S}"),
        ("webhook-timestamp", "١٦١٤٢٦٥٣٣٠"),
        ("webhook-timestamp", "9" * 5000),
        ("webhook-signature", None),
        ("webhook-signature", ""),
        ("webhook-signature", "v1"),
        ("webhook-signature", "v1,"),
        ("webhook-signature", SIGNATURE.removeprefix("v1,")),
        ("webhook-signature", SIGNATURE.replace("v1", "v2")),
        ("webhook-signature", SIGNATURE.replace("1OE=", "1OF=")),
        ("webhook-signature", "v1,é\ud800"),
    ],
)
def test_missing_and_malformed_headers_are_refused_and_never_crash(
    name: str, value: str | None
) -> None:
    """The changed 1OF= decodes to the same bytes as 1OE=, and is refused all the same."""
    headers = {k: v for k, v in signed().items() if k != name}
    if value is not None:
        headers[name] = value
    with pytest.raises(InvalidSignature) as caught:
        verify_standard([SECRET], headers, BODY, now_s=TIMESTAMP_S)
    assert caught.value.status == 401


@pytest.mark.parametrize("signature", [None, "", "sha256=", "é", "sha1=00", "\ud800"])
def test_a_missing_or_malformed_taskcast_signature_is_refused(signature: str | None) -> None:
    with pytest.raises(InvalidSignature):
        verify_taskcast(["s"], BODY, signature)


@pytest.mark.parametrize("message_id", ["", "a.b", "a b", "a\r\nX: 1", "é", "a\x00"])
def test_an_id_that_could_forge_text_or_headers_is_never_signed(message_id: str) -> None:
    with pytest.raises(ValueError, match="webhook id"):
        standard_headers([SECRET], message_id=message_id, timestamp_s=0, body=b"")


def test_no_signature_is_made_without_a_secret_or_for_a_time_before_1970() -> None:
    with pytest.raises(ValueError, match="needs a secret"):
        standard_headers([], message_id="m", timestamp_s=0, body=b"")
    with pytest.raises(ValueError, match="Unix seconds"):
        standard_headers([SECRET], message_id="m", timestamp_s=-1, body=b"")


@given(body=st.binary(min_size=1), data=st.data())
def test_every_flipped_byte_of_the_body_or_a_header_is_noticed(
    body: bytes, data: st.DataObject
) -> None:
    """Law: what was signed verifies, and no change of one byte of it does."""
    headers = standard_headers([SECRET], message_id="m1", timestamp_s=TIMESTAMP_S, body=body)
    plain = taskcast_signature("s", body)
    verify_standard([SECRET], headers, body, now_s=TIMESTAMP_S)
    verify_taskcast(["s"], body, plain)

    def flipped(of: bytes) -> bytes:
        at = data.draw(st.integers(0, len(of) - 1))
        mask = data.draw(st.integers(1, 255))
        return of[:at] + bytes([of[at] ^ mask]) + of[at + 1 :]

    with pytest.raises(InvalidSignature):
        verify_standard([SECRET], headers, flipped(body), now_s=TIMESTAMP_S)
    with pytest.raises(InvalidSignature):
        verify_taskcast(["s"], flipped(body), plain)
    with pytest.raises(InvalidSignature):
        verify_taskcast(["s"], body, flipped(plain.encode()).decode("latin-1"))
    name = data.draw(st.sampled_from(sorted(headers)))
    changed = {**headers, name: flipped(headers[name].encode()).decode("latin-1")}
    with pytest.raises(InvalidSignature):
        verify_standard([SECRET], changed, body, now_s=TIMESTAMP_S, tolerance_s=float("inf"))
