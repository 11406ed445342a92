"""Signs pictures: a key, its certificates, and what is claimed, as a C2PA manifest in the file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from exporter.credentials import library
from exporter.credentials.chain import Chain, read_chain
from exporter.credentials.claim import Claim
from exporter.credentials.keys import Algorithm, Sign, algorithm_of, file_signer, is_signature
from exporter.credentials.token import SCHEME, token_signer
from exporter.errors import FourstepError, InputError
from exporter.files.read import panics_as, reason_of
from exporter.files.stop import tell_wish

TRIAL = b"fourstep"  # signed once, to see whether key and certificate belong together


@dataclass(frozen=True)
class Credentials:
    """What to sign pictures with.

    Attributes:
        certificate: a PEM file: the signer's certificate, then those that issued it.
        key: a PEM file, or a ``pkcs11:`` URI (RFC 7512) of a key in a token.
        passphrase: of an encrypted file, or the PIN of a token whose URI names none.
    """

    certificate: Path
    key: str | Path
    passphrase: str | None = None

    @property
    def key_name(self) -> str:
        """The key, in an error: the file, or the URI without what may hold a PIN."""
        return os.fspath(self.key).partition("?")[0] if self.in_token else os.fspath(self.key)

    @property
    def in_token(self) -> bool:
        """Whether a token signs."""
        return os.fspath(self.key).startswith(SCHEME)


@dataclass(frozen=True)
class Signer:
    """Signs pictures with a key that was tried.

    Attributes:
        credentials: what it was made from.
        chain: the certificates.
        algorithm: by which the key signs.
        sign: signs a message.
    """

    credentials: Credentials
    chain: Chain
    algorithm: Algorithm
    sign: Sign

    @property
    def about(self) -> dict[str, str]:
        """Who signs: the name in the certificate, its digest, and the algorithm."""
        return {
            "signer": self.chain.signer,
            "certificate_sha256": self.chain.sha256,
            "algorithm": self.algorithm.name,
        }

    def signed(self, content: bytes, form: str, claim: Claim) -> bytes:
        """A picture's file with Content Credentials in it; the pixels stay as they are.

        Args:
            content: the file.
            form: its format by Pillow's name: PNG, JPEG or WEBP.

        Raises InputError for another format, and for what the key or the library does not sign.
        """
        c2pa = library.load()
        failures: list[Exception] = []

        def asked(message: bytes) -> bytes:
            try:
                return self.sign(message)
            except (
                Exception
            ) as error:  # told below: the library tells no more than that there was one
                failures.append(error)
                return b""

        check_format(form)
        found = io.BytesIO()
        try:
            kind = getattr(c2pa.C2paSigningAlg, self.algorithm.name)
            with (
                library.context() as context,
                c2pa.Signer.from_callback(asked, kind, self.chain.pem) as signer,
                c2pa.Builder(claim.definition, context=context) as builder,
            ):
                _add_source(builder, claim)
                builder.sign(signer, library.FORMATS[form], io.BytesIO(content), found)
        except c2pa.C2paError as error:
            tell_wish()
            if failures:
                raise self.refused(failures[0]) from None
            place = self.credentials.certificate
            raise InputError(f"{place}: the C2PA library refuses it: {reason_of(error)}") from None
        return found.getvalue()

    def refused(self, error: Exception) -> FourstepError:
        """What is said of a key that does not sign."""
        if isinstance(error, FourstepError):
            return error
        return InputError(f"{self.credentials.key_name}: cannot sign: {reason_of(error)}")


def check_format(form: str, file: object = "") -> None:
    """Raise InputError of ``out`` for a format of Pillow's that holds no Content Credentials."""
    if form not in library.FORMATS:
        raise InputError(
            f"Content Credentials are signed into {library.SUFFIXES}, not into {form}; choose one "
            "of them, or give no credentials",
            field="out",
            given=file,
        )


@contextmanager
def open_signer(credentials: Credentials) -> Iterator[Signer]:
    """What signs pictures while it is open.

    Raises InputError that names the file at fault: what cannot be read, a certificate that expired
    or that C2PA does not take, a key that is not the certificate's.
    """
    library.load()
    chain = read_chain(credentials.certificate)
    public = chain.certificates[0].public_key()
    algorithm = algorithm_of(public, credentials.certificate)
    key, passphrase = credentials.key, credentials.passphrase
    with (
        token_signer(os.fspath(key), passphrase, algorithm)
        if credentials.in_token
        else _alone(file_signer(Path(key), passphrase, algorithm)) as sign
    ):
        signer = Signer(credentials, chain, algorithm, sign)
        with panics_as(lambda said: InputError(f"{credentials.key_name}: cannot sign: {said}")):
            is_own = is_signature(public, algorithm, TRIAL, sign(TRIAL))
        if not is_own:
            raise InputError(
                f"{credentials.key_name}: is not the key of the first certificate in "
                f"{credentials.certificate}, '{chain.signer}'"
            )
        yield signer


@contextmanager
def _alone(sign: Sign) -> Iterator[Sign]:
    """A key that has nothing to be closed."""
    yield sign


def _add_source(builder: object, claim: Claim) -> None:
    """The picture that was started from, with Content Credentials of its own if it has some."""
    source = claim.source
    if source is None or not source.content:
        return
    c2pa = library.load()
    try:
        builder.add_ingredient(  # type: ignore[attr-defined]
            claim.ingredient, source.mime, io.BytesIO(source.content)
        )
    except c2pa.C2paError as error:
        tell_wish()
        raise InputError(
            f"the C2PA library cannot read it: {reason_of(error)}; save it as PNG", field="image"
        ) from None
