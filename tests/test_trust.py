"""Packages are signed as OpenSSF model-signing does, and opened by those who trust the signer."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from exporter.bundle.target import load_target
from exporter.bundle.write import write_bundle
from exporter.cli import main
from exporter.errors import CheckFailed, FourstepError, InputError
from exporter.progress import Progress
from exporter.runtime import SigningKey, Trust, open_package, sign_package
from exporter.trust import check as trust_check
from tests.certificates import DAY, Issued, issue, key_pem, keys, pem, public_pem
from tests.tokens import MODULE, put, with_token

SLOW = [pytest.param(kind, marks=pytest.mark.full) for kind in ("ES384", "ES512")]
KINDS = ["ES256", *SLOW]


def fourstep(*arguments: object, **variables: str) -> Result:
    typed = [str(a) for a in arguments]
    result = CliRunner().invoke(main, typed, catch_exceptions=False, env=variables)
    assert "Traceback" not in result.output
    return result


def mistake(result: Result, words: str, code: int = 2) -> None:
    """An exit code, nothing on stdout, a last line on stderr that has the words."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert words in result.stderr.strip().splitlines()[-1], result.stderr


def library(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command of OpenSSF's library, which no network could help."""
    line = [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def write_keys(folder: Path, kind: str = "ES256") -> tuple[Path, Path]:
    """The files of a private key and of its public one."""
    key = keys()[kind]
    private, public = folder / f"{kind}.key.pem", folder / f"{kind}.pem"
    private.write_bytes(key_pem(key))
    public.write_bytes(public_pem(key))
    return private, public


@pytest.fixture(scope="module")
def root() -> Issued:
    return issue("root", authority=True)


@pytest.fixture
def package(tiny_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_package, tmp_path / "package"))


@pytest.fixture
def signed(package: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A package that is signed, and the public key."""
    private, public = write_keys(tmp_path)
    sign_package(package, SigningKey(private))
    return package, public


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_signed_here_the_library_verifies(package: Path, tmp_path: Path, kind: str) -> None:
    private, public = write_keys(tmp_path, kind)
    signature = package / "model.sig"
    told = fourstep("sign", package, "--key", private, "--json")
    files = sum(1 for f in package.rglob("*") if f.is_file()) - 1
    row = json.loads(told.stdout)
    assert (row["files"], row["algorithm"], row["replaced"]) == (files, kind, False)
    typed = ("verify", "key", package, "--signature", signature, "--public_key", public)
    found = library(*typed)
    assert found.returncode == 0, found.stderr
    assert open_package(package, Trust(public)).manifest.name == "tiny"
    (package / "LICENSE").write_text("another\n")
    assert library(*typed).returncode == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_library_signs_is_verified_here(package: Path, tmp_path: Path, kind: str) -> None:
    private, public = write_keys(tmp_path, kind)
    done = library(
        "sign", "key", package, "--signature", package / "model.sig", "--private_key", private
    )
    assert done.returncode == 0, done.stderr
    open_package(package, Trust(public))
    _, other = write_keys(tmp_path)
    mistake(fourstep("run", package, "a", "--trusted", other), "is signed with another key")


def test_certificates_both_ways(root: Issued, package: Path, tmp_path: Path) -> None:
    middle = issue("middle", root, authority=True)
    signer = issue("release", middle, purposes=None)
    chain, key = signer.write(tmp_path)
    (tmp_path / "root.pem").write_bytes(pem(root.certificate))
    (tmp_path / "own.pem").write_bytes(pem(signer.certificate))
    (tmp_path / "middle.pem").write_bytes(pem(middle.certificate))
    signature = package / "model.sig"
    told = fourstep("sign", package, "--key", key, "--certificate", chain)
    assert "signed by release (ES256)" in told.stdout
    checked = ("verify", "certificate", package, "--signature", signature)
    found = library(*checked, "--certificate_chain", tmp_path / "root.pem")
    assert found.returncode == 0, found.stderr
    for trusted in ("root.pem", "middle.pem", "own.pem", "chain.pem"):
        open_package(package, Trust(tmp_path / trusted))
    signing = ("sign", "certificate", package, "--signature", signature, "--private_key", key)
    certified = ("--signing_certificate", tmp_path / "own.pem")
    above = ("--certificate_chain", tmp_path / "root.pem", "--certificate_chain")
    done = library(*signing, *certified, *above, tmp_path / "middle.pem")
    assert done.returncode == 0, done.stderr
    for trusted in ("root.pem", "middle.pem", "own.pem"):
        open_package(package, Trust(tmp_path / trusted))
    assert "signed by 'release'; verify --trusted" in fourstep("inspect", package).stdout


@with_token
def test_keys_in_tokens_both_ways(
    root: Issued, tokens: Path, package: Path, tmp_path: Path
) -> None:
    issued = issue("factory", root, keys()["ES384"], purposes=None)
    chain, _ = issued.write(tmp_path)
    public = tmp_path / "public.pem"
    public.write_bytes(public_pem(issued.key))
    (tmp_path / "root.pem").write_bytes(pem(root.certificate))
    signature = package / "model.sig"
    uri = f"{put(tokens, issued, 'firmware', '6a')}&pin-value=1234"
    for certificate, trusted, kind, option in (
        ((), public, "key", "--public_key"),
        (("--certificate", chain), tmp_path / "root.pem", "certificate", "--certificate_chain"),
    ):
        result = fourstep("sign", package, "--key", uri, *certificate)
        assert result.exit_code == 0 and "1234" not in result.output, result.output
        open_package(package, Trust(trusted))
        found = library("verify", kind, package, "--signature", signature, option, trusted)
        assert found.returncode == 0, found.stderr
    signature.unlink()
    plain = f"pkcs11:token=factory;object=firmware?pin-value=1234&module-path={MODULE}"
    done = library("sign", "pkcs11-key", package, "--signature", signature, "--pkcs11_uri", plain)
    assert done.returncode == 0, done.stderr
    open_package(package, Trust(public))
    wrong = uri.replace("1234", "9999")
    mistake(fourstep("sign", package, "--key", wrong), "type=private: the PIN is wrong")


def test_an_encrypted_key(package: Path, tmp_path: Path) -> None:
    key = keys()["ES256"]
    file, public = tmp_path / "key.pem", tmp_path / "public.pem"
    file.write_bytes(key_pem(key, b"secret"))
    public.write_bytes(public_pem(key))
    mistake(fourstep("sign", package, "--key", file), "FOURSTEP_PASSPHRASE: ")
    assert not (package / "model.sig").exists()
    assert fourstep("sign", package, "--key", file, FOURSTEP_PASSPHRASE="secret").exit_code == 0
    open_package(package, public)


# What no device opens.


def resign(package: Path, folder: Path) -> None:
    other = write_keys(folder, "ES384")[0]
    sign_package(package, SigningKey(other))


def drop_signature(package: Path, folder: Path) -> None:
    (package / "model.sig").unlink()


def change_file(package: Path, folder: Path) -> None:
    file = package / "graphs/denoiser/denoiser.onnx.data"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)


def change_manifest(package: Path, folder: Path) -> None:
    (package / "manifest.json").write_bytes(b"{")


def add_file(package: Path, folder: Path) -> None:
    (package / "graphs" / "more.onnx").write_bytes(b"")


def add_folder(package: Path, folder: Path) -> None:
    (package / "more").mkdir()


def add_git(package: Path, folder: Path) -> None:
    (package / ".git").mkdir()
    (package / ".git" / "hooks").write_bytes(b"")


def remove_file(package: Path, folder: Path) -> None:
    (package / "LICENSE").unlink()


def put_pipe(package: Path, folder: Path) -> None:
    (package / "LICENSE").unlink()
    os.mkfifo(package / "LICENSE")


def put_link(package: Path, folder: Path) -> None:
    (package / "LICENSE").unlink()
    (package / "LICENSE").symlink_to("/etc/hostname")


def huge_signature(package: Path, folder: Path) -> None:
    with (package / "model.sig").open("ab") as stream:
        stream.truncate(1 << 40)


def deep_signature(package: Path, folder: Path) -> None:
    (package / "model.sig").write_bytes(b"[" * 100_000 + b"]" * 100_000)


def two_keys_in_signature(package: Path, folder: Path) -> None:
    file = package / "model.sig"
    file.write_bytes(file.read_bytes().replace(b'"keyid"', b'"sig":"","keyid"'))


def more_in_signature(package: Path, folder: Path) -> None:
    file = package / "model.sig"
    file.write_bytes(file.read_bytes().replace(b'"keyid"', b'"more":"","keyid"'))


def sigstores(package: Path, folder: Path) -> None:
    """A bundle as Sigstore's identities have it: one certificate, and an entry of a log."""
    raw = json.loads((package / "model.sig").read_bytes())
    certificate = issue("somebody@example.com").certificate.public_bytes(Encoding.DER)
    raw["verificationMaterial"] = {
        "certificate": {"rawBytes": base64.b64encode(certificate).decode()},
        "tlogEntries": [{"logIndex": "1"}],
    }
    (package / "model.sig").write_text(json.dumps(raw))


REFUSED: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "no signature": (drop_signature, "is not signed (no model.sig)"),
    "another's": (resign, "is signed with another key"),
    "file": (change_file, "denoiser.onnx.data: is not what was signed"),
    "manifest": (change_manifest, "manifest.json: is not what was signed"),
    "extra": (add_file, "more.onnx: was not signed"),
    "extra folder": (add_folder, "more: was not signed"),
    "git's": (add_git, ".git: was not signed"),
    "missing": (remove_file, "LICENSE: cannot be read"),
    "pipe": (put_pipe, "LICENSE: cannot be read: it is a folder, a pipe or a device"),
    "link": (put_link, "LICENSE: a link that leaves the package"),
    "huge": (huge_signature, "model.sig: damaged: more than 4 MiB"),
    "deep": (deep_signature, "model.sig: not valid JSON: "),
    "twice": (two_keys_in_signature, "the key 'sig' is there twice"),
    "Sigstore's": (sigstores, "is signed by an identity of Sigstore's, and "),
    "more": (more_in_signature, "holds more than a signature"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_no_device_opens(
    signed: tuple[Path, Path], tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, public = signed
    happens, said = REFUSED[what]
    happens(package, tmp_path)
    monkeypatch.setattr("exporter.runtime.package.read_manifest", None)  # is not even called
    with pytest.raises(CheckFailed) as refused:
        open_package(package, Trust(public))
    assert said in str(refused.value) and "\n" not in str(refused.value)
    mistake(fourstep("run", package, "a", "--trusted", public), said)
    mistake(fourstep("verify", package, "--trusted", public), said, code=1)


def certificates(root: Issued) -> dict[str, tuple[Issued, str]]:
    expired = issue("old", root, authority=True, last=-DAY / 2)
    unable = issue("unable", root)
    return {
        "expired": (issue("late", root, last=-DAY / 2), "'late' expired on"),
        "not yet": (issue("early", root, first=DAY), "'early' is not valid before"),
        "expired above": (issue("under", expired), "'old' expired on"),
        "no authority": (issue("under", unable), "'under' signed it, whom nobody issued"),
        "no signer": (
            issue("mailer", root, digital_signature=False),
            "the certificate of 'mailer' is not for signing",
        ),
        "stranger": (issue("stranger"), "'stranger' signed it, whom nobody issued"),
        "namesake": (
            issue("signer", issue("root", authority=True)),
            "'signer' signed it, whom nobody issued",
        ),
    }


@pytest.mark.parametrize(
    "what",
    ["expired", "not yet", "expired above", "no authority", "no signer", "stranger", "namesake"],
)
def test_certificates_that_no_device_trusts(
    root: Issued, package: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued, said = certificates(root)[what]
    chain, key = issued.write(tmp_path)
    with monkeypatch.context() as patch:  # signed when it was valid, or by somebody without care
        patch.setattr("exporter.trust.sign.chain_problems", lambda *_: iter(()))
        sign_package(package, SigningKey(key, chain))
    trusted = tmp_path / "root.pem"
    trusted.write_bytes(pem(root.certificate))
    with pytest.raises(CheckFailed, match=said):
        open_package(package, Trust(trusted))
    mistake(fourstep("run", package, "a", "--trusted", trusted), said)


def test_an_expired_authority(package: Path, tmp_path: Path) -> None:
    root = issue("root", authority=True, last=-DAY / 2)
    chain, key = issue("signer", root).write(tmp_path)
    trusted = tmp_path / "root.pem"
    trusted.write_bytes(pem(root.certificate))
    chain.write_bytes(pem(x509.load_pem_x509_certificate(chain.read_bytes())))  # the signer's alone
    sign_package(package, SigningKey(key, chain))
    with pytest.raises(CheckFailed, match="'root' expired on"):
        open_package(package, Trust(trusted))


def test_keys_and_certificates_do_not_stand_for_each_other(
    root: Issued, signed: tuple[Path, Path], tmp_path: Path
) -> None:
    package, public = signed
    trusted = tmp_path / "root.pem"
    trusted.write_bytes(pem(root.certificate))
    with pytest.raises(CheckFailed, match="is signed with another key"):
        open_package(package, Trust(trusted))
    chain, key = issue("release", root).write(tmp_path)
    sign_package(package, SigningKey(key, chain))
    with pytest.raises(CheckFailed, match="of 'release', and keys alone are trusted"):
        open_package(package, Trust(public))
    both = tmp_path / "both.pem"
    both.write_bytes(public.read_bytes() + trusted.read_bytes())
    open_package(package, Trust(both))


def test_files_of_trust_that_are_none(signed: tuple[Path, Path], tmp_path: Path) -> None:
    package, public = signed
    file = tmp_path / "file.pem"
    for content, said in (
        (b"", "holds neither a public key nor a certificate"),
        (key_pem(keys()["ES256"]), "holds a private key, which no device should have"),
        (public_pem(ec.generate_private_key(ec.SECP256K1())), "P-256, P-384 and P-521 are taken"),
        (public.read_bytes().replace(b"M", b"N"), "cannot be read as a public key"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=said):
            open_package(package, Trust(file))
    missing = fourstep("verify", package, "--trusted", tmp_path / "none.pem")
    mistake(missing, "No such file or directory; name a PEM file of public keys or certificates")


def flips(signed: tuple[Path, Path], count: int) -> None:
    """Change a byte of the signature, the manifest, its digest or another file, anywhere."""
    package, public = signed
    rest = sorted(f for f in package.rglob("*") if f.is_file() and f.parent != package)
    own = [package / name for name in ("model.sig", "manifest.json", "manifest.sha256")]
    draw = random.Random(7)
    for i in range(count):
        file = own[i % 4] if i % 4 < 3 else draw.choice(rest)
        content = file.read_bytes()
        at, by = draw.randrange(len(content)), draw.randrange(1, 256)
        changed = bytearray(content)
        changed[at] ^= by
        file.write_bytes(changed)
        with pytest.raises(CheckFailed) as refused:
            open_package(package, Trust(public))
        assert "\n" not in str(refused.value), (file, at, by)
        file.write_bytes(content)
    open_package(package, Trust(public))


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.full)])
def test_every_flip_is_refused(signed: tuple[Path, Path], count: int) -> None:
    flips(signed, count)


@pytest.mark.full
@pytest.mark.parametrize("by", ["fourstep", "library"])
def test_every_byte_of_a_chain_is_checked(
    root: Issued, package: Path, tmp_path: Path, by: str
) -> None:
    middle = issue("middle", root, authority=True)
    signer = issue("release", middle)
    chain, key = signer.write(tmp_path)
    trusted, own = tmp_path / "root.pem", tmp_path / "own.pem"
    trusted.write_bytes(pem(root.certificate))
    own.write_bytes(pem(signer.certificate))
    file = package / "model.sig"
    if by == "fourstep":
        sign_package(package, SigningKey(key, chain))
    else:
        given = ("--signing_certificate", own, "--certificate_chain", chain)
        library("sign", "certificate", package, "--signature", file, "--private_key", key, *given)
    content = file.read_bytes()
    draw = random.Random(3)
    for at in range(0, len(content), 3):
        changed = bytearray(content)
        changed[at] ^= draw.randrange(1, 256)
        file.write_bytes(changed)
        with pytest.raises(CheckFailed):
            open_package(package, Trust(trusted))
    file.write_bytes(content)
    open_package(package, Trust(trusted))


# Signing.


def test_only_whole_packages_are_signed(package: Path, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path)
    change_file(package, tmp_path)
    mistake(fourstep("sign", package, "--key", private), "denoiser.onnx.data: damaged")
    add_file(package, tmp_path)
    mistake(fourstep("sign", package, "--key", private), "more.onnx: is not in the manifest")
    mistake(fourstep("sign", tmp_path, "--key", private), "not a package")
    assert not (package / "model.sig").exists()


def test_keys_that_do_not_sign(root: Issued, package: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    chain, _ = issue("release", root).write(tmp_path)
    expired, own = tmp_path / "expired.pem", issue("late", root, last=-DAY / 2)
    expired.write_bytes(own.chain)
    (tmp_path / "late.key").write_bytes(key_pem(own.key))
    (tmp_path / "rsa.key").write_bytes(key_pem(keys()["PS256"]))
    for typed, said in (
        ((public,), "holds no private key in PEM"),
        ((private, "--certificate", chain), "is not the key of the first certificate in"),
        ((tmp_path / "late.key", "--certificate", expired), "expired.pem: 'late' expired on"),
        ((tmp_path / "rsa.key",), "P-256, P-384 and P-521 are taken"),
        ((tmp_path / "none.key",), "No such file or directory; name a private key in PEM"),
        (("pkcs11:object=a",), "says no module-path"),
    ):
        mistake(fourstep("sign", package, "--key", *typed), said)
    assert not (package / "model.sig").exists()


def test_signing_again_replaces_it_whole_or_not_at_all(
    signed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, public = signed
    private, other = write_keys(tmp_path, "ES384")
    before = {f: f.read_bytes() for f in package.rglob("*") if f.is_file()}

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        mistake(fourstep("sign", package, "--key", private), "model.sig: the disk is full")
    assert {f: f.read_bytes() for f in package.rglob("*") if f.is_file()} == before
    assert {f.name for f in tmp_path.iterdir() if f.name.startswith(".")} == set()
    open_package(package, Trust(public))
    assert "in place of an earlier one" in fourstep("sign", package, "--key", private).stdout
    open_package(package, Trust(other))


def test_the_signature_is_no_stray_file(signed: tuple[Path, Path], tmp_path: Path) -> None:
    package, public = signed
    assert fourstep("verify", package, "--trusted", public).exit_code == 0
    told = fourstep("inspect", package).stdout
    assert "package: signed by key " in told
    assert json.loads(fourstep("inspect", package, "--json").stdout)["signed_by"].startswith("key ")
    target = replace(load_target("web"), engine=None)
    write_bundle(open_package(package), target, tmp_path / "whole")
    place = tmp_path / "whole" / target.place
    assert (place / "model.sig").read_bytes() == (package / "model.sig").read_bytes()
    open_package(place, Trust(public))
    lines: list[str] = []
    write_bundle(
        open_package(package),
        target,
        tmp_path / "less",
        False,
        Progress(lambda line, *_: lines.append(line)),
    )
    assert not (tmp_path / "less" / target.place / "model.sig").exists()
    assert any("model.sig left out" in line for line in lines)


def test_what_is_signed_by_hand_is_held_to_the_form(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    """The signer is trusted, and what it signed is still no path out of the package."""
    from cryptography.hazmat.primitives import hashes

    from exporter.trust.signature import Signature, statement, text_of, to_sign

    package, _ = signed
    key = keys()["ES256"]
    public = tmp_path / "own.pem"
    public.write_bytes(public_pem(key))
    hint = trust_check.hint_of(key.public_key())
    good = json.loads(
        base64.b64decode(
            json.loads((package / "model.sig").read_bytes())["dsseEnvelope"]["payload"]
        )
    )
    digests = {r["name"]: r["digest"] for r in good["predicate"]["resources"]}
    other = dict(good, predicateType="https://slsa.dev/provenance/v1")
    shards = json.loads(json.dumps(good))
    shards["predicate"]["serialization"]["method"] = "shards"
    wrong = json.loads(json.dumps(good))
    wrong["subject"][0]["digest"]["sha256"] = "0" * 64
    for payload, said in (
        (statement("a", digests | {"../x": "0" * 64}), "is no path in a package"),
        (
            statement("a", {k: v for k, v in digests.items() if k != "manifest.json"}),
            "does not sign",
        ),
        (json.dumps(other).encode(), "signs no model"),
        (json.dumps(shards).encode(), "of 'shards'"),
        (json.dumps(wrong).encode(), "the digest of the model is not that of its files"),
    ):
        made = key.sign(to_sign(payload), ec.ECDSA(hashes.SHA256()))
        (package / "model.sig").write_bytes(text_of(Signature(payload, made, hint)))
        with pytest.raises(FourstepError, match=said):
            open_package(package, Trust(public))
