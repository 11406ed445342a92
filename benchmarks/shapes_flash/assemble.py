r"""Put trained parts together into a checkpoint in diffusers layout, weights in float16.

    python -m benchmarks.shapes_flash.assemble --tokenizers DIR --vae RUN --teacher RUN \
        [--student RUN] --out DIR
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.shapes_flash.networks import Tokenizers, build_vae, save_pipeline
from benchmarks.shapes_flash.teacher import Artist
from benchmarks.shapes_flash.training import load_weights


def assemble(
    out: Path, tokenizers: Path, vae_run: Path, teacher_run: Path, student_run: Path | None
) -> None:
    """Write the teacher's checkpoint or, given a student, the student's."""
    if out.resolve() != tokenizers.resolve():
        for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
            shutil.copytree(tokenizers / name, out / name, dirs_exist_ok=True)
    vae = build_vae()
    load_weights(vae, vae_run)
    statistics = load_file(vae_run / "statistics.safetensors")
    vae.register_to_config(
        scaling_factor=statistics["scale"].item(), shift_factor=statistics["shift"].item()
    )
    artist = Artist.build(Tokenizers.load(out))
    load_weights(artist, teacher_run)
    if student_run:
        load_weights(artist.transformer, student_run)
    save_pipeline(out, artist.transformer, artist.encoders, vae)


def main() -> None:
    """Write a checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    assemble(args.out, args.tokenizers, args.vae, args.teacher, args.student)


if __name__ == "__main__":
    main()
