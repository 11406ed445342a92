"""LoRAs and their kin, merged into a checkpoint's tensors as they are read.

Keys are those of diffusers, PEFT, kohya and ComfyUI. A file is used whole or refused: a key that
matches nothing, a half without the other and a shape that does not fit are errors that name them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from exporter.checkpoint.adapter import Settings, settings_of_file
from exporter.checkpoint.component import Component
from exporter.checkpoint.deltas import (
    MAGNITUDES,
    Delta,
    Kind,
    Merged,
    axis_of_lengths,
    extent,
    rank_of,
)
from exporter.checkpoint.sources import FLOATS, Kept, TensorSource, digest_of
from exporter.checkpoint.spellings import NamedLayer, Stems, component_named, places_of, stems_of
from exporter.checkpoint.weights import PICKLES
from exporter.errors import InputError, known
from exporter.files.tensors import read_header

MOST_NAMED = 5  # keys in an error
WEIGHTS_IN_FOLDER = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")

# How a key ends -> what it is; ``(?:\.[^.]+)?`` is the name of a PEFT adapter.
ENDINGS = (
    (r"\.lora_A(?:\.[^.]+)?\.weight|[._](?:lora[._]|lora_linear_layer\.)down\.weight", "down"),
    (r"\.lora_B(?:\.[^.]+)?\.weight|[._](?:lora[._]|lora_linear_layer\.)up\.weight", "up"),
    (r"\.lora_B(?:\.[^.]+)?\.bias|\.lora_up\.bias", "up_bias"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.alpha", "alpha"),
    (r"\.lora_magnitude_vector(?:\.[^.]+){0,2}", "magnitude"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.(?:diff|w_norm)", "diff"),
    (r"\.(?:diff_b|b_norm)", "diff_b"),
    (r"\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.[^.]+)?", ""),
)
KEY = [(re.compile(rf"(?P<layer>.+?)(?:{ending})"), role) for ending, role in ENDINGS]
# Kinds that are told apart by name and not merged.
OTHERS = {
    r"boft_": "BOFT",
    r"\boft_|oft_blocks|\.oft_diag": "OFT",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"lora_embedding_[AB]": "a LoRA of an embedding",
    r"^(emb_params|clip_[lg]|t5xxl|<.+>)$|^bundle_emb\.": "a textual inversion",
    r"\.lora_E(\.|$)": "AdaLoRA",
    r"vera_lambda": "VeRA",
    r"vblora_": "VB-LoRA",
    r"randlora_": "RandLoRA",
    r"fourierft_spectrum": "FourierFT",
    r"waveft_spectrum": "WaveFT",
    r"c3a_kernel": "C3A",
    r"shira_weight": "SHiRA",
    r"\.bone_|miss_block": "MiSS",
    r"poly_lora_": "Poly",
    r"ln_tuning_layers": "LN tuning",
    r"ia3_l|\.on_input$": "IA3",
    r"\.hra_u": "HRA",
    r"\.set_weight$": "a whole weight",
    r"\.reshape_weight$": "a change of a layer's shape",
    r"^lora_controlnet$|^control_lora\.": "a ControlNet",
    r"^ip_adapter\.": "an IP-Adapter",
}
# Tables that are looked up in: what makes a change of one by a product has no agreed orientation.
EMBEDDINGS = ("token_embedding", "position_embedding", "shared", "embed_tokens")
MERGED = "merged are LoRA, DoRA, LoHa, LoKr and full differences"
PARTS: Mapping[Kind, tuple[str, ...]] = {
    "lora": ("down", "up", "mid"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "difference": ("diff",),
}
# Widths that tell a base model.
WIDTHS = {1536: "SD3 or SD3.5 Medium", 2432: "SD3.5 Large", 3072: "FLUX", 640: "SDXL"}
# Names of layers that tell one.
FOREIGN = {
    r"double_blocks|single_blocks|single_transformer_blocks": "FLUX",
    r"down_blocks|up_blocks|input_blocks|output_blocks|mid_block|middle_block": "SD1, SD2 or SDXL",
    r"attn2": "SD3.5 Medium",
    r"blocks[._](?:2[4-9]|3[0-7])[._]": "SD3.5 Large",
    r"resblocks[._]": "OpenCLIP: give its layers the names of transformers (encoder.layers)",
}


@dataclass(frozen=True)
class Lora:
    """A LoRA that a recipe asks for.

    Attributes:
        file: a safetensors file, or a folder that PEFT or diffusers saved one to.
        weight: its changes are multiplied by it.
    """

    file: Path
    weight: float = 1.0


@dataclass(frozen=True)
class OpenedLora:
    """A LoRA that fits the checkpoint: what it does, by component and tensor."""

    file: Path
    weight: float
    changes: Mapping[tuple[str, str], Delta]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what it does to which tensor, whatever the weight and the names in its file.

        Reads the whole file.
        """
        total = hashlib.sha256()
        for (component, tensor), change in sorted(self.changes.items(), key=lambda item: item[0]):
            total.update(f"{component}/{tensor}\0{digest_of(change.raw())}\n".encode())
        return total.hexdigest()


def open_lora(lora: Lora, components: Mapping[str, Component]) -> OpenedLora:
    """A LoRA and where its changes go; raises InputError for what does not fit the components."""
    file = _file_of(lora.file)
    tensors = {key: Kept(key, info) for key, info in read_header(file).items()}
    if not tensors:
        raise InputError(f"{file}: holds no tensor")
    return _Reader(file, tensors, components, lora.weight).opened()


def merged(components: Mapping[str, Component], lora: OpenedLora) -> dict[str, Component]:
    """The components with a LoRA's changes upon what their tensors are already."""
    found = dict(components)
    for name, component in components.items():
        tensors = dict(component.tensors)
        for (owner, key), change in lora.changes.items():
            if owner == name:
                tensors[key] = _with(f"{name}/{key}", tensors[key], change)
        found[name] = replace(component, tensors=tensors)
    return found


def _with(name: str, source: TensorSource, change: Delta) -> Merged:
    if isinstance(source, Merged):
        return replace(source, changes=(*source.changes, change))
    return Merged(name, source, (change,))


def _file_of(place: Path) -> Path:
    """The safetensors file of a LoRA; raises InputError."""
    if place.is_dir():
        found = sorted(file for file in place.iterdir() if file.is_file())
        usual = [place / name for name in WEIGHTS_IN_FOLDER if place / name in found]
        files = usual or [file for file in found if file.suffix == ".safetensors"]
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise InputError(f"{place}: several LoRAs: {names}; name one of them")
        pickles = [file for file in found if file.suffix in PICKLES]
        if not files and not pickles:
            raise InputError(f"{place}: no .safetensors file; a LoRA is one")
        place = (files or pickles)[0]
    if place.suffix.lower() in PICKLES:
        raise InputError(
            f"{place}: pickled weights can run code and are never opened; save the LoRA as "
            "safetensors (safetensors.torch.save_file), or download that file of it"
        )
    if not place.is_file():
        raise InputError(
            f"{place}: no such LoRA; name a .safetensors file, or a folder with "
            "adapter_model.safetensors; from the hub: hf download OWNER/NAME --local-dir FOLDER"
        )
    return place


class _Reader:
    """One file's keys, put together layer by layer."""

    def __init__(
        self,
        file: Path,
        tensors: Mapping[str, TensorSource],
        components: Mapping[str, Component],
        weight: float,
    ) -> None:
        self.file, self.tensors, self.components, self.weight = file, tensors, components, weight
        self.stems: dict[str, Stems] = {n: stems_of(c) for n, c in components.items() if n != "vae"}
        self.settings = settings_of_file(file)

    def opened(self) -> OpenedLora:
        layers = self._layers()
        self._refuse_unmatched(layers)
        self._check_values()
        changes: dict[tuple[str, str], Delta] = {}
        for layer, keys in layers.items():
            for place, found in self._changes(layer, keys):
                if place in changes:
                    raise InputError(
                        f"{self.file}: '{next(iter(keys.values()))}' changes tensor "
                        f"'{'/'.join(place)}', which other keys of the file change already"
                    )
                changes[place] = found
        return OpenedLora(self.file, self.weight, changes)

    def _layers(self) -> dict[str, dict[str, str]]:
        """Keys by what they are, by the layer that they name; unknown ones under themselves."""
        found: dict[str, dict[str, str]] = {}
        for key in self.tensors:
            for pattern, kind in OTHERS.items():
                if re.search(pattern, key):
                    raise InputError(
                        f"{self.file}: '{key}' is {kind}, which is not merged; {MERGED}"
                    )
            layer, role = _parsed(key)
            keys = found.setdefault(layer, {})
            if role in keys:
                raise InputError(
                    f"{self.file}: '{keys[role]}' and '{key}' are two adapters in one file; save "
                    "each to a file of its own"
                )
            keys[role] = key
        return found

    def _refuse_unmatched(self, layers: Mapping[str, Mapping[str, str]]) -> None:
        """Raise InputError with the keys of layers that the open components have not."""
        lost, closed = list[str](), dict[str, list[str]]()
        for layer, keys in layers.items():
            if "" not in keys and places_of(layer, self.stems):
                continue
            owner = component_named(layer)
            if owner is not None and owner not in self.components:
                closed.setdefault(owner, []).extend(keys.values())
            else:
                lost += keys.values()
        if lost:
            hint = next((f"; it was made for {m}" for p, m in FOREIGN.items() if _any(p, lost)), "")
            if not hint and all("" in keys for keys in layers.values()):
                hint = "; it holds no LoRA's keys: a file of weights is named in [model]"
            raise InputError(
                f"{self.file}: {len(lost)} of {len(self.tensors)} keys match no tensor of the "
                f"checkpoint: {_listed(lost)}{hint}"
            )
        for owner, unused in closed.items():
            what = "; set t5 = true in [text], or take a LoRA without them"
            raise InputError(
                f"{self.file}: {len(unused)} keys are for {owner}, which is left out"
                f"{what if owner == 'text_encoder_3' else ''}: {_listed(unused)}"
            )

    def _check_values(self) -> None:
        for key, source in self.tensors.items():
            if not key.endswith(".alpha") and source.dtype not in FLOATS:
                raise InputError(
                    f"{self.file}: tensor '{key}': {known('dtype', source.dtype, FLOATS)}"
                )
            if not all(torch.isfinite(value.to(torch.float32)).all() for value in source.raw()):
                raise InputError(f"{self.file}: tensor '{key}' holds values that are not finite")

    def _changes(
        self, layer: str, keys: Mapping[str, str]
    ) -> Iterator[tuple[tuple[str, str], Delta]]:
        """What a layer's keys do to which tensors."""
        kind, parts = self._kind(layer, keys)
        places = self._places(layer, kind, parts)
        self._refuse_embedding(kind, places[0], keys)
        factor = self._factor(layer, keys, kind, parts, places[0])
        for place in places:
            if kind is not None:
                target = self._target(place, "weight", next(iter(keys.values())))
                change = Delta(kind, parts, factor, self.weight, place.rows)
                self._check_shapes(change, target, keys)
                yield target, change
            for role, own in (("up_bias", factor), ("diff_b", 1.0)):
                if role in keys:
                    target = self._target(place, "bias", keys[role])
                    bias = {"diff": self.tensors[keys[role]]}
                    change = Delta("difference", bias, own, self.weight, place.rows)
                    self._check_shapes(change, target, {"diff": keys[role]})
                    yield target, change

    def _refuse_embedding(
        self, kind: Kind | None, place: NamedLayer, keys: Mapping[str, str]
    ) -> None:
        if kind not in (None, "difference") and place.module.endswith(EMBEDDINGS):
            raise InputError(
                f"{self.file}: '{next(iter(keys.values()))}' is a LoRA of an embedding, which is "
                f"not merged; {MERGED}"
            )

    def _kind(
        self, layer: str, keys: Mapping[str, str]
    ) -> tuple[Kind | None, dict[str, TensorSource]]:
        """Which formula the keys are for, and its parts; None: they change a bias only."""
        kinds = [kind for kind, names in PARTS.items() if any(name in keys for name in names)]
        first = next(iter(keys.values()))
        if len(kinds) > 1:
            raise InputError(f"{self.file}: '{first}': a layer is changed in two ways: {kinds}")
        if not kinds:
            alone = [role for role in ("alpha", "up_bias", *MAGNITUDES) if role in keys]
            if alone:
                raise InputError(f"{self.file}: '{keys[alone[0]]}' has no LoRA that it belongs to")
            return None, {}
        twice = next((r for r in ("lokr_w1", "lokr_w2") if {r, f"{r}_a"} <= {*keys}), "")
        if twice:
            raise InputError(f"{self.file}: '{keys[twice]}' is there whole and as two factors")
        missing = _missing(kinds[0], keys)
        if missing:
            raise InputError(f"{self.file}: '{first}' has no '{missing}' beside it; copy it again")
        named = (*PARTS[kinds[0]], *MAGNITUDES)
        parts = {role: self.tensors[key] for role, key in keys.items() if role in named}
        dora = [role for role in MAGNITUDES if role in parts]
        if len(dora) > 1:
            raise InputError(f"{self.file}: '{first}': a magnitude and a dora_scale are two of one")
        return kinds[0], parts

    def _places(
        self, layer: str, kind: Kind | None, parts: Mapping[str, TensorSource]
    ) -> tuple[NamedLayer, ...]:
        """The one thing that a layer's name means; where it can be two, that whose shape fits."""
        found = places_of(layer, self.stems)
        if len(found) > 1 and kind is not None:
            size = extent(kind, parts)
            found = [ps for ps in found if size and self._fits(size, ps)] or found[:1]
        if len(found) > 1:
            names = " and ".join(sorted({place.component for places in found for place in places}))
            raise InputError(
                f"{self.file}: '{layer}' is a layer of {names}; write the component's name before "
                f"its keys, such as '{found[0][0].component}.'"
            )
        return found[0]

    def _fits(self, size: tuple[int, int], places: Sequence[NamedLayer]) -> bool:
        key = f"{places[0].module}.weight"
        source = self.components[places[0].component].tensors.get(key)
        return source is not None and _size_in_file(source.shape, places[0]) == size

    def _factor(
        self,
        layer: str,
        keys: Mapping[str, str],
        kind: Kind | None,
        parts: Mapping[str, TensorSource],
        place: NamedLayer,
    ) -> float:
        """Alpha / rank: of the layer, of the adapter's settings, or 1."""
        if kind is None or kind == "difference":
            return 1.0
        rank, settings = rank_of(kind, parts), self._settings(layer, place, parts)
        if "alpha" not in keys:
            name = layer.removeprefix(f"{place.component}.").removeprefix("base_model.model.")
            return settings.scale(name, rank) if settings else 1.0
        value = next(iter(self.tensors[keys["alpha"]].raw()))
        if value.numel() != 1 or not value.item():
            raise InputError(f"{self.file}: '{keys['alpha']}': one number but 0 is expected")
        return float(value.item()) / rank if rank else 1.0

    def _settings(
        self, layer: str, place: NamedLayer, parts: Mapping[str, TensorSource]
    ) -> Settings | None:
        settings = self.settings.get(place.component)
        if settings and settings.dora and not any(role in parts for role in MAGNITUDES):
            raise InputError(
                f"{self.file}: '{layer}' has no lora_magnitude_vector, and {settings.where} says "
                "use_dora"
            )
        return settings

    def _target(self, place: NamedLayer, what: str, key: str) -> tuple[str, str]:
        """The component and the name of a tensor that must be there."""
        name = f"{place.module}.{what}"
        if name not in self.components[place.component].tensors:
            raise InputError(
                f"{self.file}: '{key}' matches no tensor of the checkpoint: "
                f"{place.component} has no '{name}'"
            )
        return place.component, name

    def _check_shapes(
        self, change: Delta, target: tuple[str, str], keys: Mapping[str, str]
    ) -> None:
        """Raise InputError unless a change has the shape of its tensor."""
        component, name = target
        shape = self.components[component].tensors[name].shape
        wanted = _size_in_file(shape, NamedLayer(component, "", change.rows))
        size = extent(change.kind, change.parts)
        first = next(iter(keys.values()))
        if size is None:
            shapes = {keys[r]: s.shape for r, s in change.parts.items() if r not in MAGNITUDES}
            raise InputError(f"{self.file}: the shapes of a layer do not fit each other: {shapes}")
        if size != wanted:
            raise InputError(
                f"{self.file}: '{first}' makes a change of {size[0]} x {size[1]}, and "
                f"'{component}/{name}' needs {wanted[0]} x {wanted[1]}; it was made for another "
                f"base model{_model_of(component, size, wanted)}"
            )
        for role in MAGNITUDES:
            if role in change.parts:
                self._check_lengths(role, keys[role], change, wanted, shape)

    def _check_lengths(
        self, role: str, key: str, change: Delta, wanted: tuple[int, int], shape: tuple[int, ...]
    ) -> None:
        source = change.parts[role]
        axis = axis_of_lengths(role, source.shape)
        count = wanted[0] if axis == 0 else shape[min(1, len(shape) - 1)]
        if len(shape) < 2 or math.prod(source.shape) != count:
            raise InputError(
                f"{self.file}: '{key}' has shape {list(source.shape)}; {count} lengths are expected"
            )
        if axis == 1 and change.rows not in ("all", "halves exchanged"):
            raise InputError(
                f"{self.file}: '{key}' keeps lengths by input of queries, keys and values in one, "
                "which are apart here; train it with lengths by output"
            )


def _parsed(key: str) -> tuple[str, str]:
    """The layer and what a key is of it; unknown: the key and nothing."""
    for pattern, role in KEY:
        found = pattern.fullmatch(key)
        if found:
            return found["layer"], role or found[2]
    return key, ""


def _missing(kind: Kind, keys: Mapping[str, str]) -> str:
    """A part that the formula needs and the file lacks, or nothing."""
    needed = {"lora": ("down", "up"), "loha": PARTS["loha"][:4], "difference": ("diff",)}
    if kind == "lokr":
        absent = [f"lokr_{w}" for w in ("w1", "w2") if f"lokr_{w}" not in keys]
        names = tuple(f"{name}_{half}" for name in absent for half in "ab")
    else:
        names = needed[kind]
    if kind == "loha" and ("hada_t1" in keys or "hada_t2" in keys):
        names = PARTS["loha"]
    return next((name for name in names if name not in keys), "")


def _size_in_file(shape: Sequence[int], place: NamedLayer) -> tuple[int, int]:
    """Outputs and values for each that a change of a tensor has in the file."""
    parts = 3 if place.rows.endswith("third") else 1
    return shape[0] * parts, math.prod(shape[1:])


def _model_of(component: str, size: tuple[int, int], wanted: tuple[int, int]) -> str:
    fitting = (f", {m}" for w, m in WIDTHS.items() if w in size and w not in wanted)
    return next(fitting, "") if component == "transformer" else ""


def _any(pattern: str, keys: Sequence[str]) -> bool:
    return any(re.search(pattern, key) for key in keys)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(keys[:MOST_NAMED]) + more
