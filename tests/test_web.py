"""The loop in JavaScript: its types and parts, Python's pictures by Node, the page in Chromium."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from click.testing import CliRunner
from sentencepiece import sentencepiece_model_pb2 as protocol
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Tokens

from exporter.backends.contract import SessionOptions
from exporter.build.pipeline import Built, build
from exporter.bundle.web import TARGET
from exporter.cli import main
from exporter.drawing.loop import Image, Request, generate
from exporter.drawing.start import PictureRemark
from exporter.drawing.vectors import HARD_PROMPTS
from exporter.files.read import file_digest
from exporter.package.manifest import Guidance
from exporter.package.read import MANIFEST
from exporter.package.sizes import PictureSize
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import open_package
from tests.conftest import ROOT, seal

HERE = ROOT / "tests" / "web"
RUNTIME = ROOT / "exporter" / "bundle" / "web" / "runtime"
INSTALL = "npm ci --ignore-scripts --prefix tests/web"
PROMPT = "two red circles left of a blue square"

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and (HERE / "node_modules" / "onnxruntime-node").is_dir()),
    reason=f"needs Node 18 or newer and its packages: {INSTALL}",
)


def node(*arguments: object, **environment: str) -> str:
    """What Node says; fails with all that it said."""
    done = subprocess.run(
        ["node", *map(str, arguments)],
        cwd=HERE,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def drawn_by_node(
    path: Path,
    requests: Sequence[dict[str, Any]],
    at: Path,
    exact: bool,
    sizes: Sequence[str] | None = None,
) -> bytes:
    out = at / "drawn.rgb"
    job = {"path": str(path), "exact": exact, "keep": exact, "sizes": sizes, "requests": requests}
    (at / "job.json").write_text(json.dumps({**job, "out": str(out)}))
    node("draw.js", at / "job.json")
    return out.read_bytes()


def drawn_by_python(path: Path, requests: Sequence[Request], exact: bool) -> bytes:
    precision: Any = "float32" if exact else "packaged"
    with (
        warnings.catch_warnings(),
        open_package(path).player(SessionOptions(precision=precision)) as player,
    ):
        warnings.simplefilter("ignore", PictureRemark)
        events = generate(player, requests)
        return b"".join(e.pixels.tobytes() for e in events if isinstance(e, Image))


@pytest.fixture(scope="module")
def guided(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with all that shapes-flash has not: guidance, new noise, graphs in parts."""
    cut = replace(tiny_recipe.cut, sigmas=(1.0, 0.75, 0.0), image_to_image=True)
    recipe = replace(tiny_recipe, cut=cut, mode="renoise", t5_parts=2, denoiser_parts=2)
    recipe = recipe.with_guidance(Guidance(4.5, None))
    (built,) = build(recipe, tmp_path_factory.mktemp("guided"), ["onnx"], ["int4"])
    return built.path


def test_types_hold_and_are_those_that_are_shipped(tmp_path: Path) -> None:
    """Under ``tsc --strict``; the declarations beside the module are made of it."""
    compiler = "node_modules/typescript/bin/tsc"
    node(compiler, "-p", ".")
    made = ["--noEmit", "false", "--declaration", "--emitDeclarationOnly"]
    node(compiler, "-p", "tsconfig.runtime.json", *made, "--outDir", tmp_path)
    files = {f.relative_to(tmp_path): f.read_text() for f in tmp_path.rglob("*.d.ts")}
    shipped = RUNTIME / "types"
    assert files == {f.relative_to(shipped): f.read_text() for f in shipped.rglob("*.d.ts")}


def test_parts_that_need_no_package() -> None:
    node("--test", "parts.test.js")


def conformance(packages: Iterable[Path]) -> None:
    node("--test", "vectors.test.js", FOURSTEP_PACKAGES="\n".join(map(str, packages)))


def test_conformance_vectors(shapes_packages: dict[str, Built], guided: Path) -> None:
    conformance([shapes_packages["onnx-int4"].path, guided])


@pytest.mark.full
def test_conformance_vectors_of_every_scheme(shapes_packages: dict[str, Built]) -> None:
    conformance(b.path for name, b in shapes_packages.items() if name.startswith("onnx-"))


@pytest.mark.parametrize("exact", [False, pytest.param(True, marks=pytest.mark.full)])
def test_pictures_of_every_scheme_are_those_of_python(
    shapes_packages: dict[str, Built], tmp_path: Path, exact: bool
) -> None:
    packages = [b.path for name, b in shapes_packages.items() if name.startswith("onnx-")]
    assert len(packages) == 6
    for path in packages:
        ours = drawn_by_python(path, [Request(PROMPT, 7)], exact)
        assert drawn_by_node(path, [{"prompt": PROMPT, "seed": 7}], tmp_path, exact) == ours, path


@pytest.fixture(scope="module")
def sized(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of 64 x 48, 80 x 48 and 48 x 64 px."""
    recipe = replace(tiny_recipe, further_sizes=(PictureSize(80, 48), PictureSize(48, 64)))
    (built,) = build(recipe, tmp_path_factory.mktemp("sized"), ["onnx"], ["int4"])
    return built.path


def test_conformance_vectors_of_every_size(sized: Path) -> None:
    conformance([sized])


@pytest.mark.parametrize("exact", [False, True])
def test_every_size_is_drawn_as_by_python(sized: Path, tmp_path: Path, exact: bool) -> None:
    """Also where graphs stay open, of which those that serve all sizes are opened once."""
    sizes = ("48x64", "64x48", "80x48")
    ours = drawn_by_python(sized, [Request(PROMPT, 7, size=size) for size in sizes], exact)
    asked = [{"prompt": PROMPT, "seed": 7}]
    assert drawn_by_node(sized, asked, tmp_path, exact, sizes) == ours


SIZED = {
    "listed": ({"files": ["none.onnx"]}, "sizes: 80x48: 'none.onnx' is named and not listed"),
    "graph": ({"name": "unet"}, "sizes: 80x48: its graphs are not among the others, each once"),
    "entry": ({"entry": "a.onnx"}, "sizes: 80x48: graphs: 'a.onnx' is not among the files of deno"),
    "shape": ({"inputs": []}, "sizes: 80x48: graphs: denoiser has no ports"),
}


@pytest.mark.parametrize(("changes", "message"), SIZED.values(), ids=SIZED.keys())
def test_sizes_that_contradict_the_rest_are_refused(
    sized: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    manifest = json.loads((sized / MANIFEST).read_text())
    manifest["sizes"][0]["graphs"][0] |= changes
    seal(tmp_path, manifest)
    assert message in refusal(tmp_path, tmp_path)


def test_a_size_that_the_package_has_not(sized: Path, tmp_path: Path) -> None:
    told = refusal(sized, tmp_path, "99x99")
    assert "this package does not draw 99x99; its sizes: 64x48, 80x48, 48x64" in told


def refusal(package: Path, at: Path, size: str | None = None) -> str:
    """What the loop says that refuses a package, or a size of it."""
    job = {"path": str(package), "exact": True, "sizes": size and [size], "requests": []}
    (at / "job.json").write_text(json.dumps({**job, "out": str(at / "none")}))
    command = ["node", "draw.js", str(at / "job.json")]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr


def test_several_requests_guidance_and_pictures_to_start_from(guided: Path, tmp_path: Path) -> None:
    """Seeds that no double holds, negative prompts, a picture of another size in each fit."""
    random.seed(3)
    image = np.frombuffer(random.randbytes(90 * 70 * 4), np.uint8).reshape(70, 90, 4).copy()
    image[..., 3] |= 127
    (tmp_path / "image.rgba").write_bytes(image.tobytes())
    given = {"data": str(tmp_path / "image.rgba"), "width": 90, "height": 70}
    asked: list[dict[str, Any]] = [
        {"prompt": "a red circle", "seed": str(2**63 + 5), "negative": "blue"},
        {"prompt": "a red circle", "seed": "-3"},
    ]
    fits = ("cover", "contain", "stretch")
    asked += [{"prompt": "a", "seed": 1, "strength": 0.5, "fit": fit} for fit in fits]
    asked[-1] |= {"background": "#203040"}
    ours = [
        Request(**{**a, "seed": int(a["seed"])}, image=image if "fit" in a else None) for a in asked
    ]
    theirs = [a | {"image": given} if "fit" in a else a for a in asked]
    found = drawn_by_node(guided, theirs, tmp_path, True)
    assert found == drawn_by_python(guided, ours, True)
    assert len(found) == 5 * 64 * 48 * 3


def real_t5(folder: Path) -> Path:
    """A tokenizer with all that T5's own has: its map of characters, and tokens that were added."""
    texts = [p for p in HARD_PROMPTS if p.strip() and not {"\n", "\r", "\0"} & {*p}]
    (folder / "texts.txt").write_text("\n".join(texts * 20), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"), model_prefix=str(folder / "t5"), vocab_size=400,
        normalization_rule_name="nmt_nfkc", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    model = protocol.ModelProto()
    model.ParseFromString((folder / "t5.model").read_bytes())
    tokens = Tokens(models.Unigram([(p.piece, p.score) for p in model.pieces], unk_id=0))
    tokens.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "\u2581"),
        ]
    )
    tokens.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "first")
    tokens.add_special_tokens([AddedToken("</s>", normalized=False, special=True)])
    tokens.add_special_tokens([AddedToken("<x0>", lstrip=True, rstrip=True, normalized=False)])
    tokens.add_tokens([AddedToken("CaF\u00e9", normalized=True)])
    tokens.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 2)])
    tokens.save(str(folder / "t5.json"))
    return folder / "t5.json"


def same_ids(package: Path, folder: Path, prompts: Sequence[str]) -> None:
    """The ids of every tokenizer of a package, and of one like T5's own, are the library's."""
    files = {f.stem: f for f in (package / "tokenizer").glob("*.json")} | {"real": real_t5(folder)}
    job = {"tokenizers": {name: str(f) for name, f in files.items()}, "prompts": prompts}
    (folder / "job.json").write_text(json.dumps(job))
    found = json.loads(node("--max-old-space-size=8000", "encode.js", folder / "job.json"))
    for name, file in files.items():
        tokens = Tokens.from_file(str(file))
        for prompt, ids in zip(prompts, found[name], strict=True):
            assert ids == tokens.encode(prompt).ids, (name, prompt)


POOLS = (
    [*range(32, 127)],
    [0x20, 0x09, 0x0A, 0x0D, 0x85, 0xA0, 0xFEFF, 0x2028, 0x3000, 0x27, 0x73, 0x41],
    [0x61, 0x301, 0x323, 0x345, 0xE9, 0x1E69, 0x600, 0x915, 0x94D, 0x200D, 0xA9, 0xFB01, 0xFF76],
    [0xFF9E, 0x3099, 0x304B, 0x1100, 0x1161, 0x11A8, 0xAC00, 0x1F468, 0xFE0F, 0x20],
    [*range(1, 0x3000)],
    [*range(0x3000, 0xD800), *range(0xE000, 0x20000)],
)


def test_hard_prompts_have_the_ids_of_the_library(
    shapes_packages: dict[str, Built], tmp_path: Path
) -> None:
    random.seed(1)
    some = range(0, 0x110000, 211)
    prompts = [
        *HARD_PROMPTS,
        *("<x0>", " <x0>  a", "b <x0><x0> c", "x CaF\u00e9 CafE\u0301 y", "!!! it's we'll a!b"),
        *("".join(map(chr, random.choices(POOLS[i % 6], k=1 + i % 14))) for i in range(600)),
        *(f"a{chr(point)}b" for point in some if not 0xD800 <= point < 0xE000),
    ]
    same_ids(shapes_packages["onnx-int4"].path, tmp_path, prompts)


@pytest.mark.full
def test_every_code_point_has_the_ids_of_the_library(
    shapes_packages: dict[str, Built], tmp_path: Path
) -> None:
    for start in range(0, 0x110000, 0x20000):
        points = [p for p in range(start, min(start + 0x20000, 0x110000)) if p >> 11 != 27]
        same_ids(
            shapes_packages["onnx-int4"].path, tmp_path, [f"a{chr(point)}b" for point in points]
        )


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LEAST_DB = {"int8-w8a8": 45.0}  # against Python's exact picture; 80 where no input is rounded


def bundled(path: Path, folder: Path) -> str:
    """The page's folder, as the command line writes it."""
    engine = HERE / "node_modules" / "onnxruntime-web" / "dist"
    arguments = [path, "--for", "web", "-o", folder, "--engine", engine]
    made = CliRunner().invoke(main, ["bundle", *map(str, arguments)])
    assert made.exit_code == 0, made.output
    return str(folder)


def in_chromium(
    packages: Sequence[Path], at: Path, whole: bool, several: Path | None = None
) -> None:
    """The tests of ``browser.test.js``, on bundles of packages, and of one of several sizes."""
    bundles = []
    for path in packages:
        folder = bundled(path, at / f"bundle-{path.name}")
        expected = at / f"{path.name}.rgb"
        expected.write_bytes(drawn_by_python(path, [Request(PROMPT, 7)], True))
        least_db = LEAST_DB.get(path.name.removeprefix("onnx-"), 80.0)
        bundles.append({"folder": folder, "expected": str(expected), "db": least_db})
    request = {"prompt": PROMPT, "seed": 7}
    job = {"bundles": bundles, "request": request, "chromium": CHROMIUM, "isWhole": whole}
    job |= {
        "shots": str(at) if whole else None,
        "sized": every_size(several, at) if several else None,
    }
    (at / "browser.json").write_text(json.dumps(job))
    said = node("--test", "browser.test.js", FOURSTEP_JOB=str(at / "browser.json"))
    print(*(line for line in said.splitlines() if line.startswith("# first")), sep="\n")


def every_size(path: Path, at: Path) -> dict[str, Any]:
    """A bundle of a package of several sizes, and a file of what Python draws for each."""
    files = {}
    for size in map(str, open_package(path).sizes):
        files[size] = str(at / f"{size}.rgb")
        pixels = drawn_by_python(path, [Request(PROMPT, 7, size=size)], True)
        Path(files[size]).write_bytes(pixels)
    return {"folder": bundled(path, at / "bundle-sized"), "expected": files, "db": 80.0}


needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")


@needs_chromium
def test_the_page_in_a_browser(
    shapes_packages: dict[str, Built], sized: Path, tmp_path: Path
) -> None:
    in_chromium([shapes_packages["onnx-int4"].path], tmp_path, False, sized)


@pytest.mark.full
@needs_chromium
def test_the_page_in_a_browser_with_every_scheme(
    shapes_packages: dict[str, Built], tmp_path: Path
) -> None:
    in_chromium(
        [b.path for name, b in shapes_packages.items() if name.startswith("onnx-")], tmp_path, True
    )


def test_the_server_of_a_bundle(tmp_path: Path) -> None:
    """With the headers of isolation and ranges; nothing beside the folder, and nothing ends it."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(TARGET.sources / "serve.mjs", home / "serve.mjs")
    (home / "index.html").write_text("0123456789")
    (tmp_path / "secret").write_text("secret")
    serve = ["node", str(home / "serve.mjs")]
    refused = subprocess.run([*serve, "high"], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "high" in refused.stderr
    with socket.create_server(("127.0.0.1", 0)) as held:
        taken = str(held.getsockname()[1])
        refused = subprocess.run([*serve, taken], capture_output=True, text=True)
    assert refused.returncode == 2 and "is taken; give another" in refused.stderr
    running = subprocess.Popen([*serve, taken], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stdout.readline().endswith(f":{taken}\n")
    try:
        for path in ("/%", "/%00", "/..%2fsecret", "//", "/none"):
            assert answered(int(taken), path)[0] == 404, path
        assert answered(int(taken), "/") == (200, "same-origin", b"0123456789")
        assert answered(int(taken), "/", Range="bytes=4-") == (206, "same-origin", b"456789")
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def answered(port: int, path: str, **headers: str) -> tuple[int, str | None, bytes]:
    """Status, the policy of isolation and the body of one request."""
    asked = http.client.HTTPConnection("127.0.0.1", port)
    asked.request("GET", path, headers=headers)
    answer = asked.getresponse()
    found = answer.status, answer.headers["Cross-Origin-Opener-Policy"], answer.read()
    asked.close()
    return found


def test_the_engine_that_is_copied_is_the_one_that_is_tested() -> None:
    """By its bytes; the page looks for it where it is copied to."""
    assert TARGET.engine is not None
    for name, digest in TARGET.engine.files.items():
        assert file_digest(HERE / "node_modules" / "onnxruntime-web" / "dist" / name) == digest
    for name in ("worker.js", "README.md"):
        assert f"./{TARGET.engine.place}/" in (TARGET.sources / name).read_text("utf-8")


def test_changed_manifests_and_filters_are_refused(tiny_package: Path, tmp_path: Path) -> None:
    """In one line each."""
    copy = Path(shutil.copytree(tiny_package, tmp_path / "copy"))
    manifest = copy / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    script = (
        f"import {{ opened }} from {json.dumps((HERE / 'opened.js').as_uri())};"
        f"await opened({json.dumps(str(copy))}).catch((error) => console.log(error.message));"
    )
    said = node("--input-type=module", "-e", script)
    assert said.count("\n") == 1 and "is not what manifest.sha256 says" in said
    raw = json.loads(manifest.read_bytes())
    for wrong in ({"graph": "filter"}, "", False):
        seal(copy, raw | {"filter": wrong})
        said = node("--input-type=module", "-e", script)
        assert said.count("\n") == 1 and "has a filter, which is not run here" in said
    seal(copy, raw | {"stages": [*raw["stages"], raw["stages"][-1] | {"runs": "for the filter"}]})
    said = node("--input-type=module", "-e", script)
    assert said.count("\n") == 1 and "runs" in said and "for the filter" in said
