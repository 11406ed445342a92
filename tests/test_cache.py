"""The cache that machines share: what is found, what is passed over, what decides an entry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.build import pipeline
from exporter.build.pipeline import Built, build
from exporter.build.reuse import Awaited, take_package
from exporter.cache.records import Record, RecordError, read_record
from exporter.cache.shared import ROOT, Cache, open_cache
from exporter.cache.store import FolderStore, StoreError, open_store
from exporter.cache.url import parse_url, redacted
from exporter.errors import InputError
from exporter.files.read import file_digest
from exporter.network.cut import Cut
from exporter.package.manifest import FileEntry
from exporter.package.read import read_manifest
from exporter.progress import Progress
from exporter.quantize.formats import FORMATS, Rule
from exporter.recipe.recipe import Recipe
from tests.test_package import digests

SECRET = b"what two machines share"


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    """One step, no T5, and codes that are chosen by what layers meet."""
    cut = Cut((1.0, 0.0), 32, 32, t5=False, t5_tokens=8, image_to_image=False)
    calibration = replace(
        tiny_recipe.calibration, prompts=("a red circle",), methods=("feedback", "bias")
    )
    return replace(tiny_recipe, cut=cut, calibration=calibration)


def built(recipe: Recipe, out: Path, cache: Path, secret: bytes = b"") -> tuple[Built, list[str]]:
    """A package in int4 for onnxruntime, and the lines of its progress."""
    lines: list[str] = []
    progress = Progress(lambda line, *_: lines.append(line))
    shared = Cache(FolderStore(cache), lines.append, secret)
    (found,) = build(recipe, out, ["onnx"], ["int4"], progress, cache=shared)
    return found, lines


@pytest.fixture(scope="module")
def warm(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache that one build has filled, and the package that it built. Copy before damaging."""
    folder = tmp_path_factory.mktemp("warm")
    found, _ = built(recipe, folder / "out", folder / "cache")
    return folder / "cache", found.path


@pytest.fixture
def cache(warm: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(warm[0], tmp_path / "cache"))


def without(cache: Path, *kinds: str) -> Path:
    for kind in kinds:
        shutil.rmtree(cache / ROOT / "records" / kind)
    return cache


def emitted(lines: list[str]) -> list[str]:
    return [line.removeprefix("emit ") for line in lines if line.startswith("emit ")]


def test_a_cold_machine_takes_the_package_without_tracing(
    recipe: Recipe, warm: tuple[Path, Path], cache: Path, tmp_path: Path
) -> None:
    found, lines = built(recipe, tmp_path / "cold", cache)
    assert lines == ["onnx-int4 is whole already"]
    assert digests(found.path) == digests(warm[1])
    assert [image.loss_db for image in found.report.images]


def test_a_package_that_is_taken_is_read_once(
    recipe: Recipe, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file's digest is taken while it is copied, and each graph is looked at once."""
    looked: list[Path] = []
    monkeypatch.setattr(
        "exporter.runtime.package.refuse_foreign", lambda folder, _: looked.append(folder)
    )
    monkeypatch.setattr("exporter.runtime.package.check_file", None)
    found, _ = built(recipe, tmp_path / "cold", cache)
    assert found.source == "cache" and len(looked) == 1


def test_a_package_whose_files_are_not_its_manifests_is_a_miss(
    warm: tuple[Path, Path], cache: Path, tmp_path: Path
) -> None:
    """Files that are what the record says, and not what the manifest says."""
    (file,) = (cache / ROOT / "records/package").iterdir()
    record, manifest = json.loads(file.read_text()), read_manifest(warm[1])
    (licence,) = [entry for entry in record["files"] if entry["path"] == "LICENSE"]
    other = next(entry for entry in record["files"] if entry is not licence)
    licence |= {key: other[key] for key in ("bytes", "sha256")}
    file.write_text(json.dumps(record))
    lines: list[str] = []
    target, origin = tmp_path / warm[1].name, manifest.origin
    wanted = Awaited(
        target, file.stem, "onnx", "int4", origin.recipe_sha256, origin.checkpoint_sha256
    )
    assert take_package(Cache(FolderStore(cache), lines.append), wanted) is None
    assert [line.endswith("LICENSE is not what its manifest says") for line in lines] == [True]
    assert not target.exists()


@pytest.mark.full
def test_the_same_bytes_as_without_a_cache(
    recipe: Recipe, warm: tuple[Path, Path], tmp_path: Path
) -> None:
    (plain,) = build(recipe, tmp_path / "plain", ["onnx"], ["int4"])
    assert digests(plain.path) == digests(warm[1])


def test_graphs_and_statistics_are_taken_where_the_package_is_not(
    recipe: Recipe, warm: tuple[Path, Path], cache: Path, tmp_path: Path
) -> None:
    found, lines = built(recipe, tmp_path / "cold", without(cache, "request", "package"))
    assert emitted(lines) == []
    assert "statistics are taken from the cache" in lines
    assert not [line for line in lines if line.startswith("calibrate")]
    assert digests(found.path) == digests(warm[1])


def test_another_scheme_of_one_graph_emits_one_graph(
    recipe: Recipe, cache: Path, tmp_path: Path
) -> None:
    rule = Rule("vae_decoder", "*", FORMATS["fp16"], ("conv",))
    _, lines = built(replace(recipe, overrides=(rule,)), tmp_path / "cold", cache)
    assert emitted(lines) == ["vae_decoder"]


@pytest.mark.full
def test_another_prompt_or_seed_emits_nothing(recipe: Recipe, cache: Path, tmp_path: Path) -> None:
    _, lines = built(replace(recipe, prompts=("a blue square",), seed=3), tmp_path / "cold", cache)
    assert emitted(lines) == []


def spoilt(folder: Path, change: Callable[[bytes], bytes]) -> None:
    for file in [f for f in folder.rglob("*") if f.is_file()]:
        file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("files", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        pytest.param("files", lambda b: b[: len(b) // 2], marks=pytest.mark.full),
        pytest.param("files", lambda b: b + b"more", marks=pytest.mark.full),
        pytest.param("records", lambda b: b[: len(b) // 2], marks=pytest.mark.full),
        pytest.param(
            "records", lambda b: b.replace(b'"path": "', b'"path": "../'), marks=pytest.mark.full
        ),
        pytest.param("records", lambda b: b"[" * 100_000, marks=pytest.mark.full),
    ],
    ids=["bit", "half", "longer", "half record", "leads outside", "deep"],
)
def test_a_damaged_or_hostile_entry_is_a_miss_and_said_so(
    recipe: Recipe, warm: tuple[Path, Path], cache: Path, tmp_path: Path, where: str,
    change: Callable[[bytes], bytes],
) -> None:  # fmt: skip
    spoilt(cache / ROOT / where, change)
    found, lines = built(recipe, tmp_path / "cold", cache)
    assert digests(found.path) == digests(warm[1])
    assert [line for line in lines if "is passed over" in line]
    assert "denoiser" in emitted(lines)
    assert built(recipe, tmp_path / "next", cache)[1] == ["onnx-int4 is whole already"]


@pytest.mark.full
def test_a_graph_in_anothers_place_is_refused(recipe: Recipe, cache: Path, tmp_path: Path) -> None:
    records = sorted((without(cache, "request", "package") / ROOT / "records/graph").iterdir())
    contents = [json.loads(file.read_text()) for file in records]
    for file, raw in zip(records, contents[1:] + contents[:1], strict=True):
        file.write_text(json.dumps(raw | {"key": file.stem}))
    _, lines = built(recipe, tmp_path / "cold", cache)
    assert len([line for line in lines if line.endswith("it is another graph")]) == len(records)


def test_a_graph_that_does_not_verify_is_made_anew(
    recipe: Recipe, warm: tuple[Path, Path], cache: Path, tmp_path: Path
) -> None:
    """Weights of another graph's bytes, in a record whose digests are right."""
    without(cache, "request", "package")
    store = Cache(FolderStore(cache), print)
    for file in (cache / ROOT / "records/graph").iterdir():
        raw = json.loads(file.read_text())
        if raw["value"]["graph"]["name"] == "denoiser":
            place = cache / ROOT / "files"
            entry = max(raw["files"], key=lambda one: one["bytes"])
            old = (place / entry["sha256"][:2] / entry["sha256"]).read_bytes()
            poisoned = tmp_path / "poisoned"
            poisoned.write_bytes(old[: len(old) // 2] + bytes(len(old) - len(old) // 2))
            digest = file_digest(poisoned)
            store.store.put(f"{ROOT}/files/{digest[:2]}/{digest}", poisoned)
            text = file.read_text().replace(entry["sha256"], digest)
            file.write_text(text)
    found, lines = built(recipe, tmp_path / "cold", cache)
    assert [line for line in lines if "are made anew" in line]
    assert digests(found.path) == digests(warm[1])


@pytest.mark.full
def test_entries_of_who_has_not_the_secret_are_misses(
    recipe: Recipe, cache: Path, tmp_path: Path
) -> None:
    _, lines = built(recipe, tmp_path / "cold", cache, secret=SECRET)
    assert [line for line in lines if "is not signed with the secret" in line]
    again = built(recipe, tmp_path / "next", cache, secret=SECRET)[1]
    assert again == ["onnx-int4 is whole already"]


def test_a_signed_record_is_that_of_its_key_alone() -> None:
    text = Record("graph", "a", {"x": 1}, ()).to_bytes(SECRET)
    assert read_record(text, "graph", "a", SECRET).value == {"x": 1}
    for kind, key, content in (
        ("graph", "b", text), ("package", "a", text), ("graph", "a", text.replace(b"1", b"2")),
    ):  # fmt: skip
        with pytest.raises(RecordError):
            read_record(content, kind, key, SECRET)  # type: ignore[arg-type]


def test_a_record_keeps_the_order_of_names() -> None:
    """A manifest has them as the backend gave them: another order is other bytes."""
    value = {"session": {"b": "1", "a": "2"}}
    found = read_record(Record("graph", "k", value, ()).to_bytes(SECRET), "graph", "k", SECRET)
    assert json.dumps(found.value) == json.dumps(value)


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../x", "a//b", "", "a\\b", "c:x"])
def test_a_record_leads_nowhere_else(path: str) -> None:
    text = Record("graph", "a", {}, (FileEntry(path, 1, "0" * 64),)).to_bytes(b"")
    with pytest.raises(RecordError):
        read_record(text, "graph", "a", b"")


def test_files_are_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.put("a/b", b"new")
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b").read_bytes() == b"old"


class Broken(FolderStore):
    def open(self, name: str):  # type: ignore[no-untyped-def]
        raise StoreError("the network is unreachable")


@pytest.mark.full
def test_a_cache_that_cannot_be_reached_is_said_once(
    recipe: Recipe, warm: tuple[Path, Path], tmp_path: Path
) -> None:
    lines: list[str] = []
    cache = Cache(Broken(tmp_path / "cache"), lines.append)
    (found,) = build(recipe, tmp_path / "out", ["onnx"], ["int4"], cache=cache)
    assert lines == ["cache: goes on without it: the network is unreachable"]
    assert digests(found.path) == digests(warm[1])


@pytest.mark.parametrize(
    "given",
    ["s3://KEYID:hunter2hunter2@bucket/place", "https://host/p?X-Amz-Signature=hunter2hunter2"],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(given: str) -> None:
    with pytest.raises(InputError) as error:
        parse_url(given)
    assert "hunter2" not in str(error.value) and "KEYID" not in str(error.value)


def test_what_libraries_say_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    said = "denied hunter2hunter2 at s3://me:other@host/x?sig=abc"
    assert redacted(said) == "denied *** at s3://***@host/x?sig=***"


def test_places(tmp_path: Path) -> None:
    assert parse_url(f"file://{tmp_path}/c").folder == tmp_path / "c"
    assert parse_url("s3://bucket/place/").text == "s3://bucket/place"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        open_store(parse_url(str(tmp_path / "file")))
    with pytest.raises(InputError):
        open_cache(parse_url("nosuch://place"), print)


@pytest.mark.full
def test_requests_of_several_schemes_lead_to_their_packages(
    recipe: Recipe, warm: tuple[Path, Path], cache: Path, tmp_path: Path
) -> None:
    """Of two schemes one package is there: it is taken by its basis, after tracing."""
    lines: list[str] = []
    progress = Progress(lambda line, *_: lines.append(line))
    shared = Cache(FolderStore(cache), lines.append)
    found = build(recipe, tmp_path / "both", ["onnx"], ["int4", "fp32"], progress, cache=shared)
    assert digests(found[0].path) == digests(warm[1])
    assert "onnx-int4 is whole already" in lines
    assert pipeline.STATISTICS in {f.name for f in (tmp_path / "both").iterdir()}
