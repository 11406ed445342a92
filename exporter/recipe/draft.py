"""A recipe for a checkpoint that is there, with comments that say where its values are from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from exporter.checkpoint.component import COMPONENTS, PARTS
from exporter.checkpoint.nearby import parts_near, tokenizers_near
from exporter.checkpoint.open import Checkpoint, open_partly
from exporter.checkpoint.survey import Survey, survey
from exporter.errors import InputError
from exporter.files.read import read_json
from exporter.network.layers import VAE_SCALE

STEPS, T5_TOKENS = 4, 256  # diffusers puts so many null tokens in T5's place
SD3_SHIFT = 3.0
MOST_WHOLE_LAYERS = 24  # of a denoiser that is one graph: SD3.5 Medium's
FLASH = (1.0, 0.9, 0.75, 0.5, 0.0)
SWD = (1.0, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022, 0.0)


@dataclass(frozen=True)
class Known:
    """A schedule: sigmas, the mode, and lines that say where it is from."""

    sigmas: tuple[float, ...]
    mode: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointName:
    """A checkpoint as it was named: a folder, a file or a hub id, with what picks its weights."""

    place: str
    revision: str | None = None
    variant: str | None = None


@dataclass(frozen=True)
class Nearby:
    """What lies near a single file and belongs to it: files of components, the tokenizers."""

    files: Mapping[str, str] = field(default_factory=dict)
    tokenizers: str | None = None


def draft(named: CheckpointName, folder: Path) -> str:
    """The text of a recipe that builds, for a file in ``folder``.

    Raises InputError where something is missing without which nothing can be built.
    """
    place = named.place
    checkpoint, parts = _opened(named)
    found = survey(place, checkpoint)
    if found.lacks:
        raise InputError(
            f"{place}: nothing builds without {', '.join(found.lacks)}; put what is missing beside "
            "it, or name it in [model] as transformer, clip_l, clip_g, vae, tokenizers: "
            "docs/using.md"
        )
    size_px = checkpoint.component("transformer").integer("sample_size") * VAE_SCALE
    tables = [
        _heading(place, found),
        _model(named, parts, folder),
        _schedule(schedule_of(place, found.scheduler)),
        f"[image]\nwidth_px = {size_px}\nheight_px = {size_px}\n"
        + _noted("image_to_image = false", "true: also emit the VAE's encoder"),
        _text(checkpoint, found),
        "[weights]\n" + _noted('scheme = "int4"', 'also: "fp16", "int8"') + "group_size = 64\n",
        _build(checkpoint),
        _noted("[golden]", "pictures that every build draws and compares")
        + 'prompts = ["a red fox reading a newspaper in a cafe, morning light"]\nseed = 7\n',
    ]
    return "\n".join(tables)


def _opened(named: CheckpointName) -> tuple[Checkpoint, Nearby]:
    """The checkpoint, and what a single file takes from near it."""
    file = Path(named.place)
    checkpoint = open_partly(named.place, (), named.revision, named.variant)
    if not file.is_file():
        return checkpoint, Nearby()
    tokenizers = tokenizers_near(file)
    parts = parts_near(file, [name for name in COMPONENTS if name not in checkpoint.components])
    if tokenizers is None or not (Path(tokenizers) / "tokenizer_3").is_dir():
        parts.pop("text_encoder_3", None)
    opened = open_partly(named.place, parts=parts, tokenizers=tokenizers)
    return opened, Nearby(parts, tokenizers)


def _noted(line: str, note: str) -> str:
    """A line with a comment beside it."""
    return f"{line:<39} # {note}\n"


def _heading(place: str, found: Survey) -> str:
    lines = [f"# {found.network}, from a {found.layout}: {json.dumps(place, ensure_ascii=False)}."]
    if found.unused:
        lines.append(f"# Not used of its pipeline: {', '.join(found.unused)}.")
    return "\n".join(lines) + "\n"


def _model(named: CheckpointName, parts: Nearby, folder: Path) -> str:
    places = {"checkpoint": named.place} | {
        key: parts.files[name] for key, name in PARTS.items() if name in parts.files
    }
    if parts.tokenizers:
        places["tokenizers"] = parts.tokenizers
    lines = [f"{key} = {_string(_near(place, folder))}\n" for key, place in places.items()]
    picks = {"revision": named.revision, "variant": named.variant}
    lines += [f"{key} = {_string(value)}\n" for key, value in picks.items() if value]
    return _noted("[model]", "paths are relative to this file") + "".join(lines)


def _near(place: str, folder: Path) -> str:
    """A path as it is called from a folder; a hub id as it is."""
    return Path(os.path.relpath(place, folder)).as_posix() if Path(place).exists() else place


def _string(value: str) -> str:
    """A basic string of TOML."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _schedule(known: Known) -> str:
    comments = "".join(f"# {line}\n" for line in known.lines)
    return f'[schedule]\n{comments}mode = "{known.mode}"\nsigmas = {list(known.sigmas)}\n'


def schedule_of(place: str, scheduler: Mapping[str, object]) -> Known:
    """The schedule of a checkpoint: by its name if that is known, else as diffusers computes it."""
    name = place.lower()
    shift = scheduler.get("shift", SD3_SHIFT)
    shift = float(shift) if isinstance(shift, int | float) and shift > 0 else SD3_SHIFT
    if "swd" in name or "scale-wise" in name:
        told = "The list of SwD's authors for six steps, and 0; each step draws new noise."
        return Known(SWD, "renoise", (told,))
    if "flash" in name:
        return Known(
            FLASH,
            "euler",
            (
                "Four uniform times 1, 3/4, 1/2, 1/4 under a shift of 3. The official sigmas of",
                "SD3.5 Flash are not public: if the authors of this checkpoint name others, put",
                "them here.",
            ),
        )
    source = "scheduler/scheduler_config.json" if scheduler else "SD3; it has no scheduler_config"
    lines = [
        f"What diffusers computes for {STEPS} steps with shift = {shift:g} (from {source}).",
        "A distilled model fits one list only: if its authors name another, put it here.",
    ]
    if "turbo" not in name and "step" not in name and "lightning" not in name:
        lines.append(
            "Its name does not say that it draws in few steps: most need a [[lora]] for that."
        )
    mode = "renoise" if scheduler.get("stochastic_sampling") is True else "euler"
    if scheduler.get("use_dynamic_shifting") is True:
        lines.append("Its scheduler shifts by the size of the picture too, which is not in these.")
    return Known(diffusers_sigmas(STEPS, shift), mode, tuple(lines))


def diffusers_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """The sigmas of FlowMatchEulerDiscreteScheduler for so many steps, and 0.

    Even times from 1 to the last of 1000 training times, which is shifted; each is shifted then.
    """

    def shifted(time: float) -> float:
        return shift * time / (1 + (shift - 1) * time)

    last = shifted(1 / 1000)
    times = (1 - (1 - last) * step / (steps - 1) for step in range(steps))
    return (*(round(shifted(time), 6) for time in times), 0.0)


def _text(checkpoint: Checkpoint, found: Survey) -> str:
    if {"text_encoder_3", "tokenizer_3"} & {*found.missing}:
        return (
            "[text]\n"
            + _noted("t5 = false", "T5 is not there")
            + _noted(f"t5_tokens = {T5_TOKENS}", "null tokens in its place, as in diffusers")
        )
    return (
        "[text]\n"
        + _noted("t5 = true", "false: t5_tokens null tokens in its place")
        + f"t5_tokens = {_t5_tokens(checkpoint)}\n"
    )


def _t5_tokens(checkpoint: Checkpoint) -> int:
    """As many as diffusers takes, or fewer where the tokenizer says so."""
    file = checkpoint.tokenizer_folder("tokenizer_3") / "tokenizer_config.json"
    most = read_json(file).get("model_max_length") if file.is_file() else None
    return min(T5_TOKENS, most) if type(most) is int and most > 1 else T5_TOKENS


def _build(checkpoint: Checkpoint) -> str:
    is_large = checkpoint.component("transformer").integer("num_layers") > MOST_WHOLE_LAYERS
    cut = _noted("denoiser_parts = 2", "graphs that are opened in turn: less memory")
    return (
        "[build]\n"
        + _noted('backends = ["onnx"]', 'also: "openvino", "coreml"')
        + (cut if is_large else "")
        + _noted("# device_memory_bytes = 4_000_000_000", "refuse what would take more to run")
    )
