"""How others call the layers that diffusers and transformers call by the names of a component.

Files made elsewhere write Stability's names (``joint_blocks.0.x_block.attn.qkv``), with dots or
with underscores throughout, and a word in front for the network. Dots are read as underscores
here, and the names of the checkpoint's own tensors say where they were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from exporter.checkpoint.component import Component
from exporter.checkpoint.names import MMDIT, MMDIT_BLOCK

# Which rows (axis 0) of the other's layer are this one's: queries, keys and values are one layer
# of Stability's, and where diffusers scales before it shifts, the halves change places.
Rows = Literal["all", "first third", "second third", "last third", "halves exchanged"]
THIRDS: tuple[Rows, ...] = ("first third", "second third", "last third")

# What stands before a layer's name, dots as underscores: diffusers', kohya's and OneTrainer's,
# ComfyUI's and Stability's.
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "transformer": (
        *("transformer_", "unet_", "lora_unet_", "lora_transformer_", "lycoris_"),
        *("diffusion_model_", "model_diffusion_model_"),
    ),
    "text_encoder": (
        *("text_encoder_", "lora_te_", "lora_te1_"),
        *("text_encoders_clip_l_transformer_", "clip_l_transformer_", "clip_l_"),
    ),
    "text_encoder_2": (
        *("text_encoder_2_", "lora_te2_"),
        *("text_encoders_clip_g_transformer_", "clip_g_transformer_", "clip_g_"),
    ),
    "text_encoder_3": (
        *("text_encoder_3_", "lora_te3_"),
        *("text_encoders_t5xxl_transformer_", "t5xxl_transformer_", "t5xxl_"),
    ),
}
PEFT = "base_model_model_"  # may follow any of them, or stand alone

EXCHANGED = ("final_layer.adaLN_modulation.1",)  # and the last text block's


def flat(name: str) -> str:
    """A name with dots as underscores."""
    return name.replace(".", "_")


OUTSIDE_BLOCKS: Mapping[str, tuple[str, Rows]] = {
    flat(ours): (flat(name), "halves exchanged" if name in EXCHANGED else "all")
    for name, (ours,) in MMDIT.items()
    if name != ours
}
IN_BLOCK: Mapping[str, tuple[str, Rows]] = {
    flat(layer): (flat(name), rows)
    for name, ours in MMDIT_BLOCK.items()
    for layer, rows in zip(ours, THIRDS if len(ours) == 3 else ("all",), strict=True)
}
# diffusers' own name for three layers, once its fuse_qkv_projections has made them one.
FUSED = {
    **{f"attn_to_{part}": "attn_to_qkv" for part in "qkv"},
    **{f"attn_add_{part}_proj": "attn_to_added_qkv" for part in "qkv"},
    **{f"attn2_to_{part}": "attn2_to_qkv" for part in "qkv"},
}
BLOCK = re.compile(r"transformer_blocks_(\d+)_(.+)")


@dataclass(frozen=True)
class NamedLayer:
    """A layer of a component, and which rows of another's layer it is."""

    component: str
    module: str
    rows: Rows = "all"


Stems = Mapping[str, tuple[NamedLayer, ...]]  # a layer's name with underscores -> what it is here


def stems_of(component: Component) -> Stems:
    """Every name that a layer of the component has, without what stands before it."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in component.tensors)
    own = {flat(module): module for module in modules}
    found: dict[str, list[NamedLayer]] = {
        stem: [NamedLayer(component.name, m)] for stem, m in own.items()
    }
    if component.name == "transformer":
        last = max((int(b[1]) for stem in own if (b := BLOCK.match(stem))), default=-1)
        for stem, module in own.items():
            for name, rows in _stability(stem, last):
                found.setdefault(name, []).append(NamedLayer(component.name, module, rows))
    for stem, module in own.items():
        if stem.startswith("text_model_"):  # newer transformers leave it out
            found.setdefault(stem.removeprefix("text_model_"), [NamedLayer(component.name, module)])
    return {stem: tuple(places) for stem, places in found.items()}


def _stability(stem: str, last: int) -> list[tuple[str, Rows]]:
    """The names in Stability's files, and diffusers' fused ones, of a layer; with its rows there.

    Args:
        last: the number of the last block, whose text half ends in a scale and a shift.
    """
    block = BLOCK.match(stem)
    if block is None:
        return [OUTSIDE_BLOCKS[stem]] if stem in OUTSIDE_BLOCKS else []
    number, inner = int(block[1]), block[2]
    if inner not in IN_BLOCK:
        return []
    name, rows = IN_BLOCK[inner]
    if inner == "norm1_context_linear" and number == last:
        rows = "halves exchanged"
    found: list[tuple[str, Rows]] = [(f"joint_blocks_{number}_{name}", rows)]
    if inner in FUSED:
        found.append((f"transformer_blocks_{number}_{FUSED[inner]}", rows))
    return found


def places_of(name: str, stems: Mapping[str, Stems]) -> list[tuple[NamedLayer, ...]]:
    """What a layer's name can mean among components that are open; mostly one thing, or nothing.

    A PEFT adapter says nothing of the network it is for, and the two CLIP encoders name their
    layers alike.
    """
    text, found = flat(name), dict[tuple[NamedLayer, ...], None]()
    for component, known in stems.items():
        own = PREFIXES.get(component, ())
        for prefix in (*own, *(p + PEFT for p in own), *(PEFT + p for p in own), PEFT, ""):
            places = known.get(text.removeprefix(prefix)) if text.startswith(prefix) else None
            if places:
                found[places] = None
    return list(found)


def component_named(name: str) -> str | None:
    """The component that the words before a layer's name stand for; None: they name none."""
    text = flat(name)
    fitting = [(len(p), c) for c, own in PREFIXES.items() for p in own if text.startswith(p)]
    return max(fitting)[1] if fitting else None
