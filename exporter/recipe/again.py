"""A recipe read back from the normal form that a package holds, for building it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from exporter import backends
from exporter.checkpoint.component import PARTS
from exporter.checkpoint.lora import Lora
from exporter.errors import CheckFailed, InputError, known
from exporter.files.read import convert, parse_json
from exporter.marking.key import MarkKey
from exporter.marking.pattern import parse_payload
from exporter.package.manifest import Manifest, MarkEntry
from exporter.recipe.filter import FilterChoice
from exporter.recipe.recipe import MarkChoice, Recipe

PLACES = (*PARTS, "tokenizers", "config", "tiny_decoder", "tiny_encoder")  # keys of [model]
UNPLACED = ("loras", "mark", "filter", "layout")
NEWER = "update fourstep, or build with the version that the manifest names"


@dataclass(frozen=True)
class Givens:
    """What no package holds: where its weights lie, and the key of its mark.

    Attributes:
        checkpoint: a folder, a file or a hub id.
        places: of parts from elsewhere, by their keys in ``[model]``.
        loras: files, in the order in which they were merged.
        mark_key: of a package whose pictures are marked, or None.
    """

    checkpoint: str
    places: Mapping[str, str] = field(default_factory=dict)
    loras: Sequence[Path] = ()
    mark_key: MarkKey | None = None


def recipe_again(
    text: str, where: Path, package: Path, manifest: Manifest, given: Givens
) -> Recipe:
    """The recipe that a package was built from, with what is given in its places.

    Raises InputError for something that was given and does not belong to it, or that is missing;
    CheckFailed for a text that this fourstep reads in another way than it was written.
    """
    for key in given.places:
        if key not in PLACES:
            raise InputError(known("key of [model]", key, PLACES), field="places")
    raw = parse_json(text, where, CheckFailed)
    if not isinstance(raw, dict):
        raise CheckFailed(f"{where}: a JSON object is expected; copy the package again")
    placed = _placed(raw, manifest, given)
    recipe = convert(placed, Recipe, where, CheckFailed)
    recipe = replace(
        recipe,
        loras=loras_of(manifest, given.loras),
        mark=mark_of(manifest.mark, given.mark_key),
        filter=_filter(raw.get("filter"), package, manifest, where),
    )
    if recipe.normal_form(manifest.backend) != text:
        raise CheckFailed(f"{where}: this fourstep reads it in another way; {NEWER}")
    return recipe


def loras_of(manifest: Manifest, files: Sequence[Path]) -> tuple[Lora, ...]:
    """The LoRAs of a package, with the weights that it names; raises InputError for others."""
    entries = manifest.origin.loras
    if len(files) != len(entries):
        raise InputError(
            f"{len(entries)} LoRAs were merged, and {len(files)} are given; name each, in order",
            field="loras",
        )
    return tuple(Lora(file, entry.weight) for file, entry in zip(files, entries, strict=True))


def mark_of(entry: MarkEntry | None, key: MarkKey | None) -> MarkChoice | None:
    """The mark of a package with its key, which no package holds; raises InputError."""
    if entry is None:
        if key is not None:
            raise InputError("is given, and the package has no mark", field="mark_key")
        return None
    if key is None:
        raise InputError(
            f"pictures are marked with key {entry.key_id}, which no package holds; give its file",
            field="mark_key",
        )
    if key.id != entry.key_id:
        raise InputError(
            f"is key {key.id}, and pictures are marked with key {entry.key_id}", field="mark_key"
        )
    return MarkChoice(parse_payload(entry.payload, "mark.payload"), key)


def _placed(raw: Mapping[str, Any], manifest: Manifest, given: Givens) -> dict[str, Any]:
    """A recipe's normal form with all that it leaves out."""
    guidance = raw.get("guidance")
    fixed = isinstance(guidance, dict) and guidance.get("negative_prompt") is not None
    cut = raw.get("cut")
    places = dict(given.places)
    tiny = {end: places.pop(f"tiny_{end}", None) for end in ("decoder", "encoder")}
    own = {key: places.pop(key, None) for key in ("tokenizers", "config")}
    return {
        "denoiser_parts": 1,
        **{key: value for key, value in raw.items() if key not in UNPLACED},
        "layouts": [raw.get("layout")],
        "cut": {**cut, "fixed_negative": fixed} if isinstance(cut, dict) else cut,
        "checkpoint": given.checkpoint,
        "revision": None,
        "variant": None,
        "parts": {PARTS[key]: place for key, place in places.items()},
        **own,
        "tiny": tiny,
        "most_file_bytes": None,
        "backends": [manifest.backend],
        "choices": [
            {
                "name": manifest.backend,
                "schemes": [manifest.scheme],
                "choices": _options(manifest.backend, raw.get("options")),
            }
        ],
    }


def _options(backend: str, chosen: object) -> dict[str, object]:
    """A value for each of a backend's options: what was chosen, else its default."""
    defaults = backends.default_choices(backends.load(backend))
    return {**defaults, **(chosen if isinstance(chosen, dict) else {})}


def _filter(raw: object, package: Path, manifest: Manifest, where: Path) -> FilterChoice | None:
    """The filter of a package, with the classifier that it holds; None without one."""
    graph = next((graph for graph in manifest.graphs if graph.name == "filter"), None)
    if raw is None or graph is None:
        return None
    settings: dict[str, Any] = dict(raw) if isinstance(raw, dict) else {}
    graphs = {"": str(package / graph.entry)}
    return convert({**settings, "graphs": graphs}, FilterChoice, where, CheckFailed)
