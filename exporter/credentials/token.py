"""Keys that never leave their token: hardware and software of PKCS#11, by URI (RFC 7512)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from exporter.credentials.keys import Algorithm, Sign
from exporter.errors import InputError, known, needs_extra
from exporter.files.read import read_text, reason_of
from exporter.files.stop import tell_wish

SCHEME = "pkcs11:"
OF_TOKEN = ("token", "serial", "manufacturer", "model")
OF_KEY = ("object", "id", "type")
OF_ACCESS = ("module-path", "pin-value", "pin-source")
EXAMPLE = "pkcs11:token=NAME;object=NAME?module-path=/path/of/the/token's/library.so"
MOST_PIN_BYTES = 4096


@dataclass(frozen=True)
class TokenKey:
    """A key in a token, as its URI says it.

    Attributes:
        place: the URI without what may hold a PIN.
        token: what the token has to be called: ``token``, ``serial``, ``manufacturer``, ``model``.
        label: of the key, or None: any.
        id: of the key, or None: any.
        module: the token's library.
        pin: of its user, or None.
    """

    place: str
    token: dict[str, str]
    label: str | None
    id: bytes | None
    module: str
    pin: str | None


def parse_uri(uri: str) -> TokenKey:
    """A key's URI, percent-decoded; raises InputError naming what is wrong with it."""
    place, _, query = uri.partition("?")
    path = _attributes(place.removeprefix(SCHEME), ";", (*OF_TOKEN, *OF_KEY), place)
    access = _attributes(query, "&", OF_ACCESS, place)
    text = {name: _text(value, place) for name, value in (path | access).items() if name != "id"}
    if text.get("type", "private") != "private":
        raise InputError(f"{place}: type={text['type']} does not sign; name a private key")
    if "module-path" not in text:
        raise InputError(f"{place}: says no module-path, the token's library; write {EXAMPLE}")
    if "object" not in path and "id" not in path:
        raise InputError(f"{place}: says neither object nor id, which key it is; write {EXAMPLE}")
    if "pin-value" in text and "pin-source" in text:
        raise InputError(f"{place}: says both pin-value and pin-source; give one")
    pin = text.get("pin-value")
    if "pin-source" in text:
        pin = _pin_of(text["pin-source"], place)
    names = {name: text[name] for name in OF_TOKEN if name in text}
    return TokenKey(place, names, text.get("object"), path.get("id"), text["module-path"], pin)


def _attributes(text: str, separator: str, names: tuple[str, ...], place: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals or name not in names:
            raise InputError(f"{place}: {known('attribute', name, names)}")
        if name in found:
            raise InputError(f"{place}: says {name} twice")
        found[name] = unquote_to_bytes(value)
    return found


def _text(value: bytes, place: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InputError(f"{place}: is not UTF-8 once it is percent-decoded") from None


def _pin_of(source: str, place: str) -> str:
    """The PIN in a file; its last line's end is none of it."""
    if source.startswith("|"):
        raise InputError(f"{place}: pin-source names a program; put the PIN into a file")
    file = source  # a path as it is, or a URI of its own, which is encoded once more
    if source.startswith("file:"):
        file = _text(unquote_to_bytes(source.removeprefix("file:").removeprefix("//")), place)
    return read_text(Path(file), most_bytes=MOST_PIN_BYTES).removesuffix("\n")


@dataclass(frozen=True)
class OpenToken:
    """A private key in a token, while a session with it is open.

    Attributes:
        key: as its URI says it.
        private: python-pkcs11's handle of it.
    """

    key: TokenKey
    private: Any

    def signer(self, algorithm: Algorithm) -> Sign:
        """What signs with it."""
        return lambda message: _signature(self.private, algorithm, message)

    def public_key(self) -> bytes:
        """The public key beside it in the token, DER; raises InputError where there is none."""
        return bytes(_told(self.key, lambda: _public_key(self.private, self.key)))


@contextmanager
def open_token(uri: str, passphrase: str | None, extra: str = "credentials") -> Iterator[OpenToken]:
    """A key in a token, while a session with it is open.

    Args:
        extra: of fourstep, that brings the library.

    Raises InputError that names the URI, without its PIN.
    """
    key = parse_uri(uri)
    if key.pin is not None and passphrase is not None:
        raise InputError(f"{key.place}: says its PIN; give no passphrase", field="passphrase")
    if importlib.util.find_spec("pkcs11") is None:
        raise needs_extra(extra, "python-pkcs11")
    pin = key.pin if passphrase is None else passphrase
    session = _told(key, lambda: _session(key, pin))
    try:
        yield OpenToken(key, _told(key, lambda: _private_key(session, key)))
    finally:
        session.close()


@contextmanager
def token_signer(uri: str, passphrase: str | None, algorithm: Algorithm) -> Iterator[Sign]:
    """What signs with a key in a token, while a session with it is open.

    Raises InputError that names the URI, without its PIN.
    """
    with open_token(uri, passphrase) as token:
        yield token.signer(algorithm)


def _told(key: TokenKey, ask: Callable[[], Any]) -> Any:
    """What a token answers; raises InputError that names the key for what it refuses."""
    import pkcs11

    try:
        return ask()
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
        tell_wish()
        raise InputError(f"{key.place}: {_worded(error)}") from None


def _worded(error: Exception) -> str:
    import pkcs11

    if isinstance(error, pkcs11.PinIncorrect | pkcs11.PinLenRange | pkcs11.PinInvalid):
        return "the PIN is wrong; tokens lock themselves after a few"
    if isinstance(error, pkcs11.UserNotLoggedIn):
        return "needs the token's PIN: write ?pin-source=FILE, or give a passphrase"
    return f"the token refuses: {type(error).__name__} {reason_of(error)}".removesuffix(" ")


def _session(key: TokenKey, pin: str | None) -> Any:
    """An open session with the one token that is meant."""
    import pkcs11

    try:
        module = pkcs11.lib(key.module)
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
        raise InputError(
            f"{key.module}: is not a PKCS#11 library that can be loaded: {reason_of(error)}"
        ) from None
    tokens = [slot.get_token() for slot in module.get_slots(token_present=True)]
    meant = [token for token in tokens if _is_meant(token, key.token)]
    if len(meant) != 1:
        labels = ", ".join(repr(token.label) for token in tokens if token.label) or "none"
        raise InputError(f"{key.place}: {len(meant)} tokens are meant; there are {labels}")
    return meant[0].open(user_pin=pin)


def _is_meant(token: Any, names: dict[str, str]) -> bool:
    own = {
        "token": token.label,
        "serial": token.serial,
        "manufacturer": token.manufacturer_id,
        "model": token.model,
    }
    return all(_plain(own[name]) == value for name, value in names.items())


def _plain(value: str | bytes) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).rstrip()


def _private_key(session: Any, key: TokenKey) -> Any:
    from pkcs11 import Attribute, ObjectClass

    wanted: dict[Any, Any] = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    if key.label is not None:
        wanted[Attribute.LABEL] = key.label
    if key.id is not None:
        wanted[Attribute.ID] = key.id
    found = list(session.get_objects(wanted))
    if not found:
        raise InputError(f"{key.place}: the token has no such private key, or wants its PIN first")
    if len(found) > 1:
        raise InputError(f"{key.place}: {len(found)} private keys are meant; add an id")
    return found[0]


def _public_key(private: Any, key: TokenKey) -> bytes:
    """Its public half, which tokens keep under the same id, or the same label, beside it."""
    from pkcs11 import Attribute, KeyType, ObjectClass
    from pkcs11.util.ec import encode_ec_public_key

    if private.key_type != KeyType.EC:
        raise InputError(f"{key.place}: is no key of an elliptic curve")
    names = {Attribute.ID: private[Attribute.ID], Attribute.LABEL: private[Attribute.LABEL]}
    wanted = {name: value for name, value in names.items() if value}
    found = list(private.session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY} | wanted))
    if len(found) != 1:
        raise InputError(
            f"{key.place}: the token has {len(found)} public keys beside it; give its certificate"
        )
    return bytes(encode_ec_public_key(found[0]))


def _signature(private: Any, algorithm: Algorithm, message: bytes) -> bytes:
    """As C2PA holds it; the digest is taken here, as not every token takes one."""
    from pkcs11 import MGF, Mechanism

    if algorithm.half_bytes:
        found = private.sign(algorithm.digest(message), mechanism=Mechanism.ECDSA)
    elif not algorithm.digest_bits:
        found = private.sign(message, mechanism=Mechanism.EDDSA)
    else:
        bits = algorithm.digest_bits
        salted = (
            getattr(Mechanism, f"SHA{bits}"),
            getattr(MGF, f"SHA{bits}"),
            bits // 8,
        )
        found = private.sign(
            algorithm.digest(message), mechanism=Mechanism.RSA_PKCS_PSS, mechanism_param=salted
        )
    return bytes(found)
