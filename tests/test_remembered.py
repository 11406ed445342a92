"""A file that had its digest is not read for it again, unless anything about it is odd."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from exporter.cli import main
from exporter.drawing.loop import Image, Request, generate
from exporter.errors import CheckFailed, InputError
from exporter.package import remembered as module
from exporter.package.remembered import State, verity_of
from exporter.runtime.package import Package, open_package
from exporter.runtime.verify import verify
from exporter.trust.sign import SigningKey, sign_package

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is remembered")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what is remembered; files count as settled as soon as they are written."""
    monkeypatch.setenv(module.PLACE, str(tmp_path / "home"))
    monkeypatch.setattr(module, "SETTLED_NS", 0)
    monkeypatch.setattr(module, "is_local", lambda folder: True)
    return tmp_path / "home"


@pytest.fixture
def package(tiny_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_package, tmp_path / "package"))


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files whose digest is taken, by name."""
    found: list[str] = []
    real = hashlib.file_digest

    def counted(stream: Any, kind: str) -> Any:
        found.append(Path(f"/proc/self/fd/{stream.fileno()}").readlink().name)
        return real(stream, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    yield found


def open_all(folder: Path, **options: Any) -> Package:
    """Open a package with all of its graphs."""
    package = open_package(folder, **options)
    package.player()
    for graph in package.manifest.graphs:
        package.session(graph.name)
    return package


def record(home: Path) -> Path:
    (file,) = (home / "checked").glob("*.json")
    return file


def rewrite(file: Path, change: Callable[[bytearray], None]) -> None:
    """Write into a file in its place, and set its time of writing back."""
    before = file.stat()
    with file.open("r+b") as stream:
        content = bytearray(stream.read())
        change(content)
        stream.seek(0)
        stream.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 1


def test_the_second_time_nothing_is_read_for_its_digest(
    package: Path, home: Path, digests: list[str]
) -> None:
    first = open_all(package)
    listed = {Path(f.path).name for f in first.manifest.all_files}
    read = [f.path for t in [first.manifest.text.tokenizers] for f in t.values()]
    assert {*digests} == listed - {Path(path).name for path in read}
    digests.clear()
    again = open_all(package)
    assert digests == []
    pictures = []
    for opened in (first, again, open_package(package, checks="always")):
        *_, image = generate(opened.player(), [Request("a red circle", 7)])
        assert isinstance(image, Image)
        pictures.append(image.pixels)
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])


def test_a_changed_byte_is_found_though_its_time_was_set_back(package: Path, home: Path) -> None:
    open_all(package)
    for name in ("denoiser.onnx.data", "denoiser.onnx"):
        file = next(package.rglob(name))
        before = file.stat()
        rewrite(file, flip)
        after = file.stat()
        assert (before.st_ino, before.st_size, before.st_mtime_ns) == (
            after.st_ino,
            after.st_size,
            after.st_mtime_ns,
        )
        with pytest.raises(CheckFailed, match=f"{name}.*(damaged|refused)"):
            open_package(package).session("denoiser")
        rewrite(file, flip)
    open_all(package)


def test_another_file_in_the_place_is_read(
    package: Path, home: Path, tmp_path: Path, digests: list[str]
) -> None:
    open_all(package)
    file = next(package.rglob("vae_decoder.onnx.data"))
    other = Path(shutil.copy2(file, tmp_path / "other"))
    rewrite(other, flip)
    other.replace(file)
    with pytest.raises(CheckFailed, match=r"vae_decoder\.onnx\.data: damaged: SHA-256 differs"):
        open_package(package).session("vae_decoder")
    digests.clear()
    open_package(package).session("clip_l")
    assert digests == []


def test_what_was_just_written_is_not_remembered(
    package: Path, home: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", 3600 * 10**9)
    open_all(package)
    assert not (home / "checked").exists()
    digests.clear()
    open_all(package)
    assert len(digests) > 10
    ahead_ns = time.time_ns() + 10**15  # a clock that was wrong
    assert not State(1, 2, 3, ahead_ns, 5).is_settled(time.time_ns())


def test_always_reads_and_notes_nothing(package: Path, home: Path, digests: list[str]) -> None:
    open_all(package)
    before = record(home).read_bytes()
    digests.clear()
    opened = open_all(package, checks="always")
    assert len(digests) > 10 and opened.known is None
    assert record(home).read_bytes() == before
    with pytest.raises(InputError, match="checks.*unknown choice 'never'; known: always, once"):
        open_package(package, checks="never")  # type: ignore[arg-type]


def test_verify_reads_everything(package: Path, home: Path, digests: list[str]) -> None:
    opened = open_all(package)
    file = next(package.rglob("t5.onnx.data"))
    digests.clear()
    assert verify(opened).ok
    assert {Path(f.path).name for f in opened.manifest.all_files} == {*digests}
    states = json.loads(record(home).read_text())
    flipped = bytearray(file.read_bytes())
    flip(flipped)
    file.write_bytes(flipped)
    state = State(*(getattr(file.stat(), key) for key in (
        "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")))  # fmt: skip
    path = file.relative_to(package).as_posix()
    states["files"][path] = {
        key: getattr(state, key) for key in State.__dataclass_fields__
    }  # as a disk that lost a bit
    record(home).write_text(json.dumps(states))
    open_package(package).session("t5")
    with pytest.raises(CheckFailed, match=r"t5\.onnx\.data: damaged"):
        verify(open_package(package))
    with pytest.raises(CheckFailed, match=r"t5\.onnx\.data: damaged"):
        open_package(package, checks="always").session("t5")


def test_what_has_to_be_signed_is_read(
    package: Path, home: Path, tmp_path: Path, digests: list[str]
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    open_all(package)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "public.pem").write_bytes(public)
    sign_package(package, SigningKey(tmp_path / "key.pem"))
    before = record(home).read_bytes()
    digests.clear()
    opened = open_all(package, trust=tmp_path / "public.pem")
    assert opened.known is None and digests.count("denoiser.onnx.data") == 2
    assert record(home).read_bytes() == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_text("{"),
        lambda file: file.write_bytes(b"\xff" * 100),
        lambda file: file.write_text(file.read_text().replace('"size"', '"length"')),
        lambda file: file.write_text("[" * 100_000),
        lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), "manifest": "0"})),
        lambda file: file.chmod(0o666),
        lambda file: file.parent.chmod(0o777),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["cut", "binary", "key", "deep", "manifest", "writable", "folder", "is-folder"],
)
def test_an_odd_record_is_no_record(
    package: Path, home: Path, digests: list[str], spoil: Callable[[Path], None]
) -> None:
    open_package(package).session("clip_l")
    spoil(record(home))
    digests.clear()
    open_package(package).session("clip_l")
    assert "clip_l.onnx.data" in digests


def test_another_version_of_a_package_is_read(
    package: Path, home: Path, tmp_path: Path, digests: list[str]
) -> None:
    open_all(package)
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    digests.clear()
    open_all(copy)
    assert "denoiser.onnx.data" in digests  # other inodes
    package.rename(tmp_path / "moved")
    digests.clear()
    open_all(tmp_path / "moved")
    assert digests == []  # the same folder


def test_nothing_is_remembered_where_it_cannot_be(
    package: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("", str(package / "manifest.json" / "below")):
        monkeypatch.setenv(module.PLACE, place)
        open_package(package).session("clip_l")
    assert not list(tmp_path.rglob("checked"))
    monkeypatch.delenv(module.PLACE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    open_package(package).session("clip_l")
    assert not list(tmp_path.rglob("checked")) and not (tmp_path / "home").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(module.PLACE, "here")
    open_package(package).session("clip_l")
    assert record(tmp_path / "here").stat().st_mode & 0o077 == 0
    monkeypatch.setattr(module, "is_local", lambda folder: False)
    assert open_package(package).known is None


def test_file_systems_that_tell_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def table(kind: str) -> None:
        place = str(tmp_path).replace(" ", r"\040")
        lines = [
            "22 1 254:0 / / rw - ext4 /dev/vda rw",
            f"23 22 0:31 / {tmp_path.parent} rw - nfs4 server:/ rw",
            f"24 22 0:32 / {place} rw shared:1 - {kind} source rw",
            f"25 22 0:33 / {place}ish rw - nfs4 server:/ rw",
        ]
        (tmp_path / "mountinfo").write_text("\n".join(lines))

    monkeypatch.setattr(module, "MOUNTS", tmp_path / "mountinfo")
    for kind, local in (("xfs", True), ("fuse.sshfs", False), ("vfat", False), ("nfs4", False)):
        table(kind)
        assert module.is_local(tmp_path) is local
    assert not module.is_local(tmp_path.parent)


def test_the_kernels_digest_stands_for_times(
    package: Path, home: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", 3600 * 10**9)
    monkeypatch.setattr(module, "verity_of", lambda handle: "1:" + "ab" * 32)
    open_all(package)
    for file in package.rglob("*"):
        os.utime(file)
    digests.clear()
    open_all(package)
    assert digests == []
    monkeypatch.setattr(module, "verity_of", lambda handle: "1:" + "cd" * 32)
    open_all(package)
    assert "denoiser.onnx.data" in digests


def test_the_kernel_is_asked_as_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def answer(handle: int, request: int, given: bytearray) -> int:
        assert request == 0xC0046686 and given[:4] == b"\0\0\x40\0"
        given[:36] = b"\x01\0\x20\0" + bytes(range(32))
        return 0

    file = tmp_path / "file"
    file.write_bytes(b"1")
    with file.open("rb") as stream:
        assert verity_of(stream.fileno()) == ""
        monkeypatch.setattr(fcntl, "ioctl", answer)
        assert verity_of(stream.fileno()) == "1:" + bytes(range(32)).hex()


def test_a_file_that_is_written_while_it_is_read_is_not_noted(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    known = module.remembered(tmp_path, "0")
    assert known is not None
    with file.open("rb") as stream:
        before = State.of(stream.fileno())
        known.note("file", replace(before, changed_ns=1), stream.fileno(), time.time_ns())
        assert not known.knows("file", stream.fileno())
        known.note("file", before, stream.fileno(), time.time_ns() + 1)
        assert known.knows("file", stream.fileno())


def test_two_processes_add_up_and_old_records_go(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (module.remembered(tmp_path, "0") for _ in range(2))
    assert one is not None and other is not None
    for known, name in ((one, "a"), (other, "b")):
        (tmp_path / name).write_bytes(b"1")
        with (tmp_path / name).open("rb") as stream:
            known.note(name, State.of(stream.fileno()), stream.fileno(), time.time_ns() + 1)
        known.save()
    assert {*json.loads(record(home).read_text())["files"]} == {"a", "b"}
    monkeypatch.setattr(module, "KEPT", 1)
    (home / "checked" / ".stale.partial").touch()
    os.utime(home / "checked" / ".stale.partial", (0, 0))
    os.utime(record(home), (0, 0))
    newer = module.remembered(tmp_path, "1")
    assert newer is not None
    with (tmp_path / "a").open("rb") as stream:
        newer.note("a", State.of(stream.fileno()), stream.fileno(), time.time_ns() + 1)
    newer.save()
    assert json.loads(record(home).read_text())["manifest"] == "1"
    assert not (home / "checked" / ".stale.partial").exists()


def test_run_check_always(package: Path, home: Path, tmp_path: Path, digests: list[str]) -> None:
    def draw(*flags: str) -> int:
        digests.clear()
        out = str(tmp_path / "out.png")
        found = CliRunner().invoke(main, ["run", str(package), "a star", "--out", out, *flags])
        assert found.exit_code == 0, found.output
        return len(digests)

    assert draw() > 10
    assert draw() < 10  # the encoder for pictures to start from was not opened
    assert draw("--check-always") > 10
