"""A package is what its manifest says, to the bit and to the end: flips, links, strays, swaps."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from exporter import backends
from exporter.cli import main
from exporter.drawing.loop import Image, Request, generate
from exporter.errors import CheckFailed, InputError
from exporter.package.check import check_file, read_file
from exporter.package.read import read_manifest
from exporter.package.strays import Unlisted, unlisted
from exporter.runtime import package as runtime
from exporter.runtime.package import Package, open_package
from exporter.runtime.verify import check_files, verify
from tests.conftest import seal

CHANGED = "changed while it was being read; run the command again"


@pytest.fixture
def package(tiny_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_package, tmp_path / "package"))


@pytest.fixture
def other(tiny_package: Path, tmp_path: Path) -> Path:
    """A package that draws other pictures."""
    folder = Path(shutil.copytree(tiny_package, tmp_path / "other"))
    raw = json.loads((folder / "manifest.json").read_text())
    file = folder / "graphs/vae_decoder/vae_decoder.onnx.data"
    data = bytearray(file.read_bytes())
    data[:40_000] = bytes(40_000)
    file.write_bytes(data)
    for graph in raw["graphs"]:
        for entry in graph["files"]:
            if entry["path"].endswith("vae_decoder.onnx.data"):
                entry["sha256"] = hashlib.sha256(data).hexdigest()
    seal(folder, raw)
    return folder


def draw(package: Package) -> np.ndarray:
    with package.player() as player:
        events = list(generate(player, [Request("a red circle", seed=7)]))
    (image,) = [e for e in events if isinstance(e, Image)]
    return image.pixels


# One bit of one file.


def run_refuses(folder: Path, path: str) -> bool:
    """Whether drawing with a package stops before a graph has run: at opening what is damaged."""
    try:
        package = open_package(folder)
        package.player()
        for graph in package.manifest.graphs:
            if path in {f.path for f in graph.files}:
                package.session(graph.name)
    except CheckFailed as error:
        return "damaged" in str(error)
    return False


@pytest.mark.parametrize("count", [250, pytest.param(2000, marks=pytest.mark.full)])
def test_every_flipped_bit_is_refused(package: Path, count: int) -> None:
    """By ``verify``, and by ``run`` before anything is computed with it."""
    paths = [f.relative_to(package).as_posix() for f in package.rglob("*") if f.is_file()]
    chance = random.Random(count)
    for number in range(count):
        path = sorted(paths)[number % len(paths)]
        content = (package / path).read_bytes()
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        (package / path).write_bytes(flipped)
        with pytest.raises(CheckFailed, match="damaged"):
            verify(open_package(package))
        assert run_refuses(package, path), (path, place, bit)
        (package / path).write_bytes(content)
    assert check_files(open_package(package))


# Files that are not listed, and links.


def test_what_is_not_listed_is_named(package: Path) -> None:
    (package / "graphs" / "stray.bin").write_bytes(b"")
    (package / "golden" / "more").mkdir()
    (package / "golden" / "more" / "notes.txt").write_text("")
    (package / "linked").symlink_to(package / "golden")
    report = verify(open_package(package))
    assert not report.ok
    assert report.failures == tuple(
        f"{path}: not listed in the manifest; delete it"
        for path in ("golden/more/notes.txt", "graphs/stray.bin", "linked")
    )


HUBS = (
    "README.md", ".gitattributes", ".gitignore",
    ".cache/huggingface/.gitignore", ".cache/huggingface/CACHEDIR.TAG",
    ".cache/huggingface/download/graphs/denoiser/denoiser.onnx.metadata",
    ".cache/huggingface/download/manifest.lock", ".cache/huggingface/upload/LICENSE.metadata",
    ".git/HEAD", ".git/FETCH_HEAD", ".git/config", ".git/hooks/pre-push", ".git/refs/heads/main",
    ".git/objects/01/23abcd", ".git/lfs/objects/45/67/4567ef", ".DS_Store", "graphs/.DS_Store",
)  # fmt: skip


def add(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("of another kind")


def test_what_a_hub_and_git_keep_beside_a_package_is_named_and_no_fault(package: Path) -> None:
    add(package, *HUBS)
    beside = unlisted(package, open_package(package).manifest).beside
    assert beside == (
        ".DS_Store", ".cache/huggingface/", ".git/", ".gitattributes", ".gitignore", "README.md",
        "graphs/.DS_Store",
    )  # fmt: skip
    result = CliRunner().invoke(main, ["verify", str(package)])
    assert result.exit_code == 0, result.stderr
    assert f"beside it, not listed and not used: {', '.join(beside)}" in result.stdout


@pytest.mark.parametrize(
    "path",
    [
        ".hidden", "run.sh", "more.onnx", ".cache/more.onnx", ".cache/huggingface/more.onnx",
        ".cache/huggingface/download/more.onnx", ".git/more.onnx", ".git/more/HEAD", ".gitmore",
        "README.md/more.onnx", "graphs/README.md", "graphs/.git/HEAD", "more/.gitattributes",
        "graphs/denoiser/.DS_Store.onnx", "readme.md",
    ],
)  # fmt: skip
def test_what_hides_among_it_is_a_fault(package: Path, path: str) -> None:
    add(package, path)
    assert unlisted(package, open_package(package).manifest) == Unlisted((path,), ())


def test_a_link_is_nothing_that_a_hub_keeps(package: Path, tmp_path: Path) -> None:
    """Unless it leads to a blob of the hub's own cache, as every file there does."""
    add(tmp_path, "elsewhere/HEAD")
    (package / "README.md").symlink_to(tmp_path / "elsewhere" / "HEAD")
    (package / ".git").symlink_to(tmp_path / "elsewhere")
    manifest = open_package(package).manifest
    assert unlisted(package, manifest) == Unlisted((".git", "README.md"), ())
    for path in ("README.md", ".git"):
        (package / path).unlink()
    add(package, "README.md")
    assert unlisted(cached(package, tmp_path), manifest) == Unlisted((), ("README.md",))


def cached(package: Path, place: Path, inner: str = "") -> Path:
    """The package as a hub's cache holds it: files are links to blobs."""
    repository = place / "models--somebody--something"
    folder = repository / "snapshots" / "0123abcd" / inner
    (repository / "blobs").mkdir(parents=True)
    for file in sorted(f for f in package.rglob("*") if f.is_file()):
        blob = repository / "blobs" / f"{file.relative_to(package)}".replace("/", "-")
        shutil.copyfile(file, blob)
        link = folder / file.relative_to(package)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


@pytest.mark.parametrize("inner", ["", "onnx-int4"])
def test_a_package_in_a_hub_cache_draws(tiny_package: Path, tmp_path: Path, inner: str) -> None:
    folder = cached(tiny_package, tmp_path, inner)
    package = open_package(folder)
    assert check_files(package) == len(package.manifest.all_files)
    np.testing.assert_array_equal(draw(package), draw(open_package(tiny_package)))
    (tmp_path / "short").symlink_to(folder)
    assert draw(open_package(tmp_path / "short")).any()


@pytest.mark.parametrize("path", ["LICENSE", "graphs/denoiser/denoiser.onnx", "tokenizer/t5.json"])
def test_a_link_that_leaves_is_refused(tiny_package: Path, tmp_path: Path, path: str) -> None:
    """Of a folder, and of a hub's cache, to another repository of the same cache too."""
    elsewhere = tmp_path / "models--another" / "blobs" / "secret"
    elsewhere.parent.mkdir(parents=True)
    shutil.copyfile(tiny_package / path, elsewhere)
    plain = Path(shutil.copytree(tiny_package, tmp_path / "plain"))
    for folder in (plain, cached(tiny_package, tmp_path)):
        (folder / path).unlink()
        (folder / path).symlink_to(elsewhere)
        with pytest.raises(CheckFailed, match=rf"{path}: a link that leaves the package, to "):
            open_package(folder)


def test_a_link_to_itself_is_refused(package: Path) -> None:
    (package / "LICENSE").unlink()
    (package / "LICENSE").symlink_to("LICENSE")
    with pytest.raises(CheckFailed, match="LICENSE: "):
        check_files(open_package(package))


# Another package takes its place.


def replace(folder: Path, other: Path) -> None:
    """As a build puts a package into place: by renaming folders."""
    old = folder.with_name(".old")
    folder.rename(old)
    other.rename(folder)
    shutil.rmtree(old)


OPENINGS = ("the manifest", "a tokenizer", "a digest", "an engine")


def remove(folder: Path, other: Path) -> None:
    """Between the two renames of ``replace``, where another thread may be at any opening."""
    folder.rename(folder.with_name(".old"))


@pytest.mark.parametrize(("happens", "count"), [(replace, 1), (replace, 7), (remove, 7)])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", OPENINGS)
def test_a_package_replaced_at_any_moment(
    package: Path,
    other: Path,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Path, Path], None],
    count: int,
    when: str,
    what: str,
) -> None:
    """Around the first and the seventh opening of its kind: one line, or a right picture.

    Only the vae_decoder differs, so that all that is read before it fits either package.
    """
    right = [draw(open_package(folder)) for folder in (package, other)]
    assert not np.array_equal(right[0], right[1])
    left = {(when, what): count}

    def at(moment: tuple[str, str]) -> None:
        left[moment] = left.get(moment, 0) - 1
        if moment == (when, what) and left[moment] == 0:
            replace(package, other)

    def around(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            at(("before", name))
            found = real(*arguments)
            at(("after", name))
            return found

        return call

    engine = backends.load_to_run("onnx").open_graph
    found = SimpleNamespace(open_graph=around("an engine", engine))
    monkeypatch.setattr(backends, "load_to_run", lambda _: found)
    monkeypatch.setattr(runtime, "read_manifest", around("the manifest", read_manifest))
    monkeypatch.setattr(runtime, "read_file", around("a tokenizer", read_file))
    monkeypatch.setattr(runtime, "check_file", around("a digest", check_file))
    try:
        pixels = draw(open_package(package))
    except CheckFailed as error:
        assert str(error).endswith(CHANGED)
        return
    assert any(np.array_equal(pixels, picture) for picture in right)


def test_a_package_that_was_replaced_says_so(package: Path, other: Path) -> None:
    opened = open_package(package)
    player = opened.player()
    replace(package, other)
    for read in (opened.player, lambda: player.open("denoiser"), lambda: check_files(opened)):
        with pytest.raises(CheckFailed, match=rf"package: {CHANGED}"):
            read()


def test_a_graph_goes_on_with_its_own_files(package: Path, other: Path) -> None:
    """A package that is replaced while a graph is open is drawn with to the end of its turn."""
    session = open_package(package).session("vae_decoder")
    latent = np.random.default_rng(0).normal(size=(1, 16, 6, 8)).astype(np.float32)
    before = session({"latent": latent})["image"]
    replace(package, other)
    np.testing.assert_array_equal(session({"latent": latent})["image"], before)


def test_weights_that_are_written_over_are_not_computed_with(package: Path) -> None:
    """Engines map them."""
    session = open_package(package).session("vae_decoder")
    latent = np.zeros((1, 16, 6, 8), np.float32)
    session({"latent": latent})
    file = package / "graphs/vae_decoder/vae_decoder.onnx.data"
    with file.open("r+b") as stream:
        stream.write(bytes(1000))
    with pytest.raises(CheckFailed, match=rf"vae_decoder\.onnx\.data: {CHANGED}"):
        session({"latent": latent})


@pytest.mark.full
def test_drawing_while_packages_take_each_others_place(package: Path, other: Path) -> None:
    right = [draw(open_package(folder)) for folder in (package, other)]
    stop = threading.Event()

    def swap() -> None:
        third = package.with_name("third")
        while not stop.wait(0.002):
            package.rename(third)
            other.rename(package)
            third.rename(other)

    swapping = threading.Thread(target=swap)
    swapping.start()
    drawn = 0
    try:
        for _ in range(150):
            try:
                pixels = draw(open_package(package))
            except (CheckFailed, InputError) as error:
                assert "\n" not in str(error)
                continue
            drawn += 1
            assert any(np.array_equal(pixels, picture) for picture in right)
    finally:
        stop.set()
        swapping.join()
