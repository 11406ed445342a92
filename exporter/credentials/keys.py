"""Private keys: what signs, wherever the key lies, and by which of C2PA's algorithms."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import InputError
from exporter.files.read import panics_as, read_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

Sign = Callable[[bytes], bytes]
MOST_PEM_BYTES = 1 << 20
LEAST_RSA_BITS = 2048
PRIVATE = re.compile(
    r"-----BEGIN ((?:RSA |EC |ENCRYPTED )?PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL
)
# Bits of a curve: C2PA's name of the algorithm, bits of its digest, bytes of half a signature.
CURVES = {
    "secp256r1": ("ES256", 256, 32),
    "secp384r1": ("ES384", 384, 48),
    "secp521r1": ("ES512", 512, 66),
}
TAKEN = f"P-256, P-384, P-521, Ed25519 and RSA from {LEAST_RSA_BITS} bits are"


@dataclass(frozen=True)
class Algorithm:
    """How a key signs.

    Attributes:
        name: C2PA's: ES256, ES384, ES512, PS256 or ED25519.
        digest_bits: of the SHA-2 digest that is signed; 0: the message itself is.
        half_bytes: of each of the two numbers of an ECDSA signature; 0 for others.
    """

    name: str
    digest_bits: int
    half_bytes: int = 0

    @property
    def hash(self) -> HashAlgorithm:
        from cryptography.hazmat.primitives import hashes

        kinds: dict[int, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
            256: hashes.SHA256,
            384: hashes.SHA384,
            512: hashes.SHA512,
        }
        return kinds[self.digest_bits]()

    def digest(self, message: bytes) -> bytes:
        """What a token signs that does not digest by itself."""
        from cryptography.hazmat.primitives import hashes

        state = hashes.Hash(self.hash)
        state.update(message)
        return state.finalize()


def algorithm_of(key: PublicKeyTypes, where: object) -> Algorithm:
    """How the key of this public key signs; raises InputError for one that C2PA does not take."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        return Algorithm(*CURVES[key.curve.name])
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS:
        return Algorithm("PS256", 256)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return Algorithm("ED25519", 0)
    raise InputError(f"{where}: its key is of a kind that C2PA does not sign with; {TAKEN} taken")


def file_signer(file: Path, passphrase: str | None, algorithm: Algorithm) -> Sign:
    """What signs with a key in a PEM file.

    A signature is what C2PA holds of it: of ECDSA the two numbers one behind the other. Raises
    InputError naming the file.
    """
    key = read_private_key(file, passphrase)
    wrong = InputError(f"{file}: is not the key of the certificate")
    try:
        if algorithm_of(key.public_key(), file) != algorithm:
            raise wrong
    except AttributeError:  # a key of an exchange has no such thing
        raise wrong from None
    return key_signer(key, algorithm)


def key_signer(key: Any, algorithm: Algorithm) -> Sign:
    """What signs with a private key; a signature is what C2PA holds of it."""
    return lambda message: _signature(key, algorithm, message)


def der_of(signature: bytes, algorithm: Algorithm) -> bytes:
    """A signature of ECDSA, as C2PA holds it, in the form that everybody else gives it."""
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    half = algorithm.half_bytes
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    return encode_dss_signature(r, s)


def _unreadable(said: str) -> InputError:
    return InputError(f"{said}; name a private key in PEM, or a pkcs11: URI")


def read_private_key(file: Path, passphrase: str | None) -> Any:
    """The private key in a PEM file; raises InputError naming the file."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = read_text(file, _unreadable, MOST_PEM_BYTES)
    found = PRIVATE.search(text)
    if found is None:
        raise InputError(f"{file}: holds no private key in PEM (-----BEGIN PRIVATE KEY-----)")
    is_encrypted = "ENCRYPTED" in found[0]  # in the first line, or in a header below it
    if is_encrypted and passphrase is None:
        raise InputError(f"{file} is encrypted; give its passphrase", field="passphrase")
    if not is_encrypted and passphrase is not None:
        raise InputError(f"{file} is not encrypted; give no passphrase", field="passphrase")
    secret = None if passphrase is None else passphrase.encode()
    hint = ", or the passphrase is wrong" if is_encrypted else ""
    with panics_as(lambda said: InputError(f"{file}: cannot be read as a private key{hint}")):
        return load_pem_private_key(found[0].encode(), secret)


def _signature(key: Any, algorithm: Algorithm, message: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec, padding
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    if algorithm.half_bytes:
        halves = decode_dss_signature(key.sign(message, ec.ECDSA(algorithm.hash)))
        return b"".join(half.to_bytes(algorithm.half_bytes, "big") for half in halves)
    if not algorithm.digest_bits:
        return bytes(key.sign(message))
    salted = padding.PSS(padding.MGF1(algorithm.hash), algorithm.digest_bits // 8)
    return bytes(key.sign(message, salted, algorithm.hash))


def is_signature(
    key: PublicKeyTypes, algorithm: Algorithm, message: bytes, signature: bytes
) -> bool:
    """Whether this is a signature, as C2PA holds it, of the message by the key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, padding

    own: Any = key
    try:
        if algorithm.half_bytes:
            own.verify(der_of(signature, algorithm), message, ec.ECDSA(algorithm.hash))
        elif not algorithm.digest_bits:
            own.verify(signature, message)
        else:
            salted = padding.PSS(padding.MGF1(algorithm.hash), algorithm.digest_bits // 8)
            own.verify(signature, message, salted, algorithm.hash)
    except InvalidSignature:
        return False
    return True
