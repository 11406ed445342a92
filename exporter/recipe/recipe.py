"""A recipe: a TOML file as frozen data; unknown keys and impossible values are refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np

from exporter import backends
from exporter.bom.licence import parse as parse_licence
from exporter.bom.licence import require_library
from exporter.checkpoint.component import PARTS
from exporter.checkpoint.hub import names_a_path
from exporter.checkpoint.lora import Lora
from exporter.drawing.text import check_prompt
from exporter.errors import InputError, Remark, known
from exporter.files.prompts import read_prompts
from exporter.files.read import is_text, parse_toml, read_text
from exporter.layouts import LAYOUTS, NATIVE
from exporter.marking.key import MarkKey, key_of_environment, read_key
from exporter.marking.pattern import SCHEME, parse_payload, payload_text, refuse_small, tile
from exporter.network.cut import Cut, End, Ends, Previews
from exporter.package.consistent import MOST_SIZES
from exporter.package.manifest import MOST_GUIDANCE, Guidance, MarkEntry, Mode, Schedule
from exporter.package.names import NAMES
from exporter.package.sizes import EXAMPLE, PictureSize, parse_size
from exporter.quantize.formats import (
    FORMATS,
    GROUP_SIZES,
    METHODS,
    ROUNDED_GRAPHS,
    Rule,
    Scheme,
    roles_for,
)
from exporter.quantize.schemes import load_scheme, scheme_names
from exporter.recipe.filter import KEYS as FILTER_KEYS
from exporter.recipe.filter import FilterChoice, graph_places, read_filter
from exporter.recipe.plan import is_plan

S = TypeVar("S", bound=str)
MODES: tuple[Mode, ...] = get_args(Mode)
ENDS: tuple[End, ...] = get_args(End)
PREVIEWS: tuple[Previews, ...] = get_args(Previews)
# Of a recipe that names none: the same wherever other distributions bring more.
DEFAULT_BACKENDS = ("coreml", "onnx", "openvino")
FEWEST_T5_TOKENS, MOST_T5_TOKENS = 2, 512  # one word, and the closing token
MOST_PARTS = 64  # of a graph
LEAST_PX, MOST_PX = 16, 8192  # of a side of a picture
DEFAULT_PROMPTS = ("a red circle",)
PHOTOGRAPHS = Path(__file__).with_name("photographs.prompts.txt")  # calibration's default set

KEYS: dict[str, tuple[str, ...]] = {
    "model": (
        "checkpoint",
        "revision",
        "variant",
        *PARTS,
        "tokenizers",
        "config",
        "tiny_decoder",
        "tiny_encoder",
        "licence",
    ),
    "schedule": ("mode", "sigmas", "guidance", "negative_prompt"),
    "image": (
        "width_px",
        "height_px",
        "sizes",
        "image_to_image",
        "decoder",
        "encoder",
        "previews",
    ),
    "text": ("t5", "t5_tokens", "t5_parts"),
    "weights": ("scheme", "group_size", "symmetric", "override"),
    "build": ("backends", "layout", "device_memory_bytes", "most_file_bytes", "denoiser_parts"),
    "golden": ("prompts", "seed"),
    "calibration": ("prompts", "seed", "methods", "size"),
    "mark": ("payload", "key_file", "key_env"),
    "filter": FILTER_KEYS,
}
LORA_KEYS = ("file", "weight")
OVERRIDE_KEYS = ("graph", "weight", "format", "group_size", "symmetric")


class RecipeWarning(Remark):
    """A key of a recipe means less than whoever wrote it may think."""


@dataclass(frozen=True)
class BackendChoice:
    """A backend to build for, the schemes to build, and a value for each of its options."""

    name: str
    schemes: tuple[str, ...]
    choices: Mapping[str, str]


@dataclass(frozen=True)
class CalibrationChoice:
    """Prompts and the first seed of the trajectories that layers are measured on.

    ``methods``: how 8-, 4- and 2-bit codes are chosen (``calibrate.codes``); without any, to
    nearest, and nothing is measured. ``size``: of the trajectories' pictures; None: the first of
    the recipe's.
    """

    prompts: tuple[str, ...]
    seed: int
    methods: tuple[str, ...]
    size: PictureSize | None = None


@dataclass(frozen=True)
class TinyFiles:
    """Where the tiny autoencoder lies: files or folders; None: where the checkpoint has it.

    ``encoder``: None: beside the decoder, if that is named.
    """

    decoder: str | None = None
    encoder: str | None = None


@dataclass(frozen=True)
class MarkChoice:
    """The mark that pictures carry; its key is in no recipe."""

    payload: int
    key: MarkKey

    @property
    def tile(self) -> np.ndarray:
        """(32, 32) signs, all that a package gets of both."""
        return tile(self.key, self.payload)

    @property
    def entry(self) -> MarkEntry:
        """What a manifest says of it."""
        return MarkEntry(SCHEME, payload_text(self.payload), self.key.id)


@dataclass(frozen=True)
class Recipe:
    """What to build.

    Attributes:
        name: the file's name without suffix.
        checkpoint: a folder or a hub id.
        revision: of a hub id; None: its main branch.
        variant: of the weights' files, such as ``fp16``; None: the plain ones, else the only ones.
        parts: of components, the file or folder to take it from in place of the checkpoint's.
        tokenizers: the folder of the tokenizers' folders; None: the checkpoint's.
        config: the folder of configurations that files do not tell; None: their shapes tell all.
        mode: ``euler`` or ``renoise``.
        cut: the static choices.
        group_size, symmetric: of 4-bit weights; None: as the scheme says.
        overrides: further rules, which win over the scheme's.
        backends: names, in order.
        choices: of every backend that works here, its schemes and options.
        layouts: in which packages are built, each of the same codes (``exporter.layouts``).
        device_memory_bytes: a build whose graphs are predicted to take more is refused; None: any.
        most_file_bytes: the same of the files of a graph, for stores and formats with a limit.
        t5_parts, denoiser_parts: into how many consecutive graphs T5 and the denoiser are cut, for
            devices that cannot hold them.
        prompts, seed: what the golden images show; without prompts there are none.
        calibration: the prompts and the seed of trajectories that activations are measured on.
        tiny: the tiny autoencoder, where ``cut.ends`` use it.
        loras: merged into the checkpoint, in order.
        guidance: away from a negative prompt, or None. ``with_guidance`` sets it, since the cut
            depends on it.
        mark: in every decoder, or None.
        filter: a classifier that pictures have to pass, or None.
        licence: of the weights, in SPDX's words, where the checkpoint does not say it.
        further_sizes: of pictures, besides the size of ``cut``, which is the first.
    """

    name: str
    checkpoint: str
    revision: str | None
    variant: str | None
    parts: Mapping[str, str]
    tokenizers: str | None
    config: str | None
    mode: Mode
    cut: Cut
    group_size: int | None
    symmetric: bool | None
    overrides: tuple[Rule, ...]
    backends: tuple[str, ...]
    choices: tuple[BackendChoice, ...]
    layouts: tuple[str, ...]
    device_memory_bytes: int | None
    most_file_bytes: int | None
    t5_parts: int
    denoiser_parts: int
    prompts: tuple[str, ...]
    seed: int
    calibration: CalibrationChoice
    tiny: TinyFiles = TinyFiles()
    loras: tuple[Lora, ...] = ()
    guidance: Guidance | None = None
    mark: MarkChoice | None = None
    filter: FilterChoice | None = None
    licence: str | None = None
    further_sizes: tuple[PictureSize, ...] = ()

    @property
    def sizes(self) -> tuple[PictureSize, ...]:
        """Of pictures; the first is drawn unless another is asked for."""
        return (PictureSize(self.cut.width_px, self.cut.height_px), *self.further_sizes)

    @property
    def calibrated_size(self) -> PictureSize:
        """At which layers are measured, for the codes and ranges of every size."""
        return self.calibration.size or self.sizes[0]

    def at(self, size: PictureSize) -> Recipe:
        """The same recipe for this size alone."""
        cut = replace(self.cut, width_px=size.width_px, height_px=size.height_px)
        return replace(self, cut=cut, further_sizes=())

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.mode, self.cut.sigmas, self.guidance)

    def with_guidance(self, guidance: Guidance | None) -> Recipe:
        """The same recipe with this guidance, or without any."""
        fixed = guidance is not None and guidance.negative_prompt is not None
        return replace(self, guidance=guidance, cut=replace(self.cut, fixed_negative=fixed))

    def scheme(self, name: str) -> Scheme:
        """A scheme with this recipe's group size, zero points, overrides and methods."""
        scheme = load_scheme(name).with_groups(self.group_size, self.symmetric)
        return replace(scheme.with_rules(self.overrides), methods=self.calibration.methods)

    def backend(self, name: str) -> BackendChoice:
        """The recipe's choice for a backend."""
        return next(choice for choice in self.choices if choice.name == name)

    @property
    def works_with(self) -> tuple[str, ...]:
        """The backends that work here."""
        return tuple(choice.name for choice in self.choices)

    def choosing(self, name: str, choices: Mapping[str, str]) -> Recipe:
        """The recipe with other choices for a backend, which go together."""
        own = replace(self.backend(name), choices=dict(choices))
        chosen = tuple(own if choice.name == name else choice for choice in self.choices)
        return replace(self, choices=chosen)

    @property
    def graph_parts(self) -> dict[str, int]:
        """Into how many consecutive graphs a graph is cut, by its name."""
        return {"t5": self.t5_parts, "denoiser": self.denoiser_parts}

    def digest(self, backend: str, layout: str = NATIVE) -> str:
        """SHA-256 of everything that decides a package's bytes; not of where the weights lie."""
        return hashlib.sha256(self.normal_form(backend, layout).encode()).hexdigest()

    def normal_form(self, backend: str, layout: str = NATIVE) -> str:
        """The JSON text that ``digest`` is of, as packages hold it; ``recipe.again`` reads it."""
        decisive = asdict(replace(self, checkpoint="", backends=(), choices=(), mark=None))
        for key in ("revision", "variant", "parts", "tokenizers", "config", "tiny"):
            del decisive[key]
        del decisive["most_file_bytes"], decisive["cut"]["fixed_negative"]  # guidance says it
        del decisive["layouts"]
        decisive["layout"] = layout  # others that are built beside it decide nothing
        if self.denoiser_parts == 1:  # recipes from before the key keep their digest
            del decisive["denoiser_parts"]
        if self.cut.ends == Ends():
            del decisive["cut"]["ends"]
        del decisive["loras"]
        if self.loras:
            decisive["loras"] = [lora.weight for lora in self.loras]
        if self.guidance is None:
            del decisive["guidance"]
        del decisive["mark"]
        if self.mark is not None:
            decisive["mark"] = asdict(self.mark.entry)
        del decisive["filter"]
        if self.filter is not None:
            decisive["filter"] = self.filter.decisive
        if not self.further_sizes:
            del decisive["further_sizes"]
        if self.calibrated_size == self.sizes[0]:
            del decisive["calibration"]["size"]
        chosen = dict(self.backend(backend).choices)
        if chosen.get("target") == "native":  # as before there was another
            del chosen["target"]
        if chosen.get("contexts") == "beside":
            del chosen["contexts"]
        for key in backends.lists_of(backends.load(backend)):
            if not chosen.get(key):  # as before there was the key
                chosen.pop(key, None)
        if self.licence is None:
            del decisive["licence"]
        decisive["options"] = chosen
        return json.dumps(decisive, sort_keys=True)


def read_recipe(file: Path) -> Recipe:
    """Read a recipe, whose paths are relative to its folder.

    Raises InputError naming the file, the key and the remedy.
    """
    if not file.exists():
        raise InputError(f"{file}: no such recipe{_recipes_near()}")
    raw = parse_toml(read_text(file), file)
    try:
        if not is_text(file.stem):
            raise InputError("its name is not UTF-8, and packages are called by it; rename it")
        return _recipe(file, raw)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _recipes_near() -> str:
    names = sorted(str(p) for p in Path("recipes").glob("*.toml"))
    if names:
        return f"; recipes here: {', '.join(names)}"
    return "; make one of a checkpoint: fourstep recipe CHECKPOINT -o FILE"


def _recipe(file: Path, raw: Mapping[str, Any]) -> Recipe:
    able = backends.working_names()
    for backend in sorted({*backends.names()} - {*able} & {*raw}):
        backends.load(backend)  # says why it cannot be
    keys_of = KEYS | {n: ("scheme", *backends.keys_of(backends.load(n))) for n in able}
    _refuse_unknown("section", raw, {*keys_of, "lora"})
    for section, keys in keys_of.items():
        table = raw.get(section, {})
        if not isinstance(table, dict):
            raise InputError(f"[{section}] must be a table")
        _refuse_unknown(f"key in [{section}]", table, keys)
    get = _Getter(raw, file.parent)
    t5_parts = get.integer("text", "t5_parts", 1, MOST_PARTS, 1)
    if t5_parts > 1 and not get.value("text", "t5", bool, True):
        raise InputError(f"[text] t5_parts = {t5_parts}: needs t5 = true")
    prompts = _prompts(
        "golden", get.value("golden", "prompts", list, list(DEFAULT_PROMPTS)), least=0
    )
    sizes = _sizes(get)
    recipe = Recipe(
        name=file.stem,
        checkpoint=_checkpoint(get),
        revision=get.value("model", "revision", str, None),
        variant=get.value("model", "variant", str, None) or None,
        parts=_parts(get),
        tokenizers=_optional_place(get, "tokenizers"),
        config=_optional_place(get, "config"),
        mode=get.choice("schedule", "mode", MODES, "euler"),
        cut=Cut(
            sigmas=_sigmas(get.value("schedule", "sigmas", list)),
            width_px=sizes[0].width_px,
            height_px=sizes[0].height_px,
            t5=get.value("text", "t5", bool, True),
            t5_tokens=get.integer("text", "t5_tokens", FEWEST_T5_TOKENS, MOST_T5_TOKENS, 77),
            image_to_image=get.value("image", "image_to_image", bool, True),
            ends=_ends(get),
        ),
        group_size=_group_size(raw.get("weights", {}).get("group_size"), "[weights] group_size"),
        symmetric=get.value("weights", "symmetric", bool, None),
        overrides=tuple(_override(o) for o in get.value("weights", "override", list, [])),
        backends=get.names("build", "backends", backends.names(), default=DEFAULT_BACKENDS),
        choices=tuple(_choice(get, name) for name in able),
        layouts=get.names("build", "layout", tuple(LAYOUTS), default=(NATIVE,)),
        device_memory_bytes=get.optional_integer("build", "device_memory_bytes", 1, 1 << 50),
        most_file_bytes=get.optional_integer("build", "most_file_bytes", 1, 1 << 50),
        t5_parts=t5_parts,
        denoiser_parts=get.integer("build", "denoiser_parts", 1, MOST_PARTS, 1),
        prompts=prompts,
        seed=get.integer("golden", "seed", 0, 2**63 - 1, 0),
        calibration=CalibrationChoice(
            calibration_prompts(raw.get("calibration", {}).get("prompts"), file.parent),
            get.integer("calibration", "seed", 0, 2**62, 1000),
            get.names("calibration", "methods", METHODS, default=()),
            _calibrated_size(get),
        ),
        tiny=_tiny(get),
        loras=_loras(raw.get("lora", []), file.parent),
        mark=_mark(get) if "mark" in raw else None,
        filter=_filter(get, raw.get("filter")),
        licence=_licence(get),
        further_sizes=sizes[1:],
    )
    return recipe.with_guidance(_guidance(get))


def _licence(get: _Getter) -> str | None:
    """The licence of ``[model]``, as SPDX spells it; raises InputError."""
    given = get.value("model", "licence", str, None)
    if given is None:
        return None
    require_library("build")
    return parse_licence(given, "[model] licence")


def _sizes(get: _Getter) -> tuple[PictureSize, ...]:
    """The sizes of ``[image]``: a list of them, or one as width and height; raises InputError."""
    listed = get.value("image", "sizes", list, None)
    if listed is None:
        sides = (get.integer("image", key, LEAST_PX, MOST_PX) for key in ("width_px", "height_px"))
        return (PictureSize(*sides),)
    for key in ("width_px", "height_px"):
        if get.value("image", key, object, None) is not None:
            raise InputError(f"[image] {key} and sizes: the sizes say it; leave one of them out")
    if not 0 < len(listed) <= MOST_SIZES:
        raise InputError(
            f"[image] sizes: {len(listed)} of them; from 1 to {MOST_SIZES} are expected, such as "
            '["512x512", "768x512"]'
        )
    found = tuple(_size(given, "[image] sizes") for given in listed)
    for i, size in enumerate(found):
        if size in found[:i]:
            raise InputError(f"[image] sizes: {size} is listed twice; leave one out")
    return found


def _calibrated_size(get: _Getter) -> PictureSize | None:
    given = get.value("calibration", "size", str, None)
    return None if given is None else _size(given, "[calibration] size")


def _size(given: object, where: str) -> PictureSize:
    """A size in words; raises InputError for what is none, or none that can be drawn."""
    try:
        size = parse_size(given if isinstance(given, str) else None)
    except InputError:
        raise InputError(
            f"{where}: {given!r:.60} is no size; write one such as {EXAMPLE}"
        ) from None
    if not all(LEAST_PX <= side <= MOST_PX for side in (size.width_px, size.height_px)):
        raise InputError(f"{where}: {size}: each side must be from {LEAST_PX} to {MOST_PX}")
    return size


def _filter(get: _Getter, table: Mapping[str, Any] | None) -> FilterChoice | None:
    """The classifier of ``[filter]``, and which picture it rejects; None without the table."""
    if table is None:
        return None
    places = {name: place_in(get.folder, p) for name, p in graph_places(table).items()}
    return read_filter(table, places)


def _ends(get: _Getter) -> Ends:
    """The ends of ``[image]``; encoder and previews are as the decoder is, unless named."""
    decoder = get.choice("image", "decoder", ENDS, "full")
    encoder = get.value("image", "encoder", str, None)
    if encoder is not None and not get.value("image", "image_to_image", bool, True):
        raise InputError(f"[image] encoder = {encoder!r}: needs image_to_image = true")
    return Ends(
        decoder,
        get.choice("image", "encoder", ENDS, decoder),
        get.choice("image", "previews", PREVIEWS, "tiny" if decoder == "tiny" else "linear"),
    )


def _tiny(get: _Getter) -> TinyFiles:
    """The places of the tiny autoencoder; raises InputError for one that nothing would read."""
    ends, starts = _ends(get), get.value("image", "image_to_image", bool, True)
    uses = {
        "decoder": "tiny" in (ends.decoder, ends.previews),
        "encoder": starts and ends.encoder == "tiny",
    }
    found: dict[str, str | None] = dict.fromkeys(uses)
    for end, used in uses.items():
        given = get.value("model", f"tiny_{end}", str, None)
        if given is None:
            continue
        if not used:
            more = ' or previews = "tiny"' if end == "decoder" else " and image_to_image = true"
            raise InputError(
                f'[model] tiny_{end}: nothing uses it; set {end} = "tiny"{more} in [image]'
            )
        found[end] = _place(get, f"tiny_{end}")
    return TinyFiles(**found)


def _checkpoint(get: _Getter) -> str:
    """The folder or the hub id of ``[model] checkpoint``; raises InputError."""
    given = get.text("model", "checkpoint")
    place = _place_near(get, "checkpoint", given)
    return str(place) if place.exists() or names_a_path(given) else given


def _parts(get: _Getter) -> dict[str, str]:
    """The components that ``[model]`` takes from elsewhere, by their names; raises InputError."""
    found = {}
    for key, name in PARTS.items():
        if get.value("model", key, str, None) is None:
            continue
        if key == "t5" and not get.value("text", "t5", bool, True):
            raise InputError("[model] t5 is given, and [text] t5 = false does not use it")
        if key == "vae" and not _uses_vae(get):
            raise InputError('[model] vae is given, and [image] decoder = "tiny" does not use it')
        found[name] = _place(get, key)
    return found


def _uses_vae(get: _Getter) -> bool:
    ends, starts = _ends(get), get.value("image", "image_to_image", bool, True)
    return ends.decoder == "full" or (starts and ends.encoder == "full")


def _optional_place(get: _Getter, key: str) -> str | None:
    return None if get.value("model", key, str, None) is None else _place(get, key)


def _place(get: _Getter, key: str) -> str:
    """A file or folder that ``[model]`` names and that is there; raises InputError."""
    place = _place_near(get, key, get.text("model", key))
    if not place.exists():
        raise InputError(f"[model] {key}: {place}: no such file or folder")
    return str(place)


def _place_near(get: _Getter, key: str, given: str) -> Path:
    """A path of ``[model]``; raises InputError for one that is meant from the working folder."""
    place = place_in(get.folder, given)
    if not place.exists() and Path(given).exists():
        raise InputError(
            f"[model] {key} = {given!r}: {place} does not exist; paths in a recipe are "
            f"relative to its folder: {os.path.relpath(given, get.folder)!r} would be right"
        )
    return place


def _loras(raw: Any, folder: Path) -> tuple[Lora, ...]:
    """The tables ``[[lora]]``, in order."""
    if not isinstance(raw, list) or not all(isinstance(table, dict) for table in raw):
        raise InputError("[[lora]] must be a table, in two pairs of brackets, with a file")
    return tuple(_lora(table, folder) for table in raw)


def _lora(raw: Mapping[str, Any], folder: Path) -> Lora:
    where = "[[lora]]"
    _refuse_unknown(f"key in {where}", raw, LORA_KEYS)
    file, weight = raw.get("file"), raw.get("weight", 1.0)
    if not isinstance(file, str) or not file:
        raise InputError(f"{where} file: the name of a .safetensors file or a folder is expected")
    if type(weight) not in (int, float):
        raise InputError(f"{where} weight = {weight!r}: must be a number")
    if weight == 0:
        raise InputError(f"{where} weight = 0: {file} would change nothing; leave the table out")
    return Lora(place_in(folder, file), float(weight))


def place_in(folder: Path, name: str) -> Path:
    """A path of a recipe, relative to the recipe's folder; ``~`` is the home folder."""
    try:
        return folder / Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name}: {error}") from None


def _choice(get: _Getter, name: str) -> BackendChoice:
    """The table ``[<backend>]``; its schemes are ``[weights] scheme`` unless it names others."""
    own = get.names(name, "scheme", scheme_names(), default=())
    schemes = own or get.names("weights", "scheme", scheme_names(), default=None)
    backend = backends.load(name)
    options = backend.options
    choices = {key: get.choice(name, key, values, values[0]) for key, values in options.items()}
    for key, values in backends.lists_of(backend).items():
        choices[key] = ",".join(get.names(name, key, values, default=()))
    reason = backends.refuse_choices(backend, choices)
    if reason:
        raise InputError(f"[{name}] {reason}")
    return BackendChoice(name, schemes, choices)


class _Getter:
    """Typed look-ups that word their own errors."""

    def __init__(self, raw: Mapping[str, Any], folder: Path) -> None:
        self._raw, self.folder = raw, folder

    def value(self, section: str, key: str, kind: type, default: Any = ...) -> Any:
        value = self._raw.get(section, {}).get(key, default)
        if value is ...:
            raise InputError(f"[{section}] {key} is missing")
        if value is not default and kind is not object and type(value) is not kind:
            raise InputError(f"[{section}] {key} = {value!r}: must be a {_words(kind)}")
        return value

    def text(self, section: str, key: str) -> str:
        value = self.value(section, key, str)
        if not value:
            raise InputError(f"[{section}] {key} is empty")
        return str(value)

    def integer(self, section: str, key: str, low: int, high: int, default: Any = ...) -> int:
        value = self.value(section, key, int, default)
        if not low <= value <= high:
            raise InputError(f"[{section}] {key} = {value}: must be from {low} to {high}")
        return int(value)

    def number(self, section: str, key: str, default: float) -> float:
        value = self._raw.get(section, {}).get(key, default)
        if type(value) not in (int, float):
            raise InputError(f"[{section}] {key} = {value!r}: must be a number")
        return float(value)

    def optional_integer(self, section: str, key: str, low: int, high: int) -> int | None:
        return self.integer(section, key, low, high) if key in self._raw.get(section, {}) else None

    def choice(self, section: str, key: str, options: tuple[S, ...], default: S) -> S:
        value = self.value(section, key, str, default)
        for option in options:
            if option == value:
                return option
        raise InputError(f"[{section}] {key}: {known('value', value, options)}")

    def names(
        self, section: str, key: str, options: tuple[str, ...], default: tuple[str, ...] | None
    ) -> tuple[str, ...]:
        value = self._raw.get(section, {}).get(key)
        if default is not None and (value is None or (value == [] and not default)):
            return default
        if value is None:
            raise InputError(f"[{section}] {key} is missing; known: {', '.join(options)}")
        value = [value] if isinstance(value, str) else value
        listed = isinstance(value, list) and (value or key == "methods")
        if not listed or not all(isinstance(v, str) for v in value):
            raise InputError(f"[{section}] {key}: a name or a list of names is expected")
        for name in value:
            if name not in options and not (key == "scheme" and is_plan(name)):
                raise InputError(f"[{section}] {key}: {known(key.rstrip('s'), name, options)}")
        if key == "scheme":
            value = [str(place_in(self.folder, n)) if is_plan(n) else n for n in value]
        return tuple(dict.fromkeys(value))


def _words(kind: type) -> str:
    return {int: "whole number", str: "string", bool: "true or false", list: "list"}[kind]


def _refuse_unknown(kind: str, found: Mapping[str, Any], allowed: Any) -> None:
    for key in found:
        if key not in allowed:
            raise InputError(known(kind, key, allowed))


def _sigmas(values: list[Any]) -> tuple[float, ...]:
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise InputError("[schedule] sigmas: numbers are expected")
    sigmas = tuple(float(v) for v in values)
    falling = all(a > b for a, b in itertools.pairwise(sigmas))
    if len(sigmas) < 2 or sigmas[0] > 1 or sigmas[-1] != 0 or not falling:
        raise InputError(
            f"[schedule] sigmas = {list(sigmas)}: must fall from at most 1.0 to 0.0, "
            "one more than the steps, such as [1.0, 0.9, 0.75, 0.5, 0.0]"
        )
    return sigmas


def _guidance(get: _Getter) -> Guidance | None:
    """Above 1, as diffusers takes it; else none, and RecipeWarning if that is not plain.

    Raises InputError for what is no number, and for a negative prompt that nothing would use.
    """
    scale = get.number("schedule", "guidance", 1.0)
    negative = get.value("schedule", "negative_prompt", str, None)
    if scale > MOST_GUIDANCE:
        raise InputError(f"[schedule] guidance = {scale:g}: must be at most {MOST_GUIDANCE}")
    if scale > 1:
        if negative is not None:
            check_prompt(negative, "[schedule] negative_prompt")
        return Guidance(scale, negative)
    if negative is not None:
        raise InputError(
            "[schedule] negative_prompt: is used by guidance above 1 alone, such as "
            f"guidance = 4.5, and guidance is {scale:g}"
        )
    if scale != 1:
        said = f"[schedule] guidance = {scale:g}: 1 and below is none, as in diffusers"
        warnings.warn(said, RecipeWarning, stacklevel=2)
    return None


def _mark(get: _Getter) -> MarkChoice:
    """The mark of ``[mark]``; raises InputError."""
    payload = parse_payload(get.value("mark", "payload", object), "[mark] payload")
    file, name = (get.value("mark", key, str, None) for key in ("key_file", "key_env"))
    if (file is None) == (name is None):
        raise InputError(
            "[mark]: give its key as key_file, a file that 'fourstep mark key FILE' makes, or as "
            "key_env, a variable of the environment, and not as both"
        )
    for size in _sizes(get):
        refuse_small(size.height_px, size.width_px, "[mark]")
    if name is not None:
        return MarkChoice(payload, key_of_environment(name, "[mark] key_env"))
    return MarkChoice(payload, read_key(place_in(get.folder, file), "[mark] key_file"))


def _group_size(value: Any, where: str) -> int | None:
    if value is not None and (type(value) is not int or value not in GROUP_SIZES):
        raise InputError(f"{where}: {known('group size', value, GROUP_SIZES)}")
    return value


def _override(raw: Any) -> Rule:
    where = "[[weights.override]]"
    if not isinstance(raw, dict):
        raise InputError(f"{where} must be a table")
    _refuse_unknown(f"key in {where}", raw, OVERRIDE_KEYS)
    if not isinstance(raw.get("format"), str) or raw["format"] not in FORMATS:
        raise InputError(f"{where} format: {known('format', raw.get('format'), FORMATS)}")
    graph, weight = raw.get("graph", "*"), raw.get("weight", "*")
    if not isinstance(graph, str) or not isinstance(weight, str):
        raise InputError(
            f"{where} graph and weight must be patterns such as 'transformer_blocks.0.*'"
        )
    if not any(Rule(graph, "*", FORMATS["fp32"]).matches(n, "", "linear") for n in NAMES):
        raise InputError(f"{where} graph: {known('graph', graph, NAMES)}")
    form = FORMATS[raw["format"]]
    size = _group_size(raw.get("group_size"), f"{where} group_size")
    symmetric = raw.get("symmetric")
    if not form.is_grouped and (size is not None or symmetric is not None):
        grouped = " and ".join(name for name, f in FORMATS.items() if f.is_grouped)
        raise InputError(f"{where} group_size and symmetric apply to {grouped}, not to {form.name}")
    if form.rounds_inputs and graph not in ROUNDED_GRAPHS:
        raise InputError(f"{where} w8a8 applies to graph: {' or '.join(ROUNDED_GRAPHS)}")
    if size is not None:
        form = replace(form, group_size=size)
    if symmetric is not None:
        if type(symmetric) is not bool:
            raise InputError(f"{where} symmetric: must be true or false")
        form = replace(form, symmetric=symmetric)
    return Rule(graph, weight, form, roles_for(form))


def _prompts(section: str, values: list[Any], least: int = 1) -> tuple[str, ...]:
    if len(values) < least or not all(isinstance(v, str) for v in values):
        wanted = "at least one string is" if least else "strings are"
        raise InputError(f"[{section}] prompts: {wanted} expected")
    return tuple(values)


def calibration_prompts(value: Any = None, folder: Path = Path()) -> tuple[str, ...]:
    """A list of prompts, or the name of a text file with one prompt per line; each counts once.

    None: the prompts of a recipe that names none. A file's name is relative to ``folder``.
    """
    where = "[calibration] prompts"
    if value is None:
        value = str(PHOTOGRAPHS)
    if isinstance(value, list):
        return tuple(dict.fromkeys(_prompts("calibration", value)))
    if not isinstance(value, str):
        raise InputError(f"{where}: a list of prompts or the name of a text file is expected")
    place = place_in(folder, value)
    found = read_prompts(place, lambda said: InputError(f"{where}: {said}"))
    return tuple(dict.fromkeys(found.values()))
