"""Keys that check signatures: what a configuration or a key set may give, and what fits.

A server checks tokens of exactly one algorithm (RFC 8725, 3.1), so a key is good or not before any
token comes. What is refused here is refused in one line that holds nothing of the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.secret import Secret

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

MIN_SECRET_BYTES: Final = 32
"""What RFC 7518, 3.2 asks for HS256."""
MIN_RSA_BITS: Final = 2048
"""RFC 7518, 3.3."""
MAX_SHOWN_PATH: Final = 256
MAX_FILE_BYTES: Final = 262_144

_CURVES: Final[Mapping[str, type[EllipticCurve]]] = {
    "ES256": SECP256R1,
    "ES384": SECP384R1,
    "ES512": SECP521R1,
}
_ASYMMETRIC_MARKS: Final = (
    "-----BEGIN",
    "---- BEGIN",
    "ssh-",
    "ecdsa-sha2-",
    "sk-ssh-",
    "sk-ecdsa-",
)
_HASHES: Final = {
    "HS256": HMACAlgorithm.SHA256,
    "HS384": HMACAlgorithm.SHA384,
    "HS512": HMACAlgorithm.SHA512,
}
_BROKEN: Final = (
    PyJWTError,
    UnsupportedAlgorithm,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
)
"""What a library raises for a key that is none; a wrong type of a member may be any of these."""


class _Hmac(HMACAlgorithm):
    """HMAC whose secret was judged once, in :func:`hmac_secret`, and not again at every token."""

    def prepare_key(self, key: str | bytes) -> bytes:
        return cast("bytes", key)

    def check_key_length(self, key: bytes) -> str | None:
        return None


def signatures(algorithm: str) -> PyJWS:
    """Return a checker of signatures that knows this one algorithm and no other, not even none."""
    jws = PyJWS(algorithms=[])
    if algorithm in _HASHES:
        jws.register_algorithm(algorithm, _Hmac(_HASHES[algorithm]))
    else:
        jws.register_algorithm(algorithm, PyJWS().get_algorithm_by_name(algorithm))
    return jws


def is_symmetric(algorithm: str) -> bool:
    return algorithm in _HASHES


def hmac_secret(secret: Secret) -> bytes:
    """Return the bytes of ``auth.jwt.secret``.

    Raises:
        ConfigError: it is shorter than 32 bytes, or no secret at all but a key of another kind,
            which its peers may know (RFC 8725, 2.1).
    """
    text = secret.reveal()
    try:
        key = text.encode()
    except UnicodeEncodeError:
        raise ConfigError("auth.jwt.secret: is not UTF-8") from None
    if any(mark in text for mark in _ASYMMETRIC_MARKS[:2]) or text.lstrip().startswith(
        _ASYMMETRIC_MARKS
    ):
        raise ConfigError("auth.jwt.secret: is a public or private key, not a secret")
    if len(key) < MIN_SECRET_BYTES:
        raise ConfigError(f"auth.jwt.secret: is shorter than {MIN_SECRET_BYTES} bytes")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(key)
    except PyJWTError:
        raise ConfigError("auth.jwt.secret: is a public or private key, not a secret") from None
    return key


def pem_key(pem: bytes, algorithm: str, where: str) -> PublicKey:
    """Return the public key of a PEM text for ``algorithm``; ``where`` is its configuration key.

    Raises:
        ConfigError: it is no PEM public key, a private one, or does not fit the algorithm.
    """
    if b"PRIVATE KEY" in pem:
        raise ConfigError(f"{where}: is a private key; give the public one")
    try:
        key = load_pem_public_key(pem)
    except _BROKEN:
        raise ConfigError(f"{where}: is not a public key in PEM") from None
    fault = fault_of(key, algorithm)
    if fault is not None:
        raise ConfigError(f"{where}: {fault}")
    return cast("PublicKey", key)


def jwk_key(jwk: Mapping[str, Any], algorithm: str) -> PublicKey | None:
    """Return the key of a JWK (RFC 7517) if it may check signatures of ``algorithm``, else None.

    A private or symmetric key in a set that is there to be read by others fits nothing.
    """
    if jwk.get("use", "sig") != "sig" or jwk.get("alg", algorithm) != algorithm:
        return None
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        match jwk.get("kty"):
            case "RSA":
                key: Any = RSAAlgorithm.from_jwk(dict(jwk))
            case "EC":
                key = ECAlgorithm.from_jwk(dict(jwk))
            case "OKP":
                key = OKPAlgorithm.from_jwk(dict(jwk))
            case _:
                return None
    except _BROKEN:
        return None
    return key if fault_of(key, algorithm) is None else None


def fault_of(key: object, algorithm: str) -> str | None:
    """Return why a public key can't check signatures of ``algorithm``; None: it can."""
    if algorithm == "RS256":
        if not isinstance(key, RSAPublicKey):
            return f"is not an RSA key, which {algorithm} needs"
        if key.key_size < MIN_RSA_BITS:
            return f"is an RSA key of fewer than {MIN_RSA_BITS} bits"
        return None
    if algorithm in _CURVES:
        if not isinstance(key, EllipticCurvePublicKey):
            return f"is not an elliptic curve key, which {algorithm} needs"
        if not isinstance(key.curve, _CURVES[algorithm]):
            return f"is not a key on the curve {_CURVES[algorithm].name}, which {algorithm} needs"
        return None
    if not isinstance(key, Ed25519PublicKey | Ed448PublicKey):
        return f"is not an Ed25519 or Ed448 key, which {algorithm} needs"
    return None


def read_file(path: str, where: str) -> bytes:
    """Return what a small file holds; ``where`` is the configuration key that names it.

    Raises:
        ConfigError: it can't be read, or holds more than 256 KiB.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        # What was pasted in place of a path is not repeated.
        name = f"{path} " if path.isprintable() and len(path) <= MAX_SHOWN_PATH else ""
        raise ConfigError(f"{where}: {name}cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{where}: is not a path") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{where}: is larger than {MAX_FILE_BYTES} bytes")
    return text
