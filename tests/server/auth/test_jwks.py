"""Keys rotate without a restart, without a flood of fetches, and without a token refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.schema import Jwt
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.core.errors import KeysUnavailable, Unauthorized
from taskcast_trio.server.auth.jwks import FETCH_S, MAX_BYTES, RETRY_S, UNKNOWN_KID_S
from taskcast_trio.server.auth.tokens import JwtVerifier

from .issuer import ASYMMETRIC, HMAC, NOW_S, Issuer, issuer, key_set

CACHE_S = 300.0
URL = "https://user:hunter2@issuer.test/keys?key=hunter3"
CLAIMS = {"sub": "alice"}
ONE, TWO = issuer("ES256"), issuer("ES256", 1)


class Source(httpx.AsyncBaseTransport):
    """Answers with ``keys`` and ``status``; counts; waits for ``gate`` and fails if told so."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.text = key_set(*keys)
        self.status = 200
        self.headers: dict[str, str] = {}
        self.error: Exception | None = None
        self.gate = trio.Event()
        self.gate.set()
        self.fetches = 0

    def publish(self, *keys: dict[str, Any]) -> None:
        self.text = key_set(*keys)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.fetches += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        stream = httpx.ByteStream(self.text)
        return httpx.Response(self.status, headers=self.headers, stream=stream)


def fetching(source: Source | None, algorithm: str = "ES256", url: str = URL) -> JwtVerifier:
    jwt = Jwt(algorithm=algorithm, jwks_url=SecretUrl(url), jwks_cache_seconds=CACHE_S)  # type: ignore[arg-type]
    return JwtVerifier(jwt, lambda: NOW_S * 1000, transport=source)


def reading(path: Path, algorithm: str = "ES256") -> JwtVerifier:
    jwt = Jwt(algorithm=algorithm, jwks_file=str(path), jwks_cache_seconds=CACHE_S)  # type: ignore[arg-type]
    return JwtVerifier(jwt, lambda: NOW_S * 1000)


async def refused(verifier: JwtVerifier, token: str) -> bool:
    try:
        await verifier.verify(token)
    except Unauthorized:
        return True
    return False


# Which key


@pytest.mark.parametrize("algorithm", [*ASYMMETRIC, "Ed448"])
async def test_a_token_of_each_algorithm_is_checked_with_the_key_that_it_names(
    algorithm: str, tmp_path: Path
) -> None:
    a, b = issuer(algorithm), issuer(algorithm, 1)
    (tmp_path / "set").write_bytes(key_set(a.jwk("a"), b.jwk("b")))
    verifier = reading(tmp_path / "set", a.algorithm)
    for token in (a.token(CLAIMS, kid="a"), b.token(CLAIMS, kid="b")):
        assert (await verifier.verify(token)).sub == "alice"
    for token in (
        a.token(CLAIMS, kid="b"),
        a.token(CLAIMS, kid="../a"),
        a.token(CLAIMS, kid=""),
        a.token(CLAIMS, kid="http://127.0.0.1:9/keys"),
        a.token(CLAIMS, kid=1),
        a.token(CLAIMS),
    ):
        assert await refused(verifier, token)
    assert not verifier.signs


@pytest.mark.parametrize("kid", ["a", None])
async def test_without_a_kid_the_only_key_that_fits_is_taken(
    kid: str | None, tmp_path: Path
) -> None:
    others = [issuer(name).jwk(name) for name in ("RS256", "ES384", "EdDSA")]
    (tmp_path / "set").write_bytes(key_set(*others, ONE.jwk(kid), TWO.jwk("b", use="enc")))
    assert (await reading(tmp_path / "set").verify(ONE.token(CLAIMS))).sub == "alice"


async def test_a_key_without_a_name_serves_no_token_that_names_one(tmp_path: Path) -> None:
    (tmp_path / "set").write_bytes(key_set(ONE.jwk()))
    assert await refused(reading(tmp_path / "set"), ONE.token(CLAIMS, kid="a"))


@pytest.mark.parametrize(
    "members",
    [
        {"use": "enc"},
        {"use": 1},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"alg": "ES384"},
        {"alg": None, "crv": "P-384"},
        {"alg": ["ES256"]},
        {"kty": "RSA"},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": ["EC"]},
        {"x": 5},
        {"x": "AAAA"},
        {"y": ONE.jwk()["x"]},
        ONE.private_jwk(),
        {"d": "AAAA"},
        {"kid": 7},
        {"kid": ["a"]},
    ],
    ids=lambda members: "-".join(members),
)
async def test_a_key_that_is_not_for_checking_this_algorithm_is_passed_over(
    members: dict[str, Any], tmp_path: Path
) -> None:
    unfit = {**ONE.jwk("a"), **members}
    (tmp_path / "set").write_bytes(key_set(unfit, TWO.jwk("b"), {}))
    verifier = reading(tmp_path / "set")
    assert await refused(verifier, ONE.token(CLAIMS, kid="a"))
    assert not await refused(verifier, TWO.token(CLAIMS, kid="b"))
    (tmp_path / "set").write_bytes(key_set(unfit))
    with pytest.raises(ConfigError, match=r"^auth\.jwt\.jwksFile: holds no public key for ES256$"):
        reading(tmp_path / "set")


@pytest.mark.parametrize("members", [{"use": "sig"}, {"key_ops": ["verify"]}, {"alg": "ES256"}])
async def test_a_key_that_says_it_is_for_checking_fits(
    members: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "set").write_bytes(key_set(ONE.jwk("a", **members)))
    assert not await refused(reading(tmp_path / "set"), ONE.token(CLAIMS, kid="a"))


async def test_a_weak_rsa_key_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "set").write_bytes(key_set(issuer("RS256-1024").jwk("a")))
    with pytest.raises(ConfigError, match="holds no public key for RS256"):
        reading(tmp_path / "set", "RS256")


async def test_a_symmetric_or_other_token_is_refused_before_any_key_is_looked_for() -> None:
    source = Source(ONE.jwk("a"))
    verifier = fetching(source)
    await verifier.verify(ONE.token(CLAIMS, kid="a"))
    for algorithm in (*HMAC, "RS256", "EdDSA"):
        assert await refused(verifier, issuer(algorithm).token(CLAIMS, kid="b"))
    assert await refused(verifier, Issuer("HS256", ONE.pem.encode()).token(CLAIMS, kid="a"))
    assert source.fetches == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", 'is not a key set: it has no list "keys"'),
        (b"null", 'is not a key set: it has no list "keys"'),
        (b'{"keys": {}}', 'is not a key set: it has no list "keys"'),
        (b'{"keys": []}', "holds no public key for ES256"),
        (b'{"keys": [1, null, [], "a"]}', "holds no public key for ES256"),
        (json.dumps(ONE.jwk("a")).encode(), 'is not a key set: it has no list "keys"'),
        (b" " * (MAX_BYTES + 1), f"is larger than {MAX_BYTES} bytes"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_a_file_that_is_no_key_set_is_refused_in_one_line_at_the_start(
    text: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "set").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        reading(tmp_path / "set")
    assert str(caught.value) == f"auth.jwt.jwksFile: {reason}"


# When it is read


async def test_a_url_is_fetched_when_the_first_token_comes_and_kept(
    mock_clock: trio.testing.MockClock,
) -> None:
    source = Source(ONE.jwk("a"))
    verifier = fetching(source)
    assert source.fetches == 0
    for _ in range(3):
        await verifier.verify(ONE.token(CLAIMS, kid="a"))
        mock_clock.jump(CACHE_S / 3 - 1)
    assert source.fetches == 1
    mock_clock.jump(10)
    await verifier.verify(ONE.token(CLAIMS, kid="a"))
    assert source.fetches == 2


async def test_keys_rotate_with_overlap_and_no_good_token_is_ever_refused(
    mock_clock: trio.testing.MockClock,
) -> None:
    old, new = ONE.token(CLAIMS, kid="old"), TWO.token(CLAIMS, kid="new")
    source = Source(ONE.jwk("old"))
    verifier = fetching(source)
    assert not await refused(verifier, old)
    source.publish(ONE.jwk("old"), TWO.jwk("new"))
    assert not await refused(verifier, new)  # the unknown name makes it look again
    assert not await refused(verifier, old)
    source.publish(TWO.jwk("new"))
    assert not await refused(verifier, old)
    mock_clock.jump(CACHE_S)
    assert await refused(verifier, old)
    assert not await refused(verifier, new)


async def test_a_token_that_was_good_is_not_remembered_beyond_its_key(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Also when the new key has the old one's name, and without a token of the new one."""
    token = ONE.token(CLAIMS, kid="a")
    source = Source(ONE.jwk("a"))
    verifier = fetching(source)
    await verifier.verify(token)
    source.publish(TWO.jwk("a"))
    mock_clock.jump(CACHE_S)
    assert await refused(verifier, token)


async def test_the_same_keys_again_cost_no_second_check_of_a_token(
    mock_clock: trio.testing.MockClock,
) -> None:
    source = Source(ONE.jwk("a"))
    verifier = fetching(source)
    token = ONE.token(CLAIMS, kid="a")
    first = await verifier.verify(token)
    mock_clock.jump(CACHE_S)
    assert await verifier.verify(token) is first
    assert source.fetches == 2


async def test_unknown_names_cause_one_fetch_in_30_seconds(
    mock_clock: trio.testing.MockClock,
) -> None:
    source = Source(ONE.jwk("a"))
    verifier = fetching(source)
    assert await refused(verifier, TWO.token(CLAIMS, kid="x0"))
    assert source.fetches == 1  # this was the newest there is
    for number in range(20):
        assert await refused(verifier, TWO.token(CLAIMS, kid=f"x{number}"))
    assert source.fetches == 2
    mock_clock.jump(UNKNOWN_KID_S - 0.01)
    assert await refused(verifier, TWO.token(CLAIMS, kid="x"))
    assert source.fetches == 2
    mock_clock.jump(0.01)
    assert await refused(verifier, TWO.token(CLAIMS, kid="x"))
    assert source.fetches == 3


async def test_tokens_that_come_together_cause_one_fetch() -> None:
    source = Source(ONE.jwk("a"))
    source.gate = trio.Event()
    verifier = fetching(source)
    good: list[bool] = []

    async def ask(token: str) -> None:
        good.append(not await refused(verifier, token))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, ONE.token({"sub": str(number)}, kid="a"))
        await trio.testing.wait_all_tasks_blocked()
        source.gate.set()
    assert good == [True] * 20
    assert source.fetches == 1
    # and so do those that name a new key, while it is being fetched
    source.publish(ONE.jwk("a"), TWO.jwk("b"))
    source.gate = trio.Event()
    good.clear()
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, TWO.token({"sub": str(number)}, kid="b"))
        await trio.testing.wait_all_tasks_blocked()
        source.gate.set()
    assert good == [True] * 20
    assert source.fetches == 2


async def test_while_one_renews_the_keys_others_go_on_with_the_old(
    mock_clock: trio.testing.MockClock,
) -> None:
    source = Source(ONE.jwk("a"))
    verifier = fetching(source)
    await verifier.verify(ONE.token(CLAIMS, kid="a"))
    mock_clock.jump(CACHE_S)
    source.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(verifier.verify, ONE.token(CLAIMS, kid="a"))
        await trio.testing.wait_all_tasks_blocked()
        await verifier.verify(ONE.token({"sub": "b"}, kid="a"))
        source.gate.set()
    assert source.fetches == 2


async def test_who_is_cancelled_while_fetching_leaves_it_to_the_next() -> None:
    source = Source(ONE.jwk("a"))
    source.gate = trio.Event()
    verifier = fetching(source)
    token = ONE.token(CLAIMS, kid="a")
    async with trio.open_nursery() as nursery:
        impatient = trio.CancelScope()

        async def give_up() -> None:
            with impatient:
                await verifier.verify(token)

        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(verifier.verify, token)
        await trio.testing.wait_all_tasks_blocked()
        impatient.cancel()
        await trio.testing.wait_all_tasks_blocked()
        source.gate.set()
    assert impatient.cancelled_caught
    assert source.fetches == 2


async def test_a_file_is_read_again_when_its_time_has_passed(
    mock_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "set"
    path.write_bytes(key_set(ONE.jwk("a")))
    verifier = reading(path)
    path.write_bytes(key_set(TWO.jwk("a")))
    assert not await refused(verifier, ONE.token(CLAIMS, kid="a"))
    mock_clock.jump(CACHE_S)
    assert await refused(verifier, ONE.token(CLAIMS, kid="a"))
    assert not await refused(verifier, TWO.token(CLAIMS, kid="a"))
    path.unlink()
    mock_clock.jump(CACHE_S)
    assert not await refused(verifier, TWO.token(CLAIMS, kid="a"))


# When the source fails

FAILURES: dict[str, dict[str, Any]] = {
    "refused": {"error": httpx.ConnectError("hunter4")},
    "broken": {"error": httpx.ReadError("hunter4")},
    "proxy": {"error": ValueError("hunter4")},
    "status": {"status": 500},
    "moved": {"status": 302, "headers": {"location": "https://elsewhere.test/keys"}},
    "not-json": {"text": b"<html>hunter4"},
    "empty": {"text": key_set()},
    "unfit": {"text": key_set(issuer("RS256").jwk("a"))},
    "large": {"text": key_set(ONE.jwk("a")) + b" " * MAX_BYTES},
    "compressed": {
        "text": gzip.compress(key_set(ONE.jwk("a")), mtime=0),
        "headers": {"content-encoding": "gzip"},
    },
}


@pytest.mark.parametrize("name", FAILURES)
async def test_keys_that_were_good_stay_good_while_their_source_fails(
    name: str, mock_clock: trio.testing.MockClock
) -> None:
    source = Source(ONE.jwk("a"))
    verifier = fetching(source)
    token = ONE.token(CLAIMS, kid="a")
    await verifier.verify(token)
    mock_clock.jump(CACHE_S)
    before = source.text
    for field, value in FAILURES[name].items():
        setattr(source, field, value)
    with capture_logs() as lines:
        for _ in range(10):
            await verifier.verify(token)
            await verifier.verify(ONE.token({"sub": "b"}, kid="a"))
    assert source.fetches == 2  # not at every token
    assert [line["event"] for line in lines] == ["key set not read"]
    assert "hunter" not in str(lines)
    assert ONE.jwk()["x"] not in str(lines)
    source.text, source.status, source.headers, source.error = before, 200, {}, None
    source.publish(TWO.jwk("a"))
    mock_clock.jump(RETRY_S)
    assert await refused(verifier, token)


@pytest.mark.parametrize("name", FAILURES)
async def test_without_any_key_the_answer_is_503_and_to_come_again(
    name: str, mock_clock: trio.testing.MockClock
) -> None:
    source = Source(ONE.jwk("a"))
    good = source.text
    verifier = fetching(source)
    for field, value in FAILURES[name].items():
        setattr(source, field, value)
    token = ONE.token(CLAIMS, kid="a")
    for _ in range(5):
        with pytest.raises(KeysUnavailable) as caught:
            await verifier.verify(token)
    assert (caught.value.status, caught.value.wait) == (503, True)
    assert source.fetches == 1
    source.text, source.status, source.headers, source.error = good, 200, {}, None
    mock_clock.jump(RETRY_S)
    await verifier.verify(token)


async def test_a_source_that_never_answers_costs_five_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Source(ONE.jwk("a"))
    source.gate = trio.Event()
    start = trio.current_time()
    with pytest.raises(KeysUnavailable):
        await fetching(source).verify(ONE.token(CLAIMS, kid="a"))
    assert trio.current_time() - start == pytest.approx(FETCH_S)


# Over the network


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Network:
    """An HTTP server on loopback that gives each request the next answer, and the last again."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.requests: list[bytes] = []

    async def __call__(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                piece = await stream.receive_some()
                if not piece:
                    return
                head += piece
            self.requests.append(head)
            await stream.send_all(self.answers[min(len(self.requests), len(self.answers)) - 1])


async def test_keys_are_fetched_over_http_without_following_redirects() -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            good = answer(key_set(ONE.jwk("a")))
            network = Network(answer(b"", "302 Found", "Location: /elsewhere"), good)
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, network, listeners)
            port = listeners[0].socket.getsockname()[1]
            moved, served = (fetching(None, url=f"http://127.0.0.1:{port}/keys?a=b") for _ in "12")
            with pytest.raises(KeysUnavailable):
                await moved.verify(ONE.token(CLAIMS, kid="a"))
            assert len(network.requests) == 1
            assert (await served.verify(ONE.token(CLAIMS, kid="a"))).sub == "alice"
            assert network.requests[1].startswith(b"GET /keys?a=b HTTP/1.1\r\n")
            assert b"accept-encoding: identity" in network.requests[1].lower()
            nursery.cancel_scope.cancel()


async def test_nobody_listening_is_503_and_not_the_end() -> None:
    with trio.fail_after(10):
        with trio.socket.socket() as unused:
            await unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            verifier = fetching(None, url=f"http://127.0.0.1:{port}/keys")
            with pytest.raises(KeysUnavailable):
                await verifier.verify(ONE.token(CLAIMS, kid="a"))
