"""Content Credentials: signed into pictures, read by the C2PA library, by keys of every kind."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import PrivateFormat, load_pem_private_key
from PIL import Image as Pictures

from exporter import __version__
from exporter.cli import main
from exporter.credentials import check, library, token
from exporter.credentials.claim import Claim, DrawnWith, SourcePicture
from exporter.credentials.keys import file_signer
from exporter.credentials.sign import Credentials, Signer, open_signer
from exporter.errors import InputError
from exporter.files.pictures import format_of, write_picture
from exporter.package.manifest import MarkEntry
from exporter.package.read import package_digest
from exporter.runtime import Image, Request, generate, open_package, write_signed
from exporter.runtime.signed import claim_of
from tests.certificates import DAY, Issued, issue, key_pem, keys, pem
from tests.tokens import MODULE, put, with_token

CLAIM = Claim(DrawnWith("shapes", "onnx", "int8", "ab" * 32, "cd" * 32, "LICENSE", "ef" * 32))
PIXELS = np.arange(48 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 64, 3)
FORMATS = ("png", "jpg", "webp")
DOCUMENTS = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")
C2PA = x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")


@pytest.fixture(scope="module")
def root() -> Issued:
    return issue("root", authority=True)


@pytest.fixture(scope="module")
def signing(root: Issued, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Files of a chain and a key that sign, and of the authority."""
    folder = tmp_path_factory.mktemp("signing")
    middle = issue("middle", root, authority=True)
    chain, key = issue("signer", middle).write(folder)
    (folder / "root.pem").write_bytes(pem(root.certificate))
    return chain, key, folder / "root.pem"


def fourstep(*arguments: object, **variables: str) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env=variables)


def mistake(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("fourstep: ")]
    for part in parts:
        assert part in line


def write(file: Path, signer: Signer, claim: Claim = CLAIM) -> Path:
    write_picture(
        PIXELS, file, {"prompt": "a star"}, lambda data, form: signer.signed(data, form, claim)
    )
    return file


def told(file: Path, anchors: str | None = None) -> dict[str, Any]:
    """What the library's own reader says of a picture, with settings of this test's own."""
    trust = {"trust": {"user_anchors": anchors}} if anchors else {"verify": {"verify_trust": False}}
    with c2pa.Reader(str(file), context=c2pa.Context.from_dict(trust)) as reader:
        found: dict[str, Any] = json.loads(reader.json())
    return found


def active(told: dict[str, Any]) -> dict[str, Any]:
    return dict(told["manifests"][told["active_manifest"]])


def assertions(manifest: dict[str, Any]) -> dict[str, Any]:
    return {a["label"]: a["data"] for a in manifest["assertions"]}


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_librarys_reader_trusts_what_is_signed(
    signing: tuple[Path, Path, Path], tmp_path: Path, suffix: str
) -> None:
    chain, key, anchors = signing
    plain = tmp_path / f"plain.{suffix}"
    write_picture(PIXELS, plain, {"prompt": "a star"})
    with open_signer(Credentials(chain, key)) as signer:
        signed = write(tmp_path / f"signed.{suffix}", signer)
    found = told(signed, anchors.read_text())
    assert found["validation_state"] == "Trusted"
    assert found["validation_results"]["activeManifest"]["failure"] == []
    manifest = active(found)
    (action,) = assertions(manifest)["c2pa.actions.v2"]["actions"]
    assert action == {
        "action": "c2pa.created",
        "digitalSourceType": (
            "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        ),
        "softwareAgent": {"name": "fourstep", "version": __version__},
    }
    model = assertions(manifest)["fourstep.model"]
    assert model["name"] == "shapes" and model["package_sha256"] == "ab" * 32
    assert model["licence"] == "LICENSE"
    assert manifest["claim_generator_info"][0]["name"] == "fourstep"
    assert "a star" not in json.dumps(found) and "thumbnail" not in json.dumps(manifest)
    with Pictures.open(plain) as one, Pictures.open(signed) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert one.info.get("prompt") == other.info.get("prompt")
        assert one.getexif() == other.getexif()


def with_changed_pixel(content: bytes, suffix: str) -> bytes:
    """The same file, its credentials included, and another pixel."""
    if suffix != "png":
        start = {"jpg": content.rfind(b"\xff\xda") + 40, "webp": content.find(b"VP8 ") + 60}[suffix]
        return content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]
    at = content.index(b"IDAT")
    size = int.from_bytes(content[at - 4 : at], "big")
    rows = bytearray(zlib.decompress(content[at + 4 : at + 4 + size]))
    rows[-1] ^= 1
    data = b"IDAT" + zlib.compress(bytes(rows))
    chunk = (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
    return content[: at - 4] + chunk + content[at + 8 + size :]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_changed_pixel_or_field_is_found(
    signing: tuple[Path, Path, Path], tmp_path: Path, suffix: str
) -> None:
    chain, key, _ = signing
    with open_signer(Credentials(chain, key)) as signer:
        content = write(tmp_path / f"signed.{suffix}", signer).read_bytes()
    changes = {
        "assertion.dataHash.mismatch": with_changed_pixel(content, suffix),
        "assertion.hashedURI.mismatch": content.replace(b"trainedAlgo", b"trainedalgo"),
        "claimSignature.mismatch": content.replace(b"hfourstep", b"hfivestep"),
    }
    for code, changed in changes.items():
        assert changed != content
        file = tmp_path / f"changed.{suffix}"
        file.write_bytes(changed)
        found = told(file)
        failures = found["validation_results"]["activeManifest"]["failure"]
        assert found["validation_state"] == "Invalid" and code in {f["code"] for f in failures}
        own = check.read_credentials(file)
        assert own.state == "invalid" and any(p.startswith(code) for p in own.problems)
        result = fourstep("credentials", file)
        assert (
            result.exit_code == 1
            and f"{file.name}: its Content Credentials are invalid: " in result.stderr
        )


def test_metadata_is_signed_too(signing: tuple[Path, Path, Path], tmp_path: Path) -> None:
    chain, key, _ = signing
    with open_signer(Credentials(chain, key)) as signer:
        file = write(tmp_path / "signed.png", signer)
    file.write_bytes(file.read_bytes().replace(b"a star", b"a moon"))
    assert check.read_credentials(file).state == "invalid"


@pytest.mark.parametrize("kind", ["ES256", "ES384", "ES512", "PS256", "ED25519"])
@pytest.mark.parametrize("passphrase", [None, "open sesame"])
def test_keys_of_every_kind(
    root: Issued, tmp_path: Path, kind: str, passphrase: str | None
) -> None:
    secret = passphrase.encode() if passphrase else None
    chain, key = issue("signer", root, keys()[kind]).write(tmp_path, secret)
    with open_signer(Credentials(chain, key, passphrase)) as signer:
        assert signer.algorithm.name == kind
        file = write(tmp_path / "a.png", signer)
    assert told(file, pem(root.certificate).decode())["validation_state"] == "Trusted"


@pytest.mark.parametrize("purpose", [DOCUMENTS, C2PA])
def test_other_purposes_that_c2pa_knows(
    root: Issued, tmp_path: Path, purpose: x509.ObjectIdentifier
) -> None:
    chain, key = issue("signer", root, purposes=(purpose,)).write(tmp_path)
    anchors = tmp_path / "root.pem"
    anchors.write_bytes(pem(root.certificate))
    with open_signer(Credentials(chain, key)) as signer:
        file = write(tmp_path / "a.png", signer)
    assert check.read_credentials(file, anchors).state == "trusted"


def test_keys_as_openssl_writes_them(root: Issued, tmp_path: Path) -> None:
    """Of the older kinds, with parameters before the key, and in one file with the certificates."""
    issued = issue("signer", root)
    both = tmp_path / "both.pem"
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    for passphrase in (None, b"sesame"):
        older = key_pem(issued.key, passphrase, PrivateFormat.TraditionalOpenSSL)
        both.write_bytes(parameters + older + issued.chain)
        secret = passphrase.decode() if passphrase else None
        with open_signer(Credentials(both, both, secret)) as signer:
            write(tmp_path / "a.png", signer)


def bad(name: str, root: Issued) -> Issued:
    """A signer whose certificates C2PA does not take."""
    own = ec.generate_private_key(ec.SECP256R1())
    made = {
        "expired": lambda: issue("signer", root, first=-9 * DAY, last=-DAY),
        "early": lambda: issue("signer", root, first=DAY),
        "self-signed": lambda: issue("signer"),
        "authority": lambda: issue("middle", root, authority=True),
        "server": lambda: issue("signer", root, purposes=(x509.OID_SERVER_AUTH,)),
        "no purpose": lambda: issue("signer", root, purposes=None),
        "no signature": lambda: issue("signer", root, digital_signature=False),
        "order": lambda: Issued(
            (s := issue("signer", issue("middle", root, authority=True))).certificate,
            s.key,
            tuple(reversed(s.above)),
        ),
        "short": lambda: issue("signer", root, rsa.generate_private_key(65537, 1024)),
        "koblitz": lambda: issue("signer", root, ec.generate_private_key(ec.SECP256K1())),
        "other key": lambda: Issued(issue("signer", root).certificate, own, (root.certificate,)),
        "other kind": lambda: Issued(
            issue("signer", root).certificate, keys()["PS256"], (root.certificate,)
        ),
        "old root": lambda: issue(
            "signer", issue("root", authority=True, first=-9 * DAY, last=-DAY)
        ),
    }
    return made[name]()


SAID = {
    "expired": "chain.pem: 'signer' expired on",
    "early": "chain.pem: 'signer' is not valid before",
    "self-signed": "chain.pem: 'signer' is self-signed",
    "authority": "chain.pem: its first certificate, 'middle', is an authority's",
    "server": "chain.pem: the extended key usage of 'signer' lacks one of emailProtection",
    "no purpose": "chain.pem: 'signer' has no extendedKeyUsage",
    "no signature": "chain.pem: the key usage of 'signer' lacks digitalSignature",
    "order": "chain.pem: 'signer' was not issued by 'root' below it; order them",
    "short": "chain.pem: its key is of a kind that C2PA does not sign with",
    "koblitz": "chain.pem: its key is of a kind that C2PA does not sign with",
    "other key": "key.pem: is not the key of the first certificate in ",
    "other kind": "key.pem: is not the key of the certificate",
    "old root": "chain.pem: 'root' expired on",
}


@pytest.mark.parametrize("name", SAID)
def test_bad_certificates_are_one_line(
    root: Issued, tiny_package: Path, tmp_path: Path, name: str
) -> None:
    chain, key = bad(name, root).write(tmp_path)
    out = tmp_path / "a.png"
    mistake(
        fourstep("run", tiny_package, "a star", "--credentials", chain, key, "--out", out),
        SAID[name],
    )
    assert not out.exists()


def test_unreadable_files_are_one_line(
    signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path
) -> None:
    chain, key, _ = signing
    out = tmp_path / "a.png"
    other = tmp_path / "text.pem"
    other.write_text("hello\n")
    broken = tmp_path / "broken.pem"
    broken.write_text("".join(f"-----{x} CERTIFICATE-----\nAAAA\n" for x in ("BEGIN", "END")))
    spoilt = tmp_path / "spoilt.pem"
    spoilt.write_text("".join(f"-----{x} PRIVATE KEY-----\nAAAA\n" for x in ("BEGIN", "END")))
    secret = tmp_path / "secret.pem"
    secret.write_bytes(key_pem(load_pem_private_key(key.read_bytes(), None), b"sesame"))
    for one, two, said in (
        (tmp_path / "no.pem", key, "no.pem: cannot be read: No such file or directory; name a PEM"),
        (
            chain,
            tmp_path / "no.pem",
            "cannot be read: No such file or directory; name a private key",
        ),
        (tmp_path, key, f"{tmp_path}: cannot be read: Is a directory"),
        (other, key, "text.pem: holds no certificate in PEM"),
        (chain, other, "text.pem: holds no private key in PEM"),
        (broken, key, "broken.pem: cannot be read as certificates"),
        (chain, spoilt, "spoilt.pem: cannot be read as a private key"),
        (chain, secret, "secret.pem is encrypted; give its passphrase"),
    ):
        result = fourstep("run", tiny_package, "a star", "--credentials", one, two, "--out", out)
        mistake(result, said)
    typed = ("run", tiny_package, "a star", "--out", out, "--credentials", chain)
    mistake(fourstep(*typed, secret, FOURSTEP_PASSPHRASE="no"), "secret.pem: cannot be read as")
    mistake(fourstep(*typed, key, FOURSTEP_PASSPHRASE="no"), "key.pem is not encrypted")
    assert not out.exists()
    assert fourstep(*typed, secret, FOURSTEP_PASSPHRASE="sesame").exit_code == 0


def drawn(package: Path, *arguments: object) -> list[dict[str, Any]]:
    result = fourstep("run", package, *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_every_picture_of_a_run_is_signed(
    signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path
) -> None:
    chain, key, anchors = signing
    (tmp_path / "list.txt").write_text("a star\na square\n")
    rows = drawn(
        tiny_package, "a red circle", "--prompts", tmp_path / "list.txt", "--seed", 1, "--seed", 2,
        "--out", tmp_path / "a.webp", "--previews", tmp_path / "previews",
        "--credentials", chain, key,
    )  # fmt: skip
    assert len(rows) == 6
    previews = sorted((tmp_path / "previews").iterdir())
    assert len(previews) == 24
    for file in [*(Path(row["path"]) for row in rows), *previews]:
        assert told(file, anchors.read_text())["validation_state"] == "Trusted"
    for row in rows:
        assert row["credentials"]["signer"] == "signer" and len(row["credentials"]) == 3
        model = check.read_credentials(Path(row["path"])).model
        assert model is not None and model["package_sha256"] == package_digest(tiny_package)
        assert model["name"] == "tiny" and model["licence"] == "LICENSE"
    shown = fourstep(
        "credentials", tmp_path / "a-0.webp", tmp_path / "a-1.webp", "--trust", anchors
    )
    assert shown.exit_code == 0, shown.output
    assert "trusted, signed by 'signer' of 'Maker of devices' (ES256)" in shown.stdout
    assert "trainedAlgorithmicMedia; c2pa.created, by fourstep" in shown.stdout
    assert "tiny onnx-int4, package " in shown.stdout and "licence LICENSE" in shown.stdout


def test_without_a_key_nothing_is_signed_and_that_is_said(
    tiny_package: Path, tmp_path: Path
) -> None:
    (row,) = drawn(tiny_package, "a star", "--out", tmp_path / "a.png")
    assert row["credentials"] is None
    assert check.read_credentials(tmp_path / "a.png") == check.Found("not signed")
    result = fourstep("credentials", tmp_path / "a.png")
    assert result.exit_code == 1 and "a.png: is not signed" in result.stderr
    picture = fourstep("inspect", tmp_path / "a.png")
    assert picture.exit_code == 0 and picture.stdout == f"{tmp_path / 'a.png'}  not signed\n"
    package = fourstep("inspect", tiny_package)
    assert "not signed, unless run is given --credentials CERT KEY" in package.stdout
    assert json.loads(fourstep("inspect", tiny_package, "--json").stdout)["credentials"] is None


@pytest.mark.parametrize("suffix", ["avif", "tiff", "bmp", "gif", "jp2", "ppm", "qoi"])
def test_other_formats_are_refused(
    signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path, suffix: str
) -> None:
    chain, key, _ = signing
    out = tmp_path / f"a.{suffix}"
    result = fourstep("run", tiny_package, "a star", "--out", out, "--credentials", chain, key)
    mistake(result, "--out", f"a.{suffix}", ".png, .jpg and .webp", format_of(out))
    assert not out.exists()


def test_a_picture_that_was_started_from_is_an_ingredient(
    signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path
) -> None:
    """With its own credentials if it has some; what it is called is not told."""
    chain, key, anchors = signing
    signed = ("--credentials", chain, key)
    drawn(tiny_package, "a star", "--out", tmp_path / "secret-name.png", *signed)
    out = tmp_path / "b.jpg"
    start = ("--image", tmp_path / "secret-name.png", "--strength", 0.5)
    drawn(tiny_package, "a square", "--out", out, *start, *signed)
    found = told(out, anchors.read_text())
    manifest = active(found)
    (ingredient,) = manifest["ingredients"]
    opened, edited = assertions(manifest)["c2pa.actions.v2"]["actions"]
    assert ingredient["relationship"] == "parentOf" and ingredient["format"] == "image/png"
    assert ingredient["active_manifest"] in found["manifests"] and len(found["manifests"]) == 2
    assert opened["action"] == "c2pa.opened" and len(opened["parameters"]["ingredients"]) == 1
    assert edited["action"] == "c2pa.edited"
    assert edited["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert found["validation_state"] == "Trusted" and "secret-name" not in json.dumps(found)
    assert "made from 1 other picture(s)" in fourstep("credentials", out).stdout


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "qoi"])
def test_any_picture_may_be_an_ingredient(
    signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path, suffix: str
) -> None:
    chain, key, _ = signing
    source, out = tmp_path / f"source.{suffix}", tmp_path / "a.png"
    Pictures.fromarray(PIXELS).save(source)
    drawn(tiny_package, "a", "--image", source, "--out", out, "--credentials", chain, key)
    assert check.read_credentials(out).ingredients == 1


def test_what_a_changed_source_says_of_itself_is_kept(
    signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path
) -> None:
    chain, key, _ = signing
    with open_signer(Credentials(chain, key)) as signer:
        source = write(tmp_path / "source.png", signer)
    source.write_bytes(with_changed_pixel(source.read_bytes(), "png"))
    out = tmp_path / "a.png"
    drawn(tiny_package, "a", "--image", source, "--out", out, "--credentials", chain, key)
    (ingredient,) = active(told(out))["ingredients"]
    failures = ingredient["validation_results"]["activeManifest"]["failure"]
    assert "assertion.dataHash.mismatch" in {f["code"] for f in failures}
    assert check.read_credentials(out).state == "valid"


def test_from_python(signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path) -> None:
    """A picture that was started from an array has an ingredient without a file."""
    chain, key, anchors = signing
    package = open_package(tiny_package)
    requests = [Request("a star"), Request("a star", image=PIXELS, strength=0.5)]
    with package.player() as player, open_signer(Credentials(chain, key)) as signer:
        for event in generate(player, requests):
            if isinstance(event, Image):
                write_signed(event, tmp_path / f"{event.index}.webp", package, signer)
        with pytest.raises(InputError, match="not into BMP"):
            write_signed(event, tmp_path / "a.bmp", package, signer)  # type: ignore[arg-type]
    first, second = (check.read_credentials(tmp_path / f"{i}.webp", anchors) for i in (0, 1))
    assert (first.state, first.actions, first.ingredients) == ("trusted", ("c2pa.created",), 0)
    assert second.actions == ("c2pa.opened", "c2pa.edited") and second.ingredients == 1
    assert not (tmp_path / "a.bmp").exists()


def test_a_mark_is_claimed(
    signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path
) -> None:
    chain, key, _ = signing
    package = open_package(tiny_package)
    assert not claim_of(package).is_marked
    entry = MarkEntry("fourstep-1", "0000000a", "0" * 16)
    claim = claim_of(replace(package, manifest=replace(package.manifest, mark=entry)))
    with open_signer(Credentials(chain, key)) as signer:
        found = check.read_credentials(write(tmp_path / "a.png", signer, claim))
    assert found.state == "valid"
    assert found.actions == ("c2pa.created", "c2pa.watermarked.unbound")


def test_trust(signing: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A signer of an authority that is not named is one whom nobody knows."""
    chain, key, anchors = signing
    with open_signer(Credentials(chain, key)) as signer:
        file = write(tmp_path / "a.png", signer)
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(pem(issue("stranger", authority=True).certificate))
    assert fourstep("credentials", file).exit_code == 0
    assert fourstep("credentials", file, "--trust", anchors).exit_code == 0
    result = fourstep("credentials", file, "--trust", stranger, "--json")
    assert result.exit_code == 1 and "of no authority that --trust names" in result.stderr
    (row,) = json.loads(result.stdout)
    assert row["state"] == "valid" and row["model"]["name"] == "shapes"
    mistake(fourstep("credentials", file, "--trust", tmp_path / "no.pem"), "no.pem: cannot be read")
    mistake(fourstep("credentials", file, "--trust", key), "key.pem: holds no certificate")
    mistake(fourstep("credentials", tmp_path / "no.png"), "no.png: cannot be read")
    text = tmp_path / "text.png"
    text.write_text("hello")
    mistake(fourstep("credentials", text), "text.png: cannot be read")


@contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """A server's address, and what it was asked while the block ran."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        is_done = threading.Event()

        def serve() -> None:
            while not is_done.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    asked.append(connection.recv(1000))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa", asked
        finally:
            is_done.set()
            thread.join()


def pointing_to(address: str) -> bytes:
    """A picture that says that its Content Credentials are elsewhere."""
    stream = io.BytesIO()
    xmp = (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{address}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
    Pictures.fromarray(PIXELS).save(stream, "JPEG", xmp=xmp.encode())
    return stream.getvalue()


def test_nothing_opens_a_connection(root: Issued, tmp_path: Path) -> None:
    """Not for manifests elsewhere, nor to ask whether a certificate was revoked."""
    with listening() as (address, asked):
        chain, key = issue("signer", root, ocsp=address).write(tmp_path)
        elsewhere = tmp_path / "elsewhere.jpg"
        elsewhere.write_bytes(pointing_to(address))
        source = SourcePicture(elsewhere.read_bytes(), "image/jpeg")
        (tmp_path / "root.pem").write_bytes(pem(root.certificate))
        with open_signer(Credentials(chain, key)) as signer:
            file = write(tmp_path / "a.png", signer, Claim(CLAIM.drawn_with, source))
        assert check.read_credentials(file, tmp_path / "root.pem").state == "trusted"
        with pytest.raises(InputError, match="elsewhere.jpg: "):
            check.read_credentials(elsewhere)
        assert asked == []
        with pytest.raises(c2pa.C2paError):  # what the library does when it is not told to stay off
            c2pa.Reader(str(elsewhere), context=c2pa.Context())
    assert len(asked) == 1


def test_without_the_library_one_line_says_how_to_get_it(
    signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    chain, key, _ = signing
    out = tmp_path / "a.png"
    typed = ("run", tiny_package, "a star", "--out", out)
    for missing, said in (("c2pa", "c2pa-python"), ("pkcs11", "python-pkcs11")):
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, missing=missing: None if name == missing else 1
        )
        own = key if missing == "c2pa" else "pkcs11:object=a?module-path=/b.so"
        result = fourstep(*typed, "--credentials", chain, own)
        mistake(result, f"{said} is not installed: pip install 'fourstep[credentials]'")
        assert not out.exists()


def test_a_run_without_credentials_needs_no_library(tiny_package: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('c2pa', 'pkcs11', 'cryptography')));"
        "from exporter.cli import main; main(sys.argv[1:])"
    )
    typed = ["run", tiny_package, "a star", "--out", tmp_path / "a.png"]
    subprocess.run([sys.executable, "-c", code, *map(str, typed)], check=True, capture_output=True)
    assert (tmp_path / "a.png").is_file()


def test_a_key_that_fails_in_the_middle_leaves_nothing_half_written(
    signing: tuple[Path, Path, Path], tiny_package: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As a token that is pulled out: what was whole stays, what was not is not there."""
    chain, key, _ = signing
    calls = []

    def failing(file: Path, passphrase: str | None, algorithm: Any) -> Any:
        sign = file_signer(file, passphrase, algorithm)

        def signed(message: bytes) -> bytes:
            calls.append(message)
            if len(calls) > 3:  # the trial, an empty picture, the first picture
                raise OSError("the token is gone")
            return sign(message)

        return signed

    monkeypatch.setattr("exporter.credentials.sign.file_signer", failing)
    out = tmp_path / "a.png"
    typed = ("run", tiny_package, "a star", "--seed", 1, "--seed", 2, "--out", out)
    mistake(
        fourstep(*typed, "--credentials", chain, key), "key.pem: cannot sign: the token is gone"
    )
    assert {f.name for f in tmp_path.iterdir()} == {"a-0.png"}


# PKCS#11: SoftHSM where it is installed.


@with_token
@pytest.mark.parametrize(
    ("kind", "number"), [("ES256", "01"), ("ES384", "02"), ("PS256", "03"), ("ED25519", "04")]
)
def test_a_key_in_a_token(
    root: Issued, tokens: Path, tmp_path: Path, kind: str, number: str
) -> None:
    issued = issue("signer", root, keys()[kind])
    chain, _ = issued.write(tmp_path)
    uri = put(tokens, issued, kind, number)
    with open_signer(Credentials(chain, f"{uri}&pin-value=1234")) as signer:
        file = write(tmp_path / "a.webp", signer)
    assert told(file, pem(root.certificate).decode())["validation_state"] == "Trusted"


@with_token
def test_a_token_on_the_command_line(
    root: Issued, tokens: Path, tiny_package: Path, tmp_path: Path
) -> None:
    issued = issue("signer", root)
    chain, _ = issued.write(tmp_path)
    uri = put(tokens, issued, "shop", "5a")
    (tmp_path / "pin").write_text("1234\n")
    out = tmp_path / "a.png"
    typed = ("run", tiny_package, "a star", "--out", out, "--credentials", chain)
    for said, key, variables in (
        ("object=shop;type=private: the PIN is wrong", f"{uri}&pin-value=9999", {}),
        ("needs the token's PIN|has no such private key, or wants its PIN", uri, {}),
        ("says its PIN; give no passphrase", f"{uri}&pin-value=1234", {"FOURSTEP_PASSPHRASE": "x"}),
        ("has no such private key", f"{uri.replace('=shop', '=none')}&pin-value=1234", {}),
        ("0 tokens are meant; there are 'factory'", uri.replace("factory", "other"), {}),
        ("none.so: is not a PKCS#11 library", uri.replace(MODULE, "/none.so"), {}),
    ):
        result = fourstep(*typed, key, **variables)
        mistake(result)
        assert any(part in result.stderr for part in said.split("|")), result.stderr
        assert "9999" not in result.stderr and "=1234" not in result.stderr
        assert not out.exists()
    other = put(tokens, issue("other", root), "other", "5b")
    mistake(
        fourstep(*typed, f"{other}&pin-value=1234"), "object=other;type=private: is not the key"
    )
    for key, variables in (
        (f"{uri}&pin-source=file:{tmp_path}/pin", {}),
        (f"{uri}&pin-value=1234", {}),
        (uri.replace("object=shop", "id=%5a"), {"FOURSTEP_PASSPHRASE": "1234"}),
    ):
        result = fourstep(*typed, key, **variables)
        assert result.exit_code == 0, result.output
        assert check.read_credentials(out).state == "valid"
        out.unlink()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("pkcs11:object=a", "says no module-path"),
        ("pkcs11:token=a?module-path=/a.so", "says neither object nor id"),
        ("pkcs11:colour=a?module-path=/a.so", "unknown attribute 'colour'; known: "),
        ("pkcs11:object=a;object=b?module-path=/a.so", "says object twice"),
        ("pkcs11:object=a;type=public?module-path=/a.so", "type=public does not sign"),
        ("pkcs11:object=%ff?module-path=/a.so", "is not UTF-8"),
        ("pkcs11:object=a?module-path=/a.so&pin-value=1&pin-source=b", "both pin-value and"),
        ("pkcs11:object=a?module-path=/a.so&pin-source=|cat", "pin-source names a program"),
        ("pkcs11:object=a?module-path=/a.so&pin-source=file:/%25ff", "is not UTF-8 once"),
        ("pkcs11:object=a?module-path=/a.so&pin-source=/none/100%2541", "/none/100%41: cannot be"),
    ],
)
def test_uris_that_name_no_key(uri: str, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("|", "[|]")):
        token.parse_uri(uri)


def test_a_uri_is_decoded() -> None:
    found = token.parse_uri("pkcs11:token=my%20token;id=%01%ff;object=a%3Bb?module-path=/a%20b.so")
    assert (found.token, found.id, found.label) == ({"token": "my token"}, b"\x01\xff", "a;b")
    assert (found.module, found.pin) == ("/a b.so", None)


def test_the_settings_keep_the_library_off_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(c2pa.Context, "from_json", lambda text: given.append(json.loads(text)))
    library.context()
    (settings,) = given
    assert settings["verify"]["remote_manifest_fetch"] is False
    assert settings["verify"]["ocsp_fetch"] is False
    assert settings["core"]["allowed_network_hosts"] == []
