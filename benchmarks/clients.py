"""Clients of others with our packages beside their own exporter's, in one run of shapes-flash.

    python -m benchmarks.clients artifacts/clients [--rounds 3] [--json FILE]

``make interop`` makes the clients' environments. Each client draws one picture with each package,
from the same noise; the latent after every step and the picture are compared with diffusers in
float32. Then the packages take turns, and of each the fastest further picture counts.

A client's own package has the checkpoint's schedule. Its configuration is set to ours where the
client can be told: the optimums'. OpenVINO GenAI cannot be, so of its own package seconds alone
are shown, of as many steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures
from benchmarks.figures import Column
from exporter.build.pipeline import build
from exporter.package.measures import psnr_db, snr_db
from exporter.progress import Progress
from exporter.recipe.recipe import Recipe, read_recipe

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "shapes-flash.toml"
DRAW = ROOT / "tests" / "interop" / "draw.py"
PROMPT, SEED = "two red circles left of a blue square", 7
SCHEMES = ("fp32", "int8", "int4")
SHIFT, TERMINAL = 2.004020116745039, 0.5  # with 1000 timesteps exactly the recipe's sigmas
WHAT = "Clients with our packages and their own exporter's: shapes-flash, 128 x 128 px, 4 steps."
COLUMNS = (
    Column("client", "client"),
    Column("package", "package"),
    Column("scheme", "scheme"),
    Column("mb", "MB", 2),
    Column("psnr_db", "PSNR dB", 1),
    Column("latents_db", "latent SNR dB, step by step", 1),
    Column("first_s", "first picture s", 2),
    Column("next_s", "next s", 3),
)


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: as ``tests/interop/draw.py`` has it.
        peer: its environment.
        backend: whose graphs it loads.
        kind: what its exporter exports to.
        schemes: those that its exporter has.
        takes_schedule: whether its own package can be told our schedule.
    """

    name: str
    peer: str
    backend: str
    kind: str
    schemes: tuple[str, ...]
    takes_schedule: bool = True


CLIENTS = (
    Client("genai", "optimum-intel", "openvino", "openvino", SCHEMES, takes_schedule=False),
    Client("optimum-intel", "optimum-intel", "openvino", "openvino", SCHEMES),
    # Its exporter's transformers does not read tokenizers that a later one wrote, as these.
    Client("optimum-onnx", "optimum-onnx", "onnx", "onnx", ()),
)


@dataclass(frozen=True)
class Contestant:
    """A client with a package."""

    client: Client
    is_ours: bool
    scheme: str
    package: Path


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment; raises SystemExit where there is none."""
    place = ROOT / f".venv-{peer}" / "bin" / "python"
    if not place.is_file():
        raise SystemExit(f"{place}: no such environment; make interop makes it")
    return place


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def ours(recipe: Recipe, folder: Path) -> dict[tuple[str, str], Path]:
    """Our packages, by backend and scheme."""
    recipe = replace(recipe, layouts=("diffusers",), prompts=())
    built = build(recipe, folder, ["openvino", "onnx"], SCHEMES, Progress(print))
    return {(one.backend, one.scheme): one.path for one in built}


def exported(client: Client, scheme: str, checkpoint: str, folder: Path) -> Path:
    """A client's own exporter's package, with our schedule in its configuration."""
    package = folder / f"own-{client.kind}-{scheme}"
    if not (package / "model_index.json").is_file():
        program = python_of(client.peer).with_name("optimum-cli")
        command = [str(program), "export", client.kind, "--model", checkpoint]
        command += ["--task", "text-to-image"]
        if client.kind == "openvino":
            groups = ["--group-size", "64", "--ratio", "1.0"] if scheme == "int4" else []
            command += ["--weight-format", scheme, *groups]
        subprocess.run([*command, str(package)], check=True, env=environment())
        file = package / "scheduler" / "scheduler_config.json"
        told = json.loads(file.read_text())
        told |= {"shift": SHIFT, "shift_terminal": TERMINAL, "num_train_timesteps": 1000}
        file.write_text(json.dumps(told))
    return package


def contestants(recipe: Recipe, folder: Path) -> list[Contestant]:
    """Each client with each of our packages, and with each that its own exporter makes."""
    made = ours(recipe, folder)
    found = []
    for client in CLIENTS:
        for scheme in SCHEMES:
            found.append(Contestant(client, True, scheme, made[client.backend, scheme]))
            if scheme in client.schemes:
                own = exported(client, scheme, recipe.checkpoint, folder)
                found.append(Contestant(client, False, scheme, own))
    return found


def drawn(one: Contestant, t5_tokens: int) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """The latents, the picture and the seconds of a client in a process of its own.

    Our packages get bare calls; a client's own is told how many tokens T5 has in ours.
    """
    tokens = [] if one.is_ours else [str(t5_tokens)]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out.npz"
        command = [python_of(one.client.peer), DRAW, one.client.name, one.package, PROMPT]
        done = subprocess.run(
            [*map(str, command), str(SEED), "4", str(out), *tokens],
            check=True, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        found = np.load(out)
        seconds: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        return found["latents"], found["picture"], seconds


def reference(recipe: Recipe) -> tuple[list[np.ndarray], np.ndarray]:
    """The latents after each step and the picture of diffusers in float32."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(
        recipe.checkpoint, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(1000, SHIFT, shift_terminal=TERMINAL)
    latents: list[np.ndarray] = []

    def note(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].numpy().copy())
        return values

    picture = pipeline(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=1.0,
        width=recipe.cut.width_px,
        height=recipe.cut.height_px,
        max_sequence_length=recipe.cut.t5_tokens,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
        callback_on_step_end=note,
    ).images[0]
    return latents, np.round(picture * 255).astype(np.uint8)


def measure(found: Sequence[Contestant], recipe: Recipe, rounds: int) -> list[figures.Row]:
    """A row for each; the rounds go through all of them."""
    latents, picture = reference(recipe)
    seconds: list[list[dict[str, float]]] = [[] for _ in found]
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        for one, spent in zip(found, seconds, strict=True):
            theirs, pixels, took = drawn(one, recipe.cut.t5_tokens)
            spent.append(took)
            if number:
                continue
            is_told = one.is_ours or one.client.takes_schedule
            steps = [snr_db(a, b) for a, b in zip(theirs, latents, strict=True)]
            size = sum(file.stat().st_size for file in one.package.rglob("*") if file.is_file())
            rows.append({
                "client": one.client.name, "package": "ours" if one.is_ours else "its own",
                "scheme": one.scheme, "mb": size / 1e6,
                "psnr_db": psnr_db(pixels, picture) if is_told else None,
                "latents_db": steps if is_told else None,
            })  # fmt: skip
    for row, spent in zip(rows, seconds, strict=True):
        row |= {key: min(took[key] for took in spent) for key in ("first_s", "next_s")}
    return list(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("folder", type=Path, help="of the packages, which are kept there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    recipe = read_recipe(RECIPE)
    recipe = replace(recipe, checkpoint=str(ROOT / "artifacts" / "shapes-flash"))
    rows = measure(contestants(recipe, arguments.folder), recipe, arguments.rounds)
    print(figures.markdown(COLUMNS, rows))
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, rows)


if __name__ == "__main__":
    main()
