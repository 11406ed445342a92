"""The manifest: any 4.x is read, values and paths are checked, and it protects itself."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import CheckFailed, InputError
from exporter.package.manifest import Guidance, OriginEntry, to_json, version_of
from exporter.package.read import digest_line, read_manifest, write_manifest
from exporter.runtime.package import open_package
from tests.conftest import ROOT, seal

KEPT = ROOT / "tests" / "packages" / "4.0" / "onnx-int8"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def package(tiny_package: Path, tmp_path: Path) -> Path:
    """A package that a test may damage: its files are those of ``tiny_package``."""
    folder = tmp_path / "package"
    shutil.copytree(tiny_package, folder, copy_function=lambda a, b: Path(b).hardlink_to(a))
    for name in ("manifest.json", "manifest.sha256"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def raw(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((package / "manifest.json").read_text())
    return found


def put(path: str, value: object) -> Change:
    """Sets what a dotted path such as ``graphs.0.name`` leads to; ``-``: takes it out."""

    def change(raw: dict[str, Any]) -> None:
        *above, last = path.split(".")
        place: Any = raw
        for key in above:
            place = place[int(key)] if isinstance(place, list) else place[key]
        where: Any = int(last) if isinstance(place, list) else last
        if value == "-":
            del place[where]
        else:
            place[where] = value

    return change


def test_a_later_4_x_is_read(package: Path, raw: dict[str, Any]) -> None:
    """Keys that are not known are left out at every level."""
    expected = read_manifest(package)
    raw["format_version"] = "4.7"
    for place in (raw, raw["picture"], raw["graphs"][0], raw["graphs"][0]["inputs"][0]):
        place["later"] = {"nested": [1, None, "x"]}
    raw["stages"][0]["inputs"]["ids"]["later"] = 5
    seal(package, raw)
    found = open_package(package).manifest
    assert found.format_version == "4.7" and found.graphs == expected.graphs
    assert found.stages == expected.stages


def test_what_has_a_default_may_be_absent(package: Path, raw: dict[str, Any]) -> None:
    expected = read_manifest(package)
    del raw["picture"]["pixels"], raw["origin"]["plan_sha256"], raw["graphs"][0]["remarks"]
    for stage in raw["stages"]:
        if not stage["image_to_image_only"]:
            del stage["image_to_image_only"]
    raw["noise"] = {}
    seal(package, raw)
    assert read_manifest(package) == expected


@pytest.mark.parametrize("version", [3, "3.0", "5.0", 4, 4.0, "4", "4.x", "04.0", None, "4.0\n"])
def test_other_formats_are_refused_with_the_command(
    package: Path, raw: dict[str, Any], version: object
) -> None:
    raw["format_version"] = version
    (package / "manifest.json").write_text(json.dumps(raw))
    (package / "manifest.sha256").unlink()  # format 3 had none
    expected = r"manifest\.json: format version .*reads 4\.x; build .*: fourstep build RECIPE$"
    with pytest.raises(CheckFailed, match=expected):
        open_package(package)


DAMAGE: list[tuple[Change, str]] = [
    (put("scheme", 4), "scheme: expected str, got int"),
    (put("name", "-"), "object missing required field name"),
    (put("graphs.1.files.0.bytes", "9"), r"graphs\[1\]\.files\[0\]\.bytes: expected int, got str"),
    (put("graphs.1.files.0.bytes", -1), r"graphs\[1\]\.files\[0\]\.bytes: expected int >= 0"),
    (put("graphs.0.files.0.sha256", "0" * 63), r"files\[0\]\.sha256: expected str matching"),
    (put("schedule.mode", "heun"), "schedule.mode: invalid enum value 'heun'"),
    (put("schedule.sigmas", []), "schedule.sigmas: expected array of length >= 2"),
    (put("schedule.sigmas", [0.0]), "schedule.sigmas: expected array of length >= 2"),
    (put("schedule.sigmas.1", 1.9), "schedule.sigmas: .* do not fall from at most 1 to 0"),
    (put("schedule.sigmas.0", 1.5), "do not fall"),
    (put("schedule.sigmas.4", 0.1), "do not fall"),
    (put("schedule.sigmas.2", "x"), r"schedule.sigmas\[2\]: expected float, got str"),
    (put("schedule.sigmas.2", None), r"schedule.sigmas\[2\]: expected float, got null"),
    (put("picture.width_px", 0), "picture.width_px: expected int >= 1"),
    (put("picture.width_px", 1 << 20), "picture.width_px: expected int <= 16384"),
    (put("picture.width_px", 65), "picture.width_px: 65 is no multiple of 8"),
    (put("picture.width_px", 128), "stages.*: no output of the shape of the image|takes float32"),
    (put("picture.latent_scale_px", 0), "latent_scale_px: expected int >= 1"),
    (put("picture.latent_channels", 4), "preview.factors: 16 rows for 4 channels"),
    (put("picture.preview.bias", [0.0]), "preview.bias: expected array of length 3"),
    (put("graphs.0.tolerance.graph_relative", 0), "graph_relative: expected float > 0"),
    (put("graphs.0.tolerance.image_psnr_db", -1), "image_psnr_db: expected float > 0"),
    (put("text.tokenizers.t5.pad_id", -1), r"pad_id: expected int >= 0"),
    (put("text.tokenizers.t5.pad_id", 5000), "t5.pad_id: 5000 is not in the vocabulary of 150"),
    (put("text.tokenizers.t5.closing_id", 150), "t5.closing_id: 150 is not in the vocabulary"),
    (put("text.tokenizers.t5.tokens", 25), r"inputs.ids: takes int32 \[1, 24\] and gets .*25"),
    (put("text.tokenizers.t5.cut", "middle"), "cut: invalid enum value 'middle'"),
    (put("noise.algorithm", "philox"), "noise.algorithm: invalid enum value 'philox'"),
    (put("noise.seed_bits", 64), "noise.seed_bits: invalid enum value 64"),
    (put("graphs.0.inputs.0.dtype", "float64"), "dtype: invalid enum value 'float64'"),
    (put("graphs.0.inputs.0.shape", [1, 0]), r"shape\[1\]: expected int >= 1"),
    (put("graphs.0.inputs.0.shape", [1 << 20, 1 << 20]), "takes more than 1 GiB"),
    (put("graphs.0.inputs.0.shape", [2**62]), r"shape\[0\]: expected int <= 2147483647"),
    (put("graphs.0.inputs", []), r"graphs\[0\]\.inputs: none, or two of a name"),
    (put("stages.0.runs", "twice"), "stages.0..runs: invalid enum value 'twice'"),
    (put("stages.0.runs", "once"), "stages.0..*"),
    (put("stages.0.parts", []), "stages: their parts .* are not the graphs"),
    (put("stages.0.parts", ["t5"]), "stages: their parts .* are not the graphs"),
    (put("stages.3.inputs.hidden_l.name", "denoiser"), "no output 'hidden' of a graph 'denoiser'"),
    (put("stages.3.inputs.hidden_l.port", "x"), "no output 'x' of a graph 'clip_l' before it"),
    (put("stages.3.inputs.hidden_l", "-"), r"stages\[3\]\.inputs: .* are not those of"),
    (put("stages.5.inputs.modulation.row_of_step", False), "takes float32 .* and gets float32"),
    (put("stages.5.results", {}), "gives the loop one"),
    (
        put("stages.6.results.image", "velocity"),
        "does not give the velocity|no output of the shape",
    ),
    (put("stages.6.inputs.latent.kind", "image"), "only a stage of image to image"),
    (put("stages.4.image_to_image_only", False), "image_to_image_only|only a stage of image"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE, ids=[m for _, m in DAMAGE])
def test_values_are_checked(
    package: Path, raw: dict[str, Any], change: Change, message: str
) -> None:
    change(raw)
    seal(package, raw)
    expected = rf"manifest\.json: damaged: .*({message}).*; build it again: fourstep build RECIPE"
    with pytest.raises(CheckFailed, match=expected):
        open_package(package)


STEP = "stages.5"  # of the denoiser
CONDITIONS = {
    "latent": {"kind": "latent"},
    "context": {"kind": "negative output", "name": "conditioner", "port": "context"},
    "modulation": {
        "kind": "negative output", "name": "conditioner", "port": "modulation", "row_of_step": True,
    },
}  # fmt: skip


def guide(raw: dict[str, Any]) -> None:
    """Turns a package into one with guidance away from a prompt of each request's."""
    raw["schedule"]["guidance"] = {"scale": 4.5}
    inputs = json.loads(json.dumps(CONDITIONS))
    raw["stages"][5] |= {"runs": "twice each step", "negative_inputs": inputs}


def test_guidance_is_read(package: Path, raw: dict[str, Any]) -> None:
    guide(raw)
    seal(package, raw)
    found = open_package(package).manifest
    assert found.schedule.guidance == Guidance(4.5, None)
    assert json.loads(to_json(found))["stages"][5]["negative_inputs"].keys() == CONDITIONS.keys()
    assert version_of(found) == "4.2"
    origin = OriginEntry(found.origin.recipe_sha256, found.origin.checkpoint_sha256)
    assert version_of(replace(found, bom="", origin=origin)) == "4.1"


UNGUIDED: list[tuple[Change, str]] = [
    (put("schedule.guidance.scale", 1.0), "guidance.scale: expected float > 1.0"),
    (put("schedule.guidance.scale", 101), "guidance.scale: expected float <= 100.0"),
    (put("schedule.guidance", None), "runs: 'twice each step' does not go with schedule.guidance"),
    (put("schedule.guidance.negative_prompt", "x"), "does not go with the sources"),
    (put(f"{STEP}.runs", "each step"), "runs: 'each step' does not go with schedule.guidance"),
    (put(f"{STEP}.runs", "thrice each step"), "runs: invalid enum value 'thrice each step'"),
    (put(f"{STEP}.negative_inputs.latent", "-"), r"negative_inputs: .* not those of denoiser"),
    (put(f"{STEP}.negative_inputs.context.port", "x"), "no output 'x' of a graph 'conditioner'"),
    (put(f"{STEP}.negative_inputs.modulation.row_of_step", False), "takes float32 .* and gets"),
    (put("stages.3.inputs.hidden_l.kind", "negative output"), "only what runs twice each step"),
    (put("stages.3.negative_inputs", CONDITIONS), "there are some, and it runs once per prompt"),
    (put(f"{STEP}.negative_inputs", {"latent": {"kind": "latent"}}), "does not go with the"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), UNGUIDED, ids=[m for _, m in UNGUIDED])
def test_what_contradicts_guidance_is_refused(
    package: Path, raw: dict[str, Any], change: Change, message: str
) -> None:
    guide(raw)
    change(raw)
    seal(package, raw)
    with pytest.raises(CheckFailed, match=rf"manifest\.json: damaged: .*({message})"):
        open_package(package)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
def test_numbers_are_finite(package: Path, number: str) -> None:
    text = (package / "manifest.json").read_text().replace("0.9,", f"{number},", 1).encode()
    (package / "manifest.json").write_bytes(text)
    (package / "manifest.sha256").write_bytes(digest_line(text))
    with pytest.raises(CheckFailed, match=r"manifest\.json: .*; build it again"):
        open_package(package)


def test_a_newer_format_that_cannot_be_read_says_so(package: Path, raw: dict[str, Any]) -> None:
    raw["format_version"], raw["schedule"]["mode"] = "4.5", "flow"
    seal(package, raw)
    with pytest.raises(CheckFailed, match="mode: invalid enum value.*format 4.5: update fourstep"):
        open_package(package)


PLACES = (
    "files.0.path",
    "graphs.0.entry",
    "graphs.0.files.0.path",
    "text.tokenizers.t5.path",
    "golden.pictures.0.image",
    "golden.pictures.0.unquantized",
    "golden.pictures.0.tensors",
    "golden.tokens",
    "golden.noise",
    "origin.licence",
    "origin.notice",
    "origin.recipe",
    "bom",
)
OUTSIDE = (
    "/etc/passwd", "../outside", "a/../../outside", "golden/..", "..", ".", "./LICENSE", "a//b",
    "a/", "a\\b", "C:/x", "C:x", "a\0b", "LICENSE\n", "",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", OUTSIDE)
def test_every_path_is_relative_and_inside(
    package: Path, raw: dict[str, Any], place: str, path: str
) -> None:
    if path == "" and place in PLACES[PLACES.index("golden.tokens") :]:
        pytest.skip("says that there is none")
    put(place, path)(raw)
    seal(package, raw)
    with pytest.raises(
        CheckFailed, match=r"manifest\.json: damaged: .*(path|entry|golden|origin|bom)"
    ):
        open_package(package)


@pytest.mark.parametrize("place", [p for p in PLACES if "files." not in p])
def test_every_path_is_among_the_digests(package: Path, raw: dict[str, Any], place: str) -> None:
    (package / "another").write_text("{}")
    put(place, "another")(raw)
    seal(package, raw)
    with pytest.raises(CheckFailed, match=r"'another' is not among"):
        open_package(package)


def test_a_path_is_listed_once(package: Path, raw: dict[str, Any]) -> None:
    raw["files"].append(raw["files"][0])
    seal(package, raw)
    with pytest.raises(CheckFailed, match="is listed 2 times"):
        open_package(package)


def test_the_digest_must_be_there(package: Path) -> None:
    (package / "manifest.sha256").unlink()
    with pytest.raises(CheckFailed, match=r"manifest\.sha256: is missing; copy the package again"):
        open_package(package)


def test_what_is_written_is_what_is_read(package: Path, tmp_path: Path) -> None:
    manifest = read_manifest(package)
    (tmp_path / "other").mkdir()
    write_manifest(tmp_path / "other", manifest)
    for name in ("manifest.json", "manifest.sha256"):
        assert (tmp_path / "other" / name).read_bytes() == (package / name).read_bytes()


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"3", b"{", b"\xff\xfe", b'{"format_version": "4.0"}', b"[" * 10**6,
     b'{"format_version": "4.0", "later": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
     b'{"format_version": ' + b"9" * 5000 + b"}"],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_manifest(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    (tmp_path / "manifest.sha256").write_bytes(digest_line(text))
    with pytest.raises(CheckFailed, match=r"manifest\.json: .*fourstep build RECIPE"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(InputError, match="not a package"):
        open_package(tmp_path)
    with pytest.raises(CheckFailed, match=r"manifest\.json: cannot be read"):
        read_manifest(tmp_path)


def test_every_flip_of_the_manifest_is_refused(package: Path) -> None:
    """Every eighth bit here, of the digest's file too."""
    for name in ("manifest.json", "manifest.sha256"):
        content = (package / name).read_bytes()
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            (package / name).write_bytes(flipped)
            with pytest.raises(CheckFailed, match=r"manifest\.json: damaged"):
                read_manifest(package)
        (package / name).write_bytes(content)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from([2**31, 2**63, 2**70, -(2**70)]),
    st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3),
    st.sampled_from(["t5", "denoiser", "latent", "output", "../x", "LICENSE", "once"]),
    st.builds(list), st.builds(dict), st.builds(lambda: [[]]), st.builds(lambda: {"": None}),
)  # fmt: skip


def places(value: object, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every value below this one is."""
    inner = dict(enumerate(value)) if isinstance(value, list) else value
    for key, below in inner.items() if isinstance(inner, dict) else ():
        yield (*above, key)
        yield from places(below, (*above, key))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_only_our_own_errors(data: st.DataObject) -> None:
    """Any few values of a manifest may be anything: it is read, or refused in one line."""
    raw = json.loads((KEPT / "manifest.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from(list(places(raw))))
        place = raw
        for key in above:
            place = place[key]
        if data.draw(st.booleans()):
            place[last] = data.draw(ODD)
        else:
            del place[last]
    with tempfile.TemporaryDirectory() as folder:
        seal(Path(folder), raw)
        try:
            read_manifest(Path(folder))
        except CheckFailed as error:
            assert "\n" not in str(error)


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_bytes(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(text)
        with pytest.raises(CheckFailed, match=r"manifest\.json: "):
            read_manifest(Path(folder))
