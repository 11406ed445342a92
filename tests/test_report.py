"""The report: what it measures is true, the page asks for nothing, and a browser agrees."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image as Picture
from safetensors.numpy import load_file, save_file

from exporter import backends
from exporter.bench.process import Asked, draw_apart
from exporter.build.pipeline import build
from exporter.cli import main
from exporter.drawing.loop import Image, Request, generate
from exporter.package.measures import (
    SAME_DB,
    amplification,
    difference_map,
    finite,
    mean_db,
    psnr_db,
    snr_db,
    ssim,
)
from exporter.recipe.recipe import Recipe
from exporter.report import charts
from exporter.report.charts import Axis, Point
from exporter.report.metric import read_metric
from exporter.report.plans import level
from exporter.report.sensitivities import read_sensitivities
from exporter.runtime.package import open_package
from tests.conftest import ROOT, SHAPES, edit_json, seal

PROMPTS = ("a red circle", 'two <b> & "c"')
CANDIDATES = (("int2-g32", 2.5, 20.0), ("int4-g32", 4.5, 1.0), ("int8", 8.0, 0.004))
LAYERS = ("attn.to_q", "attn.add_q_proj", "ff.net.2")
WIDTHS_PX = (360, 1280)


def report(*arguments: object) -> Result:
    result = CliRunner().invoke(
        main, ["report", *(str(a) for a in arguments)], catch_exceptions=False
    )
    assert "Traceback" not in result.output
    return result


def mistake(result: Result, *words: str) -> None:
    """Exit code 2, nothing on stdout, a last line on stderr that has the words."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, last


def made_up_plan() -> dict[str, object]:
    """A plan of three layers in each of two blocks and one outside, worse from one to the next."""
    names = [f"transformer_blocks.{b}.{layer}.weight" for b in (0, 1) for layer in LAYERS]
    weights = []
    for i, name in enumerate([*names, "proj_out.weight"]):
        candidates = [
            {"format": f, "bytes": int(1000 * bits / 8), "noise": 10 ** (i / 3 - 6) * share}
            for f, bits, share in CANDIDATES
        ]
        chosen = ("int2-g32", "int4-g32", "int8")[min(2, i // 2)]
        weights.append(
            {
                "graph": "denoiser",
                "weight": name,
                "values": 1000,
                "chosen": chosen,
                "candidates": candidates,
            }
        )
    return {
        "format_version": 1,
        "scheme": "mixed",
        "budget_bytes": 4_000,
        "floor_db": None,
        "weight_bytes": 4_250,
        "bits_per_weight": 4.86,
        "predicted_snr_db": 31.25,
        "measured_snr_db": 30.5,
        "checkpoint_sha256": "c" * 64,
        "statistics_sha256": "5" * 64,
        "prompts": 12,
        "seed": 1000,
        "methods": ["equalize"],
        "weights": weights,
    }


@pytest.fixture(scope="session")
def packages(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three ONNX packages of the tiny checkpoint, one with a plan. Copy it to change it."""
    folder = tmp_path_factory.mktemp("packages")
    recipe = replace(tiny_recipe, prompts=PROMPTS)
    build(recipe, folder, ["onnx"], ["fp32", "int8", "int4"])
    (folder / "onnx-int4" / "plan.json").write_text(json.dumps(made_up_plan()))
    (folder / "onnx-int4" / "plan.toml").write_text('[plan]\nbase = "<int8>"\n')
    return folder


@pytest.fixture(scope="session")
def page(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's folder, as the command line writes it."""
    out = tmp_path_factory.mktemp("out") / "report"
    result = report(packages, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(out / "index.html")
    assert "onnx-int4: picture 2, step 4 of 4" in result.stderr
    return out


@pytest.fixture
def copy(packages: Path, tmp_path: Path) -> Path:
    """Packages that a test may change."""
    return Path(shutil.copytree(packages, tmp_path / "packages"))


@dataclass
class Element:
    """An element of a page: its name, attributes and words."""

    name: str
    attributes: Mapping[str, str | None]
    words: str = ""


@dataclass
class Elements(HTMLParser):
    """Every element of a page, in order; text goes to all that are open."""

    found: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.found.append(element)
        if tag not in ("img", "input", "meta"):
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.words += data


def elements(file: Path) -> list[Element]:
    parser = Elements()
    parser.feed(file.read_text(encoding="utf-8"))
    assert not parser.open
    return parser.found


def rows_of(file: Path, package: str) -> list[str]:
    """The words of the table rows that begin with a package's name."""
    return [e.words for e in elements(file) if e.name == "tr" and e.words.startswith(package)]


def pixels_of(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Picture.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture)


def entry_of(page: Path, package: str) -> dict[str, Any]:
    data = json.loads((page / "report.json").read_text())
    found: dict[str, Any] = next(e for e in data["packages"] if e["name"] == package)
    return found


# What is measured.


def test_golden_outputs_hold_the_latent_after_each_step(packages: Path) -> None:
    tensors = load_file(packages / "onnx-int4" / "golden" / "0.safetensors")
    steps = [tensors[f"unquantized/{step}"] for step in (1, 2, 3, 4)]
    assert "unquantized/5" not in tensors
    assert np.array_equal(steps[-1], tensors["unquantized_latent"])
    assert all(s.shape == steps[-1].shape for s in steps)
    assert min(snr_db(a, b) for a, b in itertools.pairwise(steps)) < 40  # each step moves


def test_figures_are_those_of_the_pictures(packages: Path, page: Path) -> None:
    """Drawn again in this process and compared with the stored unquantized picture."""
    for name in ("onnx-fp32", "onnx-int8", "onnx-int4"):
        package = open_package(packages / name)
        golden = package.manifest.golden.pictures
        drawn = generate(package.player(), [Request(g.prompt, g.seed) for g in golden])
        images = [e for e in drawn if isinstance(e, Image)]
        found = entry_of(page, name)
        assert [f["asked"]["prompt"] for f in found["figures"]] == list(PROMPTS)
        for figures, image, g in zip(found["figures"], images, golden, strict=True):
            with Picture.open(packages / name / g.unquantized) as picture:
                plain = np.asarray(picture)
            tensors = load_file(packages / name / g.tensors)
            assert figures["psnr_db"] == finite(psnr_db(image.pixels, plain))
            assert figures["ssim"] == ssim(image.pixels, plain)
            expected_db = snr_db(image.latent, tensors["unquantized_latent"])
            assert figures["latent_snr_db"] == pytest.approx(expected_db)
            assert list(figures["steps_db"]) == ["1", "2", "3", "4"]
            assert figures["steps_db"]["4"] == figures["latent_snr_db"]
        db = [min(f["psnr_db"] or SAME_DB, SAME_DB) for f in found["figures"]]
        assert found["summary"]["psnr_db"] == pytest.approx(sum(db) / 2)


def test_coarser_weights_are_smaller_and_farther(page: Path) -> None:
    rows = [entry_of(page, f"onnx-{s}")["summary"] for s in ("fp32", "int8", "int4")]
    for one, two in itertools.pairwise(rows):
        assert one["mmdit_bytes"] > two["mmdit_bytes"]
        assert one["bits_per_weight"] > two["bits_per_weight"]
        assert one["latent_snr_db"] > two["latent_snr_db"]


def test_times_and_memory_are_the_packages_own(packages: Path, tmp_path: Path) -> None:
    """What this process holds is not counted; the parts make up the whole."""
    held = bytearray(b"x") * (600 << 20)
    asked = [Asked(p, 7) for p in PROMPTS]
    drawn = draw_apart(packages / "onnx-int8", asked, tmp_path, lambda line: None)
    assert len(held) == 600 << 20
    times = drawn.times
    graphs = {"clip_l", "clip_g", "t5", "conditioner", "denoiser", "vae_decoder"}
    assert set(times.loads_s) == graphs and all(s > 0 for s in times.loads_s.values())
    assert times.next_s is not None
    assert min(times.next_s, times.step_s, times.encode_s, times.decode_s) > 0
    assert sum(times.loads_s.values()) < times.first_s
    if Path("/proc/self/status").exists():
        assert drawn.memory is not None
        peak, anonymous = drawn.memory.peak_rss_bytes, drawn.memory.peak_anonymous_bytes
        assert 20 << 20 < anonymous <= peak < 500 << 20
    assert drawn.picture(1).shape == (48, 64, 3)


def test_without_proc_memory_is_said_to_be_unknown(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.bench.process._status", lambda process: {})
    for name in ("onnx-fp32", "onnx-int4"):
        shutil.rmtree(copy / name)
    assert report(copy).exit_code == 0
    assert entry_of(copy / "report", "onnx-int8")["memory"] is None
    assert "Memory is not available on this system" in (copy / "report/index.html").read_text()


def test_a_prompt_that_is_cut_is_remarked(copy: Path, tmp_path: Path) -> None:
    for name in ("onnx-fp32", "onnx-int4"):
        shutil.rmtree(copy / name)
    long = tmp_path / "long.txt"
    long.write_text("a red circle and " * 40)
    assert report(copy, "--prompts", long).exit_code == 0
    remarks = entry_of(copy / "report", "onnx-int8")["remarks"]
    assert any(r.startswith("clip_l reads 77 tokens; not read:") for r in remarks)


def test_measures() -> None:
    plain = np.zeros((16, 16, 3), np.uint8)
    other = plain.copy()
    other[3, 4] = (1, 5, 2)
    assert ssim(plain, plain) == 1.0 and ssim(plain, other) < 1.0
    assert difference_map(other, plain, 8).sum() == 40
    assert difference_map(other, plain, 64)[3, 4] == 255
    assert amplification([(plain, plain)]) == 64
    assert amplification([(plain, plain + 20)]) == 8  # 160 fits into 255, 320 does not
    assert amplification([(plain, plain + 200)]) == 1
    assert mean_db([math.inf, 41.0]) == (SAME_DB + 41) / 2
    assert finite({"a": [math.inf, 1.5], "b": (math.nan,)}) == {"a": [None, 1.5], "b": [None]}


# The page.


def test_the_page_asks_for_nothing(page: Path) -> None:
    text = (page / "index.html").read_text(encoding="utf-8")
    found = elements(page / "index.html")
    assert not [e for e in found if e.name in ("script", "link", "iframe", "object", "form")]
    for element in found:
        for name in ("src", "href", "srcset", "action", "poster", "style"):
            value = element.attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), value
    (style,) = [e for e in found if e.name == "style"]
    known = base64.b64encode(hashlib.sha256(style.words.encode()).digest()).decode()
    (policy,) = [
        e.attributes["content"]
        for e in found
        if e.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{known}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert all(u.startswith("data:") for u in re.findall(r'url\("?([^")]+)', style.words))
    assert not re.search(r"@import|https?://", text)


def test_the_page_is_accessible(page: Path) -> None:
    found = elements(page / "index.html")
    assert found[0].attributes["lang"] == "en"
    images = [e.attributes for e in found if e.name == "img"]
    assert images and all(i["alt"] and i["width"] == "64" for i in images)
    tables = [e for e in found if e.name == "table"]
    captions = [e for e in found if e.name == "caption"]
    assert len(tables) == len(captions) and all(c.words for c in captions)
    levels = [int(e.name[1]) for e in found if re.fullmatch(r"h[1-6]", e.name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    drawings = [e for e in found if e.name == "svg" and e.attributes.get("role") == "img"]
    assert len(drawings) >= 12 and all(d.attributes["aria-label"] for d in drawings)
    identities = [e.attributes["id"] for e in found if "id" in e.attributes]
    assert len(identities) == len(set(identities))
    anchors = [e.attributes["href"] for e in found if e.name == "a"]
    assert anchors and all(a and a[1:] in identities for a in anchors)


def test_pictures_and_their_differences(packages: Path, page: Path) -> None:
    found = [e.attributes for e in elements(page / "index.html") if e.name == "img"]
    of = {i["alt"]: pixels_of(i["src"] or "") for i in found}
    with Picture.open(packages / "onnx-int4/golden/1-unquantized.png") as picture:
        plain = np.asarray(picture)
    assert np.array_equal(of[f"“{PROMPTS[1]}”, the unquantized picture"], plain)
    (drawn,) = [p for alt, p in of.items() if alt and f"“{PROMPTS[1]}” by onnx-int4" in alt]
    factor = int(re.findall(r"(\d+) times amplified", (page / "index.html").read_text())[0])
    maps = [
        pixels_of(i["src"] or "") for i in found if (i["alt"] or "").startswith("Where onnx-int4")
    ]
    assert np.array_equal(maps[1], difference_map(drawn, plain, factor)) and maps[1].any()


def test_the_tables_show_the_data(page: Path) -> None:
    whole, bytes_, steps, times = rows_of(page / "index.html", "onnx-int8")[:4]
    found = entry_of(page, "onnx-int8")
    summary = found["summary"]
    for shown in (
        f"{summary['bytes'] / 1e6:.1f}",
        f"{summary['psnr_db']:.1f}",
        f"{summary['ssim']:.4f}",
        f"{summary['latent_snr_db']:.1f}",
    ):
        assert shown in whole
    graph = next(g for g in found["manifest"]["graphs"] if g["name"] == "vae_decoder")
    assert f"{sum(f['bytes'] for f in graph['files']) / 1e6:.2f}" in bytes_
    first_db = [f["steps_db"]["1"] for f in found["figures"]]
    assert f"{sum(first_db) / len(first_db):.1f}" in steps
    assert f"{found['memory']['peak_rss_bytes'] / 1e6:.1f}" in times


def test_provenance_holds_the_manifest(packages: Path, page: Path) -> None:
    found = elements(page / "index.html")
    manifest = open_package(packages / "onnx-int4").manifest
    (details,) = [
        e for e in found if e.name == "details" and e.words.startswith("onnx-int4Format version")
    ]
    for part in (manifest.origin.recipe_sha256, "LICENSE", "onnxruntime", manifest.files[0].sha256):
        assert part in details.words
    header = next(e for e in found if e.name == "header")
    for part in (
        manifest.origin.checkpoint_sha256,
        "64 \N{MULTIPLICATION SIGN} 48 px",
        "4 steps, euler",
        "1, 0.9, 0.75, 0.5",
    ):
        assert part in header.words


def test_the_plan_is_shown(page: Path) -> None:
    found = elements(page / "index.html")
    text = (page / "index.html").read_text(encoding="utf-8")
    (part,) = [e for e in found if e.attributes.get("id") == "sensitivity"]
    assert "31.2 dB predicted, 30.5 dB measured" in part.words
    assert (
        "at most 0.004\N{NO-BREAK SPACE}MB" in part.words
        and "12 prompts from seed 1000" in part.words
    )
    assert 'base = "<int8>"' in part.words  # the text of plan.toml
    assert "No plan in onnx-fp32, onnx-int8" in part.words and "fourstep plan" in part.words
    layers = [e.words for e in found if e.name == "tr" and e.words.startswith("transformer_blo")]
    assert [re.split("denoiser", row)[0].rpartition("blocks.")[2] for row in layers] == [
        f"{b}.{layer}" for b in (1, 0) for layer in reversed(LAYERS)
    ]
    # Each cell of the heat map is a layer, marked with its bits; each stroke is one, by format.
    marks = re.findall(r'class="in h(\d)">(\d+)<', text)
    assert marks == [*zip("012456", "224488", strict=True)] * 2  # for a phone, and wider
    assert len(re.findall(r'class="stroke f\d"', text)) == 2 * 7


def test_damaged_plans_are_refused(copy: Path) -> None:
    file = copy / "onnx-int4" / "plan.json"
    edit_json(file, format_version=2)
    mistake(report(copy), "plan.json: this fourstep reads format version 1")
    raw = made_up_plan()
    del raw["weights"]
    file.write_text(json.dumps(raw))
    mistake(report(copy), "plan.json", "missing required field `weights`")
    raw = made_up_plan()
    weights: Any = raw["weights"]
    weights[0]["candidates"] = []
    file.write_text(json.dumps(raw))
    mistake(report(copy), "transformer_blocks.0.attn.to_q.weight has no candidates")
    assert not (copy / "report").exists()


def test_a_plan_that_someone_edited_is_shown(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that was not measured; and a plan's text without sensitivities."""
    monkeypatch.setattr(backends, "missing", lambda requires: list(requires.values()))
    raw = made_up_plan()
    weights: Any = raw["weights"]
    weights[0]["chosen"] = "fp16"
    (copy / "onnx-int4" / "plan.json").write_text(json.dumps(raw))
    (copy / "onnx-int8" / "plan.toml").write_text("# by hand")
    assert report(copy).exit_code == 0
    file = copy / "report" / "index.html"
    (row,) = rows_of(file, "transformer_blocks.0.attn.to_qdenoiser")
    assert row.startswith("transformer_blocks.0.attn.to_qdenoiser1,000fp16\N{EM DASH}")
    text = file.read_text(encoding="utf-8")
    assert 'class="in h0">16<' in text and "16 bits: 1 fp16<" in text
    assert "nobody measured its layers" in text and "# by hand" in text
    assert "No plan in onnx-fp32: each" in text


def test_sensitivities_read_as_data(packages: Path) -> None:
    plan = read_sensitivities(packages / "onnx-int4")
    assert plan is not None and read_sensitivities(packages / "onnx-int8") is None
    first, last = plan.weights[0], plan.weights[-1]
    assert (first.block, first.layer, first.coarsest.format) == (0, "attn.to_q", "int2-g32")
    assert (last.block, last.layer, last.chosen) == (None, "proj_out", "int8")
    assert last.choice is not None and last.choice.bytes == 1000
    assert last.choice.noise == pytest.approx(10**-4 * 0.004)


# What cannot run, and mistakes.


def test_a_package_that_cannot_run_is_listed_with_what_is_known(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "missing", lambda requires: list(requires.values()))
    assert report(copy).exit_code == 0
    log = json.loads((copy / "onnx-int4.log.json").read_text())["verify"]["images"]
    found = entry_of(copy / "report", "onnx-int4")
    assert not found["drawn"] and found["times"] is None
    pip = "onnxruntime is not installed: pip install 'fourstep[onnx]'"
    assert pip in found["remarks"]
    assert [f["psnr_db"] for f in found["figures"]] == [i["loss_db"] for i in log]
    assert [f["latent_snr_db"] for f in found["figures"]] == [i["latent_snr_db"] for i in log]
    file = copy / "report" / "index.html"
    assert pip in "".join(e.words for e in elements(file) if e.name == "li")
    assert "not run here" in rows_of(file, "onnx-int4")[0]
    with Picture.open(copy / "onnx-int4/golden/0.png") as picture:
        stored = np.asarray(picture)
    shown = [e.attributes for e in elements(file) if e.name == "img"]
    (mine,) = [i for i in shown if (i["alt"] or "").startswith(f"“{PROMPTS[0]}” by onnx-int4")]
    assert np.array_equal(pixels_of(mine["src"] or ""), stored)
    # Without its log there are no figures, which is said.
    (copy / "onnx-int4.log.json").unlink()
    assert report(copy).exit_code == 0
    found = entry_of(copy / "report", "onnx-int4")
    assert found["figures"] == [] and "onnx-int4.log.json is not there" in str(found["remarks"])


def test_a_package_that_stops_is_listed_with_its_reason(copy: Path) -> None:
    """Its files are what the manifest says, but onnxruntime cannot open one."""
    manifest = json.loads((copy / "onnx-int8" / "manifest.json").read_text())
    graph = next(g for g in manifest["graphs"] if g["name"] == "vae_decoder")
    entry = next(f for f in graph["files"] if f["path"].endswith(".onnx"))
    model = onnx.load(str(copy / "onnx-int8" / entry["path"]), load_external_data=False)
    model.graph.node[0].input[0] = "nowhere"
    bad = model.SerializeToString()
    entry.update(bytes=len(bad), sha256=hashlib.sha256(bad).hexdigest())
    (copy / "onnx-int8" / entry["path"]).write_bytes(bad)
    seal(copy / "onnx-int8", manifest)
    assert report(copy).exit_code == 0
    found = entry_of(copy / "report", "onnx-int8")
    assert not found["drawn"] and "onnxruntime cannot open it" in found["remarks"][0]
    assert entry_of(copy / "report", "onnx-int4")["drawn"]


def test_packages_without_golden_pictures_are_listed(tiny_recipe: Recipe, tmp_path: Path) -> None:
    build(replace(tiny_recipe, prompts=()), tmp_path, ["onnx"], ["int8"])
    assert report(tmp_path).exit_code == 0
    found = entry_of(tmp_path / "report", "onnx-int8")
    assert "give prompts to draw others" in found["remarks"][0]
    assert "built without golden ones" in (tmp_path / "report" / "index.html").read_text()


def test_a_package_of_an_older_build_is_told_apart(copy: Path) -> None:
    """Golden tensors without the latent after each step."""
    for name in ("onnx-fp32", "onnx-int8"):
        shutil.rmtree(copy / name)
    package = copy / "onnx-int4"
    manifest = json.loads((package / "manifest.json").read_text())
    for golden in manifest["golden"]["pictures"]:
        file = package / golden["tensors"]
        tensors = {k: v for k, v in load_file(file).items() if not k.startswith("unquantized/")}
        save_file(tensors, file)
        entry = next(f for f in manifest["files"] if f["path"] == golden["tensors"])
        data = file.read_bytes()
        entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    seal(package, manifest)
    assert report(copy).exit_code == 0
    found = entry_of(copy / "report", "onnx-int4")
    assert "build it again" in found["remarks"][0] and found["summary"]["latent_snr_db"] < SAME_DB
    assert "No latents after each step" in (copy / "report" / "index.html").read_text()


def test_without_scikit_image_the_page_says_how_to_get_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.report.make.has_ssim", lambda: False)
    for name in ("onnx-fp32", "onnx-int8"):
        shutil.rmtree(copy / name)
    assert report(copy).exit_code == 0
    assert entry_of(copy / "report", "onnx-int4")["summary"]["ssim"] is None
    assert "pip install 'fourstep[report]'" in (copy / "report" / "index.html").read_text()


def test_mistakes(copy: Path, tmp_path: Path) -> None:
    mistake(report(tmp_path / "none"), "none: no such folder")
    (tmp_path / "empty").mkdir()
    mistake(report(tmp_path / "empty"), "no packages in it", "fourstep build RECIPE --out")
    mistake(report(copy / "onnx-int4"), "is one package; name the folder that it lies in")
    mistake(report(copy, "--prompts", tmp_path / "no.txt"), "no.txt: cannot be read: No such file")
    (tmp_path / "blank.txt").write_text("\n \n")
    mistake(report(copy, "--prompts", tmp_path / "blank.txt"), "holds no prompt; write one per")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    mistake(report(copy, "--prompts", tmp_path / "latin.txt"), "not UTF-8 text")
    mistake(report(copy, "--out", copy / "onnx-int4"), "something other than a report")
    mistake(report(copy, "--out", tmp_path / "blank.txt"), "something other than a report")
    other = json.loads((copy / "onnx-int8" / "manifest.json").read_text())
    other["text"]["t5"] = False
    seal(copy / "onnx-int8", other)
    mistake(report(copy), "onnx-int8: its t5 is not that of onnx-fp32")
    shutil.rmtree(copy / "onnx-int8")
    with (copy / "onnx-int4" / "graphs/denoiser/denoiser.onnx").open("ab") as file:
        file.write(b"x")
    mistake(report(copy), "denoiser.onnx: damaged")
    assert not (copy / "report").exists()


def test_a_report_is_whole_or_absent(
    copy: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(page, copy / "report")
    before = (copy / "report" / "index.html").read_bytes()

    def fail(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("exporter.report.make.page", fail)
    for name in ("onnx-fp32", "onnx-int8"):
        shutil.rmtree(copy / name)
    with pytest.raises(KeyboardInterrupt):
        from exporter.report.make import make

        make(copy, copy / "report")
    assert (copy / "report" / "index.html").read_bytes() == before
    assert not [f for f in copy.iterdir() if f.name.startswith(".")]


# Other prompts, and measures of the user's own.


def test_other_prompts_are_compared_with_the_least_rounded_package(
    packages: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a green star\n\n  a blue square\n")
    result = report(packages, "--prompts", prompts, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["path"] == str(tmp_path / "out" / "index.html")
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["yardstick"] == "onnx-fp32"
    asked = [Asked("a green star", 0), Asked("a blue square", 2)]
    assert data["asked"] == [{"prompt": a.prompt, "seed": a.seed, "size": ""} for a in asked]
    images = {}
    for name in ("onnx-fp32", "onnx-int4"):
        player = open_package(packages / name).player()
        events = generate(player, [Request(a.prompt, a.seed) for a in asked])
        images[name] = [e for e in events if isinstance(e, Image)]
    pairs = zip(images["onnx-int4"], images["onnx-fp32"], strict=True)
    expected_db = [snr_db(a.latent, b.latent) for a, b in pairs]
    found = entry_of(tmp_path / "out", "onnx-int4")
    assert [f["latent_snr_db"] for f in found["figures"]] == pytest.approx(expected_db)
    assert entry_of(tmp_path / "out", "onnx-fp32")["figures"][0]["psnr_db"] is None  # the same
    assert "yardstick" in rows_of(tmp_path / "out" / "index.html", "onnx-fp32")[0]
    assert "those of onnx-fp32, the least rounded" in (tmp_path / "out/index.html").read_text()


METRIC = """
import numpy as np
import onnx

def measure(prompts, pictures, references):
    assert all(p.shape == (48, 64, 3) and p.dtype == np.uint8 for p in pictures)
    apart = [np.abs(p.astype(int) - r).mean() for p, r in zip(pictures, references, strict=True)]
    return {"Mean difference": np.mean(apart), "Letters": sum(map(len, prompts))}
"""


def test_a_metric_of_the_users_own(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METRIC)
    result = report(packages, "--metric", tmp_path / "mine.py", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    rows = {r["package"]: r for r in json.loads(result.stdout)["packages"]}
    assert rows["onnx-int4"]["Mean difference"] > rows["onnx-int8"]["Mean difference"] > 0
    assert rows["onnx-int4"]["Letters"] == sum(map(len, PROMPTS))
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["metric"] == "mine.py" and data["baseline"]["Mean difference"] == 0
    heads = [e.words for e in elements(tmp_path / "out/index.html") if e.name == "th"]
    assert "Mean difference" in heads and "unquantized" in heads


def test_the_documented_metric_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CLIP score of docs/report.md, with a tiny CLIP of random weights on disk."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    block = page.split("`clip_score.py` can be:\n\n```python\n")[1].split("```")[0]
    (tmp_path / "mine.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    tokenizer = CLIPTokenizer.from_pretrained(SHAPES / "tokenizer")
    config = CLIPConfig(
        text_config={"vocab_size": len(tokenizer), **sizes},
        vision_config={"image_size": 32, "patch_size": 16, **sizes},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained("clip-vit-base-patch16")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(image_processor=images, tokenizer=tokenizer)
    processor.save_pretrained("clip-vit-base-patch16")
    pictures = list(np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), np.uint8))
    found = read_metric(tmp_path / "mine.py")(PROMPTS, pictures, pictures)
    assert list(found) == ["CLIP score"] and 0 <= found["CLIP score"] <= 100


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import numpy\ndef measure(:\n", ("mine.py, line 2: SyntaxError",)),
        ("x = 1\ny = x / 0\n", ("mine.py, line 2: ZeroDivisionError: division by zero",)),
        ("import nowhere_to_be_found\n", ("mine.py, line 1: ModuleNotFoundError",)),
        ("x = 1\n", ("mine.py: defines no function measure(prompts, pictures, references)",)),
        (
            "def measure(p, q, r):\n    return f(q)\ndef f(q):\n    return q[99]\n",
            ("mine.py, line 4: IndexError: list index out of range",),
        ),
        ("def measure(p, q, r):\n    return 3\n", ("measure returned int, not a dict",)),
        ("def measure(p, q, r):\n    return {'a': 'b'}\n", ("'a' = 'b', not a number",)),
    ],
)
def test_a_metric_with_a_mistake(
    copy: Path, tmp_path: Path, code: str, words: tuple[str, ...]
) -> None:
    for name in ("onnx-fp32", "onnx-int8"):
        shutil.rmtree(copy / name)
    (tmp_path / "mine.py").write_text(code)
    mistake(report(copy, "--metric", tmp_path / "mine.py"), *words)
    assert not (copy / "report").exists()


def test_a_metric_that_is_not_there(copy: Path, tmp_path: Path) -> None:
    mistake(report(copy, "--metric", tmp_path / "no.py"), "--metric", "no.py: no such file")


def test_the_report_needs_no_torch() -> None:
    code = (
        "import sys, exporter.report.make;"
        "assert not [m for m in ('torch', 'skimage', 'scipy', 'onnxruntime') if m in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Charts.


def test_axes() -> None:
    axis = Axis(1, 100, 0, 200, log=True)
    assert [axis.at(v) for v in (1, 10, 100, 1000)] == pytest.approx([0, 100, 200, 200])
    assert charts.decibel_ticks(23.5, 99) == [20, 30, 40, 50, 60, 70]
    assert charts.decibel_ticks(19.3, 20.3) == [16, 17, 18, 19, 20, 21]
    for low, high in ((1.2, 3), (2, 31), (0.1, 2000), (5, 1e7)):
        ticks = charts.log_ticks(low, high)
        assert len(ticks) >= 3 and low <= ticks[0] and ticks[-1] <= high
    assert [level(10**-k, 1e-6, 1e-2) for k in (6, 5, 4, 3, 2)] == [0, 1, 3, 5, 6]


def test_a_frontier_has_what_no_smaller_package_beats() -> None:
    points = [Point(x, y, "", "") for x, y in ((3, 30), (1, 20), (2, 18), (4, 29), (5, 50))]
    assert [(p.x, p.y) for p in charts.frontier(points)] == [(1, 20), (3, 30), (5, 50)]


def test_labels_do_not_overlap() -> None:
    points = [(f"scheme-{i}", 100 + 4.0 * (i % 5), 100 + 3.0 * (i // 5)) for i in range(20)]
    placed = charts.place_labels(points, 500, 300)
    boxes = []
    for label, x, y, anchor in placed:
        size = len(label) * charts.LETTER_PX
        left = x - {"start": 0, "middle": size / 2, "end": size}[anchor]
        boxes.append((left, y - 11, left + size, y + 3))
    assert len(placed) >= 3
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    spread = charts.spread_labels([("a", 10), ("a", 12), ("b", 11), ("c", 11)], 30)
    assert [name for name, _ in spread] == ["a", "b", "c"]
    assert all(b - a >= charts.LINE_PX for (_, a), (_, b) in itertools.pairwise(spread))


def test_colours_can_be_told_from_the_paper() -> None:
    """WCAG's contrast: 4.5 for words, 3 for marks, in both colour schemes."""
    css = Path(charts.__file__).with_name("style.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)", 1)
    for part in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part))
        for name in ("ink", "quiet", "accent", "flag"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
        for name in (f"{kind}{i}" for kind in "sf" for i in range(6)):
            assert contrast(colours[name], colours["paper"]) >= 3, name
        strong = 5 if part is light else 4
        for i in range(charts.LEVELS):
            words = colours["on-strong" if i >= strong else "on-soft"]
            assert contrast(words, colours[f"h{i}"]) >= 4.5, i


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours such as #1d1c1a."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, on the driver that came with it."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install 'fourstep[dev]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: install Chromium and its driver (chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def look(browser: Any, file: Path, width_px: int, scheme: str) -> None:
    """Open a page as a device of that width with that colour scheme shows it."""
    size = {"width": width_px, "height": 800, "deviceScaleFactor": 1, "mobile": width_px < 500}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(file.as_uri())


OVERFLOW = "const d = document.documentElement; return d.scrollWidth - d.clientWidth"
DRAWINGS = """
return [...document.querySelectorAll('figure.chart')].map(figure =>
  [...figure.querySelectorAll('svg[role=img]')].map(svg => svg.getBoundingClientRect())
    .filter(box => box.width > 0).map(box => [box.width, box.height, box.right]));
"""
COLOURS = """
const style = getComputedStyle(document.body);
return [style.backgroundColor, style.color];
"""


@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_in_a_browser(browser: Any, page: Path, width_px: int) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        look(browser, page / "index.html", width_px, scheme)
        colours[scheme] = browser.execute_script(COLOURS)
        assert browser.execute_script(OVERFLOW) == 0
        figures = browser.execute_script(DRAWINGS)
        assert len(figures) == 6
        for shown in figures:  # one of the two drawings of each chart, of a size, inside the page
            ((wide, high, right),) = shown
            assert wide > 250 and high > 60 and right <= width_px
        broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert browser.execute_script(broken) == 0
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.execute_script(OVERFLOW) == 0
        assert not browser.get_log("browser")
        assert requests(browser) == [(page / "index.html").as_uri()]
    assert colours["light"] == ["rgb(251, 250, 248)", "rgb(29, 28, 26)"]
    assert colours["dark"] == ["rgb(21, 21, 19)", "rgb(236, 235, 230)"]


def requests(browser: Any) -> list[str]:
    """What the page asked for, but for what it brought along."""
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [s["request"]["url"] for s in sent]
    return [u for u in urls if not u.startswith(("data:", "about:"))]


def test_the_keyboard_works(browser: Any, page: Path) -> None:
    """Tab reaches what can be done, space and enter do it."""
    from selenium.webdriver.common.keys import Keys

    look(browser, page / "index.html", 1280, "light")
    cover = "return getComputedStyle(document.querySelector('.p0 .frame'), '::after').opacity"
    body = browser.find_element("tag name", "body")
    reached = []
    for _ in range(60):
        body.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        reached.append(active.get_attribute("id") or active.tag_name)
        if reached[-1] == "blink-0":
            assert browser.execute_script(cover) == "0"
            active.send_keys(Keys.SPACE)
            assert browser.execute_script(cover) == "1"
        if active.tag_name == "summary":
            active.send_keys(Keys.ENTER)
            assert browser.execute_script("return arguments[0].parentNode.open", active)
            break
        body = active
    assert {"a", "div", "blink-0", "large-0", "summary"} <= set(reached)
