"""Clients of others with our packages beside their own exporter's, in one run of shapes-flash.

    python -m benchmarks.clients artifacts/clients [--rounds 3] [--client NAME] [--json FILE]

``make interop`` makes the clients' environments. Each client draws the same pictures with each
package, from the same noise; the latents after every step and the pictures are compared with those
of diffusers in float32, all at once: one picture's last digits are chance. Then the packages take
turns, and of each the fastest further picture counts, by the clock and by processors' seconds.

A client's own package has the checkpoint's schedule. Its configuration is set to ours where the
client can be told: the optimums'. OpenVINO GenAI cannot be, so of its own package seconds alone
are shown, of as many steps. optimum-onnx's own exporter has float32 alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
REQUESTS = (
    ("two red circles left of a blue square", 7),
    ("a green triangle", 7),
    ("a yellow square", 1),
    ("three blue circles", 2),
    ("a red triangle above a green circle", 3),
    ("two yellow triangles right of a red square", 4),
)
SCHEMES = ("fp32", "int8", "int4")
SHIFT, TERMINAL = 2.004020116745039, 0.5  # with 1000 timesteps exactly the recipe's sigmas
WHAT = (
    "Clients with our packages and their own exporter's: shapes-flash, 128 x 128 px, 4 steps, "
    f"{len(REQUESTS)} pictures."
)
SECONDS = ("first_s", "next_s", "next_cpu_s")
COLUMNS = (
    Column("client", "client"),
    Column("package", "package"),
    Column("scheme", "scheme"),
    Column("mb", "MB", 2),
    Column("psnr_db", "PSNR dB", 1),
    Column("latents_db", "latent SNR dB, step by step", 1),
    Column("first_s", "first picture s", 2),
    Column("next_s", "next s", 3),
    Column("next_cpu_s", "next CPU s", 3),
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
        is_older: its transformers does not read tokenizers that a later one wrote, as these.
    """

    name: str
    peer: str
    backend: str
    kind: str
    schemes: tuple[str, ...]
    takes_schedule: bool = True
    is_older: bool = False


CLIENTS = (
    Client("genai", "optimum-intel", "openvino", "openvino", SCHEMES, takes_schedule=False),
    Client("optimum-intel", "optimum-intel", "openvino", "openvino", SCHEMES),
    Client("optimum-onnx", "optimum-onnx", "onnx", "onnx", ("fp32",), is_older=True),
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


def older(checkpoint: Path, tokenizers: Path, folder: Path) -> Path:
    """A copy of a checkpoint with the tokenizers of one of our folders, which all pins read."""
    copy = folder / "checkpoint-of-older-pins"
    if not copy.is_dir():
        index = json.loads((checkpoint / "model_index.json").read_text())
        index["tokenizer_3"] = ["transformers", "T5TokenizerFast"]
        for name, kind in index.items():
            if isinstance(kind, list) and kind[0]:
                source = tokenizers if name.startswith("tokenizer") else checkpoint
                shutil.copytree(source / name, copy / name)
        (copy / "model_index.json").write_text(json.dumps(index))
    return copy


def exported(client: Client, scheme: str, checkpoint: Path, folder: Path) -> Path:
    """A client's own exporter's package, with our schedule in its configuration."""
    package = folder / f"own-{client.kind}-{scheme}"
    if not (package / "scheduler" / "ours").is_file():
        shutil.rmtree(package, ignore_errors=True)
        program = python_of(client.peer).with_name("optimum-cli")
        command = [str(program), "export", client.kind, "--model", str(checkpoint)]
        command += ["--task", "text-to-image"]
        if client.kind == "openvino":
            groups = ["--group-size", "64", "--ratio", "1.0"] if scheme == "int4" else []
            command += ["--weight-format", scheme, *groups]
        subprocess.run([*command, str(package)], check=True, env=environment())
        file = package / "scheduler" / "scheduler_config.json"
        told = json.loads(file.read_text())
        told |= {"shift": SHIFT, "shift_terminal": TERMINAL, "num_train_timesteps": 1000}
        file.write_text(json.dumps(told))
        (package / "scheduler" / "ours").touch()  # the last: it is whole
    return package


def contestants(recipe: Recipe, folder: Path, clients: Sequence[Client]) -> list[Contestant]:
    """Each client with each of our packages, and with each that its own exporter makes."""
    made = ours(recipe, folder)
    found, checkpoint = [], Path(recipe.checkpoint)
    for client in clients:
        given = older(checkpoint, made["onnx", "fp32"], folder) if client.is_older else checkpoint
        for scheme in SCHEMES:
            found.append(Contestant(client, True, scheme, made[client.backend, scheme]))
            if scheme in client.schemes:
                own = exported(client, scheme, given, folder)
                found.append(Contestant(client, False, scheme, own))
    return found


def drawn(one: Contestant, t5_tokens: int) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """The latents, the pictures and the seconds of a client in a process of its own.

    Our packages get bare calls; a client's own is told how many tokens T5 has in ours.
    """
    tokens = [] if one.is_ours else ["--t5-tokens", str(t5_tokens)]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out.npz"
        command = [python_of(one.client.peer), DRAW, one.client.name, one.package]
        done = subprocess.run(
            [*map(str, command), json.dumps(REQUESTS), "4", str(out), *tokens],
            check=True, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        found = np.load(out)
        seconds: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        return found["latents"], found["pictures"], seconds


def reference(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """The latents after each step, (requests, steps, ...), and the pictures of diffusers."""
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

    pictures = [
        pipeline(
            prompt,
            num_inference_steps=4,
            guidance_scale=1.0,
            width=recipe.cut.width_px,
            height=recipe.cut.height_px,
            max_sequence_length=recipe.cut.t5_tokens,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            callback_on_step_end=note,
        ).images[0]
        for prompt, seed in REQUESTS
    ]
    kept = np.stack(latents).reshape(len(REQUESTS), -1, *latents[0].shape)
    return kept, np.round(np.stack(pictures) * 255).astype(np.uint8)


def measure(found: Sequence[Contestant], recipe: Recipe, rounds: int) -> list[figures.Row]:
    """A row for each; the rounds go through all of them."""
    latents, pictures = reference(recipe)
    seconds: list[list[dict[str, float]]] = [[] for _ in found]
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        for one, spent in zip(found, seconds, strict=True):
            theirs, pixels, took = drawn(one, recipe.cut.t5_tokens)
            spent.append(took)
            if number:
                continue
            is_told = one.is_ours or one.client.takes_schedule
            steps = [snr_db(theirs[:, i], latents[:, i]) for i in range(latents.shape[1])]
            size = sum(file.stat().st_size for file in one.package.rglob("*") if file.is_file())
            rows.append({
                "client": one.client.name, "package": "ours" if one.is_ours else "its own",
                "scheme": one.scheme, "mb": size / 1e6,
                "psnr_db": psnr_db(pixels, pictures) if is_told else None,
                "latents_db": steps if is_told else None,
            })  # fmt: skip
    for row, spent in zip(rows, seconds, strict=True):
        row |= {key: min(took[key] for took in spent) for key in SECONDS}
    return list(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("folder", type=Path, help="of the packages, which are kept there")
    parser.add_argument("--rounds", type=int, default=3)
    names = [client.name for client in CLIENTS]
    parser.add_argument("--client", choices=names, action="append", help="these alone")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    recipe = read_recipe(RECIPE)
    recipe = replace(recipe, checkpoint=str(ROOT / "artifacts" / "shapes-flash"))
    clients = [one for one in CLIENTS if one.name in (arguments.client or names)]
    folder = arguments.folder.resolve()  # clients take another path for a name on their hub
    rows = measure(contestants(recipe, folder, clients), recipe, arguments.rounds)
    print(figures.markdown(COLUMNS, rows))
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, rows)


if __name__ == "__main__":
    main()
