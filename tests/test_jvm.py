"""The loop in Java: vectors, ids of hard prompts, whole pictures by a native engine, errors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from exporter.build.pipeline import Built, build
from exporter.bundle.android import extra, packs_of
from exporter.bundle.target import load_target
from exporter.bundle.write import write_bundle
from exporter.cli import main
from exporter.errors import InputError
from exporter.package.manifest import Guidance, Manifest
from exporter.recipe.recipe import Recipe
from exporter.runtime import Request, open_package
from tests.conftest import ROOT, SHAPES, seal
from tests.languages import (
    FORMS,
    KEPT,
    NEGATIVE,
    PROMPT,
    SCHEMES,
    UNKNOWN_PARTS,
    assert_all_vectors,
    code_points,
    damage,
    hard_prompts,
    hexadecimal,
    of_openvino,
    prompts_that_differ,
    reseal,
    same_as_python,
    tokenizer_forms,
    words_of,
)

ANDROID = ROOT / "exporter" / "bundle" / "android"
SOURCES = ANDROID / "fourstep" / "src" / "main"
TESTS = ROOT / "tests" / "jvm"
UNICODE = ROOT / "exporter" / "bundle" / "unicode.bin"
FLAGS = ["--release", "8", "-Xlint:all,-options,-strictfp", "-Werror"]
QUICK = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]  # what runs for a second
JAVA = ["java", *QUICK, "-Xmx512m"]
NEEDED = "apt-get install openjdk-17-jdk-headless"

pytestmark = pytest.mark.skipif(not shutil.which("javac"), reason=f"no javac: {NEEDED}")


def javac(out: Path, files: Iterable[Path], path: str = "") -> Path:
    """Compile for Java 8, with every warning an error."""
    named = [str(file) for file in files]
    quick = [f"-J{flag}" for flag in QUICK]
    subprocess.run(
        ["javac", *quick, *FLAGS, "-cp", path or str(out), "-d", str(out), *named], check=True
    )
    return out


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core without the adapter on onnxruntime, its table, and what tests need."""
    out = tmp_path_factory.mktemp("classes")
    package = out / "dev" / "fourstep"
    package.mkdir(parents=True)
    shutil.copyfile(UNICODE, package / UNICODE.name)
    core = (SOURCES / "java" / "dev" / "fourstep").glob("*.java")
    return javac(out, [*core, *(TESTS / "dev" / "fourstep").glob("*.java")])


def java(classes: Path, main: str, *words: object, given: str = "") -> str:
    """What a program prints."""
    command = [*JAVA, "-cp", str(classes), f"dev.fourstep.{main}", *(str(w) for w in words)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert not re.search(r"^Exception|\tat ", done.stderr, re.MULTILINE), done.stderr
    return done.stdout + done.stderr


# --- vectors ------------------------------------------------------------------------------------


def test_every_vector_is_reproduced(classes: Path, shapes_packages: dict[str, Built]) -> None:
    """Ids, noise, steps, pixels and previews, of the first format and of this one."""
    some = [built.path for name, built in shapes_packages.items() if name.endswith("int4")]
    same_vectors(classes, [KEPT, *some])


@pytest.mark.full
def test_every_vector_of_guidance_is_reproduced(
    classes: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = replace(tiny_recipe, mode="renoise").with_guidance(Guidance(4.5, None))
    (built,) = build(recipe, tmp_path, ["onnx"], ["int8"])
    same_vectors(classes, [built.path])


def same_vectors(classes: Path, packages: Sequence[Path]) -> None:
    assert_all_vectors(java(classes, "Vectors", *packages), packages)


def test_every_vector_of_every_size_is_reproduced(classes: Path, sized: Path) -> None:
    same_vectors(classes, [sized])


def test_a_vector_of_another_size_that_differs_is_named(
    classes: Path, sized: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    package = Path(shutil.copytree(sized, tmp_path / "package"))
    path = open_package(package).manifest.sizes[0].pictures[0].tensors
    tensors = load_file(package / path)
    tensors["pixels"].reshape(-1)[3] ^= 1
    save_file(tensors, package / path)
    reseal(package, path)
    said = java(classes, "Vectors", package).splitlines()
    assert len(said) == 2 and f"{package}: 80x48: picture " in said[0], said
    assert said[0].endswith("pixels differ")


@pytest.mark.parametrize("what", ["tokens", "noise", "latent/1", "pixels", "preview/1"])
def test_a_vector_that_differs_is_named(classes: Path, tmp_path: Path, what: str) -> None:
    from safetensors.numpy import load_file, save_file

    package = Path(shutil.copytree(KEPT, tmp_path / "package"))
    if what == "tokens":
        path = "golden/tokens.json"
        tokens = json.loads((package / path).read_text())
        tokens["ids"]["t5"][3][0] += 1
        (package / path).write_text(json.dumps(tokens))
    else:
        path = "golden/noise.safetensors" if what == "noise" else "golden/0.safetensors"
        tensors = load_file(package / path)
        name = "7/in a row" if what == "noise" else what
        flat = tensors[name].reshape(-1)
        flat[3] = (int(flat[3]) + 9) % 256 if flat.dtype == np.uint8 else flat[3] + 2
        save_file(tensors, package / path)
    reseal(package, path)
    said = java(classes, "Vectors", package)
    expected = {
        "tokens": "ids of t5 differ for 'two red circles",
        "noise": "noise of seed 7, in a row: differs",
        "latent/1": "step 1 differs",
        "pixels": "pixels differ",
        "preview/1": "preview/1 differs",
    }
    assert expected[what] in said


def test_a_package_without_golden_files_says_so(classes: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(KEPT, tmp_path / "package"))
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["golden"] = {}
    manifest["files"] = [f for f in manifest["files"] if "golden" not in f["path"]]
    seal(package, manifest)
    assert "has no golden vectors to compare with" in java(classes, "Vectors", package)


# --- tokenizers ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tokenizer_forms(tmp_path_factory.mktemp("tokenizers"))


def differing(classes: Path, file: Path, prompts: Sequence[str]) -> list[str]:
    said = java(classes, "Ids", file, given=hexadecimal(prompts))
    return prompts_that_differ(said, file, prompts)


@pytest.mark.parametrize("name", FORMS)
def test_ids_of_hard_prompts(classes: Path, tokenizers: dict[str, Path], name: str) -> None:
    """And a sample of all code points between two letters."""
    prompts = [*hard_prompts(), *code_points()[::331]]
    assert differing(classes, tokenizers[name], prompts) == []


@pytest.mark.full
@pytest.mark.parametrize("name", FORMS)
def test_ids_of_every_code_point(classes: Path, tokenizers: dict[str, Path], name: str) -> None:
    assert differing(classes, tokenizers[name], code_points()) == []


@pytest.mark.parametrize(("change", "expected"), UNKNOWN_PARTS)
def test_a_tokenizer_with_unknown_parts_is_refused(
    classes: Path, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    """One that is half understood would give other ids."""
    raw = json.loads((SHAPES / "tokenizer" / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert f"refused: {expected}" in java(classes, "Ids", tmp_path / "tokenizer.json")


# --- whole pictures -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def plain(shapes_packages: dict[str, Built]) -> Path:
    """A package without guidance, whose previews are a map."""
    return of_openvino(shapes_packages, "int4")


@pytest.fixture(scope="session")
def engine(cpp_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that Java loads, on the C interface of the loop in C++."""
    home = Path(shutil.which("javac") or "").resolve().parent.parent / "include"
    out = tmp_path_factory.mktemp("engine") / "libengine.so"
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    headers = [f"-I{place}" for place in (cpp_project / "include", home, home / "linux")]
    library = cpp_project / "build"
    linked = [f"-L{library}", "-lfourstep", f"-Wl,-rpath,{library}", "-o", str(out)]
    source = str(TESTS / "native_engine.c")
    subprocess.run(["gcc", *flags, *headers, source, *linked], check=True)
    return out


Drawn = Callable[..., list[str]]


@pytest.fixture
def draw(classes: Path, engine: Path, tmp_path: Path) -> Drawn:
    """Draws in Java into a folder; gives the lines that were printed."""

    def drawn(*words: object) -> list[str]:
        return java(classes, "Draw", engine, tmp_path, *words).splitlines()

    return drawn


def test_pictures_have_pythons_bytes(draw: Drawn, guided: Path, tmp_path: Path) -> None:
    """Two prompts, a seed beyond 32 bits, a negative prompt, and from a picture."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    requests = [
        Request(PROMPT, 7),
        Request("a green triangle", 2**33 + 5, negative=NEGATIVE),
        Request("a green triangle", -1, image=image, strength=0.5),
    ]
    lines = draw("keep", "preview", guided, "openvino", *words_of(requests, tmp_path))
    assert lines == [
        "conditioned 4",  # with the empty negative prompt
        *(f"step {i} {k} of 2" for i in (0, 1) for k in (1, 2)),
        "step 2 2 of 2",
        *(f"picture {i}" for i in range(3)),
        lines[-1],
    ]
    same_as_python(guided, requests, tmp_path)


def test_another_size_has_pythons_bytes(draw: Drawn, sized: Path, tmp_path: Path) -> None:
    """Whose graphs are kept as what differs from the first's; a size that is none is refused."""
    requests = [Request(PROMPT, 7, size="80x48")]
    lines = draw("preview", "size", "80x48", sized, "openvino", *words_of(requests, tmp_path))
    assert lines[-2] == "picture 0"
    same_as_python(sized, requests, tmp_path)
    (said, _) = draw("size", "99x99", sized, "openvino", "prompt", "a")
    expected = "size: this package does not draw '99x99'; its sizes: 64x48, 80x48"
    assert said == f"RequestException {expected}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "unet"}, "there is no graph 'unet'"),
        ({"files": ["LICENSE", "none"]}, r"'none' is no file of '\w+'"),
        ({"inputs": []}, r"sizes\[0\].graphs\[0\].inputs|graphs\[\d\].inputs: there are none"),
        ({"entry": "graphs/t5/t5.xml"}, "is not among the files of"),
    ],
)
def test_sizes_that_contradict_the_rest_are_refused(
    classes: Path, sized: Path, tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    manifest = json.loads((sized / "manifest.json").read_text())
    manifest["sizes"][0]["graphs"][0] |= changes
    seal(tmp_path, manifest)
    said = java(classes, "Check", tmp_path)
    assert len(said.splitlines()) == 1 and "sizes[0]" in said and re.search(expected, said), said


def test_parts_are_opened_in_turn_unless_kept(draw: Drawn, guided: Path) -> None:
    """Memory holds one part of the denoiser at a time, or all for as long as the player lives."""
    request = ["prompt", PROMPT]
    stages = open_package(guided).manifest.stages
    used = [s for s in stages if not s.image_to_image_only]
    others = sum(len(s.parts) for s in used if not s.in_steps)
    assert draw(guided, "openvino", *request)[-1] == f"open 0 opened {others + 2 * 2}"
    assert draw("keep", guided, "openvino", *request)[-1] == f"open 0 opened {others + 2}"


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(False, marks=pytest.mark.full, id="the decoder"),
        pytest.param(True, id="a graph of its own"),
    ],
)
def test_previews_by_a_graph(draw: Drawn, plain: Path, tmp_path: Path, own: bool) -> None:
    """Of full size; the graph is opened for the first and kept until the steps are over."""
    package = Path(shutil.copytree(plain, tmp_path / "package"))
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["format_version"] = "4.1"
    manifest["picture"]["preview_graph"] = "shown" if own else "vae_decoder"
    if own:
        text = json.dumps([g for g in manifest["graphs"] if g["name"] == "vae_decoder"])
        stage = next(s for s in manifest["stages"] if s["graph"] == "vae_decoder")
        shutil.copytree(package / "graphs" / "vae_decoder", package / "graphs" / "shown")
        for file in (package / "graphs" / "shown").iterdir():
            file.rename(file.with_name(file.name.replace("vae_decoder", "shown")))
        manifest["graphs"] += json.loads(text.replace("vae_decoder", "shown"))
        changes = {"graph": "shown", "parts": ["shown"], "runs": "for previews"}
        manifest["stages"].append(stage | changes | {"results": {"image": "preview"}})
    seal(package, manifest)
    requests = [Request(PROMPT, 3)]
    lines = draw("preview", package, "openvino", *words_of(requests, tmp_path))
    stages = open_package(plain).manifest.stages
    assert lines[-1] == f"open 0 opened {sum(not s.image_to_image_only for s in stages) + 1}"
    assert (tmp_path / "0-1.rgb").stat().st_size == 128 * 128 * 3
    same_as_python(package, requests, tmp_path)


@pytest.mark.full
def test_graphs_and_pictures_are_compared_with_an_engine(
    classes: Path, engine: Path, shapes_packages: dict[str, Built]
) -> None:
    """Every recorded call and every golden picture, each within its tolerance."""
    plain = of_openvino(shapes_packages, "fp32")  # whose settings round nothing
    manifest = open_package(plain).manifest
    ports = {s.graph: len(manifest.parts(s.graph)[-1].outputs) for s in manifest.stages}
    calls = {s.graph: manifest.schedule.steps if s.in_steps else 1 for s in manifest.stages}
    each = sum(ports[graph] * calls[graph] for graph in ports) + 1  # and the picture
    expected = f"{each * len(manifest.golden.pictures)} compared, open 0"
    assert java(classes, "Whole", engine, plain, "openvino").splitlines() == [expected]


@pytest.mark.full
def test_graphs_and_pictures_out_of_tolerance_are_named(
    classes: Path, engine: Path, plain: Path, tmp_path: Path
) -> None:
    package = Path(shutil.copytree(plain, tmp_path / "package"))
    raw = json.loads((package / "manifest.json").read_text())
    for graph in raw["graphs"]:
        graph["tolerance"] = {"graph_relative": 1e-12, "image_psnr_db": 200}
    seal(package, raw)
    *failures, _ = java(classes, "Whole", engine, package, "openvino").splitlines()
    assert any(
        re.match(r"denoiser, call 3: relative error \S+, allowed 1.0E-12", f) for f in failures
    )
    assert any(re.match(r"picture '.*': PSNR \S+ dB, at least 200.0", f) for f in failures)


def test_a_drawing_stops_when_it_is_told(draw: Drawn, guided: Path) -> None:
    lines = draw("stop", 1, guided, "openvino", "prompt", PROMPT)
    assert lines[-3] == "step 0 1 of 2"
    assert lines[-2] == "CancellationException the drawing was cancelled"
    assert lines[-1].startswith("open 0 ")


def test_a_prompt_that_is_cut_is_said(draw: Drawn, plain: Path) -> None:
    lines = draw("stop", 1, plain, "openvino", "prompt", "red " * 200)
    assert any(line.startswith("remark t5 reads 32 tokens; the prompt 'red ") for line in lines)


IN_TEST = ("int4", "int8-w8a8")


@pytest.mark.parametrize(
    "scheme", [s if s in IN_TEST else pytest.param(s, marks=pytest.mark.full) for s in SCHEMES]
)
def test_every_scheme_draws_pythons_bytes(
    draw: Drawn, shapes_packages: dict[str, Built], tmp_path: Path, scheme: str
) -> None:
    package = of_openvino(shapes_packages, scheme)
    requests = [Request("two red circles left of a blue square", 7)]
    lines = draw("preview", package, "openvino", *words_of(requests, tmp_path))
    assert lines[-1] == "open 0 opened 6", "a graph was left open, or opened twice"
    same_as_python(package, requests, tmp_path)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prompt", "a", "seed", str(2**64)], "seed: '18446744073709551616': a whole number from"),
        (["prompt", "a", "seed", "1.5"], "seed: '1.5': a whole number from -2^63 to 2^64 - 1"),
        (["prompt", "a" * 100_001], "prompt: has 100001 characters: at most 100000"),
        (["prompt", "a", "negative", "b"], "negative: this package draws without guidance"),
    ],
)
def test_a_request_that_cannot_be_drawn_names_its_field(
    draw: Drawn, plain: Path, words: list[str], expected: str
) -> None:
    assert draw(plain, "openvino", *words)[0].startswith(f"RequestException {expected}")


@pytest.mark.parametrize(
    ("size", "strength", "expected"),
    [
        ((48, 64), 0.0, "strength: 0.0: must be above 0 and at most 1"),
        ((48, 64), 1.5, "strength: 1.5: must be above 0 and at most 1"),
        ((32, 64), 0.5, "image: is 64 x 32 px; scale or cut it to 64 x 48"),
    ],
)
def test_a_picture_to_start_from_is_checked(
    draw: Drawn, guided: Path, tmp_path: Path, size: tuple[int, int], strength: float, expected: str
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    words = words_of([Request("a", image=image, strength=strength)], tmp_path)
    assert draw(guided, "openvino", *words)[0] == f"RequestException {expected}"


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("size", r"tokenizer/t5.json: damaged: \d+ bytes where the manifest says \d+; copy"),
        ("manifest", r"manifest.json: damaged: it is not what manifest.sha256 says; copy"),
        ("gone", r"manifest.sha256: is missing; copy the package again"),
        ("link", r"LICENSE: a link that leaves the package, to .*elsewhere; copy the package"),
        ("version", r"format version '5.0'; this reader takes 4.x; build the package again"),
        ("mode", r"schedule.mode: 'heun' is not known; one of \[euler, renoise\] is expected"),
        ("sigmas", r"schedule.sigmas: \[1.0, 0.5, 0.75, 0.0\] do not fall"),
        ("path", r"files\[0\].path: '../x' has not the form"),
        ("kind", r"stages\[0\].inputs.ids.kind: 'sound' is not known"),
        ("feed", r"stages\[0\].inputs.ids: no tokenizer 'other'"),
        ("port", r"graphs\[0\].inputs\[0\].shape: takes more than 1 GiB"),
        ("field", r"has no field 'stages'"),
        ("filter", r"filter: this runtime runs no filter, and would hand out what the package"),
    ],
)
def test_a_damaged_package_is_refused_in_one_line(
    classes: Path, tmp_path: Path, what: str, expected: str
) -> None:
    """Before anything runs."""
    package = Path(shutil.copytree(KEPT, tmp_path / "package"))
    damage(package, what)
    said = java(classes, "Check", package)
    assert len(said.splitlines()) == 1 and re.search(expected, said), said


def test_a_damaged_graph_is_refused_when_it_is_opened(
    draw: Drawn, plain: Path, tmp_path: Path
) -> None:
    package = Path(shutil.copytree(plain, tmp_path / "package"))
    damage(package, "digest")
    lines = draw(package, "openvino", "prompt", "a")
    assert re.match(r"PackageException .*: damaged: SHA-256 differs; copy or build", lines[0])


def test_a_package_for_another_engine_is_refused(draw: Drawn, plain: Path) -> None:
    (line, _) = draw(plain, "onnx", "prompt", "a")
    assert "is for openvino, which Counted does not open; build the package" in line


# --- what needs onnxruntime, Android or Kotlin --------------------------------------------------

KOTLIN = TESTS / "node_modules" / "kotlin-compiler" / "lib"
COMPILER = "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"


def stubs(folder: Path, *names: str) -> list[Path]:
    """Signatures of others' classes, and the one that Gradle makes of the app's texts."""
    texts = (ANDROID / "app/src/main/res/values/strings.xml").read_text()
    named = re.findall(r'<string name="(\w+)"', texts)
    lines = [f"public static final int {name} = {i};" for i, name in enumerate(named)]
    made = folder / "R.java"
    text = " ".join(lines)
    made.write_text(
        f"package dev.fourstep.sample; public class R {{ public static class string {{ {text} }} }}"
    )
    return [made, *(file for name in names for file in (TESTS / "stubs" / name).rglob("*.java"))]


@pytest.fixture(scope="session")
def adapter(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter on onnxruntime, and stubs of what it and the app use of others' libraries.

    The stubs have signatures alone: none of those libraries can be had without Maven.
    """
    out = tmp_path_factory.mktemp("adapter")
    javac(out, stubs(tmp_path_factory.mktemp("made"), "ai", "android", "com", "dev"))
    return javac(out, (SOURCES / "java").rglob("onnx/*.java"), f"{classes}:{out}")


def test_the_adapter_on_onnxruntime_compiles(adapter: Path) -> None:
    assert (adapter / "dev" / "fourstep" / "onnx" / "OnnxEngine.class").is_file()


def test_its_telemetry_is_off() -> None:
    (source,) = SOURCES.rglob("OnnxEngine.java")
    assert "environment.setTelemetry(false);" in source.read_text()
    for file in ANDROID.rglob("AndroidManifest.xml"):
        assert "uses-permission" not in file.read_text(), "it could send something"


def test_only_few_sources_need_others_libraries() -> None:
    """Those that cannot be run here: the adapter, and two of Kotlin."""
    found = set()
    for file in (f for kind in ("*.java", "*.kt") for f in ANDROID.rglob(kind)):
        names = re.findall(r"^import (?:static )?(\w+(?:\.\w+)?)", file.read_text(), re.MULTILINE)
        if not {*names} <= {"java.io", "java.math", "java.nio", "java.security", "java.util",
                            "dev.fourstep", "kotlinx.coroutines"}:  # fmt: skip
            found.add(file.name)
    assert found == {"OnnxEngine.java", "Device.kt", "MainActivity.kt"}


@pytest.mark.full
@pytest.mark.skipif(not KOTLIN.is_dir(), reason="no Kotlin: npm ci --prefix tests/jvm")
def test_the_flow_of_kotlin(classes: Path, adapter: Path, tmp_path: Path) -> None:
    """All Kotlin compiles without a warning; events come in order; cancelling lets go of graphs."""
    libraries = [KOTLIN / "kotlin-stdlib.jar", KOTLIN / "kotlinx-coroutines-core-jvm.jar"]
    path = ":".join(str(place) for place in (*libraries, classes, adapter))
    compiler = ["-cp", f"{KOTLIN / 'kotlin-preloader.jar'}:{KOTLIN / 'kotlin-compiler.jar'}"]
    flags = ["-no-reflect", "-no-stdlib", "-jvm-target", "1.8", "-Werror"]
    sources = [*ANDROID.rglob("*.kt"), *(TESTS / "kotlin").glob("*.kt")]
    named = [str(source) for source in sources]
    command = ["java", *compiler, COMPILER, *flags, "-cp", path, "-d", str(tmp_path), *named]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    collect = [*JAVA, "-cp", f"{tmp_path}:{path}", "dev.fourstep.CollectKt", str(KEPT)]
    done = subprocess.run(collect, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "conditioned 1, step 1 4, step 2 4, picture 32 x 16",
        "open 0",
        "taken: open 0",
        "cancelled: open 0, ended 0, interrupted 1",
        "in time true",
        "refused negative",
    ], done.stdout + done.stderr


# --- the bundle for Android ---------------------------------------------------------------------


def test_the_jvm_part_of_a_bundle_draws_from_its_folder(
    engine: Path, plain: Path, tmp_path: Path
) -> None:
    """Compiled from the bundle alone; the package lies in the assets of several packs."""
    target = replace(load_target("android"), backends=("openvino",))
    write_bundle(open_package(plain), target, tmp_path / "project")
    project, out = tmp_path / "project", tmp_path / "classes"
    out.mkdir()
    core = (project / "fourstep" / "src" / "main" / "java" / "dev" / "fourstep").glob("*.java")
    javac(out, [*core, *(TESTS / "dev" / "fourstep").glob("*.java")])
    shutil.copytree(project / "fourstep" / "src" / "main" / "resources", out, dirs_exist_ok=True)
    names = (project / "packs.txt").read_text().split()
    assert names == ["fourstep_package", "fourstep_graphs1"]
    packs = ":".join(str(project / name / "src" / "main" / "assets" / "package") for name in names)
    requests = [Request("two red circles left of a blue square", 7)]
    words = ["preview", packs, "openvino", *words_of(requests, tmp_path)]
    assert java(out, "Draw", engine, tmp_path, *words).splitlines()[-1] == "open 0 opened 6"
    same_as_python(plain, requests, tmp_path)


def test_the_first_two_commands_of_a_bundle_work(tiny_package: Path, tmp_path: Path) -> None:
    write_bundle(open_package(tiny_package), load_target("android"), tmp_path / "project")
    readme = (tmp_path / "project" / "README.md").read_text()
    commands = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)[0].splitlines()[:2]
    done = subprocess.run(
        " && ".join(commands), shell=True, cwd=tmp_path / "project", capture_output=True, text=True
    )
    assert done.returncode == 0 and "vectors are the same" in done.stdout, done.stderr


def test_graphs_are_packed_whole_and_too_large_ones_refused(tiny_package: Path) -> None:
    manifest = open_package(tiny_package).manifest

    def sized(*megabytes: int) -> Manifest:
        graphs = []
        for graph, size in zip(manifest.graphs, megabytes, strict=False):
            file = replace(graph.files[0], bytes=size * 1_000_000)
            graphs.append(replace(graph, files=(file,)))
        return replace(manifest, graphs=tuple(graphs))

    assert [*packs_of(sized(800, 900, 600, 1500)).values()] == [
        f"fourstep_graphs{k}" for k in (1, 2, 1, 3)
    ]
    assert extra(sized(800, 900))["packs.txt"] == (
        "fourstep_package\nfourstep_graphs1\nfourstep_graphs2\n"
    )
    with pytest.raises(InputError, match=r"'clip_l': 1,501.0 MB in one folder, and an asset pack"):
        packs_of(sized(1501))
    with pytest.raises(InputError, match=r"graphs of 4,500.0 MB, and Google Play delivers 4,000"):
        packs_of(sized(1500, 1500, 1500))


def test_a_package_without_an_engine_there_is_refused(plain: Path, tmp_path: Path) -> None:
    arguments = ["bundle", str(plain), "--for", "android", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
    assert "a package for openvino, and the engines of --for android open: onnx" in done.stderr
