"""Bundles: whole or absent, what they say of themselves, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from exporter.bundle.target import HERE, EngineFiles, FileLimit, Target, load_target, targets
from exporter.bundle.write import WORD, facts_of, read_bundle, sources, write_bundle
from exporter.cli import main
from exporter.errors import CheckFailed, InputError
from exporter.files.read import file_digest
from exporter.package.manifest import Filter
from exporter.runtime.package import Package, open_package
from tests.conftest import ROOT, edit_json

TARGETS = [*targets().values()]
CPP = load_target("cpp")


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> Package:
    return open_package(tiny_package)


def files_of(folder: Path) -> dict[str, str]:
    """The digest of every file of a folder, by its path."""
    return {f.relative_to(folder).as_posix(): file_digest(f) for f in folder.rglob("*")
            if f.is_file()}  # fmt: skip


def fitting(target: Target, package: Package) -> Target:
    """A target that takes the tiny package, whatever its engines are, and needs no file of one."""
    return replace(target, backends=(package.manifest.backend,), engine=None)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_bundle_lists_every_file_of_it(target: Target, package: Package, tmp_path: Path) -> None:
    made = write_bundle(package, fitting(target, package), tmp_path / "out")
    found = files_of(tmp_path / "out")
    del found["bundle.json"]
    assert {f.path: f.sha256 for f in made.files} == found
    assert read_bundle(tmp_path / "out") == made
    assert made.package.manifest_sha256 == file_digest(package.folder / "manifest.json")
    assert {path for path, _ in sources(target)} <= {*found}
    moved = target.moved(package.manifest)
    for entry in package.manifest.all_files:
        assert found[moved.get(entry.path, f"{target.place}/{entry.path}")] == entry.sha256


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_readme_has_three_commands_and_no_open_word(
    target: Target, package: Package, tmp_path: Path
) -> None:
    write_bundle(package, fitting(target, package), tmp_path / "out")
    for name in target.filled:
        assert not WORD.search((tmp_path / "out" / name).read_text("utf-8")), name
    readme = (tmp_path / "out" / "README.md").read_text("utf-8")
    block = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)[0]
    assert len(block.strip().splitlines()) == 3, block


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_words_of_files_are_facts(target: Target, package: Package) -> None:
    facts = facts_of(package.manifest, target)
    for path, file in sources(target):
        if path in target.filled:
            assert {*WORD.findall(file.read_text("utf-8"))} <= {*facts}, file


def test_the_runtimes_licence_is_the_projects() -> None:
    assert (HERE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_same_bundle_has_the_same_bytes(package: Package, tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_bundle(package, CPP, tmp_path / name)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "other")
    write_bundle(package, CPP, tmp_path / "one")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "other")


def test_without_golden_is_a_package_that_draws(package: Package, tmp_path: Path) -> None:
    whole = write_bundle(package, CPP, tmp_path / "whole")
    made = write_bundle(package, CPP, tmp_path / "out", golden=False)
    assert (whole.package.golden, made.package.golden) == (True, False)
    assert made.bytes < whole.bytes and not (tmp_path / "out/package/golden").exists()
    copied = open_package(tmp_path / "out/package")
    assert copied.manifest.golden.pictures == () and copied.manifest.golden.tokens == ""
    assert copied.manifest.graphs == package.manifest.graphs
    copied.player().close()
    assert made.package.manifest_sha256 == whole.package.manifest_sha256


def test_an_unknown_target_and_a_backend_that_it_lacks(package: Package, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"target: unknown target 'cobol'; known: .*cpp"):
        load_target("cobol")
    other = replace(CPP, backends=("coreml",))
    with pytest.raises(InputError, match="a package for onnx, and the engines of --for cpp open: "):
        write_bundle(package, other, tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_is_too_large(package: Package, tmp_path: Path) -> None:
    limited = replace(CPP, limit=FileLimit(1000, "a tiny store", "build with another scheme"))
    with pytest.raises(InputError, match=r"MB, and a tiny store takes files of at most 0\.0 MB;"):
        write_bundle(package, limited, tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_files_of_an_engine_are_those_that_were_tried(package: Package, tmp_path: Path) -> None:
    files = {"engine.js": "0" * 64}
    engine = EngineFiles("an engine 1.0", "npm install engine@1.0", "nowhere", "engine", files)
    target = replace(CPP, engine=engine)
    missing = (
        r"nowhere.engine\.js: is missing, a file of an engine 1\.0; npm install engine@1\.0, "
        "or name its folder with --engine"
    )
    with pytest.raises(InputError, match=missing):
        write_bundle(package, target, tmp_path / "out")
    (tmp_path / "engine.js").write_text("draws")
    with pytest.raises(
        InputError, match=r"engine\.js: not the file of an engine 1\.0; npm install"
    ):
        write_bundle(package, target, tmp_path / "out", engine=tmp_path)
    with pytest.raises(InputError, match="engine: --for cpp takes no files of an engine along"):
        write_bundle(package, CPP, tmp_path / "out", engine=tmp_path)
    assert not (tmp_path / "out").exists()
    tried = {"engine.js": file_digest(tmp_path / "engine.js")}
    target = replace(CPP, engine=replace(engine, files=tried))
    write_bundle(package, target, tmp_path / "out", engine=tmp_path)
    assert (tmp_path / "out/engine/engine.js").read_text() == "draws"


def test_a_damaged_package_leaves_nothing(tiny_package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_package, tmp_path / "package")
    damaged = copy / "golden" / "0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckFailed, match=r"0\.safetensors: damaged: SHA-256 differs"):
        write_bundle(open_package(copy), CPP, tmp_path / "out")
    damaged.unlink()
    with pytest.raises(CheckFailed, match=r"0\.safetensors: cannot be read"):
        write_bundle(open_package(copy), CPP, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["package"]


def test_what_somebody_else_made_is_not_written_over(package: Package, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "empty").mkdir(parents=True)
    write_bundle(package, CPP, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="out: holds notes.txt, which fourstep bundle did not wri"):
        write_bundle(package, CPP, out)
    (out / "notes.txt").unlink()
    (out / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"out: holds README\.md, which was changed; choose anoth"):
        write_bundle(package, CPP, out)
    with pytest.raises(InputError, match=r"README\.md: is a file; choose another place"):
        write_bundle(package, CPP, out / "README.md")
    with pytest.raises(InputError, match="lies in the package"):
        write_bundle(package, CPP, package.folder / "bundle")


def test_files_may_lie_elsewhere_and_others_be_written(package: Package, tmp_path: Path) -> None:
    first = package.manifest.all_files[0].path
    target = replace(
        CPP,
        place="app/assets",
        moved=lambda manifest: {first: "pack/first"},
        extra=lambda manifest: {"settings/name.txt": manifest.name},
    )
    made = write_bundle(package, target, tmp_path / "out")
    paths = {file.path for file in made.files}
    assert {"pack/first", "settings/name.txt", "app/assets/manifest.json"} <= paths
    assert f"app/assets/{first}" not in paths and made.package.place == "app/assets"


def test_the_command_line(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["bundle", str(tiny_package), "-o", str(out), "--for"]
    done = CliRunner().invoke(main, [*arguments, "cpp", "--without-golden", "--json"])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert row["path"] == str(out) and row["target"] == "cpp" and row["golden"] is False
    assert row["files"] == len(read_bundle(out).files)
    again = CliRunner().invoke(main, [*arguments, "cpp"])
    assert again.exit_code == 0 and again.stdout.startswith(f"{out}  C++17  ")
    wrong = CliRunner().invoke(main, [*arguments, "fortran"])
    assert wrong.exit_code == 2 and "--for: unknown target 'fortran'; known: " in wrong.stderr
    edit_json(out / "bundle.json", files=[])
    other = CliRunner().invoke(main, [*arguments, "cpp"])
    assert other.exit_code == 2 and len(other.stderr.strip().splitlines()) == 1


def test_a_filter_that_nothing_would_run(package: Package, tmp_path: Path) -> None:
    entry = Filter(
        0.5, "above", 0, "none", "", 8, 8, "NCHW", "RGB", "bilinear", "unit", (0, 0, 0), (1, 1, 1)
    )
    guarded = replace(package, manifest=replace(package.manifest, filter=entry))
    with pytest.raises(InputError, match="has a filter, which the runtime of --for cpp does not"):
        write_bundle(guarded, fitting(CPP, package), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
