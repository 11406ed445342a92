"""Packs and deltas: the same bytes again, however they were stored, damaged or interrupted."""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from exporter import backends
from exporter.build.pipeline import build
from exporter.cli import main
from exporter.delivery import apply as applying
from exporter.delivery import bounds, coding, container, difference, held, index
from exporter.delivery import delta as making
from exporter.delivery import pack as packing
from exporter.delivery import unpack as unpacking
from exporter.delivery.apply import apply
from exporter.delivery.chunks import spans
from exporter.delivery.delta import write_delta
from exporter.delivery.pack import pack
from exporter.delivery.stores import APPSTORE, PLAY, STORES
from exporter.delivery.unpack import unpack
from exporter.errors import FourstepError, InputError
from exporter.package.manifest import FileEntry
from exporter.package.read import package_digest
from exporter.package.sizes import PictureSize
from exporter.quantize.formats import Rule, parse_format
from exporter.recipe.recipe import Recipe
from exporter.runtime import Package, SigningKey, Trust, open_package, sign_package
from tests import delta_applier
from tests.certificates import key_pem, keys, public_pem
from tests.conftest import ROOT, needs, seal
from tests.deliveries import (
    resealed,
    tensors_of,
    weighty,
    with_large_file,
    with_other,
    write_weights,
)
from tests.test_package import digests

STORE_NAMES = [*STORES]


def packed(package: Path, target: str, out: Path) -> index.Index:
    return pack(open_package(package), STORES[target], out)


def delta_of(old: Path, new: Path, out: Path) -> index.DeltaIndex:
    return write_delta(open_package(old), open_package(new), out)


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def line_of(result: Result) -> str:
    """The one line of a mistake, beside those of progress."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("fourstep: ")]
    assert result.exit_code == 2 and len(lines) == 1, result.output
    return lines[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weighty(tmp_path_factory.mktemp("plain") / "plain")


@pytest.fixture(scope="module")
def other(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package with other weights in one text encoder."""
    place = tmp_path_factory.mktemp("other") / "other"
    return with_other(plain, place, tensors_of(plain, "clip_l"))


@pytest.fixture(scope="module")
def packs(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("packs") / "packs"
    packed(plain, "play", place)
    return place


@pytest.fixture
def copied(packs: Path, tmp_path: Path) -> Path:
    """Packs that a test may damage."""
    return Path(shutil.copytree(packs, tmp_path / "packs"))


@pytest.fixture(scope="module")
def update(plain: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("update") / "update.delta"
    delta_of(plain, other, place)
    return place


def alone(folder: Path) -> list[str]:
    """What lies in a folder, hidden files too."""
    return sorted(file.name for file in folder.iterdir())


# Packs and back.


@pytest.mark.parametrize("target", STORE_NAMES)
def test_unpacked_is_what_was_packed(plain: Path, target: str, tmp_path: Path) -> None:
    made = packed(plain, target, tmp_path / "packs")
    found = unpack(tmp_path / "packs", tmp_path / "package")
    assert digests(tmp_path / "package") == digests(plain)
    assert found.index == made and not found.was_there
    assert made.package_sha256 == package_digest(plain)
    assert alone(tmp_path) == ["package", "packs"]


@pytest.mark.parametrize("target", STORE_NAMES)
def test_packs_are_the_same_bytes_again(plain: Path, target: str, tmp_path: Path) -> None:
    for name in ("one", "other", "other"):  # the last replaces what is there
        packed(plain, target, tmp_path / name)
    assert digests(tmp_path / "one") == digests(tmp_path / "other")


def test_an_archive_is_one_file(plain: Path, tmp_path: Path) -> None:
    packed(plain, "ota", tmp_path / "packs")
    (archive,) = (tmp_path / "packs").iterdir()
    unpack(archive, tmp_path / "package")
    assert digests(tmp_path / "package") == digests(plain)


def test_packs_may_lie_anywhere_in_a_folder(plain: Path, copied: Path, tmp_path: Path) -> None:
    """As a store's client puts each of them somewhere of its own."""
    for i, chunk in enumerate(sorted(copied.rglob("chunks/*"))):
        place = tmp_path / "fetched" / str(i % 5)
        place.mkdir(parents=True, exist_ok=True)
        chunk.rename(place / chunk.name)
    (found,) = copied.rglob("index.json")
    found.rename(tmp_path / "fetched/index.json")
    unpack(tmp_path / "fetched", tmp_path / "package")
    assert digests(tmp_path / "package") == digests(plain)


def test_an_unchanged_tensor_is_an_unchanged_chunk(plain: Path, tmp_path: Path) -> None:
    """Of a changed tensor the store gets that tensor, the manifest and its digest, nothing else."""
    largest = tensors_of(plain, "denoiser")[0]
    old = packed(plain, "ota", tmp_path / "old")
    new = packed(with_other(plain, tmp_path / "package", [largest]), "ota", tmp_path / "new")
    fresh = {c.sha256: c for c in new.chunks}.keys() - {c.sha256 for c in old.chunks}
    sizes = sorted(c.bytes for c in new.chunks if c.sha256 in fresh)
    manifest = (plain / "manifest.json").stat().st_size
    assert sizes == sorted([80, manifest, largest[2]])


def test_a_tensor_that_moved_is_the_same_chunk(plain: Path, tmp_path: Path) -> None:
    """Bytes before it, as a size that is added brings, change its place alone."""
    old = packed(plain, "ota", tmp_path / "old")
    moved = Path(shutil.copytree(plain, tmp_path / "package"))
    write_weights(moved, "t5", (20_000, 512, 512, 30_000))
    path = moved / "graphs/t5/t5.onnx.data"
    tensors, content = tensors_of(plain, "t5"), path.read_bytes()
    write_weights(moved, "t5", (7_777, 20_000, 512, 512, 30_000))
    shifted = path.read_bytes()[: 7_777 + 31] + content  # 31: up to the next multiple of 64
    path.write_bytes(shifted)
    assert [size for _, _, size in tensors] == [30_000, 20_000, 512, 512]
    new = packed(resealed(moved), "ota", tmp_path / "new")
    fresh = {c.sha256 for c in new.chunks} - {c.sha256 for c in old.chunks}
    assert not {c.bytes for c in new.chunks if c.sha256 in fresh} & {30_000, 20_000, 512}


def test_what_does_not_compress_is_stored_as_it_is(plain: Path, tmp_path: Path) -> None:
    package = with_large_file(plain, tmp_path / "package", 5 << 20)
    made = packed(package, "appstore", tmp_path / "packs")
    (file,) = (f for f in made.files if f.path == "weights.bin")
    chunks = [made.chunks[n] for n in file.chunks]
    assert [(c.coding, c.bytes) for c in chunks] == [("raw", 4 << 20), ("raw", 1 << 20)]
    assert {c.coding for c in made.chunks} == {"raw", "zstd", "inline"}
    assert all(c.stored_bytes < c.bytes for c in made.chunks if c.coding == "zstd")


# Stores.


def test_google_play_gets_modules_of_limited_size(plain: Path, tmp_path: Path) -> None:
    store = replace(PLAY, pack_bytes=250_000)
    made = pack(open_package(plain), store, tmp_path / "packs")
    settings = (tmp_path / "packs/settings.gradle").read_text()
    app = (tmp_path / "packs/packs.gradle").read_text()
    assert len(made.packs) > 3
    for name in made.packs:
        module = tmp_path / "packs" / name
        build = (module / "build.gradle").read_text()
        assert "id 'com.android.ai-pack'" in build and f'packName = "{name}"' in build
        assert f"include ':{name}'" in settings and f"':{name}'" in app
        assets = [f for f in (module / "src/main/assets").rglob("*") if f.is_file()]
        assert sum(f.stat().st_size for f in assets) <= store.pack_bytes
    unpack(tmp_path / "packs", tmp_path / "package")
    assert digests(tmp_path / "package") == digests(plain)


def test_a_file_larger_than_a_pack_is_cut(plain: Path, tmp_path: Path) -> None:
    package = with_large_file(plain, tmp_path / "package", 9 << 20)
    store = replace(PLAY, pack_bytes=5 << 20)
    made = pack(open_package(package), store, tmp_path / "packs")
    (file,) = (f for f in made.files if f.path == "weights.bin")
    assert file.bytes > store.pack_bytes
    assert len({made.chunks[n].pack for n in file.chunks}) > 1
    unpack(tmp_path / "packs", tmp_path / "again")
    assert digests(tmp_path / "again") == digests(package)


def test_apple_gets_a_manifest_for_each_pack(plain: Path, tmp_path: Path) -> None:
    store = replace(APPSTORE, pack_bytes=200_000)
    made = pack(open_package(plain), store, tmp_path / "packs")
    assert len(made.packs) > 1
    for name in made.packs:
        told = json.loads((tmp_path / "packs" / f"{name}.json").read_text())
        assert told["assetPackID"] == name and told["fileSelectors"] == [{"directory": name}]
        assert told["downloadPolicy"].keys() == {"prefetch"} and told["platforms"]
        files = [f for f in (tmp_path / "packs" / name).rglob("*") if f.is_file()]
        assert 0 < sum(f.stat().st_size for f in files) <= store.pack_bytes


def test_limits_are_those_of_the_stores() -> None:
    assert (PLAY.pack_bytes, PLAY.whole_bytes) == (1_500_000_000, 4_000_000_000)
    assert APPSTORE.whole_bytes == 200_000_000_000


def test_more_than_a_store_takes_is_refused(plain: Path, tmp_path: Path) -> None:
    store = replace(PLAY, pack_bytes=100_000, whole_bytes=300_000)
    with pytest.raises(InputError, match=r"more than the 0\.0 GB that AI packs of Google Play"):
        pack(open_package(plain), store, tmp_path / "packs")
    assert alone(tmp_path) == []


def test_names_of_packs_are_those_that_stores_take() -> None:
    assert PLAY.label("my model-1.5", "onnx", "mixed-4.5", "1") == "my_model_1_5_onnx_mixed_4_5_1"
    assert PLAY.label("3d", "onnx") == "package_3d_onnx"


# Damage.


def chunk_file(packs: Path) -> Path:
    return max(packs.rglob("chunks/*"), key=lambda file: file.stat().st_size)


def test_a_damaged_chunk_is_named(copied: Path, tmp_path: Path) -> None:
    file = chunk_file(copied)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    told = line_of(typed("unpack", copied, "-o", tmp_path / "package"))
    assert f"chunk {file.name.removesuffix('.zst')} of graphs/" in told and "damaged" in told
    assert alone(tmp_path) == ["packs"]


@pytest.mark.parametrize("cut", [True, False])
def test_a_missing_chunk_is_named(copied: Path, tmp_path: Path, cut: bool) -> None:
    file = chunk_file(copied)
    if cut:
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    told = line_of(typed("unpack", copied, "-o", tmp_path / "package"))
    assert f"missing or cut short: chunk {file.name.removesuffix('.zst')} of graphs/" in told
    assert alone(tmp_path) == ["packs"]


@pytest.mark.parametrize("kept", [0, 7, 20, 4000, -1])
def test_an_archive_that_is_cut_short(plain: Path, kept: int, tmp_path: Path) -> None:
    packed(plain, "ota", tmp_path / "packs")
    (archive,) = (tmp_path / "packs").iterdir()
    archive.write_bytes(archive.read_bytes()[:kept])
    told = line_of(typed("unpack", archive, "-o", tmp_path / "package"))
    assert str(archive) in told
    assert alone(tmp_path) == ["packs"]


def test_an_archive_with_more_behind_it(plain: Path, tmp_path: Path) -> None:
    packed(plain, "ota", tmp_path / "packs")
    (archive,) = (tmp_path / "packs").iterdir()
    archive.write_bytes(archive.read_bytes() + b"more")
    assert "4 bytes behind its last chunk" in line_of(
        typed("unpack", archive, "-o", tmp_path / "p")
    )


def test_every_flip_in_an_archive_is_refused(plain: Path, tmp_path: Path) -> None:
    packed(plain, "ota", tmp_path / "packs")
    (archive,) = (tmp_path / "packs").iterdir()
    whole = archive.read_bytes()
    random = np.random.default_rng(5)
    for place in random.integers(0, len(whole), 30):
        content = bytearray(whole)
        content[place] ^= 1 << int(random.integers(8))
        archive.write_bytes(content)
        with pytest.raises(FourstepError):
            unpack(archive, tmp_path / "package")
        assert alone(tmp_path) == ["packs"]
    archive.write_bytes(whole)
    unpack(archive, tmp_path / "package")


# An index that lies.

Edit = Callable[[dict[str, Any]], None]


def edited(packs: Path, edit: Edit) -> None:
    (file,) = packs.rglob("index.json")
    raw = json.loads(file.read_text())
    edit(raw)
    file.write_text(json.dumps(raw))


def path_of_last(path: str) -> Edit:
    return lambda raw: raw["files"][-1].update(path=path)


LIES: dict[str, tuple[Edit, str]] = {
    "a path that leaves": (path_of_last("../out"), ".path: expected str"),
    "an absolute path": (path_of_last("/etc/out"), ".path: expected str"),
    "a path of Windows": (path_of_last("C:\\out"), ".path: expected str"),
    "a control character": (path_of_last("a\x1b[2J"), ".path: expected str"),
    "a path that is there": (path_of_last("LICENSE"), "is there twice"),
    "another spelling": (path_of_last("license"), "is there twice"),
    "a folder of a file": (path_of_last("LICENSE/x"), "a folder of another"),
    "a file of its own": (path_of_last("other"), "differ in"),
    "fewer files": (lambda raw: raw["files"].pop(), "differ in"),
    "no manifest": (lambda raw: raw["files"].pop(0), "not the first files"),
    "another order": (lambda raw: raw["files"].reverse(), "not the first files"),
    "another package": (lambda raw: raw.update(package_sha256="0" * 64), "not that of the package"),
    "a size too many": (lambda raw: raw["files"][-1].update(bytes=1), "are not its 1 bytes"),
    "a huge size": (lambda raw: raw["files"][-1].update(bytes=2**60), ".bytes: expected int"),
    "a chunk too many": (lambda raw: raw["files"][-1]["chunks"].append(9**6), "not listed"),
    "a chunk twice": (lambda raw: raw["chunks"].append(raw["chunks"][0]), "is listed 2 times"),
    "a huge chunk": (lambda raw: raw["chunks"][0].update(bytes=1 << 30), ".bytes: expected int"),
    "a pack too many": (lambda raw: raw["chunks"][0].update(pack=7), "lies nowhere"),
    "no digest": (lambda raw: raw["chunks"][0].update(sha256="x"), ".sha256: expected str"),
    "another coding": (lambda raw: raw["chunks"][0].update(coding="xz"), ".coding: invalid"),
    "a later format": (lambda raw: raw.update(index_version="2.0"), "index_version"),
    "no object": (lambda raw: raw.update(files=3), "files"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused(lie: str, copied: Path, tmp_path: Path) -> None:
    edit, words = LIES[lie]
    edited(copied, edit)
    told = line_of(typed("unpack", copied, "-o", tmp_path / "package"))
    assert words in told and "\x1b" not in told
    assert alone(tmp_path) == ["packs"]


def test_an_inline_chunk_that_lies(copied: Path, tmp_path: Path) -> None:
    def edit(raw: dict[str, Any]) -> None:
        chunk = next(c for c in raw["chunks"] if c["coding"] == "inline")
        chunk["inline"] = base64.b64encode(b"another" * 20).decode()

    edited(copied, edit)
    assert "SHA-256 differs" in line_of(typed("unpack", copied, "-o", tmp_path / "package"))


def test_a_chunk_that_expands_stops_at_its_size(copied: Path, tmp_path: Path) -> None:
    """64 MB of zeros in a few kB: no more than the stated bytes are made of them."""
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    file = next(f for f in sorted(copied.rglob("chunks/*.zst")))

    def edit(raw: dict[str, Any]) -> None:
        chunk = next(c for c in raw["chunks"] if c["sha256"] == file.name.removesuffix(".zst"))
        chunk["stored_bytes"] = len(bomb)

    edited(copied, edit)
    file.write_bytes(bomb)
    assert "would expand beyond" in line_of(typed("unpack", copied, "-o", tmp_path / "package"))
    assert alone(tmp_path) == ["packs"]


def test_what_expands_is_not_read_further(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(coding.Undecodable, match="beyond 1000 bytes"):
        coding.decompress(bomb, 1000)


def test_an_archive_whose_index_expands(tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor().compress(b" " * (64 << 20))
    head = container.ARCHIVE + len(bomb).to_bytes(8, "little")
    (tmp_path / "a.fourstep").write_bytes(head + bomb)
    told = line_of(typed("unpack", tmp_path / "a.fourstep", "-o", tmp_path / "package"))
    assert "would expand beyond" in told


def test_links_among_packs_are_passed_over(copied: Path, tmp_path: Path) -> None:
    file = chunk_file(copied)
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert "missing" in line_of(typed("unpack", copied, "-o", tmp_path / "package"))


def test_packs_of_two_packages_are_not_mixed(copied: Path, other: Path, tmp_path: Path) -> None:
    packed(other, "appstore", copied / "others")
    assert "holds 2 packs" in line_of(typed("unpack", copied, "-o", tmp_path / "package"))


# Places.


def test_other_things_are_left_alone(
    plain: Path, packs: Path, update: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    for command in (
        ("pack", plain, "--for", "ota", "-o", mine),
        ("unpack", packs, "-o", mine),
        ("apply", update, "--to", plain, "-o", mine),
        ("delta", plain, plain, "-o", mine),
        ("delta", plain, plain, "-o", mine / "letter.txt"),
    ):
        assert "mine" in line_of(typed(*command))
        assert digests(mine).keys() == {"letter.txt"}
    assert (mine / "letter.txt").read_text() == "dear"
    assert alone(tmp_path) == ["mine"]


def test_a_changed_module_is_not_overwritten(plain: Path, copied: Path) -> None:
    (file,) = copied.glob("*/build.gradle")
    file.write_text(file.read_text().replace("fast-follow", "on-demand", 1))
    told = line_of(typed("pack", plain, "--for", "play", "-o", copied))
    assert "build.gradle, which was changed" in told


def test_an_older_package_is_replaced(
    plain: Path, packs: Path, other: Path, tmp_path: Path
) -> None:
    shutil.copytree(other, tmp_path / "package")
    unpack(packs, tmp_path / "package")
    assert digests(tmp_path / "package") == digests(plain)
    assert unpack(packs, tmp_path / "package").was_there
    assert alone(tmp_path) == ["package"]


def test_a_package_with_a_file_of_somebody_is_not(plain: Path, packs: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "package")
    (tmp_path / "package/README.md").write_text("mine")
    assert "README.md" in line_of(typed("unpack", packs, "-o", tmp_path / "package"))


def test_a_damaged_package_is_not_packed(plain: Path, tmp_path: Path) -> None:
    package = shutil.copytree(plain, tmp_path / "package")
    path = "graphs/t5/t5.onnx.data"
    content = bytearray((package / path).read_bytes())
    content[5] ^= 1
    (package / path).write_bytes(content)
    assert f"{path}: damaged" in line_of(
        typed("pack", package, "--for", "ota", "-o", tmp_path / "o")
    )
    told = line_of(typed("delta", plain, package, "-o", tmp_path / "d"))
    assert f"{path}: damaged" in told
    assert alone(tmp_path) == ["package"]


def test_a_file_that_is_not_listed_is_not_left_out_silently(plain: Path, tmp_path: Path) -> None:
    package = shutil.copytree(plain, tmp_path / "package")
    (package / "notes.txt").write_text("mine")
    assert "notes.txt: is not listed" in line_of(
        typed("pack", package, "--for", "ota", "-o", tmp_path / "o")
    )


def test_two_unpack_at_once(plain: Path, packs: Path, tmp_path: Path) -> None:
    """One of them waits, and finds it done."""
    found: list[bool] = []

    def run() -> None:
        found.append(unpack(packs, tmp_path / "package").was_there)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False, True]
    assert digests(tmp_path / "package") == digests(plain)
    assert alone(tmp_path) == ["package"]


@pytest.mark.parametrize("what", ["pack", "ota", "unpack", "delta", "apply"])
def test_a_file_that_the_disk_does_not_take(
    plain: Path, what: str, packs: Path, update: Path, other: Path, tmp_path: Path
) -> None:
    """As on a full disk; nothing is left of it."""
    out = tmp_path / "out"
    command: dict[str, tuple[object, ...]] = {
        "pack": ("pack", plain, "--for", "play", "-o", out),
        "ota": ("pack", plain, "--for", "ota", "-o", out),
        "unpack": ("unpack", packs, "-o", out),
        "delta": ("delta", plain, other, "-o", out),
        "apply": ("apply", update, "--to", plain, "-o", out),
    }
    most = {"delta": 2000}.get(what, 20_000)
    done = subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, command[what])],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )
    assert done.returncode == 2
    assert "larger than the place allows" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert alone(tmp_path) == []


# Deltas.


@pytest.mark.parametrize("in_place", [False, True])
def test_applied_is_the_new_package(
    plain: Path, in_place: bool, other: Path, update: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(plain, tmp_path / "old"))
    target = old if in_place else tmp_path / "new"
    assert not apply(update, old, target).was_there
    assert digests(target) == digests(other)
    assert apply(update, target if in_place else old, target).was_there
    assert in_place or digests(old) == digests(plain)
    assert alone(tmp_path) == (["old"] if in_place else ["new", "old"])
    assert all(f.stat().st_nlink == 1 for f in target.rglob("*") if f.is_file())


def test_a_delta_is_the_same_bytes_again(
    plain: Path, other: Path, update: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        delta_of(plain, other, tmp_path / "again.delta")
        assert (tmp_path / "again.delta").read_bytes() == update.read_bytes()


def test_another_text_encoder_costs_its_own_bytes(plain: Path, other: Path, update: Path) -> None:
    """Random weights, which nothing compresses: the tensors that changed, and one per cent."""
    own = sum(size for _, _, size in tensors_of(plain, "clip_l"))
    manifest = (other / "manifest.json").stat().st_size
    assert own < update.stat().st_size < 1.01 * (own + manifest)


def test_a_change_of_scheme_costs_no_more_than_what_changed(
    plain: Path, tmp_path: Path, other: Path
) -> None:
    """Both ways; a delta of nothing is nearly nothing."""
    listed = digests(plain)
    changed = [path for path, digest in digests(other).items() if listed.get(path) != digest]
    own = sum((plain / path).stat().st_size for path in changed)
    delta_of(other, plain, tmp_path / "back.delta")
    assert (tmp_path / "back.delta").stat().st_size < 1.01 * own
    delta_of(plain, plain, tmp_path / "none.delta")
    assert (tmp_path / "none.delta").stat().st_size < 4000


def test_a_size_that_is_added_costs_its_own_bytes(plain: Path, tmp_path: Path) -> None:
    """Weights behind those that were there, and a graph beside the one that names them."""
    new, path = Path(shutil.copytree(plain, tmp_path / "new")), "graphs/denoiser/denoiser.onnx"
    added = np.random.default_rng(1).bytes(9_000)
    with (new / f"{path}.data").open("ab") as stream:
        stream.write(added)
    graph = (new / path).read_bytes().replace(b"denoiser", b"denoised", 1)  # its name
    further = "graphs/denoiser/denoiser-80x48.onnx"
    (new / further).write_bytes(graph)
    manifest = json.loads((new / "manifest.json").read_text())
    manifest["files"].append({"path": further})
    seal(new, manifest)
    delta_of(plain, resealed(new), tmp_path / "d")
    assert (tmp_path / "d").stat().st_size < 1.01 * (len(added) + len(graph)) + 1500
    apply(tmp_path / "d", plain, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(new)


def own_bytes(old: Package, new: Package) -> int:
    """Of files that the old package has not as they are, but what only lists others."""
    listed = {entry.sha256 for entry in old.manifest.all_files}
    files = [entry for entry in new.manifest.all_files if entry.sha256 not in listed]
    return sum(entry.bytes for entry in files if entry.path.startswith("graphs/"))


@pytest.mark.full
@pytest.mark.parametrize("name", backends.names())
@pytest.mark.parametrize("what", ["size", "encoder"])
def test_built_packages_cost_what_changed(
    name: str, what: str, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """A size that is added, a text encoder in other codes: its own bytes and one per cent."""
    if missing := backends.missing(needs(name)):
        pytest.skip(f"pip install {' '.join(missing)}")
    recipe = replace(tiny_recipe, prompts=())
    rule = Rule("clip_g", "*", parse_format("int4-g64"), ("linear",))
    wide = PictureSize(80, 48)
    other = {"size": {"further_sizes": (wide,)}, "encoder": {"overrides": (rule,)}}[what]
    pair = []
    changed = replace(recipe, **other)  # type: ignore[arg-type]
    for place, chosen in (("old", recipe), ("new", changed)):
        (built,) = build(chosen, tmp_path / place, [name], ["int8"])
        pair.append(open_package(built.path))
    old, new = pair
    write_delta(old, new, tmp_path / "d")
    own = new.manifest.bytes - old.manifest.bytes if what == "size" else own_bytes(old, new)
    assert 0 < (tmp_path / "d").stat().st_size <= 1.01 * own
    apply(tmp_path / "d", old.folder, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(new.folder)


def test_small_changes_cost_less_than_the_tensor(plain: Path, tmp_path: Path) -> None:
    """Codes that moved by one, as a fine-tune moves a few of them."""
    new = Path(shutil.copytree(plain, tmp_path / "new"))
    path, offset, size = tensors_of(plain, "denoiser")[0]
    content = np.fromfile(new / path, np.uint8)
    random = np.random.default_rng(3)
    moved = random.choice(size, size // 20, replace=False) + offset
    content[moved] += random.choice(np.array([1, 255], np.uint8), len(moved))
    content.tofile(new / path)
    delta = delta_of(plain, resealed(new), tmp_path / "d")
    assert [p.coding for p in delta.pieces if p.bytes >= size] == ["difference"]
    assert (tmp_path / "d").stat().st_size < size // 2
    apply(tmp_path / "d", plain, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(new)


@pytest.fixture(scope="module")
def coded(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A changed package, and a delta to it with pieces of every coding and stride."""
    folder = tmp_path_factory.mktemp("coded")
    new = Path(shutil.copytree(plain, folder / "new"))
    tensors = tensors_of(plain, "denoiser")
    random = np.random.default_rng(4)
    for (path, offset, size), stride in zip(tensors, (1, 2, 4), strict=False):
        content = np.fromfile(new / path, np.uint8)
        moved = content[offset : offset + size][stride - 1 :: stride]  # the last byte of each value
        at = random.choice(len(moved), len(moved) // (20 if stride == 1 else 2), replace=False)
        moved[at] += random.choice(np.array([1, 255], np.uint8), len(at))
        content.tofile(new / path)
    path, offset, size = tensors_of(plain, "t5")[0]
    with (new / path).open("r+b") as stream:  # of other bytes than the old
        stream.seek(offset)
        stream.write(random.bytes(size))
    (new / "LICENSE").write_bytes(bytes(range(256)) * 40 + random.bytes(99))
    delta_of(plain, resealed(new), folder / "d")
    return new, folder / "d"


def test_a_delta_is_applied_by_its_description_alone(
    plain: Path, coded: tuple[Path, Path], tmp_path: Path
) -> None:
    """By docs/updates.md, without a line of the exporter."""
    new, delta = coded
    opened = index.read_delta(container.read_container(delta, container.DELTA).index, delta)
    codings = {(piece.coding, piece.stride) for piece in opened.pieces}
    assert codings == {(way.coding, way.stride) for way in difference.WAYS}
    delta_applier.apply_delta(delta, plain, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(new)
    with pytest.raises(ValueError, match="another base"):
        delta_applier.apply_delta(delta, new, tmp_path / "other")


def test_every_field_of_a_delta_is_described() -> None:
    """In the order of the records, in docs/updates.md."""
    text = (ROOT / "docs" / "updates.md").read_text("utf-8")
    told = text.partition("## An applier of your own")[2].partition("\n## ")[0]
    records = (index.DeltaIndex, index.ChangedFile, index.PartEntry, index.Piece)
    named = [field.name for record in records for field in fields(record)]
    assert re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE) == named
    assert all(f'`"{way.coding}"`' in told for way in difference.WAYS)
    assert str(index.CHUNK_BYTES) in told and index.MOST_INDEX_BYTES == 8 << 20


def test_a_wrong_base_is_refused(plain: Path, other: Path, update: Path, tmp_path: Path) -> None:
    third = with_other(plain, tmp_path / "third", tensors_of(plain, "t5"))
    told = line_of(typed("apply", update, "--to", third, "-o", tmp_path / "new"))
    assert package_digest(third) in told and package_digest(plain) in told
    told = line_of(typed("apply", update, "--to", third, "-o", third))
    assert "name the package that it was made from" in told
    assert alone(tmp_path) == ["third"]


def test_a_damaged_base_is_refused(plain: Path, update: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(plain, tmp_path / "old"))
    for path in ("golden/0.png", "graphs/t5/t5.onnx.data"):
        content = (old / path).read_bytes()
        (old / path).write_bytes(bytes([content[0] ^ 1]) + content[1:])
        for target in (tmp_path / "new", old):
            assert path in line_of(typed("apply", update, "--to", old, "-o", target))
        (old / path).write_bytes(content)
        assert alone(tmp_path) == ["old"] and digests(old) == digests(plain)


def test_every_flip_in_a_delta_is_refused(plain: Path, update: Path, tmp_path: Path) -> None:
    whole, file = update.read_bytes(), tmp_path / "d"
    random = np.random.default_rng(5)
    for place in random.integers(0, len(whole), 30):
        content = bytearray(whole)
        content[place] ^= 1 << int(random.integers(8))
        file.write_bytes(content)
        with pytest.raises(FourstepError):
            apply(file, plain, tmp_path / "new")
        assert alone(tmp_path) == ["d"]


@pytest.mark.parametrize("kept", [0, 7, 20, 400, -1])
def test_a_delta_that_is_cut_short(plain: Path, kept: int, update: Path, tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(update.read_bytes()[:kept])
    told = line_of(typed("apply", tmp_path / "d", "--to", plain, "-o", tmp_path / "new"))
    assert str(tmp_path / "d") in told


def resealed_delta(file: Path, edit: Edit) -> None:
    """Change what a delta says of itself."""
    opened = container.read_container(file, container.DELTA)
    raw = json.loads(opened.index)
    edit(raw)
    frame = coding.compress(json.dumps(raw).encode())
    head = container.DELTA + len(frame).to_bytes(8, "little")
    file.write_bytes(head + frame + file.read_bytes()[opened.start :])


DELTA_LIES: dict[str, tuple[Edit, str]] = {
    "a path that leaves": (
        lambda raw: raw["files"][-1].update(path="../out"),
        ".path: expected str",
    ),
    "an old path that leaves": (lambda raw: raw["old_files"].append("/etc/passwd"), "old_files"),
    "an old file that is not there": (
        lambda raw: raw.update(old_files=["x"] * len(raw["old_files"])),
        "has no 'x'",
    ),
    "a file of its own": (lambda raw: raw["files"][-1].update(path="other"), "differ in"),
    "a part too long": (lambda raw: raw["files"][-1]["parts"][-1].update(bytes=9), "not its"),
    "a piece too many": (lambda raw: raw["files"][-1]["parts"][-1].update(number=9**6), "new"),
    "a base too many": (
        lambda raw: raw["pieces"][0].update(
            base={"source": "old", "number": 9**6, "offset": 0, "bytes": 9}
        ),
        "is not listed",
    ),
    "a later format": (lambda raw: raw.update(delta_version="2.0"), "delta_version"),
}


@pytest.mark.parametrize("lie", DELTA_LIES)
def test_a_delta_that_lies_is_refused(plain: Path, lie: str, update: Path, tmp_path: Path) -> None:
    edit, words = DELTA_LIES[lie]
    file = tmp_path / "d"
    shutil.copy(update, file)
    resealed_delta(file, edit)
    assert words in line_of(typed("apply", file, "--to", plain, "-o", tmp_path / "new"))
    assert alone(tmp_path) == ["d"]


def test_packs_and_deltas_are_not_mixed_up(plain: Path, update: Path, tmp_path: Path) -> None:
    packed(plain, "ota", tmp_path / "packs")
    (archive,) = (tmp_path / "packs").iterdir()
    assert "which fourstep apply takes" in line_of(typed("unpack", update, "-o", tmp_path / "p"))
    told = line_of(typed("apply", archive, "--to", plain, "-o", tmp_path / "p"))
    assert "which fourstep unpack takes" in told


# Signatures.


@pytest.fixture
def maker(tmp_path: Path) -> SigningKey:
    private, public = tmp_path / "maker.key.pem", tmp_path / "maker.pem"
    made = keys()
    private.write_bytes(key_pem(made["ES256"]))
    public.write_bytes(public_pem(made["ES256"]))
    (tmp_path / "other.pem").write_bytes(public_pem(made["ES384"]))
    return SigningKey(private)


def test_a_signature_travels_with_its_package(
    plain: Path, other: Path, maker: SigningKey, tmp_path: Path
) -> None:
    """And may be required before anything of the package is parsed."""
    signed, trusted = Path(shutil.copytree(other, tmp_path / "signed")), tmp_path / "maker.pem"
    sign_package(signed, maker)
    packed(signed, "ota", tmp_path / "packs")
    delta_of(plain, signed, tmp_path / "d")
    for command in (("unpack", tmp_path / "packs"), ("apply", tmp_path / "d", "--to", plain)):
        target = tmp_path / f"{command[0]}ed"
        told = line_of(typed(*command, "-o", target, "--trusted", tmp_path / "other.pem"))
        assert str(command[1]) in told and ".partial" not in told and not target.exists()
        assert typed(*command, "-o", target, "--trusted", trusted).exit_code == 0
        assert digests(target) == digests(signed)
        told = line_of(typed(*command, "-o", target, "--trusted", tmp_path / "other.pem"))
        assert str(target) in told and digests(target) == digests(signed)
        open_package(target, Trust(trusted))


def test_an_unsigned_package_is_not_put_where_a_signed_one_has_to_be(
    plain: Path, other: Path, update: Path, maker: SigningKey, tmp_path: Path
) -> None:
    packed(other, "ota", tmp_path / "packs")
    for command in (("unpack", tmp_path / "packs"), ("apply", update, "--to", plain)):
        told = line_of(typed(*command, "-o", tmp_path / "x", "--trusted", tmp_path / "maker.pem"))
        assert "is not signed" in told and not (tmp_path / "x").exists()


def test_a_package_that_is_signed_anew_is_another(
    plain: Path, maker: SigningKey, tmp_path: Path
) -> None:
    """Its manifest is the same. A device whose package has no signature gets one by a delta."""
    device = Path(shutil.copytree(plain, tmp_path / "device"))
    signed = Path(shutil.copytree(plain, tmp_path / "signed"))
    sign_package(signed, maker)
    packed(signed, "ota", tmp_path / "packs")
    delta_of(plain, signed, tmp_path / "d")
    assert not unpack(tmp_path / "packs", device).was_there
    assert digests(device) == digests(signed)
    shutil.rmtree(device)
    shutil.copytree(plain, device)
    assert not apply(tmp_path / "d", device, device).was_there
    assert digests(device) == digests(signed)


# Going on.


def test_packing_goes_on_with_what_is_there(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that a killed run has written are not compressed again."""
    calls: list[int] = []

    def counted(data: bytes) -> Any:
        calls.append(len(data))
        if len(calls) == 40 and stops:
            raise SystemExit(143)
        return coding.shortest(data)

    monkeypatch.setattr(packing, "shortest", counted)
    stops = True
    with pytest.raises(SystemExit):
        packed(plain, "play", tmp_path / "packs")
    assert not (tmp_path / "packs").exists()
    stops, first = False, len(calls)
    packed(plain, "play", tmp_path / "packs")
    second = len(calls) - first
    packed(plain, "play", tmp_path / "anew")
    assert second == len(calls) - first - second - 39
    assert digests(tmp_path / "packs") == digests(tmp_path / "anew")
    assert alone(tmp_path) == ["anew", "packs"]


def test_unpacking_goes_on_with_what_is_there(
    plain: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a file too."""
    calls: list[int] = []

    def counted(of: held.HeldPack, number: int) -> bytes:
        calls.append(number)
        if len(calls) == 100 and stops:
            raise SystemExit(143)
        return held.chunk_bytes(of, number)

    monkeypatch.setattr(unpacking, "chunk_bytes", counted)
    stops = True
    with pytest.raises(SystemExit):
        unpack(packs, tmp_path / "package")
    stops, first = False, len(calls)
    unpack(packs, tmp_path / "package")
    chunks = sum(len(file.chunks) for file in held.open_held(packs).index.files)
    assert chunks - 99 <= len(calls) - first <= chunks - 98
    assert digests(tmp_path / "package") == digests(plain)


def test_wrong_bytes_of_a_power_cut_are_written_again(
    plain: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may keep a file's size and lose what was in it."""
    monkeypatch.setattr(unpacking, "synced", lambda: (_ for _ in ()).throw(SystemExit(143)))
    with pytest.raises(SystemExit):
        unpack(packs, tmp_path / "package")
    partial = tmp_path / ".package.partial"
    for path in ("LICENSE", "graphs/t5/t5.onnx.data"):
        (partial / path).write_bytes(bytes((plain / path).stat().st_size))
    (partial / "graphs/clip_l/clip_l.onnx").write_bytes(b"")
    (partial / "stray").write_bytes(b"x")
    monkeypatch.undo()
    unpack(packs, tmp_path / "package")
    assert digests(tmp_path / "package") == digests(plain)
    assert alone(tmp_path) == ["package"]


def test_an_unfinished_package_of_another_is_not_gone_on_with(
    plain: Path, packs: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "synced", lambda: (_ for _ in ()).throw(SystemExit(143)))
    packed(other, "ota", tmp_path / "others")
    with pytest.raises(SystemExit):
        unpack(tmp_path / "others", tmp_path / "package")
    monkeypatch.undo()
    unpack(packs, tmp_path / "package")
    assert digests(tmp_path / "package") == digests(plain)


def test_what_is_unfinished_needs_no_room_again(
    packs: Path, plain: Path, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device with room for one package goes on, however far it was."""
    usage, free = shutil.disk_usage(tmp_path), 1 << 20
    for module in (unpacking, applying):
        monkeypatch.setattr(module, "synced", lambda: (_ for _ in ()).throw(SystemExit(143)))
    for run in (
        lambda: unpack(packs, tmp_path / "package"),
        lambda: apply(update, plain, tmp_path / "new"),
    ):
        with pytest.raises(SystemExit):
            run()
        full = usage._replace(free=free // 10)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, full=full: full)
        with pytest.raises(SystemExit):  # and not InputError
            run()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_links_in_an_unfinished_package_lead_nowhere(
    packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write beside the target cannot make it write elsewhere."""
    monkeypatch.setattr(unpacking, "synced", lambda: (_ for _ in ()).throw(SystemExit(143)))
    with pytest.raises(SystemExit):
        unpack(packs, tmp_path / "package")
    monkeypatch.undo()
    elsewhere, partial = tmp_path / "elsewhere", tmp_path / ".package.partial"
    elsewhere.mkdir()
    shutil.rmtree(partial / "graphs")
    (partial / "graphs").symlink_to(elsewhere)
    (partial / "LICENSE").unlink()
    (partial / "LICENSE").symlink_to(elsewhere / "licence")
    unpack(packs, tmp_path / "package")
    assert alone(elsewhere) == []
    assert not any(place.is_symlink() for place in (tmp_path / "package").rglob("*"))


def test_a_delta_goes_on_with_what_is_there(
    plain: Path, other: Path, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces that a killed run has written are not tried again."""
    calls: list[int] = []

    def counted(data: bytes, base: bytes) -> Any:
        calls.append(len(data))
        if len(calls) == 3 and stops:
            raise SystemExit(143)
        return difference.best_way(data, base)

    monkeypatch.setattr(making, "best_way", counted)
    stops = True
    with pytest.raises(SystemExit):
        delta_of(plain, other, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    stops, pieces = False, len(delta_of(plain, other, tmp_path / "d").pieces)
    assert pieces >= 3 and len(calls) - 3 == pieces - 2
    assert (tmp_path / "d").read_bytes() == update.read_bytes()
    assert alone(tmp_path) == ["d"]


WHATS = ("pack", "archive", "unpack", "delta", "apply", "in-place")


def killed_rows(what: str, place: Path, old: Path, new: Path, count: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.killed_deliveries", what]
    done = subprocess.run(
        [*command, *map(str, (place, old, new, count))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_killed(what: str, plain: Path, other: Path, place: Path, count: int) -> None:
    rows = killed_rows(what, place, plain, other, count)
    assert len(rows) == count
    for row in rows:
        assert (
            row["killed"] and row["present"] and row["inputs"] and row["same"] and row["again"] == 0
        ), row
        assert row["beside"] == ["target"], row


@pytest.mark.parametrize("what", WHATS)
def test_killed_at_any_moment(what: str, plain: Path, other: Path, tmp_path: Path) -> None:
    check_killed(what, plain, other, tmp_path, 4)


@pytest.mark.full
@pytest.mark.parametrize("what", WHATS)
def test_killed_at_40_moments(what: str, plain: Path, other: Path, tmp_path: Path) -> None:
    check_killed(what, plain, other, tmp_path, 40)


# Memory.

MOST_BYTES = 64_000_000


def peak_anonymous(*command: object) -> int:
    """Peak resident anonymous memory of a ``fourstep``, in bytes, sampled every 2 ms."""
    process = subprocess.Popen(
        [sys.executable, "-m", "exporter", *map(str, command)], stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines)])
        time.sleep(0.002)
    assert process.wait() == 0
    return peak


def check_memory(old: Path, new: Path, place: Path) -> None:
    """Every command, of which none takes 64 MB more than a ``fourstep`` that does nothing."""
    floor = peak_anonymous("--version")
    packs, delta = place / "packs", place / "d"
    for command in (
        ("pack", new, "--for", "ota", "-o", packs),
        ("unpack", packs, "-o", place / "unpacked"),
        ("delta", old, new, "-o", delta),
        ("apply", delta, "--to", old, "-o", place / "applied"),
        ("apply", delta, "--to", old, "-o", old),
    ):
        assert peak_anonymous(*command) - floor < MOST_BYTES, command
    for name in ("unpacked", "applied", "old"):
        assert package_digest(place / name) == package_digest(new)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_is_bounded(plain: Path, tmp_path: Path) -> None:
    old = with_large_file(plain, tmp_path / "old", 80 << 20, None)
    check_memory(old, with_large_file(plain, tmp_path / "new", 90 << 20, None), tmp_path)


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize("tuned", [False, True])
def test_memory_is_bounded_with_random_weights(plain: Path, tmp_path: Path, tuned: bool) -> None:
    """All others, or each moved by little in places, which is compressed most thoroughly."""
    old = with_large_file(plain, tmp_path / "old", 200 << 20)
    new = with_large_file(plain, tmp_path / "new", 200 << 20, int(not tuned))
    if tuned:
        content = np.memmap(new / "weights.bin", np.uint8, "r+")
        content[::37] += 1
        content.flush()
        resealed(new)
    check_memory(old, new, tmp_path)


# Where tensors lie.


def test_bounds_of_onnx_are_those_of_its_library(
    plain: Path,
) -> None:
    entries = open_package(plain).manifest.all_files
    found = bounds.tensor_bounds(plain, entries)
    for graph in ("denoiser", "clip_l", "t5"):
        tensors = tensors_of(plain, graph)
        path = tensors[0][0]
        size = (plain / path).stat().st_size
        ends = {o for _, o, _ in tensors} | {o + n for _, o, n in tensors}
        assert found[path] == tuple(sorted(ends - {0, size}))
        assert len(tensors) >= 4


@pytest.mark.full
def test_bounds_of_core_ml_are_those_of_its_library(tmp_path: Path) -> None:
    storage = pytest.importorskip(
        "coremltools.libmilstoragepython", reason="pip install coremltools"
    )
    writer = storage._BlobStorageWriter(str(tmp_path / "weight.bin"))
    arrays = [np.arange(n, dtype=np.uint8) for n in (3000, 64, 4097, 1)]
    headers = [writer.write_uint8_data(array) for array in arrays]
    del writer
    content = (tmp_path / "weight.bin").read_bytes()
    ranges = list(bounds.coreml_blobs(content))
    assert [at for at, _ in ranges[::2]] == headers
    for (offset, size), array in zip(ranges[1::2], arrays, strict=True):
        assert content[offset : offset + size] == array.tobytes()


def test_bounds_of_openvino_are_those_of_its_library(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino", reason="pip install 'fourstep[openvino]'")
    from openvino import opset13 as ops

    values = [np.full(n, n, np.float32) for n in (300, 7, 1000)]
    x = ops.parameter([1], np.float32)
    y = x
    for value in values:
        y = ops.concat([y, ops.constant(value)], 0)
    ov.save_model(ov.Model([y], [x]), tmp_path / "m.xml", compress_to_fp16=False)
    content = (tmp_path / "m.bin").read_bytes()
    ranges = list(bounds.openvino_constants((tmp_path / "m.xml").read_bytes()))
    stored = {content[offset : offset + size] for offset, size in ranges}
    assert {value.tobytes() for value in values} <= stored
    size = len(content)
    entries = [
        FileEntry("m.xml", (tmp_path / "m.xml").stat().st_size, ""),
        FileEntry("m.bin", size, ""),
    ]
    ends = {o for o, _ in ranges} | {o + n for o, n in ranges}
    assert set(bounds.tensor_bounds(tmp_path, entries)["m.bin"]) == ends - {0, size}


@given(st.binary(max_size=200))
def test_any_bytes_have_bounds_or_none(content: bytes) -> None:
    """What is no model, or a hostile one, raises nothing but what is caught."""
    sizes = {"a.onnx": len(content), "weight.bin": len(content), "a.safetensors": len(content)}
    for path, suffix in (
        ("a.onnx", ".onnx"),
        ("weight.bin", ".bin"),
        ("a.safetensors", ".safetensors"),
    ):
        list(bounds._of_kind(suffix, path, content, sizes))
    list(bounds._of_kind(".xml", "a.xml", content, sizes))


@given(st.integers(0, 10_000_000), st.sets(st.integers(1, 10_000_000), max_size=5))
def test_spans_cover_a_file(size: int, cuts: set[int]) -> None:
    inside = sorted(cut for cut in cuts if cut < size)
    found = list(spans(size, inside))
    at = 0
    for offset, length in found:
        assert offset == at and 0 < length <= index.CHUNK_BYTES
        at += length
    assert at == size
    assert {*inside} <= {offset for offset, _ in found}


@given(st.binary(min_size=1, max_size=3000), st.binary(max_size=3000))
def test_every_way_to_store_bytes_gives_them_back(data: bytes, base: bytes) -> None:
    way, stored = difference.best_way(data, base)
    assert difference.restored(way, stored, len(data), base) == data
    same = (base * (len(data) + 1))[: len(data)] if base else bytes(len(data))
    for way in difference.WAYS:
        assert (
            difference.restored(way, difference.stored_as(way, data, same), len(data), same) == data
        )


def test_the_way_is_chosen_by_all_of_a_piece() -> None:
    """What changed may be at its start alone, or behind it."""
    random = np.random.default_rng(2)
    base = random.bytes(2 << 20)
    for at in (0, 1 << 20):
        data = base[:at] + random.bytes(200_000) + base[at + 200_000 :]
        way, stored = difference.best_way(data, base)
        assert way.coding in ("difference", "patch") and len(stored) < 202_000


# The commands.


def test_commands_say_what_they_did(plain: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "packs"
    row = json.loads(typed("pack", plain, "--for", "play", "-o", out, "--json").stdout)
    assert row["package_sha256"] == package_digest(plain) and row["target"] == "play"
    assert sum(pack["stored_bytes"] for pack in row["packs"]) == row["stored_bytes"] < row["bytes"]
    row = json.loads(typed("unpack", out, "-o", tmp_path / "new", "--json").stdout)
    assert row["bytes"] == sum(f.stat().st_size for f in plain.rglob("*") if f.is_file())
    assert (row["was_there"], row["backend"], row["scheme"]) == (False, "onnx", "int8")
    row = json.loads(typed("delta", plain, other, "-o", tmp_path / "d", "--json").stdout)
    assert row["bytes"] == (tmp_path / "d").stat().st_size
    assert (row["old_sha256"], row["new_sha256"]) == (package_digest(plain), package_digest(other))
    new = tmp_path / "new"
    row = json.loads(typed("apply", tmp_path / "d", "--to", new, "-o", new, "--json").stdout)
    assert row["new_sha256"] == package_digest(new)


def test_an_unknown_store_is_named(
    plain: Path,
) -> None:
    told = line_of(typed("pack", plain, "--for", "steam", "-o", "x"))
    assert "--for: unknown store 'steam'; known: appstore, ota, play" in told


def test_without_zstandard(plain: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    told = line_of(typed("pack", plain, "--for", "ota", "-o", tmp_path / "x"))
    assert "pip install 'fourstep[stores]'" in told


@pytest.mark.parametrize("place", ["absent", "file"])
def test_what_is_no_pack(plain: Path, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    told = line_of(typed("unpack", tmp_path / place, "-o", tmp_path / "package"))
    assert str(tmp_path / place) in told
    told = line_of(typed("apply", tmp_path / place, "--to", plain, "-o", tmp_path / "package"))
    assert str(tmp_path / place) in told
    (tmp_path / "empty").mkdir()
    assert "no index.json" in line_of(typed("unpack", tmp_path / "empty", "-o", tmp_path / "p"))
