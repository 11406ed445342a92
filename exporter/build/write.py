"""Writes what a package holds, into the folder that ``staging`` makes whole or absent."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from exporter import __version__, backends
from exporter.backends.contract import Backend, EmitOptions, MeasuredCosts
from exporter.build import golden
from exporter.build.filter import PreparedFilter
from exporter.build.golden import USUAL, Allowance, Drawing, Pictures
from exporter.build.model import Model
from exporter.calibrate.store import Calibration
from exporter.checkpoint.open import Checkpoint
from exporter.checkpoint.tokenizers import TokenizerFile
from exporter.files.read import file_digest, parse_json
from exporter.files.staging import write_whole
from exporter.network.wiring import filter_stage, picture_of, stages
from exporter.package.manifest import (
    FIRST_VERSION,
    DeviceEntry,
    FileEntry,
    GraphEntry,
    LoraEntry,
    Manifest,
    NoiseEntry,
    OriginEntry,
    PreviewEntry,
    Stage,
    TextEntry,
    version_of,
)
from exporter.package.names import graph_of
from exporter.package.preview import fit, preview_of
from exporter.package.read import write_manifest
from exporter.predict.graph import run_bytes
from exporter.program.sizes import activation_bytes
from exporter.quantize.formats import Scheme
from exporter.quantize.program import QuantizedProgram
from exporter.recipe.plan import Plan

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


@dataclass(frozen=True)
class Origin:
    """What decided a package's codes.

    Attributes:
        scheme: with its methods.
        plan: the plan that the scheme was read from, or None.
        programs: the quantized programs, by graph.
        calibration: statistics that codes were chosen with, or None.
        filter: the classifier that pictures have to pass, or None.
    """

    scheme: Scheme
    plan: Plan | None
    programs: Mapping[str, QuantizedProgram]
    calibration: Calibration | None
    filter: PreparedFilter | None = None

    @property
    def statistics_sha256(self) -> str:
        """Of the statistics that codes were chosen with; empty without any."""
        return self.calibration.sha256 if self.calibration and self.scheme.used_methods else ""

    @property
    def plan_sha256(self) -> str:
        """Of the plan; empty without one."""
        return self.plan.sha256 if self.plan else ""


def emit_graph(
    backend: Backend,
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    folder: Path,
    options: EmitOptions,
    allowed: Allowance = USUAL,
) -> GraphEntry:
    """Let a backend write one graph into ``folder``/graphs/<graph>; returns its manifest entry.

    Args:
        allowed: what the graph may differ by besides what the backend says.
    """
    place = folder / "graphs" / program.name
    place.mkdir(parents=True)
    emitted = backend.emit(program, read, place, options)
    return GraphEntry(
        name=program.name,
        entry=emitted.entry.relative_to(folder).as_posix(),
        inputs=program.inputs,
        outputs=program.outputs,
        files=_describe(folder, emitted.files),
        formats=program.values_by_format(),
        adjusted=program.adjusted + emitted.adjusted,
        activation_bytes=activation_bytes(program),
        run_bytes=run_bytes(program, backend.costs) if backend.costs else None,
        tolerance=allowed.widened(emitted.tolerance),
        session=emitted.session,
        remarks=emitted.remarks,
    )


def fill(
    folder: Path,
    model: Model,
    backend: Backend,
    graphs: Sequence[GraphEntry],
    origin: Origin,
    pictures: Pictures,
) -> Manifest:
    """Write everything that stands beside the graphs, the manifest last."""
    recipe, tokenizers = model.recipe, model.tokenizers
    described = {name: file.entry for name, file in tokenizers.items()}
    picture = picture_of(graphs, _preview(pictures.plain), recipe.cut.ends.previews)
    shown = preview_of(picture.preview, picture.pixels) if picture.preview else None
    if origin.filter is not None:
        pictures = origin.filter.judged(pictures)
    entry, files = golden.write(folder, pictures, tokenizers, shown)
    files += _write_tokenizers(folder, tokenizers)
    files += backend.write_beside(folder, described)
    files += _write_plan(folder, origin)
    licences = _copy_licences(model.checkpoint, folder)
    filters = write_filter(folder, origin.filter, graphs)
    manifest = Manifest(
        format_version=FIRST_VERSION,
        name=recipe.name,
        backend=backend.name,
        scheme=origin.scheme.name,
        layout=recipe.layout,
        origin=_origin_entry(model, backend, origin, licences),
        schedule=model.schedule,
        picture=picture,
        noise=NoiseEntry(),
        text=TextEntry(recipe.cut.t5, described),
        stages=(*stages(graphs, model.schedule.guidance), *(turn for _, turn in filters)),
        graphs=(*graphs, *(graph for graph, _ in filters)),
        golden=entry,
        files=_describe(folder, [*files, *licences]),
        device=DeviceEntry(_peak_bytes(graphs, picture.preview_graph, backend.costs)),
        mark=recipe.mark.entry if recipe.mark else None,
        filter=origin.filter.entry if origin.filter else None,
    )
    manifest = replace(manifest, format_version=version_of(manifest))
    write_manifest(folder, manifest)
    return manifest


def write_filter(
    folder: Path, prepared: PreparedFilter | None, graphs: Sequence[GraphEntry]
) -> list[tuple[GraphEntry, Stage]]:
    """The user's classifier, copied, and its turn; nothing without one."""
    if prepared is None:
        return []
    least_db = min(graph.tolerance.image_psnr_db for graph in graphs)
    graph, copied = prepared.write(folder, least_db)
    graph = replace(graph, files=_describe(folder, copied))
    return [(graph, filter_stage(graph, prepared.output.name))]


def _origin_entry(
    model: Model, backend: Backend, origin: Origin, licences: Sequence[Path]
) -> OriginEntry:
    return OriginEntry(
        recipe_sha256=model.recipe.digest(backend.name),
        checkpoint_sha256=model.checkpoint.digest,
        statistics_sha256=origin.statistics_sha256,
        plan_sha256=origin.plan_sha256,
        methods=origin.scheme.used_methods,
        tools=tools_of(backend),
        licence=licences[0].name if licences else "",
        loras=tuple(LoraEntry(lora.digest, lora.weight) for lora in model.checkpoint.loras),
    )


def _peak_bytes(
    graphs: Sequence[GraphEntry], preview_graph: str, costs: MeasuredCosts | None
) -> int | None:
    """Graphs run in turn: of the one that takes the most; None where that was not measured.

    The graph that shows previews is open beside the denoiser.
    """
    sizes = {g.name: g.run_bytes for g in graphs if g.run_bytes is not None}
    if len(sizes) < len(graphs) or costs is None:
        return None
    by_graph = {
        name: max(size for part, size in sizes.items() if graph_of(part) == name)
        for name in map(graph_of, sizes)
    }
    shown = by_graph.get(preview_graph, costs.process_bytes) - costs.process_bytes
    return int(max(*by_graph.values(), by_graph["denoiser"] + shown))


def _preview(plain: Sequence[Drawing]) -> PreviewEntry | None:
    """The map from latents to colours that fits the unquantized pictures; None without any."""
    if not plain:
        return None
    return fit([d.image.latent for d in plain], [d.decoded for d in plain]).entry()


def log_of(target: Path) -> Path:
    """The file of what may differ from build to build, beside the package rather than in it."""
    return target.parent / f"{target.name}.log.json"


def write_log(
    target: Path,
    folder: Path,
    manifest: Manifest,
    bases: Mapping[str, str],
    report: str,
) -> None:
    """What decided the bytes of the package in ``folder``, and what ``verify`` measured.

    Args:
        bases: ``basis`` of all bytes, ``unmarked_basis`` of those that no mark decides.
    """
    log = {
        "package": target.name,
        **bases,
        "manifest_sha256": file_digest(folder / "manifest.json"),
        "bytes": manifest.bytes,
        "graphs": {g.name: g.bytes for g in manifest.graphs},
        "verify": parse_json(report, "what was verified"),
    }
    write_whole(log_of(target), json.dumps(log, indent=1) + "\n")


def _describe(folder: Path, files: Sequence[Path]) -> tuple[FileEntry, ...]:
    entries = [
        FileEntry(f.relative_to(folder).as_posix(), f.stat().st_size, file_digest(f)) for f in files
    ]
    return tuple(sorted(entries, key=lambda e: e.path))


def _write_tokenizers(folder: Path, tokenizers: Mapping[str, TokenizerFile]) -> list[Path]:
    (folder / "tokenizer").mkdir()
    for file in tokenizers.values():
        (folder / file.entry.path).write_text(file.text, encoding="utf-8", newline="\n")
    return [folder / file.entry.path for file in tokenizers.values()]


def _write_plan(folder: Path, origin: Origin) -> list[Path]:
    """The plan as it was given, and its sensitivities with the formats that weights really got."""
    if origin.plan is None:
        return []
    (folder / "plan.toml").write_text(origin.plan.text, encoding="utf-8", newline="\n")
    if origin.plan.details is None:
        return [folder / "plan.toml"]
    details = parse_json(origin.plan.details, "the plan's sensitivities")
    for weight in details["weights"]:
        program = origin.programs.get(weight["graph"])
        if program is not None and weight["weight"] in program.formats:
            weight["chosen"] = str(program.formats[weight["weight"]])
    text = json.dumps(details | {"scheme": origin.scheme.name}, indent=1) + "\n"
    (folder / "plan.json").write_text(text, encoding="utf-8", newline="\n")
    return [folder / "plan.toml", folder / "plan.json"]


def licences_of(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files that travel with the weights, by their names in a package.

    Those of components from elsewhere too: under their own names, or with the component's where
    another file is called the same.
    """
    found = {file.name: file for file in _licences_in(checkpoint.folder)}
    for component, folder in sorted(checkpoint.beside.items()):
        digests = {file_digest(file) for file in found.values()}
        for file in _licences_in(folder):
            if file_digest(file) not in digests:
                other = f"{file.stem}-{component}{file.suffix}"
                found[other if file.name in found else file.name] = file
    return found


def _licences_in(folder: Path) -> list[Path]:
    return sorted({f for pattern in LICENCES for f in folder.glob(pattern) if f.is_file()})


def _copy_licences(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    found = licences_of(checkpoint)
    return [Path(shutil.copyfile(file, folder / name)) for name, file in found.items()]


def tools_of(backend: Backend) -> dict[str, str]:
    """Versions of fourstep, of a backend's own distribution, of what it builds and runs with."""
    distributions = {*backend.to_build.modules.values(), *backend.to_run.modules.values()}
    distributions |= {backends.distribution(backend.name)} - {"fourstep"}
    versions = {name: importlib.metadata.version(name) for name in sorted(distributions)}
    return {"fourstep": __version__, **versions}
