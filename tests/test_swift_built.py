"""The loop in Swift, compiled: its own tests, vectors, ids, pictures by a native engine, errors.

They run where there is ``swift``, or in a folder that ``.ci/swift-root`` made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from exporter.build.pipeline import Built, build
from exporter.bundle.target import load_target
from exporter.bundle.write import write_bundle
from exporter.package.manifest import Guidance
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
    same_as_python,
    tokenizer_forms,
    words_of,
)

TESTS = ROOT / "tests" / "swift"
SOURCES = ROOT / "exporter" / "bundle" / "swift"
FOLDER = os.environ.get("FOURSTEP_SWIFT_ROOT", "")
ENTER = [] if shutil.which("swift") else [str(Path(FOLDER) / "enter")]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not shutil.which("swift") and not FOLDER,
        reason="no swift: sudo .ci/swift-root FOLDER && make test-swift SWIFT_ROOT=FOLDER",
    ),
]


def swift(
    *command: object, cwd: Path = ROOT, given: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the toolchain, or a program that it built."""
    return subprocess.run(
        [*ENTER, *map(str, command)],
        cwd=cwd,
        env=os.environ | environment,
        input=given,
        capture_output=True,
        text=True,
    )


@dataclass(frozen=True)
class UserBuild:
    """A bundle, and what its README's commands said in it."""

    folder: Path
    said: tuple[str, ...]


@pytest.fixture(scope="session")
def bundle(
    shapes_packages: dict[str, Built], tmp_path_factory: pytest.TempPathFactory
) -> UserBuild:
    """A bundle built as a user builds it: its README's three commands, which have to succeed."""
    if "coreml-int4" not in shapes_packages:
        pytest.skip("no coremltools: pip install 'fourstep[coreml]'")
    out = tmp_path_factory.mktemp("swift") / "bundle"
    write_bundle(open_package(shapes_packages["coreml-int4"].path), load_target("swift"), out)
    commands = re.findall(r"```sh\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0]
    said = []
    for command in commands.splitlines():
        done = swift(*command.split(), cwd=out)
        said.append(done.stdout + done.stderr)
        assert done.returncode == 0, said[-1]
    return UserBuild(out, tuple(said))


@pytest.fixture(scope="session")
def built(bundle: UserBuild, cpp_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder of ``probe``: the runtime with an engine on the C interface of C++'s.

    Optimised, and without a warning, in Swift 6's language mode.
    """
    probe = Path(shutil.copytree(TESTS, tmp_path_factory.mktemp("probe") / "probe"))
    library = cpp_project / "build"
    flags = ["-c", "release", "-Xswiftc", "-enable-testing", "-Xswiftc", "-warnings-as-errors"]
    flags += ["-Xcc", f"-I{cpp_project / 'include'}"]
    flags += [w for flag in (f"-L{library}", "-rpath", str(library)) for w in ("-Xlinker", flag)]
    done = swift("swift", "build", *flags, cwd=probe, FOURSTEP_BUNDLE=str(bundle.folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return probe / ".build" / "release"


Probed = Callable[..., str]


@pytest.fixture
def probe(built: Path) -> Probed:
    """Runs the program for tests; gives what it prints."""

    def run(*words: object, given: str = "") -> str:
        done = swift(built / "probe", *words, given=given, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


# --- as a user ----------------------------------------------------------------------------------


def test_the_three_commands_of_a_bundle(bundle: UserBuild) -> None:
    """Built without a warning, every vector reproduced, its own tests passed."""
    built, vectors, tests = bundle.said
    assert not re.search(r"(warning|error):", built + vectors + tests)
    assert re.search(r"(\d+) of \1 vectors are the same", vectors)
    assert re.search(r"Test run with \d+ tests passed", tests)


def test_the_sources_are_formatted() -> None:
    style = ["--configuration", SOURCES / ".swift-format"]
    done = swift(
        "swift", "format", "lint", "--strict", *style, "--recursive", SOURCES, TESTS / "Sources"
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def checked(built: Path, folder: Path, engine: Path, sample: Sequence[Path]) -> str:
    """What the compiler says of the engine on Core ML and of the sample, beside stubs."""
    flags = ["-swift-version", "6", "-warnings-as-errors", "-parse-as-library"]
    places = ["-I", folder, "-I", built / "Modules"]
    modules = [(name, [TESTS / "stubs" / f"{name}.swift"]) for name in
               ("CoreGraphics", "CoreML", "SwiftUI")]  # fmt: skip
    said = ""
    for name, files in (*modules, ("FourstepCoreML", [engine]), ("Sample", sample)):
        made = ["-emit-module", "-emit-module-path", folder / f"{name}.swiftmodule"]
        done = swift("swiftc", *flags, *places, "-module-name", name, *made, *files)
        said += done.stdout + done.stderr
    return said


def test_what_needs_apples_libraries_has_the_right_types(built: Path, tmp_path: Path) -> None:
    """Of those there are signatures alone (``tests/swift/stubs``). A wrong type would be found."""
    engine = SOURCES / "Sources" / "FourstepCoreML" / "CoreMLEngine.swift"
    sample = sorted((SOURCES / "Sample").glob("*.swift"))
    assert checked(built, tmp_path, engine, sample) == ""
    wrong = tmp_path / "CoreMLEngine.swift"
    wrong.write_text(engine.read_text().replace("= units\n", "= cache\n", 1))
    assert "cannot assign value of type" in checked(built, tmp_path, wrong, sample)


# --- vectors and ids ----------------------------------------------------------------------------


def test_every_vector_is_reproduced(
    bundle: UserBuild,
    sized: Path,
    tiny_recipe: Recipe,
    shapes_packages: dict[str, Built],
    tmp_path: Path,
) -> None:
    """Of the first format and of this one, of every backend, with guidance, and of every size."""
    recipe = replace(tiny_recipe, mode="renoise").with_guidance(Guidance(4.5, None))
    (guided,) = build(recipe, tmp_path, ["onnx"], ["int8"])
    some = [built.path for name, built in shapes_packages.items() if name.endswith("int4")]
    packages = [KEPT, guided.path, sized, *some]
    done = swift(bundle.folder / ".build" / "debug" / "fourstep-vectors", *packages)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_all_vectors(done.stdout, packages)


@pytest.mark.parametrize("name", FORMS)
def test_ids_of_hard_prompts_and_of_every_code_point(
    probe: Probed, tmp_path: Path, name: str
) -> None:
    file = tokenizer_forms(tmp_path)[name]
    prompts = [*hard_prompts(), *code_points()]
    assert prompts_that_differ(probe("ids", file, given=hexadecimal(prompts)), file, prompts) == []


@pytest.mark.parametrize(("change", "expected"), UNKNOWN_PARTS)
def test_a_tokenizer_with_unknown_parts_is_refused(
    probe: Probed, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    raw = json.loads((SHAPES / "tokenizer" / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert f"refused: {expected}" in probe("ids", tmp_path / "tokenizer.json")


# --- whole pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_draws_pythons_bytes(
    probe: Probed, shapes_packages: dict[str, Built], tmp_path: Path, scheme: str
) -> None:
    package = of_openvino(shapes_packages, scheme)
    requests = [Request("two red circles left of a blue square", 7)]
    said = probe("draw", tmp_path, "preview", package, "openvino", *words_of(requests, tmp_path))
    assert said.splitlines()[-1] == "open 0 opened 6", "a graph was left open, or opened twice"
    same_as_python(package, requests, tmp_path)


def test_pictures_have_pythons_bytes(probe: Probed, guided: Path, tmp_path: Path) -> None:
    """Two prompts, a seed beyond 32 bits, a negative prompt, and from a picture."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    requests = [
        Request(PROMPT, 7),
        Request("a green triangle", 2**33 + 5, negative=NEGATIVE),
        Request("a green triangle", -1, image=image, strength=0.5),
    ]
    words = ["keep", "preview", guided, "openvino", *words_of(requests, tmp_path)]
    lines = probe("draw", tmp_path, *words).splitlines()
    assert lines[:-1] == [
        "conditioned 4",  # with the empty negative prompt
        *(f"step {i} {k} of 2" for i in (0, 1) for k in (1, 2)),
        "step 2 2 of 2",
        *(f"picture {i}" for i in range(3)),
    ]
    same_as_python(guided, requests, tmp_path)


def test_another_size_has_pythons_bytes(probe: Probed, sized: Path, tmp_path: Path) -> None:
    """Whose graphs are kept as what differs from the first's; a size that is none is refused."""
    requests = [Request(PROMPT, 7, size="80x48")]
    words = ["preview", "size", "80x48", sized, "openvino", *words_of(requests, tmp_path)]
    assert probe("draw", tmp_path, *words).splitlines()[-2] == "picture 0"
    same_as_python(sized, requests, tmp_path)
    said = probe("draw", tmp_path, "size", "99x99", sized, "openvino", "prompt", "a")
    expected = "size: this package does not draw '99x99'; its sizes: 64x48, 80x48"
    assert said.splitlines()[0] == f"refused {expected}"


def test_parts_are_opened_in_turn_unless_kept(probe: Probed, guided: Path, tmp_path: Path) -> None:
    stages = open_package(guided).manifest.stages
    others = sum(len(s.parts) for s in stages if not s.image_to_image_only and not s.in_steps)
    words = [guided, "openvino", "prompt", PROMPT]
    for option, parts in (([], 2 * 2), (["keep"], 2)):
        said = probe("draw", tmp_path, *option, *words)
        assert said.splitlines()[-1] == f"open 0 opened {others + parts}"


def test_graphs_and_pictures_are_compared_with_an_engine(
    probe: Probed, shapes_packages: dict[str, Built], tmp_path: Path
) -> None:
    """Every recorded call and every golden picture within its tolerance; what is not is named."""
    plain = of_openvino(shapes_packages, "fp32")  # whose settings round nothing
    manifest = open_package(plain).manifest
    ports = {s.graph: len(manifest.parts(s.graph)[-1].outputs) for s in manifest.stages}
    calls = {s.graph: manifest.schedule.steps if s.in_steps else 1 for s in manifest.stages}
    each = sum(ports[graph] * calls[graph] for graph in ports) + 1  # and the picture
    expected = f"{each * len(manifest.golden.pictures)} compared, open 0"
    assert probe("whole", plain, "openvino").splitlines() == [expected]

    package = Path(shutil.copytree(plain, tmp_path / "package"))
    raw = json.loads((package / "manifest.json").read_text())
    for graph in raw["graphs"]:
        graph["tolerance"] = {"graph_relative": 1e-12, "image_psnr_db": 200}
    seal(package, raw)
    *failures, _ = probe("whole", package, "openvino").splitlines()
    assert any(
        re.match(r"denoiser, call 3: relative error \S+, allowed 1e-12", f) for f in failures
    )
    assert any(re.match(r"picture '.*': PSNR \S+ dB, at least 200.0", f) for f in failures)


def test_a_drawing_stops_when_it_is_told(probe: Probed, guided: Path, tmp_path: Path) -> None:
    words = ["stop", 1, guided, "openvino", "prompt", PROMPT]
    lines = probe("draw", tmp_path, *words).splitlines()
    assert lines[-3:-1] == ["step 0 1 of 2", "cancelled"] and lines[-1].startswith("open 0 ")


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("size", r"tokenizer/t5.json: damaged: \d+ bytes where the manifest says \d+; copy"),
        ("manifest", r"manifest.json: damaged: it is not what manifest.sha256 says; copy"),
        ("gone", r"manifest.sha256: is missing; copy the package again"),
        ("link", r"LICENSE: a link that leaves the package, to .*elsewhere; copy the package"),
        ("version", r"format version '5.0'; this reader takes 4.x; build the package again"),
        ("mode", r"schedule.mode: 'heun' is not known; one of euler, renoise is expected"),
        ("sigmas", r"schedule.sigmas: \[1.0, 0.5, 0.75, 0.0\] do not fall"),
        ("path", r"files\[0\].path: '../x' does not lead into the package"),
        ("kind", r"stages\[0\].inputs.ids.kind: 'sound' is not known"),
        ("feed", r"stages\[0\].inputs.ids: no tokenizer 'other'"),
        ("port", r"graphs\[0\].inputs\[0\].shape: takes more than 1 GiB"),
        ("field", r"has no field 'stages'"),
        ("filter", r"filter: this runtime runs no filter, and would hand out what the package"),
    ],
)
def test_a_damaged_package_is_refused_in_one_line(
    probe: Probed, tmp_path: Path, what: str, expected: str
) -> None:
    """Before anything runs."""
    package = Path(shutil.copytree(KEPT, tmp_path / "package"))
    damage(package, what)
    said = probe("check", package)
    assert len(said.splitlines()) == 1 and re.search(expected, said), said


def test_a_damaged_graph_is_refused_when_it_is_opened(
    probe: Probed, shapes_packages: dict[str, Built], tmp_path: Path
) -> None:
    package = Path(shutil.copytree(of_openvino(shapes_packages, "int4"), tmp_path / "package"))
    damage(package, "digest")
    said = probe("draw", tmp_path, package, "openvino", "prompt", "a")
    assert re.match(r"refused .*: damaged: SHA-256 differs; copy or build", said)


def test_a_request_that_cannot_be_drawn_names_its_field(
    probe: Probed, guided: Path, tmp_path: Path
) -> None:
    small = np.zeros((32, 64, 3), np.uint8)
    for request, expected in (
        (Request("a" * 100_001), "prompt: has 100001 characters: at most 100000"),
        (Request("a", image=small), "image: is 64 x 32 px; scale or cut it to 64 x 48"),
    ):
        words = words_of([request], tmp_path)
        said = probe("draw", tmp_path, guided, "openvino", *words)
        assert said.splitlines()[0] == f"refused {expected}"


def test_a_package_for_another_engine_is_refused(
    probe: Probed, guided: Path, tmp_path: Path
) -> None:
    said = probe("draw", tmp_path, guided, "onnx", "prompt", "a")
    assert "is for openvino, which NativeEngine does not open; build the package" in said
