"""Who takes part: how each exports a checkpoint, and how it draws with the result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PROMPT = "a red fox reading a newspaper in a cafe, morning light"
CALIBRATION = "a wooden boat on a calm lake under a cloudy sky"
SEED = 7
OPENVINO = ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0")

# What is installed for each peer, after the CPU build of torch; then what is removed again.
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "optimum-intel": (
        ("optimum-intel==2.2.0", "nncf==3.4.0", "diffusers==0.39.0", "transformers==5.5.4",
         "accelerate", "sentencepiece", "protobuf", *OPENVINO),
        ("torchvision",),  # its default build breaks transformers beside a CPU build of torch
    ),
    "optimum-onnx": (
        ("optimum-onnx[onnxruntime]==0.1.0", "diffusers==0.39.0", "accelerate", "sentencepiece",
         "protobuf"),
        ("torchvision",),
    ),
}  # fmt: skip
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Model:
    """What everybody draws with.

    Attributes:
        checkpoint: a diffusers folder.
        t5: whether it has a T5, and whether it is used.
    """

    checkpoint: Path
    px: int
    steps: int
    t5: bool

    @property
    def sigmas(self) -> tuple[float, ...]:
        """S + 1 noise levels, from 1 to 0: uniform times under SD3's shift of 3."""
        times = [1 - i / self.steps for i in range(self.steps)]
        return (*(3 * t / (1 + 2 * t) for t in times), 0.0)


@dataclass(frozen=True)
class Contestant:
    """One way to draw.

    Attributes:
        environment: of ``ENVIRONMENTS``; empty: the one that this runs in.
        export: the command that writes a package, or empty; ``package`` is what it writes.
        draw: the command that draws two pictures and prints seconds as JSON.
        warm: a command to run once before anything is measured, or empty.
    """

    name: str
    environment: str
    export: tuple[str, ...]
    package: Path
    draw: tuple[str, ...]
    warm: tuple[str, ...] = ()


def ours(model: Model, folder: Path, python: str, backend: str, scheme: str) -> Contestant:
    """fourstep on a backend, in a scheme."""
    place = folder / "packages" / f"fourstep-{model.px}px-{model.steps}"
    package = place / f"{backend}-{scheme}"
    recipe = folder / f"fourstep-{model.px}px-{model.steps}.toml"
    export = (
        python, "-m", "exporter", "build", str(recipe), "--backend", backend, "--scheme",
        scheme, "--out", str(place), "--no-golden",
    )  # fmt: skip
    draw = (python, "-m", "benchmarks.fullsize.draw_fourstep", str(package), PROMPT, str(SEED))
    return Contestant(f"fourstep {backend}-{scheme}", "", export, package, draw)


def variant(contestant: Contestant, name: str, *options: str) -> Contestant:
    """The same package, drawn with other options."""
    draw = (*contestant.draw, *options)
    return replace(contestant, name=f"{contestant.name}, {name}", draw=draw)


def in_genai(
    model: Model, folder: Path, python: str, peer: str, scheme: str, hint: str = ""
) -> Contestant:
    """Our codes in the layout of diffusers, drawn by OpenVINO GenAI; ``hint`` as in ``genai``."""
    one = ours(model, folder, python, "openvino", scheme)
    package = one.package.with_name(f"{one.package.name}-diffusers")
    name = f"fourstep openvino-{scheme}, by OpenVINO GenAI{', ' + hint if hint else ''}"
    export = (*one.export, "--layout", "diffusers")
    draw = _by_genai(model, peer, package, hint)
    return Contestant(name, "optimum-intel", export, package, draw)


def kept_open(contestant: Contestant) -> Contestant:
    """With graphs kept open."""
    return variant(contestant, "kept open", "--keep")


def variants(contestant: Contestant, folder: Path) -> list[Contestant]:
    """With graphs kept open, in bfloat16 too, and with a cache that is full by then."""
    place = folder / "packages" / f"cache-{contestant.package.parent.name}"
    cached = variant(contestant, "cached", "--cache", str(place))
    return [
        kept_open(contestant),
        variant(contestant, "kept open, bfloat16", "--keep", "--half"),
        replace(cached, warm=cached.draw),
    ]


def write_recipe(model: Model, folder: Path) -> Path:
    """The recipe of ``ours``. T5's linear layers get 4 bits, as the peer's do."""
    t5 = """[[weights.override]]
graph = "t5"
format = "int4"
"""
    file = folder / f"fourstep-{model.px}px-{model.steps}.toml"
    file.write_text(
        f"""[model]
checkpoint = "{model.checkpoint.absolute()}"
[schedule]
sigmas = {list(model.sigmas)}
[image]
width_px = {model.px}
height_px = {model.px}
image_to_image = false
[text]
t5 = {str(model.t5).lower()}
t5_tokens = 256
[weights]
scheme = "int4"
group_size = 64
{t5 if model.t5 else ""}[calibration]
prompts = ["{CALIBRATION}"]
"""
    )
    return file


def diffusers(model: Model, python: str, dtype: str) -> Contestant:
    """The pipeline that the checkpoint is in the layout of, as it stands."""
    draw = (
        python, "-m", "benchmarks.fullsize.draw_diffusers", str(model.checkpoint), dtype, PROMPT,
        str(SEED), str(model.px), *(str(s) for s in model.sigmas[:-1]),
    )  # fmt: skip
    return Contestant(f"diffusers {dtype}", "", (), model.checkpoint, draw)


def genai(model: Model, folder: Path, python: str, weights: str, hint: str = "") -> Contestant:
    """optimum-intel's command line, then OpenVINO GenAI.

    ``hint``: a type to compute in; without one the processor computes in bfloat16 if it has it.
    """
    package = folder / "packages" / f"optimum-intel-{weights}"
    cli = str(Path(python).with_name("optimum-cli"))
    groups = ("--group-size", "64", "--ratio", "1.0") if weights == "int4" else ()
    export = (
        cli, "export", "openvino", "--model", str(model.checkpoint), "--task", "text-to-image",
        "--weight-format", weights, *groups, str(package),
    )  # fmt: skip
    draw = _by_genai(model, python, package, hint)
    name = f"optimum-intel, OpenVINO GenAI {weights}{', ' + hint if hint else ''}"
    return Contestant(name, "optimum-intel", export, package, draw)


def _by_genai(model: Model, python: str, package: Path, hint: str) -> tuple[str, ...]:
    return (
        python, "-m", "benchmarks.fullsize.draw_genai", str(package), PROMPT, str(SEED),
        str(model.px), str(model.steps), *((hint,) if hint else ()),
    )  # fmt: skip


def by_optimum(model: Model, python: str, contestant: Contestant, name: str) -> Contestant:
    """A package that OpenVINO GenAI draws too, drawn by optimum-intel's pipeline."""
    draw = (
        python, "-m", "benchmarks.fullsize.draw_diffusers", str(contestant.package), "openvino",
        PROMPT, str(SEED), str(model.px), *(str(s) for s in model.sigmas[:-1]),
    )  # fmt: skip
    return replace(contestant, name=name, draw=draw)


def optimum_onnx(model: Model, folder: Path, python: str) -> Contestant:
    """optimum-onnx's command line, then its pipeline."""
    package = folder / "packages" / "optimum-onnx"
    cli = str(Path(python).with_name("optimum-cli"))
    export = (
        cli, "export", "onnx", "--model", str(model.checkpoint), "--task", "text-to-image",
        str(package),
    )  # fmt: skip
    draw = (
        python, "-m", "benchmarks.fullsize.draw_diffusers", str(package), "onnx", PROMPT,
        str(SEED), str(model.px), *(str(s) for s in model.sigmas[:-1]),
    )  # fmt: skip
    return Contestant("optimum-onnx fp32", "optimum-onnx", export, package, draw)


def contestants(
    model: Model, folder: Path, pythons: dict[str, str], schemes: Sequence[str]
) -> list[Contestant]:
    """Everybody."""
    own = sys.executable
    found = []
    for scheme in schemes:
        one = ours(model, folder, own, "openvino", scheme)
        found += [one, *variants(one, folder)]
    for scheme in schemes:
        one = ours(model, folder, own, "onnx", scheme)
        found += [one, kept_open(one)]
    found += [diffusers(model, own, dtype) for dtype in ("float32", "bfloat16")]
    intel = pythons.get("optimum-intel", own)
    found += [genai(model, folder, intel, "int4", hint) for hint in ("", "f32")]
    found.append(genai(model, folder, intel, "int8"))
    clients = [
        in_genai(model, folder, own, intel, scheme, hint)
        for scheme, hint in (("int4", ""), ("int4", "f32"), ("int8", ""))
    ]
    found += clients
    peer = genai(model, folder, intel, "int4")
    found.append(by_optimum(model, intel, clients[0], "fourstep openvino-int4, by optimum-intel"))
    found.append(by_optimum(model, intel, peer, "optimum-intel int4"))
    return [*found, optimum_onnx(model, folder, pythons.get("optimum-onnx", own))]
