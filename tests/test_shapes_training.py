"""The trainings of shapes-flash, two steps each, in the README's order (make test-full)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.full


def train(module: str, *arguments: object) -> None:
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.shapes_flash.{module}"]
    subprocess.run([*command, *(str(a) for a in arguments)], check=True, cwd=ROOT)


def steps(run: Path) -> list[int]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_from_nothing_to_a_checkpoint(tmp_path: Path) -> None:
    runs, checkpoint = tmp_path / "runs", tmp_path / "checkpoint"
    examples = runs / "examples.safetensors"
    train("networks", "--out", checkpoint)
    train("vae", "--out", runs / "vae", "--crowded", "--batch", 4, "--steps", 2)
    train("vae", "--out", runs / "vae", "--pictures", 8, "--batch", 4, "--steps", 4)
    train(
        "data", "--vae", runs / "vae", "--tokenizers", checkpoint, "--out", examples, "--count", 16
    )
    common = ("--data", examples, "--tokenizers", checkpoint, "--text-tokens", 20, "--batch", 4)
    train("teacher", *common, "--out", runs / "teacher", "--steps", 2)
    train("teacher", *common, "--out", runs / "teacher", "--steps", 4, "--full-every", 2)
    assert steps(runs / "teacher")[-1] == 4  # the second command went on where the first stopped
    train(
        "student", *common, "--teacher", runs / "teacher", "--out", runs / "student",
        "--substeps", 2, "--steps", 2,
    )  # fmt: skip
    train(
        "assemble", "--tokenizers", checkpoint, "--vae", runs / "vae",
        "--teacher", runs / "teacher", "--student", runs / "student", "--out", checkpoint,
    )  # fmt: skip
    train(
        "tiny", "--checkpoint", checkpoint, "--out", runs / "tiny", "--crowded", 20,
        "--batch", 4, "--steps", 2,
    )  # fmt: skip
    train(
        "tiny", "--checkpoint", checkpoint, "--out", runs / "tiny", "--rendered", 20,
        "--drawn", 4, "--batch", 4, "--steps", 4,
    )  # fmt: skip
    assert steps(runs / "tiny")[-1] == 4
    assert (checkpoint / "vae_tiny" / "diffusion_pytorch_model.safetensors").is_file()
    train("card", "--runs", runs, "--checkpoint", checkpoint)
    assert (checkpoint / "losses.png").is_file() and (checkpoint / "samples.png").is_file()
    assert (checkpoint / "transformer" / "diffusion_pytorch_model.safetensors").is_file()
