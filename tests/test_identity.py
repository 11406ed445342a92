"""Packages are signed by an identity at an instance of Sigstore, and opened without asking one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import CheckFailed, InputError
from exporter.runtime import SigningIdentity, SigningKey, Trust, open_package, sign_package
from tests.sigstore_instance import ISSUER, WHO, Instance, served, token
from tests.test_trust import fourstep, library, mistake, write_keys

KINDS = ("entries", "tiles")  # the two kinds of log


@pytest.fixture(scope="module", params=KINDS)
def instance(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Instance]:
    with served(Instance(tmp_path_factory.mktemp("tsa"), request.param == "tiles")) as one:
        yield one


@pytest.fixture
def package(tiny_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_package, tmp_path / "package"))


def test_signed_here_and_verified_by_the_library_and_here(
    instance: Instance, package: Path, tmp_path: Path
) -> None:
    root, config = instance.write(tmp_path)
    own = token()
    (tmp_path / "token").write_text(own + "\n")
    instance.asked.clear()
    typed = ("sign", package, "--identity", tmp_path / "token", "--trust-config", config)
    told = fourstep(*typed, "--json")
    assert told.exit_code == 0, told.output
    assert own not in told.output
    row = json.loads(told.stdout)
    assert (row["signer"], row["issuer"], row["replaced"]) == (WHO, ISSUER, False)
    assert row["log_index"] >= 0
    stamped = ["/stamp"] if instance.tiles else []
    entries = "/api/v2/log/entries" if instance.tiles else "/api/v1/log/entries"
    assert instance.asked == ["/api/v2/signingCert", *stamped, entries]
    assert instance.tokens[-1] == own
    checked = ("verify", "sigstore", package, "--signature", package / "model.sig")
    expected = ("--identity", WHO, "--identity_provider", ISSUER, "--trust_config", config)
    found = library(*checked, *expected)
    assert found.returncode == 0, found.stderr
    instance.asked.clear()
    for trusted in (root, config):
        assert open_package(package, Trust(trusted, WHO, ISSUER)).manifest.name == "tiny"
    as_whom = ("--trusted", str(root), "--identity", WHO, "--issuer", ISSUER)
    assert fourstep("verify", package, *as_whom).exit_code == 0
    assert not instance.asked
    assert f"signed by '{WHO} ({ISSUER})'; verify" in fourstep("inspect", package).stdout


def signed(instance: Instance, package: Path, folder: Path, who: str = WHO) -> Trust:
    """Sign a package, whatever the instance does wrong; whom to trust."""
    root, config = instance.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporter.trust.keyless.check_identity", lambda *_: None)
        sign_package(package, SigningIdentity(token(who), config))
    return Trust(root, who, ISSUER)


def test_signed_by_the_library_and_verified_here(
    instance: Instance, package: Path, tmp_path: Path
) -> None:
    root, config = instance.write(tmp_path)
    file = package / "model.sig"
    typed = ("sign", "sigstore", package, "--signature", file, "--trust_config", config)
    done = library(*typed, "--identity_token", token())
    assert done.returncode == 0, done.stderr
    open_package(package, Trust(root, WHO, ISSUER))
    (package / "LICENSE").write_text("another\n")
    with pytest.raises(CheckFailed, match="LICENSE: is not what was signed"):
        open_package(package, Trust(root, WHO, ISSUER))


def test_a_workflow_signs_too(instance: Instance, package: Path, tmp_path: Path) -> None:
    who = "https://forge.example/maker/model/.github/workflows/release.yml@refs/tags/v1"
    trust = signed(instance, package, tmp_path, who)
    open_package(package, trust)
    with pytest.raises(CheckFailed, match="is not signed by release@maker.example"):
        open_package(package, Trust(trust.file, WHO, ISSUER))


def another(folder: Path, **wrong: Any) -> Instance:
    (folder / "another").mkdir()
    return Instance(folder / "another", **wrong)


def other_identity(instance: Instance, package: Path, folder: Path) -> Trust:
    return Trust(signed(instance, package, folder).file, "somebody@maker.example", ISSUER)


def other_issuer(instance: Instance, package: Path, folder: Path) -> Trust:
    return Trust(signed(instance, package, folder).file, WHO, "https://accounts.other.example")


def late(instance: Instance, package: Path, folder: Path) -> Trust:
    """Logged when the certificate was valid no more."""
    ours = another(folder, logged_after=timedelta(minutes=20))
    with served(ours):
        return signed(ours, package, folder)


def swapped(part: str) -> Callable[[Instance, Path, Path], Trust]:
    """The root with a part of another instance's: its logs, its authority."""

    def happens(instance: Instance, package: Path, folder: Path) -> Trust:
        trust = signed(instance, package, folder)
        raw = json.loads(trust.file.read_bytes())
        raw[part] = another(folder, tiles=instance.tiles).trusted_root()[part]
        trust.file.write_text(json.dumps(raw))
        return trust

    return happens


def unlogged(instance: Instance, package: Path, folder: Path) -> Trust:
    trust = signed(instance, package, folder)
    file = package / "model.sig"
    raw = json.loads(file.read_bytes())
    raw["verificationMaterial"]["tlogEntries"] = []
    file.write_text(json.dumps(raw))
    return trust


def other_entry(instance: Instance, package: Path, folder: Path) -> Trust:
    """An entry of the log that is good, of another signature by the same identity."""
    file = package / "model.sig"
    trust = signed(instance, package, folder)
    before = json.loads(file.read_bytes())["verificationMaterial"]
    signed(instance, package, folder)
    raw = json.loads(file.read_bytes())
    raw["verificationMaterial"]["tlogEntries"] = before["tlogEntries"]
    file.write_text(json.dumps(raw))
    return trust


def keys_trusted(instance: Instance, package: Path, folder: Path) -> Trust:
    signed(instance, package, folder)
    return Trust(write_keys(folder)[1])


def by_a_key(instance: Instance, package: Path, folder: Path) -> Trust:
    trust = signed(instance, package, folder)
    sign_package(package, SigningKey(write_keys(folder)[0]))
    return trust


REFUSED: dict[str, tuple[Callable[[Instance, Path, Path], Trust], str]] = {
    "another identity": (other_identity, "is not signed by somebody@maker.example"),
    "another issuer": (other_issuer, f"is not signed by {WHO} (https://accounts.other.example): "),
    "too late": (late, f"is not signed by {WHO} ({ISSUER}): "),
    "another log": (swapped("tlogs"), "is in another log than the trusted root names"),
    "another log of certificates": (swapped("ctlogs"), "failed to verify SCT"),
    "another authority": (swapped("certificateAuthorities"), f"is not signed by {WHO}"),
    "no entry": (unlogged, "is no bundle of Sigstore's: "),
    "another entry": (other_entry, f"is not signed by {WHO}"),
    "keys are trusted": (keys_trusted, "holds keys or certificates; trust a trusted root"),
    "by a key": (by_a_key, f"is signed with a key or a certificate, and the identity {WHO} alone"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_no_device_opens(
    instance: Instance,
    package: Path,
    tmp_path: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happens, said = REFUSED[what]
    trust = happens(instance, package, tmp_path)
    monkeypatch.setattr("exporter.runtime.package.read_manifest", None)  # is not even called
    as_whom = ("--identity", trust.identity, "--issuer", trust.issuer) if trust.identity else ()
    typed = (package, "--trusted", trust.file, *as_whom)
    mistake(fourstep("verify", *typed), said, code=1)
    mistake(fourstep("run", *typed, "a"), said)


@pytest.mark.parametrize("count", [30, pytest.param(0, marks=pytest.mark.full)])
def test_every_flip_of_the_signature_is_refused(
    instance: Instance, package: Path, tmp_path: Path, count: int
) -> None:
    """Of bytes anywhere; in full, of each third."""
    trust = signed(instance, package, tmp_path)
    file = package / "model.sig"
    content = file.read_bytes()
    draw = random.Random(5)
    places = [draw.randrange(len(content)) for _ in range(count)] or range(0, len(content), 3)
    passed = []
    for at in places:
        changed = bytearray(content)
        changed[at] ^= draw.randrange(1, 256)
        file.write_bytes(changed)
        try:
            open_package(package, trust)
        except CheckFailed as refused:
            assert "\n" not in str(refused)
        else:
            passed.append(at)
    stamp = content.find(b'"signedTimestamp":"')
    allowed = range(stamp, content.find(b'"', stamp + 20)) if instance.tiles else ()
    assert not [at for at in passed if at not in allowed]  # what nobody signs of a time stamp
    assert len(passed) <= len(places) // 500
    file.write_bytes(content)
    open_package(package, trust)


# Signing.


def test_an_instance_that_does_not_sign(
    instance: Instance, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = instance.write(tmp_path)
    own, old = token(), token(lasts=-timedelta(minutes=1))
    (tmp_path / "none").write_text("nothing here\n")
    raw = json.loads(config.read_bytes())
    gone, clear, wrong = (tmp_path / f"{name}.json" for name in ("gone", "clear", "wrong"))
    for file, url in ((gone, "http://127.0.0.1:9"), (clear, "http://authority.example")):
        raw["signingConfig"]["caUrls"][0]["url"] = url
        file.write_text(json.dumps(raw))
    wrong.write_text("[]")
    private, _ = write_keys(tmp_path)
    given = ("--identity", "env:TOKEN")
    for typed, said in (
        (("--identity", own), "--identity: takes the name of a file with the token"),
        (("--identity", "env:NO_SUCH"), "--identity env:NO_SUCH: is not set, or empty"),
        (("--identity", tmp_path / "none"), "holds no identity token"),
        (("--identity", tmp_path / "missing"), "No such file or directory; name a file with an"),
        (("--identity", "env:OLD", "--trust-config", config), "the identity token is refused"),
        ((*given, "--trust-config", gone), "gone.json: did not sign: "),
        ((*given, "--trust-config", clear), "is not asked over https"),
        ((*given, "--trust-config", wrong), "wrong.json: cannot be read as a configuration"),
        ((*given, "--trust-config", tmp_path / "no"), "No such file or directory"),
        ((*given, "--key", private), "give --key or --identity, and not both"),
        ((), "give --key or --identity, and not both"),
        ((*given, "--certificate", private), "--certificate goes with --key"),
        (("--key", private, "--trust-config", config), "--trust-config goes with --identity"),
    ):
        result = fourstep("sign", package, *typed, TOKEN=own, OLD=old)
        mistake(result, said)
        assert own not in result.output and old not in result.output
    monkeypatch.setattr(instance, "refuses", True)
    result = fourstep("sign", package, *given, "--trust-config", config, TOKEN=own)
    mistake(result, "403")
    assert own not in result.output and "no (the token)" in result.stderr
    assert not (package / "model.sig").exists()


def test_an_instance_that_vouches_for_what_does_not_hold(package: Path, tmp_path: Path) -> None:
    """What it answers is checked before anything is written."""
    with served(Instance(tmp_path, logged_after=timedelta(minutes=20))) as instance:
        _, config = instance.write(tmp_path)
        typed = ("sign", package, "--identity", "env:TOKEN", "--trust-config", config)
        mistake(fourstep(*typed, TOKEN=token()), "trust_config.json: is not signed by")
    assert not (package / "model.sig").exists()


def test_files_of_trust_that_are_none(package: Path, tmp_path: Path) -> None:
    root, _ = Instance(tmp_path).write(tmp_path)
    _, public = write_keys(tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text('{"mediaType": "another"}')
    for trust, said in (
        (Trust(root), "say who has to have, by identity and issuer"),
        (Trust(root, WHO), "say who has to have, by identity and issuer"),
        (Trust(public, WHO, ISSUER), "is no trusted root of Sigstore's"),
        (Trust(broken, WHO, ISSUER), "is no trusted root, and no trust configuration"),
    ):
        with pytest.raises(InputError, match=said):
            open_package(package, trust)
    alone = fourstep("verify", package, "--identity", WHO)
    mistake(alone, "--identity and --issuer say who --trusted ROOT has to vouch for")


@pytest.mark.parametrize("length", [1.0, 0.5, 0.1])
def test_a_token_that_is_typed_is_refused_and_not_repeated(package: Path, length: float) -> None:
    """Whole or cut: every process of the machine sees arguments, and a log keeps messages."""
    typed = token(WHO, ISSUER)[: int(length * len(token(WHO, ISSUER)))]
    refused = fourstep("sign", package, "--identity", typed)
    mistake(refused, "and not the token itself, which every process could read")
    assert typed not in refused.output
