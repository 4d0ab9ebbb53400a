"""A token is worth what its issuer signed, under the one algorithm, while it is in time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms

from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.schema import Jwt
from taskcast_trio.config.secret import Secret, SecretUrl
from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import TokenExpired, Unauthorized
from taskcast_trio.server.auth import tokens
from taskcast_trio.server.auth.tokens import MAX_TOKEN_BYTES, JwtVerifier

from .issuer import (
    ASYMMETRIC,
    HMAC,
    NOW_S,
    SECRET,
    Issuer,
    as_text,
    b64,
    issuer,
    key_set,
)

HS256 = issuer("HS256")
GOOD = {"sub": "alice", "exp": NOW_S + 60, "scope": ["event:subscribe"], "taskIds": ["t"]}


def verifier(**jwt: Any) -> JwtVerifier:
    """At ``NOW_S``, with the secret unless another key is given."""
    if not jwt.keys() & {"secret", "public_key", "public_key_file", "jwks_file", "jwks_url"}:
        jwt["secret"] = Secret(SECRET)
    return JwtVerifier(Jwt(**jwt), lambda: NOW_S * 1000)


def public(algorithm: str) -> Secret:
    return Secret(issuer(algorithm).pem)


async def refusal(token: str, **jwt: Any) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        await verifier(**jwt).verify(token)
    return caught.value


async def claimed(**claims: Any) -> Caller:
    return await verifier().verify(HS256.token(claims))


# What a good token gives


@pytest.mark.parametrize("algorithm", HMAC)
async def test_a_token_of_each_hmac_algorithm_is_good(algorithm: str) -> None:
    token = issuer(algorithm).token(GOOD)
    caller = await verifier(algorithm=algorithm).verify(token)
    assert caller.sub == "alice"
    assert caller.claims == GOOD


@pytest.mark.parametrize("algorithm", [*ASYMMETRIC, "Ed448"])
@pytest.mark.parametrize("from_file", [False, True])
async def test_a_token_of_each_public_key_algorithm_is_good(
    algorithm: str, from_file: bool, tmp_path: Path
) -> None:
    made = issuer(algorithm)
    (tmp_path / "key.pem").write_text(made.pem)
    key: dict[str, Any] = {"public_key": Secret(made.pem)}
    if from_file:
        key = {"public_key_file": str(tmp_path / "key.pem")}
    caller = await verifier(algorithm=made.algorithm, **key).verify(made.token(GOOD))
    assert caller.sub == "alice"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
async def test_a_secret_of_32_bytes_serves_every_hmac_without_a_warning(algorithm: str) -> None:
    short = Issuer(algorithm, b"x" * 32)
    judge = verifier(algorithm=algorithm, secret=Secret("x" * 32))
    assert (await judge.verify(short.token({"sub": "a"}))).sub == "a"
    assert (await judge.verify(judge.sign({"sub": "b"}))).sub == "b"


async def test_the_caller_is_what_the_claims_say() -> None:
    caller = await claimed(
        sub="alice", jti="1", workerId="w", scope="a b", taskIds=["t"], iat=5, exp=NOW_S + 0.5
    )
    assert (caller.sub, caller.jti, caller.worker_id) == ("alice", "1", "w")
    assert caller.scopes == {"a", "b"}
    assert caller.task_ids == frozenset({"t"})
    assert (caller.issued_at, caller.expires_at) == (5.0, NOW_S + 0.5)
    assert (caller.open, caller.service) == (False, None)


async def test_nothing_is_required_and_an_empty_token_may_do_nothing() -> None:
    assert await claimed() == Caller(claims={})


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        ([], set()),
        (None, set()),
        ("", set()),
        (" a  b ", {"a", "b"}),
        ("a", {"a"}),
        ("xtask:createx", {"xtask:createx"}),
        (["a b"], {"a b"}),
        (["*"], {"*"}),
        ([1, None, "a", {"b": "c"}, ["d"], True], {"a"}),
    ],
)
async def test_scopes_are_the_texts_of_a_list_or_the_words_of_a_text(
    scope: Any, scopes: set[str]
) -> None:
    assert (await claimed(scope=scope)).scopes == scopes


@pytest.mark.parametrize(
    ("task_ids", "limit"),
    [
        (None, None),
        ("*", None),
        (["*"], {"*"}),
        ([], set()),
        (["a", "b"], {"a", "b"}),
        ([1, None, "a"], {"a"}),
    ],
)
async def test_task_ids_limit_unless_they_are_a_star_or_nothing(task_ids: Any, limit: Any) -> None:
    assert (await claimed(taskIds=task_ids)).task_ids == limit


async def test_a_star_in_a_list_is_the_id_of_a_task() -> None:
    caller = await claimed(taskIds=["*"])
    assert caller.reaches("*")
    assert not caller.reaches("t")
    assert not (await claimed(taskIds=[])).reaches("t")


@pytest.mark.parametrize("other", [7, None, True, ["a"], {"a": 1}])
async def test_sub_jti_and_worker_id_that_are_no_text_name_nobody(other: Any) -> None:
    caller = await claimed(sub=other, jti=other, workerId=other)
    assert (caller.sub, caller.jti, caller.worker_id) == (None, None, None)
    assert caller.claims["sub"] == other


@pytest.mark.parametrize("iat", [NOW_S + 10**6, "yesterday", None, True, -1, 10**18])
async def test_iat_is_not_judged(iat: Any) -> None:
    assert (await claimed(iat=iat)).sub is None


@pytest.mark.parametrize(
    "header",
    [
        {"kid": "unknown"},
        {"kid": "../../etc/passwd"},
        {"kid": "' OR 1=1 --"},
        {"typ": "at+jwt"},
        {"typ": 7},
        {"cty": "JWT"},
        {"typ": None},
    ],
)
async def test_kid_typ_and_cty_say_nothing_without_a_key_set(header: dict[str, Any]) -> None:
    assert (await verifier().verify(HS256.token(GOOD, **header))).sub == "alice"


# What is refused


def _hmac(key: bytes, header: Any, claims: Any = GOOD) -> str:
    return Issuer("HS256", key).sign(header, claims)


def _pieces(header: Any, claims: Any = GOOD, signature: str = "AAAA") -> str:
    return f"{b64(as_text(header))}.{b64(as_text(claims))}.{signature}"


def _flipped(token: str, at: int) -> str:
    parts = token.split(".")
    part = parts[at]
    parts[at] = part[:9] + ("A" if part[9] != "A" else "B") + part[10:]
    return ".".join(parts)


def bad_tokens() -> Iterator[tuple[str, str]]:
    good = HS256.token(GOOD)
    head, body, signature = good.split(".")
    header = {"alg": "HS256", "typ": "JWT"}
    deep = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
    hs = SECRET.encode()
    value: Any
    # RFC 8725, 2.1 and 3.1: the algorithm
    for name in ("none", "None", "nOnE", "NONE", "", " HS256", "hs256", "HS257"):
        yield f"alg-{name}", _hmac(hs, {"alg": name})
        yield f"alg-{name}-unsigned", f"{b64(as_text({'alg': name}))}.{body}."
    for value in (None, 7, ["HS256"], {"HS256": 1}, True):
        yield f"alg-{value}", _hmac(hs, {"alg": value})
    yield "no-alg", _hmac(hs, {"typ": "JWT"})
    for other in ("HS384", "HS512", *ASYMMETRIC):
        yield f"other-{other}", issuer(other).token(GOOD)
    for other in ("RS384", "RS512", "PS256", "PS512", "ES256K"):
        yield f"other-{other}", _hmac(hs, {"alg": other})
    # the signature
    yield "unsigned", f"{head}.{body}."
    yield "signature-changed", _flipped(good, 2)
    yield "claims-changed", _flipped(good, 1)
    yield "header-changed", f"{b64(as_text({**header, 'a': 1}))}.{body}.{signature}"
    yield "signature-cut", good[:-4]
    yield "another-secret", _hmac(b"y" * 64, header)
    yield "empty-secret", _hmac(b"", header)
    # the form
    yield "empty", ""
    yield "dots", ".."
    yield "one-part", head
    yield "two-parts", f"{head}.{body}"
    yield "two-signatures", f"{good}.{signature}"
    yield "five-parts", f"{good}.{signature}.{signature}"
    yield "padded", f"{good}="
    yield "blank-inside", good.replace(".", ". ", 1)
    yield "line-end", f"{good}\n"
    yield "bearer-twice", f"Bearer {good}"
    yield "base64-of-a-token", b64(good.encode())
    yield "percent-encoded", good.replace(".", "%2E")
    yield "quoted", f'"{good}"'
    yield "standard-base64", f"{head}.{body}.{'+/' * 20}"
    yield "not-ascii", f"{good}é"
    yield "surrogate", f"{good}\ud800"
    yield "nul", f"{good}\0"
    yield "json-serialization", json.dumps({"payload": body, "signatures": [{"protected": head}]})
    yield "1-mb", HS256.token({**GOOD, "x": "x" * 1_000_000})
    yield "just-too-long", HS256.token({**GOOD, "x": "x" * MAX_TOKEN_BYTES})
    # the header
    yield "header-no-json", _hmac(hs, b"{")
    yield "header-a-list", _hmac(hs, ["alg", "HS256"])
    yield "header-text", _hmac(hs, "HS256")
    yield "header-deep", _hmac(hs, b'{"alg":"HS256","a":' + b"[" * 5000 + b"]" * 5000 + b"}")
    yield "header-not-utf8", _hmac(hs, b'{"alg":"HS256","a":"\xff"}')
    yield "crit-unknown", HS256.token(GOOD, crit=["urn:x"], **{"urn:x": 1})
    yield "crit-b64", HS256.token(GOOD, crit=["b64"], b64=True)
    for value in ([], None, "exp", 1, {}):
        yield f"crit-{value!r}", HS256.token(GOOD, crit=value)
    yield "b64-false", HS256.token(GOOD, b64=False)
    yield "kid-a-number", HS256.token(GOOD, kid=1)
    # the claims
    for value in (b"", b"{", b"[]", b'"x"', b"null", b"7", b"{} {}", b"\xef\xbb\xbf{}"):
        yield f"claims-{value!r}", HS256.token(value)
    yield "claims-not-utf8", HS256.token(b'{"sub":"\xff"}')
    yield "claims-utf16", HS256.token('{"sub":"a"}'.encode("utf-16"))
    yield "claims-surrogate", HS256.token(b'{"sub":"\\ud800"}')
    yield "claims-deep", HS256.token(deep)
    yield "claims-nan", HS256.token(b'{"x":NaN}')
    for value in (5, True, {"a": 1}, 1.5):
        yield f"scope-{value!r}", HS256.token({"scope": value})
        yield f"taskIds-{value!r}", HS256.token({"taskIds": value})
    for value in ("t", "", "a-b-c", "**"):
        yield f"taskIds-{value!r}", HS256.token({"taskIds": value})
    # the times
    for name in ("exp", "nbf"):
        for value in (None, str(NOW_S + 60), True, [NOW_S], {}, "soon", 10**400):
            yield f"{name}-{value!r:.20}", HS256.token({name: value})
        for text in ("1e400", "-1e400", "NaN", "Infinity", "1" * 5000):
            yield f"{name}-{text:.9}", HS256.token(f'{{"{name}":{text}}}'.encode())
    yield "nbf-to-come", HS256.token({"nbf": NOW_S + 0.001})
    yield "nbf-far", HS256.token({"nbf": 10**300})
    yield "expired", HS256.token({"exp": NOW_S - 1})


BAD = dict(bad_tokens())


def test_the_table_is_long() -> None:
    assert len(BAD) > 100


@pytest.mark.parametrize("name", BAD, ids=str)
async def test_a_bad_token_is_refused_in_a_few_words_that_hold_nothing_of_it(name: str) -> None:
    token = BAD[name]
    error = await refusal(token)
    assert error.status == 401
    assert str(error).isascii()
    assert 10 < len(str(error)) < 80
    for part in filter(lambda part: len(part) > 8, token.split(".")):
        assert part not in str(error)
    assert error.__cause__ is None


async def test_an_unsigned_token_is_refused_whatever_the_algorithm() -> None:
    for algorithm in ASYMMETRIC:
        for name in ("none", algorithm):
            token = f"{b64(as_text({'alg': name}))}.{b64(as_text(GOOD))}."
            await refusal(token, algorithm=algorithm, public_key=public(algorithm))
            await refusal(f"{token}AA", algorithm=algorithm, public_key=public(algorithm))


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_a_public_key_is_no_hmac_secret(algorithm: str) -> None:
    """Whoever knows the public key could else make tokens."""
    key = issuer(algorithm)
    for secret in (key.pem, key.pem.strip(), key.ssh):
        for hmac in HMAC:
            signer = Issuer(hmac, secret.encode())
            for header in ({"alg": hmac}, {"alg": algorithm}):
                await refusal(
                    signer.sign(header, GOOD), algorithm=algorithm, public_key=Secret(key.pem)
                )


@pytest.mark.parametrize("configured", ASYMMETRIC)
@pytest.mark.parametrize("signed", [*HMAC, *ASYMMETRIC])
async def test_only_the_configured_algorithm_is_taken(configured: str, signed: str) -> None:
    token = issuer(signed, 1).token(GOOD)
    error = await refusal(token, algorithm=configured, public_key=public(configured))
    if signed != configured:
        assert str(error) == f"The token is not signed with {configured}"


@pytest.mark.parametrize("other", ["RS384", "RS512", "PS256", "PS384", "PS512"])
async def test_the_same_key_under_another_algorithm_is_refused(other: str) -> None:
    parts = f"{b64(as_text({'alg': other}))}.{b64(as_text(GOOD))}"
    library = get_default_algorithms()[other]
    signature = library.sign(parts.encode(), issuer("RS256").private)
    await refusal(f"{parts}.{b64(signature)}", algorithm="RS256", public_key=public("RS256"))


@pytest.mark.parametrize("member", ["jku", "x5u", "jwk", "x5c"])
async def test_a_key_that_comes_with_the_token_is_not_looked_at(
    member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is the attacker's own: the token is as bad as any of a stranger."""
    stranger = issuer("RS256", 1)

    def outbound(*_: object) -> None:
        raise AssertionError("a token made the server look somewhere")

    monkeypatch.setattr("socket.getaddrinfo", outbound)
    monkeypatch.setattr("socket.socket.connect", outbound)
    monkeypatch.setattr(Path, "open", outbound)
    value: Any = {
        "jwk": stranger.jwk("a"),
        "x5c": [stranger.pem],
        "jku": "http://127.0.0.1:9/keys",
        "x5u": "file:///etc/passwd",
    }[member]
    token = stranger.token(GOOD, **{member: value, "kid": "a"})
    error = await refusal(token, algorithm="RS256", public_key=public("RS256"))
    assert str(error) == "The token's signature is not good"
    followed = issuer("RS256").token(GOOD, **{member: value})
    judge = verifier(algorithm="RS256", public_key=public("RS256"))
    assert (await judge.verify(followed)).sub == "alice"


@given(st.text(max_size=200) | st.from_regex(r"\A([\w-]{1,40}\.){2}[\w-]{1,40}\Z"))
async def test_no_text_at_all_is_more_than_a_401(text: str) -> None:
    await refusal(text)


@given(header=st.binary(max_size=60), claims=st.binary(max_size=60))
async def test_no_signed_bytes_are_more_than_a_401(header: bytes, claims: bytes) -> None:
    """Issuers have bugs too. Bytes that happen to be an object are claims like any."""
    await refusal(HS256.sign(header, claims))
    try:
        caller = await verifier().verify(HS256.token(claims))
    except Unauthorized:
        return
    assert caller.claims == json.loads(claims)


# Time


@pytest.mark.parametrize("leeway_s", [0.0, 5.0, 0.25])
async def test_a_token_expires_at_exp_and_leeway_to_the_millisecond(leeway_s: float) -> None:
    clock = [0]
    jwt = Jwt(secret=Secret(SECRET), leeway_seconds=leeway_s)
    judge = JwtVerifier(jwt, lambda: clock[0])
    token = HS256.token({"exp": NOW_S, "nbf": NOW_S - 100})
    start_ms = int((NOW_S - 100 - leeway_s) * 1000)
    end_ms = int((NOW_S + leeway_s) * 1000)
    for clock[0] in (start_ms, end_ms - 1):
        await judge.verify(token)
    clock[0] = start_ms - 1
    with pytest.raises(Unauthorized, match="not valid yet"):
        await judge.verify(token)
    for clock[0] in (end_ms, end_ms + 1, 10**15):
        with pytest.raises(TokenExpired):
            await judge.verify(token)


@pytest.mark.parametrize("exp", [NOW_S + 1, NOW_S + 0.5, 10**30, 10**300, 1e308])
async def test_exp_may_be_any_number(exp: float) -> None:
    assert (await claimed(exp=exp)).expires_at == float(exp)


@pytest.mark.parametrize("exp", [NOW_S, 0, -1, -(10**30), -1e308, 0.0])
async def test_a_token_whose_time_has_passed_is_expired(exp: float) -> None:
    error = await refusal(HS256.token({"exp": exp}))
    assert isinstance(error, TokenExpired)
    assert error.code == "token_expired"


# What the configuration asks for


@pytest.mark.parametrize(
    "claims", [{}, {"iss": "b"}, {"iss": ["a"]}, {"iss": None}, {"iss": "A"}, {"iss": 1}]
)
async def test_a_configured_issuer_is_required(claims: dict[str, Any]) -> None:
    await refusal(HS256.token(claims), issuer="a")


@pytest.mark.parametrize(
    "claims", [{}, {"aud": "b"}, {"aud": ["b"]}, {"aud": []}, {"aud": None}, {"aud": {"a": 1}}]
)
async def test_a_configured_audience_is_required(claims: dict[str, Any]) -> None:
    await refusal(HS256.token(claims), audience="a")


@pytest.mark.parametrize("aud", ["a", ["a"], ["b", "a"], ["a", 1, None]])
async def test_the_issuer_and_one_of_the_audiences_will_do(aud: Any) -> None:
    judge = verifier(issuer="i", audience="a")
    await judge.verify(HS256.token({"iss": "i", "aud": aud}))


@pytest.mark.parametrize("claims", [{"iss": 5, "aud": {}}, {"iss": "x", "aud": ["y"]}])
async def test_issuer_and_audience_say_nothing_where_none_is_configured(
    claims: dict[str, Any],
) -> None:
    await claimed(**claims)


async def test_required_claims_must_be_there() -> None:
    judge = verifier(require=("exp", "team"))
    await judge.verify(HS256.token({"exp": NOW_S + 1, "team": 0}))
    for claims in ({"exp": NOW_S + 1}, {"team": "a"}, {"exp": NOW_S + 1, "team": None}):
        with pytest.raises(Unauthorized, match="lacks the claim"):
            await judge.verify(HS256.token(claims))


# What is remembered


class Counting:
    """Stands before the checker of signatures, and counts."""

    def __init__(self, judge: JwtVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checks = 0
        inner = judge._jws.decode

        def decode(*args: Any) -> Any:
            self.checks += 1
            return inner(*args)

        monkeypatch.setattr(judge._jws, "decode", decode)


async def test_a_signature_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = verifier()
    counting = Counting(judge, monkeypatch)
    callers = [await judge.verify(HS256.token(GOOD)) for _ in range(5)]
    assert counting.checks == 1
    assert all(caller is callers[0] for caller in callers)


async def test_a_bad_token_is_never_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = verifier()
    await judge.verify(HS256.token(GOOD))
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await judge.verify(_flipped(HS256.token(GOOD), 2))
    assert len(judge._remembered) == 1


async def test_what_is_remembered_is_bounded_and_the_least_used_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokens, "MAX_REMEMBERED", 3)
    judge = verifier()
    counting = Counting(judge, monkeypatch)
    a, b, c, d = (HS256.token({"sub": name}) for name in "abcd")
    for token in (a, b, c, a, d, a):
        await judge.verify(token)
    assert counting.checks == 4
    await judge.verify(b)
    assert counting.checks == 5
    assert len(judge._remembered) == 3


async def test_long_tokens_are_good_but_not_remembered() -> None:
    judge = verifier()
    await judge.verify(HS256.token({"x": "x" * 8000}))
    assert len(judge._remembered) == 0


# Signing


async def test_who_has_the_secret_can_sign_what_it_takes_itself() -> None:
    judge = verifier(algorithm="HS384")
    assert judge.signs
    claims = {"sub": "admin", "scope": ["*", 1, 2], "taskIds": "*", "exp": NOW_S + 9}
    caller = await judge.verify(judge.sign(claims))
    assert caller.claims == claims
    assert caller.scopes == {"*"}


def test_who_only_checks_cannot_sign() -> None:
    judge = verifier(algorithm="RS256", public_key=public("RS256"))
    assert not judge.signs
    with pytest.raises(RuntimeError):
        judge.sign({})


# Configurations that cannot work


def _jwk_text() -> str:
    return json.dumps({"kty": "oct", "k": "x" * 60})


NO_SECRET = "auth.jwt.secret: is a public or private key, not a secret"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no-key": (
        {"secret": None},
        "auth.jwt: a key is needed: secret, publicKey, publicKeyFile, jwksFile or jwksUrl",
    ),
    "short": ({"secret": Secret("x" * 31)}, "auth.jwt.secret: is shorter than 32 bytes"),
    "short-hs512": (
        {"secret": Secret("x" * 31), "algorithm": "HS512"},
        "auth.jwt.secret: is shorter than 32 bytes",
    ),
    "not-utf8": ({"secret": Secret("\udcff" * 40)}, "auth.jwt.secret: is not UTF-8"),
    "hs-public-key": (
        {"public_key": public("RS256")},
        "auth.jwt.secret: HS256 needs it; a public key is no use",
    ),
    "hs-public-file": (
        {"public_key_file": "key.pem", "algorithm": "HS384"},
        "auth.jwt.secret: HS384 needs it; a public key is no use",
    ),
    "hs-jwks-file": (
        {"jwks_file": "keys.json", "secret": Secret(SECRET)},
        "auth.jwt.jwksFile: a key set is no use to HS256",
    ),
    "hs-jwks-url": (
        {"jwks_url": SecretUrl("https://127.0.0.1/k"), "algorithm": "HS512"},
        "auth.jwt.jwksUrl: a key set is no use to HS512",
    ),
    "secret-pem": ({"secret": public("RS256")}, NO_SECRET),
    "secret-pem-one-line": (
        {"secret": Secret(" " + issuer("ES256").pem.replace("\n", "\\n"))},
        NO_SECRET,
    ),
    "secret-private": ({"secret": Secret(issuer("ES256").private_pem)}, NO_SECRET),
    "secret-ssh": ({"secret": Secret(issuer("EdDSA").ssh)}, NO_SECRET),
    "secret-ssh-ec": ({"secret": Secret("\n" + issuer("ES384").ssh)}, NO_SECRET),
    "secret-jwk": ({"secret": Secret(_jwk_text())}, NO_SECRET),
    "file-gone": (
        {"public_key_file": "gone.pem", "algorithm": "RS256"},
        "auth.jwt.publicKeyFile: gone.pem cannot be read: No such file or directory",
    ),
    "file-a-folder": (
        {"public_key_file": ".", "algorithm": "RS256"},
        "auth.jwt.publicKeyFile: . cannot be read: Is a directory",
    ),
    "file-nul": (
        {"public_key_file": "a\0b", "algorithm": "RS256"},
        "auth.jwt.publicKeyFile: is not a path",
    ),
    "file-empty": (
        {"public_key_file": os.devnull, "algorithm": "EdDSA"},
        "auth.jwt.publicKeyFile: is not a public key in PEM",
    ),
    "file-endless": (
        {"public_key_file": "/dev/zero", "algorithm": "EdDSA"},
        "auth.jwt.publicKeyFile: is larger than 262144 bytes",
    ),
    "no-pem": (
        {"public_key": Secret("x" * 64), "algorithm": "ES256"},
        "auth.jwt.publicKey: is not a public key in PEM",
    ),
    "no-pem-inside": (
        {
            "public_key": Secret("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
            "algorithm": "ES256",
        },
        "auth.jwt.publicKey: is not a public key in PEM",
    ),
    "no-pem-surrogate": (
        {"public_key": Secret("\udcff"), "algorithm": "ES256"},
        "auth.jwt.publicKey: is not a public key in PEM",
    ),
    "rsa-small": (
        {"public_key": public("RS256-1024"), "algorithm": "RS256"},
        "auth.jwt.publicKey: is an RSA key of fewer than 2048 bits",
    ),
    "rs-ec": (
        {"public_key": public("ES256"), "algorithm": "RS256"},
        "auth.jwt.publicKey: is not an RSA key, which RS256 needs",
    ),
    "es-rsa": (
        {"public_key": public("RS256"), "algorithm": "ES384"},
        "auth.jwt.publicKey: is not an elliptic curve key, which ES384 needs",
    ),
    "es-curve": (
        {"public_key": public("ES256"), "algorithm": "ES512"},
        "auth.jwt.publicKey: is not a key on the curve secp521r1, which ES512 needs",
    ),
    "ed-ec": (
        {"public_key": public("ES256"), "algorithm": "EdDSA"},
        "auth.jwt.publicKey: is not an Ed25519 or Ed448 key, which EdDSA needs",
    ),
    "jwks-gone": (
        {"jwks_file": "gone.json", "algorithm": "EdDSA"},
        "auth.jwt.jwksFile: gone.json cannot be read: No such file or directory",
    ),
    "jwks-ftp": (
        {"jwks_url": SecretUrl("ftp://user:hunter2@h/keys"), "algorithm": "EdDSA"},
        "auth.jwt.jwksUrl: is not a URL of http or https",
    ),
    "jwks-no-host": (
        {"jwks_url": SecretUrl("https:///keys"), "algorithm": "EdDSA"},
        "auth.jwt.jwksUrl: is not a URL of http or https",
    ),
    "jwks-no-url": (
        {"jwks_url": SecretUrl("http://h:port/keys"), "algorithm": "EdDSA"},
        "auth.jwt.jwksUrl: is not a URL",
    ),
    **{
        f"{algorithm}-private": (
            {"public_key": Secret(issuer(algorithm).private_pem), "algorithm": algorithm},
            "auth.jwt.publicKey: is a private key; give the public one",
        )
        for algorithm in ASYMMETRIC
    },
    **{
        f"{algorithm}-secret": (
            {"secret": Secret(SECRET), "algorithm": algorithm},
            f"auth.jwt.publicKey: {algorithm} needs one; a secret is no use",
        )
        for algorithm in ASYMMETRIC
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_configuration_that_cannot_work_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fields, line = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        verifier(**fields)
    assert str(caught.value) == line
    assert caught.value.__cause__ is None


async def test_the_first_of_several_keys_is_the_one(tmp_path: Path) -> None:
    one, two = issuer("ES256"), issuer("ES256", 1)
    (tmp_path / "two.pem").write_text(two.pem)
    (tmp_path / "set.json").write_bytes(key_set(two.jwk()))
    judge = verifier(
        algorithm="ES256",
        secret=Secret(SECRET),
        public_key=Secret(one.pem),
        public_key_file=str(tmp_path / "two.pem"),
        jwks_file=str(tmp_path / "set.json"),
    )
    await judge.verify(one.token(GOOD))
    with pytest.raises(Unauthorized):
        await judge.verify(two.token(GOOD))
    with pytest.raises(Unauthorized):
        await judge.verify(HS256.token(GOOD))
