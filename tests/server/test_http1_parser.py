"""What is a request, and where one ends, is decided once, and never by how the bytes were cut."""

from __future__ import annotations

import pytest

from taskcast_trio.server.http1_parser import MAX_HEAD_BYTES, Request, RequestParser

CHUNKED = b"Transfer-Encoding: chunked"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


def parsed(*pieces: bytes) -> RequestParser:
    parser = RequestParser()
    for piece in pieces:
        parser.feed(piece)
    return parser


def body_of(request: Request) -> bytes:
    return b"".join(request.body)


def post(*fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    lines = [b"POST /first HTTP/" + version, b"Host: x", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


# Accepted

BODIES = {
    "none": (post(), b""),
    "length": (post(b"Content-Length: 3", body=b"abc"), b"abc"),
    "length-0": (post(b"Content-Length: 0"), b""),
    "length-leading-zero": (post(b"Content-Length: 03", body=b"abc"), b"abc"),
    "length-padded": (post(b"Content-Length: \t 3 \t", body=b"abc"), b"abc"),
    "chunked": (post(CHUNKED, body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), b"abcde"),
    "chunked-any-case": (post(b"tRANSFER-eNCODING: cHUNKED", body=b"1\r\na\r\n0\r\n\r\n"), b"a"),
    "chunked-padded": (post(CHUNKED + b" ", body=b"1\r\na\r\n0\r\n\r\n"), b"a"),
    "chunk-size-upper-case": (post(CHUNKED, body=b"A\r\n0123456789\r\n0\r\n\r\n"), b"0123456789"),
    "chunk-size-leading-zeros": (post(CHUNKED, body=b"0003\r\nabc\r\n000\r\n\r\n"), b"abc"),
    "chunk-extension": (post(CHUNKED, body=b'3;a=b;c="d"\r\nabc\r\n0;e\r\n\r\n'), b"abc"),
    "trailer": (post(CHUNKED, body=b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"), b"abc"),
    "get-with-body": (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "empty-lines-before": (b"\r\n\r\n" + post(b"Content-Length: 1", body=b"a"), b"a"),
}


@pytest.mark.parametrize(("sent", "body"), BODIES.values(), ids=BODIES.keys())
def test_a_body_ends_where_its_framing_says_and_the_next_request_begins(
    sent: bytes, body: bytes
) -> None:
    first, second = parsed(sent + NEXT).requests
    assert first.complete
    assert body_of(first) == body
    assert second.target == b"/next"


def test_a_head_is_handed_on_as_it_came_with_names_in_lower_case() -> None:
    sent = (
        b"PATCH /a%20b?c=%2F HTTP/1.1\r\nHOST: x\r\nX-One:1\r\nX-Empty:\r\n"
        b"X-Padded: \t a b \t \r\nX-Bytes: \xe9\r\nX-One: 2\r\n\r\n"
    )
    (request,) = parsed(sent).requests
    assert (request.method, request.target, request.version) == ("PATCH", b"/a%20b?c=%2F", "1.1")
    assert request.headers == [
        (b"host", b"x"),
        (b"x-one", b"1"),
        (b"x-empty", b""),
        (b"x-padded", b"a b"),
        (b"x-bytes", b"\xe9"),
        (b"x-one", b"2"),
    ]


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"close", False),
        (b"1.1", b"Close", False),
        (b"1.1", b"keep-alive", True),
        (b"1.1", b"foo, close", False),
        (b"1.0", b"", False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"close", False),
    ],
)
def test_what_keeps_a_connection_open(version: bytes, connection: bytes, keep_alive: bool) -> None:
    fields = [b"Connection: " + connection] if connection else []
    (request,) = parsed(post(*fields, version=version)).requests
    assert request.keep_alive is keep_alive


@pytest.mark.parametrize(
    ("version", "value", "expects"),
    [
        (b"1.1", b"100-continue", True),
        (b"1.1", b"100-Continue ", True),
        (b"1.1", b"tea", False),
        (b"1.0", b"100-continue", False),
    ],
)
def test_only_http11_expects_100_continue(version: bytes, value: bytes, expects: bool) -> None:
    """RFC 9110, section 10.1.1: in a request of HTTP/1.0 it is ignored."""
    sent = post(b"Expect: " + value, b"Content-Length: 3", version=version)
    assert parsed(sent).requests[0].expects_continue is expects


def test_a_trailer_is_never_a_header() -> None:
    body = b"1\r\na\r\n0\r\nHost: evil\r\nAuthorization: evil\r\nExpect: 100-continue\r\n\r\n"
    (request,) = parsed(post(CHUNKED, body=body)).requests
    assert [name for name, _ in request.headers] == [b"host", b"transfer-encoding"]
    assert not request.expects_continue


# Upgrades

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADES = {
    "h2c": post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"),
    "unasked": post(b"Upgrade: h2c"),
    "connect": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
}
HANDSHAKE = b"GET /ws?a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"


def with_field(head: bytes, field: bytes) -> bytes:
    return head.removesuffix(b"\r\n") + field + b"\r\n\r\n"


@pytest.mark.parametrize("head", UPGRADES.values(), ids=UPGRADES.keys())
@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_of_an_upgrade_is_a_body_and_no_smuggled_request(
    head: bytes, chunked: bool
) -> None:
    """RFC 9110, section 7.8: who ignores an upgrade reads the request as any other."""
    if chunked:
        head = with_field(head, CHUNKED)
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    else:
        head = with_field(head, b"Content-Length: %d" % len(SMUGGLED))
        body = SMUGGLED
    first, second = parsed(head + body + NEXT).requests
    assert first.complete
    assert body_of(first) == SMUGGLED
    assert second.target == b"/next"


@pytest.mark.parametrize("head", UPGRADES.values(), ids=UPGRADES.keys())
def test_an_upgrade_without_a_body_is_complete(head: bytes) -> None:
    for sent in (head, with_field(head, b"Content-Length: 0")):
        first, second = parsed(sent, NEXT).requests
        assert first.complete
        assert body_of(first) == b""
        assert second.target == b"/next"


def test_an_upgrade_is_named_only_where_the_connection_field_names_it() -> None:
    assert parsed(UPGRADES["h2c"]).requests[0].upgrade == b"h2c"
    assert parsed(UPGRADES["unasked"]).requests[0].upgrade == b""


@pytest.mark.parametrize("cut", range(0, len(HANDSHAKE) + 8, 7))
def test_what_follows_a_websocket_handshake_is_kept_for_its_own_parser(cut: int) -> None:
    sent = NEXT + HANDSHAKE + b"\x81\x00" + NEXT
    at = len(NEXT) + cut
    parser = parsed(sent[:at], sent[at:])
    before, upgrade = parser.requests
    assert before.target == b"/next"
    assert upgrade.upgrade == b"websocket"
    assert parser.behind == b"\x81\x00" + NEXT
    (again,) = parsed(upgrade.head()).requests
    assert (again.method, again.target, again.version) == ("GET", b"/ws?a", "1.1")
    assert again.headers == upgrade.headers


def test_any_number_of_upgrades_may_come_at_once() -> None:
    parser = parsed(UPGRADES["connect"] * 2000)
    assert len(parser.requests) == 2000
    assert parser.error is None


# Refused

HEADS = {
    "length-and-chunked": post(b"Content-Length: 3", CHUNKED),
    "chunked-and-length": post(CHUNKED, b"Content-Length: 3"),
    "length-twice-same": post(b"Content-Length: 3", b"Content-Length: 3"),
    "length-twice": post(b"Content-Length: 3", b"Content-Length: 4"),
    "length-list": post(b"Content-Length: 3, 3"),
    "length-plus": post(b"Content-Length: +3"),
    "length-minus": post(b"Content-Length: -3"),
    "length-hex": post(b"Content-Length: 0x3"),
    "length-empty": post(b"Content-Length:"),
    "length-space": post(b"Content-Length: 3 3"),
    "length-exponent": post(b"Content-Length: 1e1"),
    "length-not-ascii": post(b"Content-Length: \xb2"),
    "length-nul": post(b"Content-Length: 3\x00"),
    "length-overflow": post(b"Content-Length: 18446744073709551616"),
    "length-folded": post(b"Content-Length: 3\r\n 4"),
    "coding-empty": post(b"Transfer-Encoding:"),
    "coding-twice": post(CHUNKED, CHUNKED),
    "coding-list": post(b"Transfer-Encoding: chunked, chunked"),
    "coding-not-last": post(b"Transfer-Encoding: chunked, gzip"),
    "coding-vt": post(b"Transfer-Encoding: \x0bchunked"),
    "coding-tab": post(b"Transfer-Encoding: chunked\t"),
    "coding-of-http10": post(CHUNKED, b"Connection: keep-alive", body=b"0\r\n\r\n", version=b"1.0"),
    "space-before-colon": post(b"Transfer-Encoding : chunked"),
    "tab-before-colon": post(b"X\t: a"),
    "fold-space": post(b"X: a\r\n b"),
    "fold-tab": post(b"X: a\r\n\tb"),
    "fold-first": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "bare-cr-in-value": post(b"X: a\rb"),
    "bare-lf-in-value": post(b"X: a\nY: b"),
    "two-crs": post(b"X: a\r\r\nY: b"),
    "nul-in-value": post(b"X: a\x00b"),
    "control-in-value": post(b"X: a\x01b"),
    "del-in-value": post(b"X: a\x7fb"),
    "name-empty": post(b": a"),
    "name-space": post(b"X Y: a"),
    "name-not-ascii": post(b"X\xe9: a"),
    "name-delimiter": post(b"X{}: a"),
    "no-colon": post(b"X"),
    "bare-lf-everywhere": b"GET / HTTP/1.1\nHost: x\n\n",
    "bare-lf-after-line": b"GET / HTTP/1.1\nHost: x\r\n\r\n",
    "bare-lf-after-field": b"GET / HTTP/1.1\r\nHost: x\n\r\n",
    "bare-lf-at-end": b"GET / HTTP/1.1\r\nHost: x\r\n\n",
    "bare-cr-everywhere": b"GET / HTTP/1.1\rHost: x\r\r",
    "tab-in-line": b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "space-after-line": b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
    "method-lower-case": b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
    "method-unknown": b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    "protocol-lower-case": b"GET / http/1.1\r\nHost: x\r\n\r\n",
    "version-1.2": b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
    "version-1": b"GET / HTTP/1\r\nHost: x\r\n\r\n",
    "target-relative": b"GET next HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-not-ascii": b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-nul": b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "host-missing": b"GET / HTTP/1.1\r\n\r\n",
    "host-twice": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "host-twice-same": b"GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
    "host-twice-http10": b"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}
STATUSES = {
    "coding-identity": (501, post(b"Transfer-Encoding: identity")),
    "coding-gzip": (501, post(b"Transfer-Encoding: gzip, chunked")),
    "coding-unknown": (501, post(b"Transfer-Encoding: xchunked")),
    "coding-parameter": (501, post(b"Transfer-Encoding: chunked;q=1")),
    "coding-twice-other": (501, post(b"Transfer-Encoding: identity", CHUNKED)),
    "version-0.9": (505, b"GET /\r\n\r\n"),
    "version-2.0": (505, b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
    "http2-preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
}
REFUSED = {name: (400, sent) for name, sent in HEADS.items()} | STATUSES


@pytest.mark.parametrize(("status", "sent"), REFUSED.values(), ids=REFUSED.keys())
def test_an_ambiguous_head_is_refused_and_nothing_behind_it_is_read(
    status: int, sent: bytes
) -> None:
    parser = parsed(sent + NEXT)
    assert parser.error is not None
    assert parser.error.status == status
    assert not any(request.complete for request in parser.requests)
    parser.feed(NEXT)
    assert not any(request.complete for request in parser.requests)


CHUNKS = {
    "size-missing": b"\r\nabc\r\n",
    "size-not-hex": b"zz\r\nabc\r\n",
    "size-0x": b"0x3\r\nabc\r\n",
    "size-plus": b"+3\r\nabc\r\n",
    "size-minus": b"-3\r\nabc\r\n",
    "size-space-before": b" 3\r\nabc\r\n",
    "size-space-after": b"3 \r\nabc\r\n",
    "size-overflow": b"10000000000000003\r\nabc\r\n",
    "size-bare-lf": b"3\nabc\r\n",
    "size-bare-cr": b"3\rXabc\r\n",
    "size-two-crs": b"3\r\r\nabc\r\n",
    "extension-bare-lf": b"3;a\nabc\r\n",
    "extension-bare-cr": b"3;a\rb\r\nabc\r\n",
    "extension-nul": b"3;\x00\r\nabc\r\n",
    "extension-quoted-crlf": b'3;a="\r\n"\r\nabc\r\n',
    "data-longer": b"3\r\nabcd\r\n",
    "data-without-crlf": b"3\r\nabc0\r\n",
    "data-bare-lf": b"3\r\nabc\n",
    "trailer-length": b"0\r\nContent-Length: 5\r\n",
    "trailer-coding": b"0\r\nTransfer-Encoding: chunked\r\n",
    "trailer-folded": b"0\r\nX: a\r\n b\r\n",
    "trailer-no-colon": b"0\r\nX\r\n",
    "end-bare-lf": b"0\r\n\n",
}


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS.keys())
def test_a_bad_chunk_never_completes_its_request(body: bytes) -> None:
    parser = parsed(post(CHUNKED, body=body + b"0\r\n\r\n" + NEXT))
    (request,) = parser.requests
    assert not request.complete
    assert parser.error is not None
    assert parser.error.status == 400


def test_requests_before_an_error_are_kept() -> None:
    parser = parsed(NEXT + post(b"Content-Length: 1", body=b"a") + b"nonsense\r\n\r\n")
    assert [request.target for request in parser.requests] == [b"/next", b"/first"]
    assert all(request.complete for request in parser.requests)
    assert parser.error is not None


def test_nothing_is_read_behind_connection_close() -> None:
    parser = parsed(post(b"Connection: close") + NEXT)
    assert [request.target for request in parser.requests] == [b"/first"]


# Limits


@pytest.mark.parametrize("pieces", [1, 7, 64])
@pytest.mark.parametrize("fields", [1, 50])
def test_the_limit_of_a_head_does_not_depend_on_its_pieces(pieces: int, fields: int) -> None:
    """H11: a limit that holds only for what comes slowly is none."""

    def statuses(size: int) -> set[int]:
        value = b"x" * (size // fields)
        sent = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Y: %b\r\n" % value * fields + b"\r\n"
        step = len(sent) // pieces + 1
        parser = parsed(*(sent[at : at + step] for at in range(0, len(sent), step)))
        return {parser.error.status if parser.error is not None else len(parser.requests)}

    assert statuses(MAX_HEAD_BYTES - 2048) == {1}
    assert statuses(MAX_HEAD_BYTES + 2048) == {431}


@pytest.mark.parametrize("limit", [1024, MAX_HEAD_BYTES, 200_000])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("pieces", [1, 5])
def test_the_limit_of_a_head_is_as_given_and_covers_the_target(
    limit: int, version: bytes, pieces: int
) -> None:
    def outcome(target: bytes, value: bytes) -> int:
        parser = RequestParser(limit)
        sent = b"GET /%b HTTP/%b\r\nHost: %b\r\n\r\n" % (target, version, value)
        step = len(sent) // pieces + 1
        for at in range(0, len(sent), step):
            parser.feed(sent[at : at + step])
        return parser.error.status if parser.error is not None else len(parser.requests)

    assert outcome(b"", b"x" * (limit - 200)) == 1
    assert outcome(b"x" * (limit - 200), b"") == 1
    assert outcome(b"", b"x" * limit) == 431
    assert outcome(b"x" * limit, b"") == 431
    assert outcome(b"x" * (limit // 2), b"x" * (limit // 2)) == 431


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
        b"GET / HTTP/1.1\r\nHost: x\r\nX",
        b"\r\n",
        post(CHUNKED, body=b"1;a"),
        post(CHUNKED, body=b"1\r\na\r\n0\r\nX: "),
        post(CHUNKED, body=b"1\r\na\r\n0\r\nX"),
    ],
    ids=["target", "value", "name", "empty-lines", "extension", "trailer-value", "trailer-name"],
)
def test_nothing_between_bodies_grows_without_bound(begun: bytes) -> None:
    parser = parsed(begun)
    more = b"\r\n" * 512 if begun == b"\r\n" else b"x" * 1024
    fed = 0
    while parser.error is None:
        parser.feed(more)
        fed += len(more)
        assert fed <= MAX_HEAD_BYTES + len(more)
    assert parser.error.status == 431


def test_many_trailers_are_as_large_as_one() -> None:
    parser = parsed(post(CHUNKED, body=b"0\r\n" + b"X: y\r\n" * 20_000))
    assert parser.error is not None
    assert parser.error.status == 431


def test_a_body_in_tiny_chunks_has_no_limit_here() -> None:
    parser = parsed(post(CHUNKED))
    for _ in range(100):
        parser.feed(b"1\r\na\r\n" * 1000)
    parser.feed(b"0\r\n\r\n")
    assert parser.error is None
    assert len(body_of(parser.requests[0])) == 100_000


def test_in_head_says_whether_a_request_is_awaited_or_has_begun() -> None:
    parser = RequestParser()
    seen = [parser.in_head]
    for piece in (b"GET", b" / HTTP/1.1\r\n", b"Host: x\r\n\r\n", b"P", NEXT[1:]):
        parser.feed(piece)
        seen.append(parser.in_head)
    assert seen == [False, True, True, False, True, True]


def test_a_parser_may_rest_at_any_time_and_reads_on_as_if_it_had_not() -> None:
    stream = post(b"content-length: 3", body=b"abc") + b"GET /b HTTP/1.1\r\nhost: x\r\n\r\n"
    parser = RequestParser()
    for byte in stream * 2:
        parser.rest()
        parser.feed(bytes([byte]))
    parser.rest()
    assert parser.error is None
    assert [(r.method, body_of(r), r.complete) for r in parser.requests] == [
        ("POST", b"abc", True),
        ("GET", b"", True),
    ] * 2
