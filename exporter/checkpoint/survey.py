"""What a place holds: its layout, the network, components, what is missing; from headers alone."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from exporter.checkpoint.component import COMPONENTS, Component
from exporter.checkpoint.folder import hub_id_of
from exporter.checkpoint.hub import TOKENIZERS, names_a_path
from exporter.checkpoint.open import Checkpoint
from exporter.checkpoint.single_file import is_file
from exporter.errors import InputError
from exporter.files.read import read_json
from exporter.files.tensors import TensorInfo, read_header

Layout = Literal["diffusers folder", "hub cache", "single file", "GGUF file", "LoRA"]
# The first of a LoRA's two matrices, whose rows are its rank, as several trainers call it.
DOWN = re.compile(r"(?P<layer>.+?)[._](lora_down|lora_A|lora[._]down)(\.default)?(\.weight)?$")
MAGNITUDES = ("dora_scale", "lora_magnitude_vector")
SCHEDULER = "scheduler/scheduler_config.json"
# Networks that have a name: layers, width, and whether queries and keys are normalized.
FAMILIES = {
    (24, 1536, False): "Stable Diffusion 3 Medium",
    (24, 1536, True): "Stable Diffusion 3.5 Medium",
    (38, 2432, True): "Stable Diffusion 3.5 Large",
}


@dataclass(frozen=True)
class LoraSummary:
    """A LoRA file: how many layers it changes, its ranks, and whether magnitudes go with it."""

    layers: int
    ranks: tuple[int, ...]
    dora: bool

    @property
    def worded(self) -> str:
        ranks = ", ".join(map(str, self.ranks))
        return f"rank {ranks}, {self.layers} layers{', DoRA' if self.dora else ''}"


@dataclass(frozen=True)
class ComponentSummary:
    """A component: its values, how many there are of each stored type, and its files."""

    name: str
    parameters: int
    dtypes: Mapping[str, int]
    files: tuple[str, ...]

    @property
    def worded(self) -> str:
        types = ", ".join(f"{n:,} {dtype}" for dtype, n in self.dtypes.items())
        return f"{self.name:<16} {self.parameters:>14,}  {types}  {', '.join(self.files)}"


@dataclass(frozen=True)
class Survey:
    """What a checkpoint holds.

    Attributes:
        layout: how it lies there.
        network: the family that its transformer is of, in words; empty without one.
        components: those that are there.
        missing: components and tokenizers that are not.
        scheduler: ``scheduler_config.json``, empty without one.
        unused: entries of ``model_index.json`` that no graph has a use for.
    """

    layout: Layout
    network: str
    components: tuple[ComponentSummary, ...]
    missing: tuple[str, ...]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def lacks(self) -> tuple[str, ...]:
        """What is missing without which nothing can be built: T5 and its tokenizer are not."""
        return tuple(n for n in self.missing if n not in ("text_encoder_3", "tokenizer_3"))


def layout_of(place: str) -> Layout:
    """How the weights lie at a place; a hub id is where the hub's cache is.

    Raises InputError for a file of another kind, such as a pickle.
    """
    path = Path(place)
    if not path.exists() and not names_a_path(place):
        return "hub cache"
    if is_file(path):
        if path.suffix == ".gguf":
            return "GGUF file"
        return "LoRA" if lora_summary(path) else "single file"
    return "hub cache" if hub_id_of(path) else "diffusers folder"


def lora_summary(file: Path) -> LoraSummary | None:
    """What a safetensors file holds as a LoRA; None for a file that is none."""
    header: dict[str, TensorInfo] = read_header(file)
    found = {m["layer"]: info.shape for key, info in header.items() if (m := DOWN.match(key))}
    if not found:
        return None
    ranks = sorted({shape[0] for shape in found.values() if shape})
    dora = any(key.rpartition(".")[2] in MAGNITUDES or MAGNITUDES[1] in key for key in header)
    return LoraSummary(len(found), tuple(ranks), dora)


def survey(place: str, checkpoint: Checkpoint) -> Survey:
    """What an opened checkpoint holds."""
    missing = [name for name in COMPONENTS if name not in checkpoint.components]
    at = checkpoint.tokenizers or checkpoint.folder
    missing += [folder for folder in TOKENIZERS.values() if not (at / folder).is_dir()]
    transformer = checkpoint.components.get("transformer")
    index = _json(checkpoint.folder / "model_index.json")
    known = {*COMPONENTS, *TOKENIZERS.values(), "scheduler"}
    unused = [n for n, v in index.items() if isinstance(v, list) and n not in known and any(v)]
    return Survey(
        layout_of(place),
        network_of(transformer) if transformer else "",
        tuple(_summary(c) for c in checkpoint.components.values() if c.name in COMPONENTS),
        tuple(missing),
        _json(checkpoint.folder / SCHEDULER),
        tuple(name for name in unused if not name.startswith("_")),
    )


def network_of(transformer: Component) -> str:
    """The family of a transformer in words."""
    config = transformer.config
    layers = transformer.integer("num_layers")
    width = transformer.integer("num_attention_heads") * transformer.integer("attention_head_dim")
    named = FAMILIES.get((layers, width, config.get("qk_norm") is not None))
    dual = len(config.get("dual_attention_layers") or ())
    told = f"MMDiT{'-X' if dual else ''} of {layers} layers, {width} wide"
    return f"{named}: {told}" if named else told


def _summary(component: Component) -> ComponentSummary:
    sources = component.tensors.values()
    dtypes = Counter(source.dtype for source in sources)
    return ComponentSummary(
        component.name,
        sum(math.prod(source.shape) for source in sources),
        dict(sorted(dtypes.items())),
        tuple(file.name for file in component.files),
    )


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def refuse_lora(place: str) -> None:
    """Raise InputError for a LoRA, which is no checkpoint: what to do with it."""
    path = Path(place)
    found = lora_summary(path) if path.suffix == ".safetensors" and path.is_file() else None
    if found:
        raise InputError(
            f"{place}: is a LoRA ({found.worded}) and changes a checkpoint: write that one, "
            f"fourstep recipe CHECKPOINT, and add: [[lora]] file = {json.dumps(place)}"
        )
