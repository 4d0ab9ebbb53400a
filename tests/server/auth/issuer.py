"""An issuer of tokens: keys of every kind, and tokens good and bad."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import Algorithm, get_default_algorithms

NOW_S: Final = 1_700_000_000
SECRET: Final = "an issuer's secret, long enough for each of the three HMAC algorithms"

_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
}
ASYMMETRIC: Final = ("RS256", *_CURVES, "EdDSA")
HMAC: Final = ("HS256", "HS384", "HS512")


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def as_text(value: Any) -> bytes:
    """JSON of a value; bytes stand for themselves."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@dataclass(frozen=True)
class Issuer:
    algorithm: str
    private: Any

    @property
    def public(self) -> Any:
        return self.private.public_key()

    @property
    def pem(self) -> str:
        form = PublicFormat.SubjectPublicKeyInfo
        return str(self.public.public_bytes(Encoding.PEM, form), "ascii")

    @property
    def private_pem(self) -> str:
        raw = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return str(raw, "ascii")

    @property
    def ssh(self) -> str:
        return str(self.public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH), "ascii")

    def jwk(self, kid: str | None = None, **members: Any) -> dict[str, Any]:
        """The public key as a JWK; members that are None are left out."""
        found = {**self._library().to_jwk(self.public, as_dict=True), "kid": kid, **members}
        return {name: value for name, value in found.items() if value is not None}

    def private_jwk(self) -> dict[str, Any]:
        return dict(self._library().to_jwk(self.private, as_dict=True))

    def token(self, claims: Any, **header: Any) -> str:
        """A token with these claims (or bytes) signed in good order, under any header."""
        return self.sign({"alg": self.algorithm, "typ": "JWT", **header}, claims)

    def sign(self, header: Any, claims: Any) -> str:
        parts = f"{b64(as_text(header))}.{b64(as_text(claims))}"
        return f"{parts}.{b64(self._library().sign(parts.encode(), self.private))}"

    def _library(self) -> Algorithm:
        return get_default_algorithms()[self.algorithm]


@cache
def issuer(algorithm: str, number: int = 0) -> Issuer:
    """The issuer of that number; each has keys of its own."""
    makers: Mapping[str, Callable[[], Any]] = {
        "RS256": lambda: rsa.generate_private_key(65537, 2048),
        "RS256-1024": lambda: rsa.generate_private_key(65537, 1024),
        "Ed448": ed448.Ed448PrivateKey.generate,
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
        **{name: partial(ec.generate_private_key, curve) for name, curve in _CURVES.items()},
        **dict.fromkeys(HMAC, SECRET.encode),
    }
    names = {"RS256-1024": "RS256", "Ed448": "EdDSA"}
    return Issuer(names.get(algorithm, algorithm), makers[algorithm]())


def key_set(*keys: Mapping[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()
