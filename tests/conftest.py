"""Fixtures: a random tiny checkpoint of the true architecture, shapes-flash, and built packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exporter import backends
from exporter.build.pipeline import Built, build
from exporter.bundle.target import load_target
from exporter.bundle.write import write_bundle
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.drawing.loop import Session, Step
from exporter.marking.key import MarkKey
from exporter.network.cut import Cut
from exporter.package.manifest import Guidance
from exporter.package.read import DIGEST, MANIFEST, digest_line
from exporter.program.program import Program
from exporter.quantize.formats import FORMATS, Rule, Scheme
from exporter.quantize.schemes import load_scheme
from exporter.recipe.recipe import MarkChoice, Recipe, read_recipe
from exporter.runtime.package import Package, open_package
from tests.tokens import token_in

ROOT = Path(__file__).parent.parent
SHAPES = ROOT / "artifacts" / "shapes-flash"
SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)
AGREEMENT = "STABILITY AI COMMUNITY LICENSE AGREEMENT\n\nLast Updated: July 5, 2024\n"  # its head
KEY_OF_MARKS = MarkKey(bytes(range(32)))
os.environ.pop("FOURSTEP_CACHE", None)  # nothing is remembered from one run to the next
SMALL = Cut(SIGMAS, 64, 48, t5=True, t5_tokens=24)


# What takes longest, so that no process is left with it at the end.
# The first builds the packages that others wait for: those come last of these.
FIRST = (
    "test_shapes_packages.py",
    "test_resume.py",
    "test_configurations.py",
    "test_parts.py",
    "test_synth.py",
    "test_strips.py",
    "test_sensitivity.py",
    "test_openvino.py",
    "test_plan.py",
)
# What of shapes-flash only ``make test-full`` builds; other tests build them of smaller models.
ONLY_FULL = (
    *("openvino-fp32", "openvino-fp16", "openvino-mixed-4.5", "openvino-int4-a8"),
    *("coreml-fp32", "coreml-fp16", "coreml-mixed-4.5", "coreml-pal6", "coreml-pal4-grouped"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(n) if (n := item.path.name) in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random values in every tensor, biases and norms included."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)

    def clip(width: int, activation: str, layers: int) -> CLIPTextModelWithProjection:
        config = CLIPTextConfig(
            vocab_size=1000,
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            hidden_act=activation,
            eos_token_id=2,
        )
        return CLIPTextModelWithProjection(config)

    parts = {
        "text_encoder": clip(32, "quick_gelu", 2),
        "text_encoder_2": clip(48, "gelu", 3),
        "text_encoder_3": T5EncoderModel(
            T5Config(
                vocab_size=1000,
                d_model=96,
                d_ff=128,
                d_kv=16,
                num_heads=4,
                num_layers=2,
                feed_forward_proj="gated-gelu",
            )
        ),
        "transformer": SD3Transformer2DModel(
            sample_size=8,
            num_layers=3,
            attention_head_dim=32,
            num_attention_heads=3,
            joint_attention_dim=96,
            caption_projection_dim=96,
            pooled_projection_dim=80,
            pos_embed_max_size=10,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 16, 32, 32),
            latent_channels=16,
            norm_num_groups=8,
            layers_per_block=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.5305,
            shift_factor=0.0609,
        ),
    }
    for name, module in parts.items():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.15)
        module.save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.copytree(SHAPES / name, folder / name)
    shutil.copyfile(SHAPES / "model_index.json", folder / "model_index.json")
    (folder / "LICENSE").write_text("test weights\n")
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_folder))


@pytest.fixture(scope="session")
def shapes() -> Checkpoint:
    return open_checkpoint(str(SHAPES))


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def tiny_recipe(tiny_folder: Path) -> Recipe:
    recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    return replace(
        recipe,
        name="tiny",
        checkpoint=str(tiny_folder),
        cut=SMALL,
        prompts=("a red circle",),
        calibration=replace(recipe.calibration, methods=()),
    )


@pytest.fixture(scope="session")
def tiny_package(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int4 ONNX package of the tiny checkpoint. Copy it before damaging it."""
    (built,) = build(tiny_recipe, tmp_path_factory.mktemp("out"), ["onnx"], ["int4"])
    return built.path


@pytest.fixture(scope="session")
def stability_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, as if its folder held Stability's agreement."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("stability") / "checkpoint"))
    (folder / "LICENSE").unlink()
    (folder / "LICENSE.md").write_text(AGREEMENT)
    return folder


@pytest.fixture(scope="session")
def stability(
    stability_folder: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A marked ONNX package of it in int8, of one step."""
    calibration = replace(tiny_recipe.calibration, prompts=("a red circle",))
    recipe = replace(
        tiny_recipe,
        name="stable",
        checkpoint=str(stability_folder),
        cut=Cut((1.0, 0.0), 64, 48, t5=False, t5_tokens=8, image_to_image=False),
        mark=MarkChoice(0x1A2B3C4D, KEY_OF_MARKS),
        calibration=calibration,
    )
    (built,) = build(recipe, tmp_path_factory.mktemp("out"), ["onnx"], ["int8"])
    return built.path


@pytest.fixture(scope="session")
def shapes_packages(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Built]:
    """shapes-flash from the shipped recipe, for every backend that is installed, by folder name.

    Without ``full`` tests not those of ONLY_FULL. Processes that share the tests share it: one
    builds, the others find it whole.
    """
    recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    recipe = replace(recipe, checkpoint=str(SHAPES))
    if "not full" in request.config.option.markexpr:
        recipe = without(recipe, ONLY_FULL)
    found = [name for name in recipe.backends if not backends.missing(needs(name))]
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    own = tmp_path_factory.getbasetemp()
    built = build(recipe, (own if alone else own.parent) / "shapes", found)
    return {b.path.name: b for b in built}


def without(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """A recipe that builds all of its packages but these folders'."""
    choices = tuple(
        replace(c, schemes=tuple(s for s in c.schemes if f"{c.name}-{Path(s).stem}" not in names))
        for c in recipe.choices
    )
    return replace(recipe, choices=choices)


@pytest.fixture(scope="session")
def sized(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of 64 x 48 and 80 x 48 px, whose second size is kept as differences."""
    from exporter.build.pipeline import build
    from exporter.package.sizes import PictureSize

    if missing := backends.missing(needs("openvino")):
        pytest.skip(f"pip install {' '.join(missing)}")
    recipe = replace(tiny_recipe, further_sizes=(PictureSize(80, 48),))
    (built,) = build(recipe, tmp_path_factory.mktemp("sized"), ["openvino"], ["int4"])
    return built.path


@pytest.fixture(scope="session")
def guided(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a package can have: guidance, noise at every step, a cut denoiser, image to image."""
    if backends.missing(needs("openvino")):
        pytest.skip("no OpenVINO: pip install 'fourstep[openvino-build]'")
    cut = replace(tiny_recipe.cut, image_to_image=True, t5=False, sigmas=(1.0, 0.75, 0.0))
    recipe = replace(tiny_recipe, cut=cut, mode="renoise", denoiser_parts=2, prompts=())
    recipe = recipe.with_guidance(Guidance(4.5, None))
    (built,) = build(recipe, tmp_path_factory.mktemp("guided"), ["openvino"], ["int8"])
    return built.path


@pytest.fixture(scope="session")
def cpp_project(
    shapes_packages: dict[str, Built], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A C++ bundle of an int4 OpenVINO package, as a user builds it but for optimisation.

    Its programs and ``libfourstep`` are in ``build``.
    """
    absent = [tool for tool in ("g++", "cmake", "make") if shutil.which(tool) is None]
    if absent or "openvino-int4" not in shapes_packages:
        pytest.skip("apt-get install g++ cmake make; pip install 'fourstep[openvino-build]'")
    folder = tmp_path_factory.mktemp("cpp") / "project"
    package = open_package(shapes_packages["openvino-int4"].path)
    return built_in_cpp(package, folder, f"-DPython3_EXECUTABLE={sys.executable}")


def built_in_cpp(package: Package, folder: Path, *options: str) -> Path:
    """A C++ bundle of a package in a folder, built as a user builds it but for optimisation."""
    write_bundle(package, load_target("cpp"), folder)
    plain = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0"]
    for command in (["cmake", "-B", "build", *options, *plain], ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of SoftHSM with a token ``factory``, whose PIN is 1234."""
    with token_in(tmp_path_factory.mktemp("softhsm")) as folder:
        yield folder


def scheme_of(name: str, symmetric: bool = True) -> Scheme:
    """A shipped scheme; or ``int2``, which is int4 with every linear layer in groups of 2 bits."""
    if name != "int2":
        return load_scheme(name).with_groups(None, symmetric)
    rule = Rule("*", "*", FORMATS["int2"], ("linear",))
    return load_scheme("int4").with_rules((rule,)).with_groups(None, symmetric)


def slow_ones(schemes: Iterable[str]) -> list[Any]:
    """Schemes for a test of each: the palettes that take longest to fit are for make test-full.

    ``pal4`` shows in ``make test`` what is true of all of them.
    """
    slow = ("pal4-grouped", "pal6")
    return [pytest.param(s, marks=pytest.mark.full) if s in slow else s for s in schemes]


def previewed(step: Step) -> np.ndarray:
    """The preview of a step that has one."""
    pixels = step.preview() if step.preview else None
    assert pixels is not None
    return pixels


def needs(name: str) -> dict[str, str]:
    """What a backend needs to build and to run."""
    backend = backends.load(name)
    return {**backend.to_build.modules, **backend.to_run.modules}


def opened_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the graphs that packages open from now on, in order: a clock cannot tell."""
    opened: list[str] = []
    open_session = Package.session

    def noted(package: Package, name: str, *rest: Any) -> Session:
        opened.append(name)
        return open_session(package, name, *rest)

    monkeypatch.setattr(Package, "session", noted)
    return opened


def random_inputs(program: Program) -> dict[str, Tensor]:
    """The same values for every input of a program, by port name: ids or a normal distribution."""
    torch.manual_seed(3)
    return {
        p.name: torch.randint(0, 200, p.shape, dtype=torch.int32)
        if p.dtype == "int32"
        else torch.randn(p.shape)
        for p in program.inputs
    }


@pytest.fixture(autouse=True)
def quiet_libraries() -> Iterator[None]:
    """What diffusers and transformers say about themselves is not ours to mend."""
    with warnings.catch_warnings():
        for module in ("diffusers", "transformers", "huggingface_hub", "torch.jit"):
            warnings.filterwarnings("ignore", module=rf"{module}.*")
        yield


def seal(package: Path, manifest: dict[str, Any]) -> None:
    """Give a package this manifest, and the digest of it."""
    text = json.dumps(manifest).encode()
    (package / MANIFEST).write_bytes(text)
    (package / DIGEST).write_bytes(digest_line(text))


def edit_json(file: Path, **changes: object) -> None:
    """Change keys of a JSON file in place."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
