"""The bill of materials of a package: an ML-BOM of CycloneDX, with the same bytes for the same one.

It says nothing of when or where it was written, and its serial number follows from the package's
digest, so that builds stay reproducible. The library that writes it knows no model cards and no
data sets yet: those two are put into its JSON, and its own validator checks the whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from exporter import __version__
from exporter.bom.check import MAY_BE_ABSENT, SBOM
from exporter.bom.licence import LIBRARY, require_library
from exporter.errors import InputError, needs_extra
from exporter.files.read import parse_json
from exporter.package.layout import LayoutGraph, LayoutManifest
from exporter.package.manifest import (
    FileEntry,
    Filter,
    GraphEntry,
    Guidance,
    Manifest,
    mark_words,
    to_json,
    version_of,
)
from exporter.package.names import FILTER
from exporter.package.sizes import sizes_of

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License, LicenseExpression

PREFIX = "fourstep:"  # of properties that CycloneDX has no place for
HEAD = ("$schema", "bomFormat", "specVersion", "serialNumber", "version", "metadata")
PACKAGE, CHECKPOINT, CALIBRATION = "package", "checkpoint", "calibration-prompts"

Described = Manifest | LayoutManifest


@dataclass(frozen=True)
class GoldenLoss:
    """What quantizing cost a golden picture.

    Attributes:
        prompt, seed, size: of the picture.
        psnr_db: of the quantized model's picture to the unquantized one's, both as torch drew them.
    """

    prompt: str
    seed: int
    size: str
    psnr_db: float


@dataclass(frozen=True)
class Evidence:
    """What a package's manifest does not say itself.

    Attributes:
        losses: of its golden pictures.
        prompts: that layers were measured on; none where nothing was, or where it is not known.
    """

    losses: Sequence[GoldenLoss] = ()
    prompts: Sequence[str] = ()


def bill_of(manifest: Manifest, evidence: Evidence) -> str:
    """The JSON text of a package's bill; raises InputError where the library is not installed."""
    require_library()
    from cyclonedx.output.json import JsonV1Dot7

    without = _without_bill(manifest)
    raw = parse_json(JsonV1Dot7(_bom(without, evidence)).output_as_string(), SBOM)
    raw["metadata"]["component"]["modelCard"] = _model_card(without, evidence)
    for component in raw["components"]:
        if component["bom-ref"] == CALIBRATION:
            component["data"] = [_data_set(evidence.prompts)]
    ordered = {key: raw[key] for key in (*HEAD, *(key for key in raw if key not in HEAD))}
    return json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"


def bill_of_layout(layout: LayoutManifest) -> str:
    """The JSON text of the bill of a folder in a layout for clients of others; raises as above."""
    require_library()
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot7

    digest = hashlib.sha256(json.dumps(asdict(layout), sort_keys=True).encode()).digest()
    bom = Bom(serial_number=uuid.UUID(bytes=digest[:16], version=5))
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the library has one by itself
    bom.metadata.tools = ToolRepository(components=_tools(layout))
    package = _package(layout, _layout_facts(layout))
    bom.metadata.component = package
    sources = [_checkpoint(layout), *_loras(layout)]
    files = [_file(file, frozenset()) for file in layout.files]
    bom.components.update([*sources, *files])
    bom.register_dependency(package, [*sources, *files])
    raw = parse_json(JsonV1Dot7(bom).output_as_string(), SBOM)
    ordered = {key: raw[key] for key in (*HEAD, *(key for key in raw if key not in HEAD))}
    return json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"


def _layout_facts(layout: LayoutManifest) -> Iterable[tuple[str, object]]:
    """What is said of a folder for clients, by name."""
    origin, schedule = layout.origin, layout.schedule
    yield "backend", layout.backend
    yield "layout", layout.layout
    yield "clients", ", ".join(layout.clients)
    yield "steps", schedule.steps
    yield "schedule", f"{schedule.mode}, sigmas {list(schedule.sigmas)}"
    yield "quantization:scheme", layout.scheme
    yield "quantization:methods", ", ".join(origin.methods) or "to nearest"
    yield from _formats("quantization:format", _counts(layout.graphs))
    yield "recipe_sha256", origin.recipe_sha256
    yield "mark", mark_words(layout.mark)
    yield "attribution", origin.attribution


def check_schema(text: str) -> None:
    """Raise InputError for a bill that the library's validator refuses, or where there is none."""
    require_library()
    from cyclonedx.exception import MissingOptionalDependencyException
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    try:
        error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)
    except MissingOptionalDependencyException:
        raise needs_extra("bom", f"{LIBRARY}[json-validation]") from None
    if error is not None:
        raise InputError(f"{SBOM}: not as the schema of CycloneDX 1.7 asks: {error.data.message}")


def _without_bill(manifest: Manifest) -> Manifest:
    """The manifest as it was before there was a bill, which cannot hold its own digest."""
    files = tuple(file for file in manifest.files if file.path != manifest.bom)
    bare = replace(manifest, bom="", files=files)
    return replace(bare, format_version=version_of(bare))


def _bom(manifest: Manifest, evidence: Evidence) -> Any:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.tool import ToolRepository

    digest = hashlib.sha256(to_json(manifest).encode()).digest()
    bom = Bom(serial_number=uuid.UUID(bytes=digest[:16], version=5))
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the library has one by itself
    bom.metadata.tools = ToolRepository(components=_tools(manifest))
    package = _package(manifest, _facts(manifest))
    bom.metadata.component = package
    sources = [_checkpoint(manifest), *_loras(manifest), *_calibration(evidence.prompts)]
    graphs = [_graph(graph) for graph in manifest.graphs]
    files = [_file(file, _golden(manifest)) for file in manifest.files]
    bom.components.update([*sources, *graphs, *files])
    bom.register_dependency(package, [*sources, *graphs, *files])
    return bom


def _package(manifest: Described, facts: Iterable[tuple[str, object]]) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=manifest.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=f"{manifest.backend}-{manifest.scheme}",
        bom_ref=PACKAGE,
        description=f"Draws pictures from words in {manifest.schedule.steps} steps.",
        licenses=_licences(manifest),
        properties=_properties(facts),
    )


def _facts(manifest: Manifest) -> Iterable[tuple[str, object]]:
    """What is said of a package beyond its model card, by name."""
    origin, schedule = manifest.origin, manifest.schedule
    yield "backend", manifest.backend
    yield "layout", manifest.layout
    yield from (("size_px", size) for size in sizes_of(manifest))
    yield "steps", schedule.steps
    yield "schedule", f"{schedule.mode}, sigmas {list(schedule.sigmas)}"
    yield "guidance", _guidance(schedule.guidance)
    yield "t5", "on board" if manifest.text.t5 else "replaced by null tokens"
    yield "quantization:scheme", manifest.scheme
    yield "quantization:methods", ", ".join(origin.methods) or "to nearest"
    yield from _formats("quantization:format", _counts(manifest.graphs))
    yield "recipe_sha256", origin.recipe_sha256
    yield "plan_sha256", origin.plan_sha256
    yield "statistics_sha256", origin.statistics_sha256
    yield "mark", mark_words(manifest.mark)
    if manifest.mark is not None:
        yield from ((f"mark:{name}", said) for name, said in asdict(manifest.mark).items())
    yield "filter", _filter(manifest.filter)
    yield "attribution", origin.attribution
    yield "predicted_peak_bytes", manifest.device.predicted_peak_bytes


def _formats(fact: str, counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """How many weight values are stored in each format: the first number of its name is bits."""
    bits = {name: "".join(re.findall(r"[0-9]+", name)[:1]) for name in counts}
    return [(fact, f"{name}, {bits[name]} bits: {count} values") for name, count in counts.items()]


def _counts(graphs: Sequence[GraphEntry | LayoutGraph]) -> dict[str, int]:
    """How many weight values of all graphs are stored in each format."""
    found: dict[str, int] = {}
    for graph in graphs:
        for name, count in graph.formats.items():
            found[name] = found.get(name, 0) + count
    return dict(sorted(found.items()))


def _guidance(guidance: Guidance | None) -> str:
    return "none" if guidance is None else f"{guidance.scale:g}"


def _filter(entry: Filter | None) -> str:
    if entry is None:
        return "none"
    return f"rejects pictures that score {entry.threshold:g} or {entry.reject}: {entry.label}"


def _checkpoint(manifest: Described) -> Component:
    """What the package was made of; its digest is of tensors, wherever they lie."""
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=f"{manifest.name} checkpoint",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=CHECKPOINT,
        description="The weights that the graphs were made of.",
        hashes=_hashes(manifest.origin.checkpoint_sha256),
        licenses=_licences(manifest),
        properties=_properties([("digest_of", "tensors, configurations and tokenizers")]),
    )


def _loras(manifest: Described) -> list[Component]:
    from cyclonedx.model.component import Component, ComponentType

    return [
        Component(
            name=f"LoRA {number}",
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=f"lora-{number}",
            description="Merged into the checkpoint's weights.",
            hashes=_hashes(lora.sha256),
            properties=_properties([("digest_of", "its changes"), ("weight", f"{lora.weight:g}")]),
        )
        for number, lora in enumerate(manifest.origin.loras, 1)
    ]


def _calibration(prompts: Sequence[str]) -> list[Component]:
    from cyclonedx.model.component import Component, ComponentType

    if not prompts:
        return []
    return [
        Component(
            name="calibration prompts",
            type=ComponentType.DATA,
            bom_ref=CALIBRATION,
            description=f"{len(prompts)} prompts that the inputs of layers were measured on.",
            hashes=_hashes(hashlib.sha256("\n".join(prompts).encode()).hexdigest()),
        )
    ]


def _graph(graph: GraphEntry) -> Component:
    """A graph, and in it each of its files."""
    from cyclonedx.model.component import Component, ComponentType

    own = "The user's classifier." if graph.name == FILTER else "A part of the network."
    formats = _formats("format", graph.formats)
    return Component(
        name=f"graph {graph.name}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"graph-{graph.name}",
        description=own,
        components=[_file(file, frozenset()) for file in graph.files],
        properties=_properties([*formats, *(("remark", said) for said in graph.remarks)]),
    )


def _file(file: FileEntry, golden: frozenset[str]) -> Component:
    from cyclonedx.model.component import Component, ComponentScope, ComponentType

    return Component(
        name=file.path,
        type=ComponentType.FILE,
        bom_ref=f"file-{file.path}",
        scope=ComponentScope(MAY_BE_ABSENT) if file.path in golden else None,
        hashes=_hashes(file.sha256),
        properties=_properties([("bytes", file.bytes)]),
    )


def _golden(manifest: Manifest) -> frozenset[str]:
    """Files to compare with alone, which bundles may leave out."""
    golden = manifest.golden
    drawn = (*golden.pictures, *(g for size in manifest.sizes for g in size.pictures))
    pictures = {p for g in drawn for p in (g.image, g.unquantized, g.tensors)}
    return frozenset(pictures | {golden.tokens, golden.noise})


def _tools(manifest: Described) -> list[Component]:
    """What the package was built with, and what wrote the bill, with versions."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    own = {LIBRARY: importlib.metadata.version(LIBRARY), "fourstep": __version__}
    versions = sorted({*own.items(), *manifest.origin.tools.items()})
    return [
        Component(
            name=name,
            type=ComponentType.APPLICATION if name == "fourstep" else ComponentType.LIBRARY,
            version=version,
            bom_ref=f"tool-{name}-{version}",
            purl=PackageURL("pypi", name=name, version=version),
        )
        for name, version in versions
    ]


def _licences(manifest: Described) -> list[License | LicenseExpression]:
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
    from cyclonedx.spdx import is_supported_id

    name = manifest.origin.licence_id
    if not name:
        return []
    return [DisjunctiveLicense(id=name) if is_supported_id(name) else LicenseExpression(name)]


def _hashes(sha256: str) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]


def _properties(facts: Iterable[tuple[str, object]]) -> list[Property]:
    """Those that say something."""
    from cyclonedx.model import Property

    said = [(name, str(value)) for name, value in facts if value not in ("", None)]
    return [Property(name=f"{PREFIX}{name}", value=value) for name, value in said]


def _model_card(manifest: Manifest, evidence: Evidence) -> dict[str, Any]:
    mark, rejected = manifest.mark, _filter(manifest.filter)
    sizes = " or ".join(map(str, sizes_of(manifest)))
    starts = any(stage.image_to_image_only for stage in manifest.stages)
    parameters: dict[str, Any] = {
        "task": "text-to-image",
        "architectureFamily": "diffusion transformer",
        "modelArchitecture": "MMDiT with a VAE and text encoders, as in Stable Diffusion 3.5",
        "inputs": [{"format": "text"}, *([{"format": "image"}] if starts else [])],
        "outputs": [{"format": "image"}],
    }
    if evidence.prompts:
        parameters["datasets"] = [{"ref": CALIBRATION}]
    limits = (
        f"Draws {sizes} px in {manifest.schedule.steps} steps ({manifest.schedule.mode}), and "
        "nothing else."
    )
    card: dict[str, Any] = {"modelParameters": parameters}
    if evidence.losses:
        card["quantitativeAnalysis"] = {"performanceMetrics": [*map(_metric, evidence.losses)]}
    card["considerations"] = {
        "useCases": ["Pictures from words, on a device, without a network."],
        "technicalLimitations": [limits],
        "ethicalConsiderations": [
            {"name": "pictures taken for photographs", "mitigationStrategy": mark_words(mark)},
            {"name": "pictures not to be shown", "mitigationStrategy": f"filter: {rejected}"},
        ],
    }
    return card


def _metric(loss: GoldenLoss) -> dict[str, str]:
    """Two decimals; pictures that are the same have a PSNR of ``inf``."""
    return {
        "type": "PSNR in dB of a golden picture to the unquantized model's",
        "value": f"{loss.psnr_db:.2f}",
        "slice": f"prompt {loss.prompt!r}, seed {loss.seed}, {loss.size} px",
    }


def _data_set(prompts: Sequence[str]) -> Mapping[str, Any]:
    """The prompts, a line each."""
    return {
        "type": "dataset",
        "name": "calibration prompts",
        "contents": {"attachment": {"contentType": "text/plain", "content": "\n".join(prompts)}},
    }
