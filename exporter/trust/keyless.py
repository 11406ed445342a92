"""Signs by an identity: asks the authority and the log of an instance of Sigstore.

This is the one place in the project where signing opens connections, and only for an identity. The
private key is made for one signature and lives as long as that takes.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from exporter.errors import InputError
from exporter.files.read import panics_as, parse_json, read_text, reason_of
from exporter.trust.identity import (
    Root,
    Who,
    check_identity,
    need_library,
    quiet,
    root_of,
    shortened,
    told_by,
)

if TYPE_CHECKING:
    from sigstore.models import Bundle, ClientTrustConfig
    from sigstore.oidc import IdentityToken

FROM_ENVIRONMENT = "env:"
BEGINS = "eyJ"  # a token: {" in base64
TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*")  # JSON Web Token: three parts of base64
MOST_TOKEN_BYTES = 1 << 16
MOST_CONFIG_BYTES = 1 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PUBLIC = "Sigstore's public instance"


@dataclass(frozen=True)
class SigningIdentity:
    """As whom to sign packages.

    Attributes:
        token: of OpenID Connect, for the audience ``sigstore``; a secret until it expires.
        config: the trust configuration of a private instance; None: Sigstore's public one.
    """

    token: str = field(repr=False)
    config: Path | None = None

    @property
    def instance(self) -> str:
        """The instance, in an error."""
        return PUBLIC if self.config is None else os.fspath(self.config)


@dataclass(frozen=True)
class Vouched:
    """A signature that an instance vouched for, and that was checked.

    Attributes:
        content: of the signature file.
        who: in the certificate.
        log_index: the entry's place in the log, where everybody can read it.
    """

    content: bytes
    who: Who
    log_index: int


def read_token(given: str) -> str:
    """The token in a file, or in the variable that ``env:NAME`` names; raises InputError.

    A token itself is refused, as every process of the machine sees arguments; it is not repeated.
    """
    if given.startswith(FROM_ENVIRONMENT):
        found = os.environ.get(given.removeprefix(FROM_ENVIRONMENT), "")
        if not found:
            raise InputError("is not set, or empty", field="identity", given=given)
    elif given.startswith(BEGINS) and not Path(given).is_file():  # whole, or a part of one
        raise InputError(
            "takes the name of a file with the token, or env:NAME of a variable, and not the token "
            "itself, which every process could read",
            field="identity",
        )
    else:
        found = read_text(Path(given).expanduser(), _unreadable, MOST_TOKEN_BYTES)
    if TOKEN.fullmatch(found.strip()) is None:
        raise InputError(
            "holds no identity token (JWT: three parts, two points)", field="identity", given=given
        )
    return found.strip()


def _unreadable(said: str) -> InputError:
    return InputError(f"{said}; name a file with an identity token, or env:NAME of a variable")


def open_identity(
    identity: SigningIdentity, say: Callable[[str], None] = lambda line: None
) -> Callable[[bytes], Vouched]:
    """What signs a statement by an identity, once token and instance were read; asks nobody yet.

    But for the public instance, whose root of trust the library looks up. Raises InputError.
    """
    need_library()
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken

    with _refusing(identity, "the identity token is refused"):
        token = IdentityToken(identity.token)
    reading = "cannot be asked" if identity.config is None else "cannot be read as a configuration"
    with quiet(say), _refusing(identity, reading):
        if identity.config is None:
            config = ClientTrustConfig.production()
        else:
            text = read_text(identity.config, InputError, MOST_CONFIG_BYTES)
            _refuse_clear(parse_json(text, identity.config, unique=True), identity.config)
            config = ClientTrustConfig.from_json(text)
        root = root_of(config.trusted_root)
    return lambda payload: _vouched(payload, identity, token, config, root, say)


def _vouched(
    payload: bytes,
    identity: SigningIdentity,
    token: IdentityToken,
    config: ClientTrustConfig,
    root: Root,
    say: Callable[[str], None],
) -> Vouched:
    from sigstore.dsse import Statement
    from sigstore.sign import SigningContext

    with quiet(say), _refusing(identity, "did not sign"):
        context = SigningContext.from_trust_config(config)
        say("asking the authority for a certificate")
        with context.signer(token) as signer:
            say("asking the log for an entry")
            bundle = signer.sign_dsse(Statement(payload))
        content = bundle.to_json().encode()
        who = told_by(bundle.signing_certificate)
        check_identity(content, who, root, Path(identity.instance))
        return Vouched(content, who, _place(bundle))


def _place(bundle: Bundle) -> int:
    raw = parse_json(bundle.to_json(), "the bundle")
    return int(raw["verificationMaterial"]["tlogEntries"][0].get("logIndex", 0))


def _refuse_clear(raw: Any, file: Path) -> None:
    """Refuse an authority to which the token would go in the clear, but on this machine."""
    for service in raw.get("signingConfig", {}).get("caUrls", ()):
        place = urlsplit(str(service.get("url", "")))
        if place.scheme != "https" and place.hostname not in LOOPBACK:
            raise InputError(
                f"{file}: the authority {place.geturl()!r:.200} is not asked over https, so that "
                "the token could be read on the way"
            )


@contextmanager
def _refusing(identity: SigningIdentity, what: str) -> Iterator[None]:
    """What the library raises inside becomes an InputError: names the instance, not the token."""

    def worded(said: str) -> InputError:
        found = sys.exception()
        reasons = said if found is None else _reasons(found)
        hidden = reasons.replace(identity.token, "(the token)")  # before anything is cut
        return InputError(f"{identity.instance}: {what}: {shortened(hidden)}")

    with panics_as(worded):
        yield


def _reasons(error: BaseException) -> str:
    """What an error says, and what is behind it: a status and a message of a service, a socket."""
    said: list[str] = []
    left: BaseException | None = error
    while left is not None:
        answer = getattr(left, "response", None)
        told = "" if answer is None else str(getattr(answer, "text", ""))
        words = reason_of(left) if str(left) else ""
        said += [part for part in (words, told) if part and part not in said]
        left = left.__cause__ or left.__context__
    return "; ".join(said[:3]) or type(error).__name__
