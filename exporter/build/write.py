"""Writes what a package holds, into the folder that ``staging`` makes whole or absent."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from exporter import __version__, backends
from exporter.backends.contract import Backend, EmitOptions, Emitted, ForNpu, MeasuredCosts, Sizing
from exporter.bom.check import SBOM
from exporter.bom.evidence import evidence_in
from exporter.bom.licence import LIBRARY, notice_text
from exporter.bom.write import bill_of
from exporter.build import golden
from exporter.build.filter import PreparedFilter
from exporter.build.golden import Allowance, Drawing, Pictures
from exporter.build.licence import NOTICE, Licence
from exporter.build.model import Model
from exporter.calibrate.store import Calibration
from exporter.checkpoint.tokenizers import TokenizerFile
from exporter.files.read import file_digest, parse_json, read_text
from exporter.files.staging import write_whole
from exporter.layouts import NATIVE
from exporter.network.wiring import filter_stage, picture_of, stages
from exporter.package.manifest import (
    FIRST_VERSION,
    DeviceEntry,
    FileEntry,
    Golden,
    GraphEntry,
    LoraEntry,
    Manifest,
    NoiseEntry,
    NpuEntry,
    OriginEntry,
    PreviewEntry,
    SizedGraph,
    SizeEntry,
    Stage,
    TextEntry,
    version_of,
)
from exporter.package.names import FILTER, graph_of, sized_name
from exporter.package.preview import fit, preview_of
from exporter.package.read import write_manifest
from exporter.package.sizes import PictureSize
from exporter.predict.graph import run_bytes
from exporter.program.sizes import activation_bytes
from exporter.quantize.formats import Scheme
from exporter.quantize.program import QuantizedProgram
from exporter.recipe.plan import Plan

RECIPE = "recipe.json"
G = TypeVar("G", GraphEntry, SizedGraph)


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
    def calibrated(self) -> tuple[str, ...]:
        """The graphs that these statistics were measured on; none without any."""
        used = self.calibration if self.statistics_sha256 else None
        return used.provenance.graphs if used else ()

    @property
    def plan_sha256(self) -> str:
        """Of the plan; empty without one."""
        return self.plan.sha256 if self.plan else ""


@dataclass(frozen=True)
class WholeGraph:
    """A graph as it is on the disk, for every size.

    Attributes:
        graph: of the first size.
        sized: what stands in for it at others, by size; nothing where one graph serves all.
        beside: the files that only those have.
    """

    graph: GraphEntry
    sized: dict[str, SizedGraph] = field(default_factory=dict)
    beside: tuple[FileEntry, ...] = ()

    @property
    def name(self) -> str:
        return self.graph.name

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return (*self.graph.files, *self.beside)

    def widened(self, allowed: Mapping[PictureSize, Allowance]) -> WholeGraph:
        """The same with what each size may differ by besides what the backend says."""
        first, *others = allowed
        graph = _widened(self.graph, allowed[first])
        sized = {str(size): _widened(self.sized[str(size)], allowed[size]) for size in others}
        return replace(self, graph=graph, sized=sized)


def _widened(graph: G, allowed: Allowance) -> G:
    npu: NpuEntry | None = getattr(graph, "npu", None)
    if npu is not None:
        npu = replace(npu, tolerance=allowed.widened(npu.tolerance))
    return replace(graph, tolerance=allowed.widened(graph.tolerance), npu=npu)


def emit_sizes(
    backend: Backend,
    programs: Mapping[PictureSize, QuantizedProgram],
    read: Callable[[object], Tensor],
    folder: Path,
    options: EmitOptions,
) -> WholeGraph:
    """Let a backend write one graph for several sizes, each weight once, as ``emit_graph``.

    Args:
        programs: by size, the first one first.
    """
    assert isinstance(backend, Sizing)
    first, *others = programs
    program = programs[first]
    place = folder / "graphs" / program.name
    place.mkdir(parents=True)
    names = {size: program.name if size == first else sized_name(program.name, size)
             for size in programs}  # fmt: skip
    by_name = {names[size]: programs[size] for size in programs}
    emitted = backend.emit_sizes(by_name, read, place, options)
    entries = {
        size: _entry(folder, programs[size], emitted[names[size]], backend, options)
        for size in programs
    }
    own = {file.path: file for size in others for file in entries[size].files}
    known = {file.path for file in entries[first].files}
    beside = tuple(file for path, file in sorted(own.items()) if path not in known)
    return WholeGraph(entries[first], {str(size): _sized(entries[size]) for size in others}, beside)


def _sized(entry: GraphEntry) -> SizedGraph:
    """A graph of another size as the manifest lists it."""
    return SizedGraph(
        entry.name, entry.entry, entry.inputs, entry.outputs, tuple(f.path for f in entry.files),
        entry.activation_bytes, entry.run_bytes, entry.tolerance, entry.session, entry.remarks,
        entry.npu,
    )  # fmt: skip


def emit_graph(
    backend: Backend,
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    folder: Path,
    options: EmitOptions,
) -> GraphEntry:
    """Let a backend write one graph into ``folder``/graphs/<graph>; returns its manifest entry."""
    place = folder / "graphs" / program.name
    place.mkdir(parents=True)
    emitted = backend.emit(program, read, place, options)
    return _entry(folder, program, emitted, backend, options)


def _entry(
    folder: Path,
    program: QuantizedProgram,
    emitted: Emitted,
    backend: Backend,
    options: EmitOptions,
) -> GraphEntry:
    costs = backend.costs
    return GraphEntry(
        name=program.name,
        entry=emitted.entry.relative_to(folder).as_posix(),
        inputs=program.inputs,
        outputs=program.outputs,
        files=describe(folder, emitted.files),
        formats=program.values_by_format(),
        adjusted=program.adjusted + emitted.adjusted,
        activation_bytes=activation_bytes(program),
        run_bytes=run_bytes(program, costs, options.is_widened) if costs else None,
        tolerance=emitted.tolerance,
        session=emitted.session,
        remarks=emitted.remarks,
        npu=NpuEntry(emitted.on_npu) if emitted.on_npu else None,
    )


def fill(
    folder: Path,
    model: Model,
    backend: Backend,
    whole: Sequence[WholeGraph],
    origin: Origin,
    pictures: Pictures,
    sized: Mapping[PictureSize, Pictures] | None = None,
) -> Manifest:
    """Write everything that stands beside the graphs, the manifest last.

    Args:
        sized: the golden pictures of each further size.
    """
    graphs = [one.graph for one in whole]
    recipe, tokenizers = model.recipe, model.tokenizers
    described = {name: file.entry for name, file in tokenizers.items()}
    picture = picture_of(graphs, _preview(pictures.plain), recipe.cut.ends.previews)
    shown = preview_of(picture.preview, picture.pixels) if picture.preview else None
    if origin.filter is not None:
        pictures = origin.filter.judged(pictures)
        sized = {size: origin.filter.judged(drawn) for size, drawn in (sized or {}).items()}
    entry, files = golden.write(folder, pictures, tokenizers, shown)
    further, more = golden.write_sized(folder, pictures, sized or {}, shown)
    files += [*more, *_write_tokenizers(folder, tokenizers)]
    files += backend.write_beside(folder, described)
    files += write_plan(folder, origin)
    files += _write_recipe(model, backend, folder)
    licences = copy_licences(model.licence, folder)
    notice = write_notice(model, backend, origin, folder)
    filters = write_filter(folder, origin.filter, graphs)
    judging = {graph.name: graph.run_bytes for graph, _ in filters}
    manifest = Manifest(
        format_version=FIRST_VERSION,
        name=recipe.name,
        backend=backend.name,
        scheme=origin.scheme.name,
        layout=NATIVE,
        origin=origin_entry(model, backend, origin, licences, notice),
        schedule=model.schedule,
        picture=picture,
        noise=NoiseEntry(),
        text=TextEntry(recipe.cut.t5, described),
        stages=(*stages(graphs, model.schedule.guidance), *(turn for _, turn in filters)),
        graphs=(*graphs, *(graph for graph, _ in filters)),
        golden=entry,
        files=_with(describe(folder, list(dict.fromkeys([*files, *licences, *notice]))), whole),
        device=DeviceEntry(
            _peak_bytes(
                {**{g.name: g.run_bytes for g in graphs}, **judging},
                picture.preview_graph,
                backend.costs,
            )
        ),
        mark=recipe.mark.entry if recipe.mark else None,
        filter=origin.filter.entry if origin.filter else None,
        sizes=tuple(
            _size_entry(
                size, whole, further.get(size, ()), judging, picture.preview_graph, backend.costs
            )
            for size in recipe.further_sizes
        ),
    )
    manifest = replace(manifest, format_version=version_of(manifest))
    manifest = _with_bill(folder, manifest)
    write_manifest(folder, manifest)
    return manifest


def rewrite(folder: Path, manifest: Manifest) -> Manifest:
    """A manifest whose graphs were changed, written anew with its bill of materials."""
    files = tuple(file for file in manifest.files if file.path != manifest.bom)
    manifest = _with_bill(folder, replace(manifest, files=files, bom=""))
    write_manifest(folder, manifest)
    return manifest


def _with(files: Sequence[FileEntry], whole: Sequence[WholeGraph]) -> tuple[FileEntry, ...]:
    """Files beside the graphs of the first size: those of further sizes' graphs among them."""
    return tuple(sorted((*files, *(f for one in whole for f in one.beside)), key=lambda f: f.path))


def _size_entry(
    size: PictureSize,
    whole: Sequence[WholeGraph],
    pictures: tuple[Golden, ...],
    judging: Mapping[str, int | None],
    preview_graph: str,
    costs: MeasuredCosts | None,
) -> SizeEntry:
    own = {one.name: one.sized[str(size)] for one in whole if str(size) in one.sized}
    run = {one.name: own.get(one.name, one.graph).run_bytes for one in whole}
    peak_bytes = _peak_bytes({**run, **judging}, preview_graph, costs)
    return SizeEntry(size.width_px, size.height_px, tuple(own.values()), pictures, peak_bytes)


def write_filter(
    folder: Path, prepared: PreparedFilter | None, graphs: Sequence[GraphEntry]
) -> list[tuple[GraphEntry, Stage]]:
    """The user's classifier, copied, and its turn; nothing without one."""
    if prepared is None:
        return []
    least_db = min(graph.tolerance.image_psnr_db for graph in graphs)
    graph, copied = prepared.write(folder, least_db)
    graph = replace(graph, files=describe(folder, copied))
    return [(graph, filter_stage(graph, prepared.output.name))]


def origin_entry(
    model: Model,
    backend: Backend,
    origin: Origin,
    licences: Sequence[Path],
    notice: Sequence[Path],
) -> OriginEntry:
    """What a package was built from.

    Args:
        licences, notice: files of it, as written.
    """
    return OriginEntry(
        recipe_sha256=model.recipe.digest(backend.name),
        checkpoint_sha256=model.checkpoint.digest,
        statistics_sha256=origin.statistics_sha256,
        plan_sha256=origin.plan_sha256,
        methods=origin.scheme.used_methods,
        tools=tools_of(backend, model.recipe.backend(backend.name).choices),
        licence=licences[0].name if licences else "",
        loras=tuple(LoraEntry(lora.digest, lora.weight) for lora in model.checkpoint.loras),
        licence_id=model.licence.id,
        attribution=model.licence.attribution,
        notice=NOTICE if notice else "",
        recipe=RECIPE,
        calibrated=origin.calibrated,
    )


def _peak_bytes(
    run: Mapping[str, int | None], preview_graph: str, costs: MeasuredCosts | None
) -> int | None:
    """Graphs run in turn: of the one that takes the most; None where that was not measured.

    The graph that shows previews is open beside the denoiser, and the filter that judges them.

    Args:
        run: what a process that runs a graph takes, by graph.
    """
    sizes = {name: size for name, size in run.items() if size is not None}
    if len(sizes) < len(run) or costs is None:
        return None
    by_graph = {
        name: max(size for part, size in sizes.items() if graph_of(part) == name)
        for name in map(graph_of, sizes)
    }
    shown = (by_graph.get(name, costs.process_bytes) for name in (preview_graph, FILTER))
    beside = sum(size - costs.process_bytes for size in shown)
    return int(max(*by_graph.values(), by_graph["denoiser"] + beside))


def _preview(plain: Sequence[Drawing]) -> PreviewEntry | None:
    """The map from latents to colours that fits the unquantized pictures; None without any."""
    if not plain:
        return None
    return fit([d.image.latent for d in plain], [d.decoded for d in plain]).entry()


def log_of(target: Path) -> Path:
    """The file of what may differ from build to build, beside the package rather than in it."""
    return target.parent / f"{target.name}.log.json"


def write_log(target: Path, manifest_file: Path, facts: Mapping[str, object], report: str) -> None:
    """What decided the bytes of a package, in any layout, and what ``verify`` measured.

    Args:
        manifest_file: of the package before it takes its place.
        facts: ``basis`` of all bytes and whatever else there is to say.
    """
    log = {
        "package": target.name,
        "manifest_sha256": file_digest(manifest_file),
        **facts,
        "verify": parse_json(report, "what was verified"),
    }
    write_whole(log_of(target), json.dumps(log, indent=1) + "\n")


def describe(folder: Path, files: Sequence[Path]) -> tuple[FileEntry, ...]:
    """Files of a folder as manifests list them."""
    entries = [
        FileEntry(f.relative_to(folder).as_posix(), f.stat().st_size, file_digest(f)) for f in files
    ]
    return tuple(sorted(entries, key=lambda e: e.path))


def _write_tokenizers(folder: Path, tokenizers: Mapping[str, TokenizerFile]) -> list[Path]:
    (folder / "tokenizer").mkdir()
    for file in tokenizers.values():
        (folder / file.entry.path).write_text(file.text, encoding="utf-8", newline="\n")
    return [folder / file.entry.path for file in tokenizers.values()]


def write_plan(folder: Path, origin: Origin) -> list[Path]:
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


def copy_licences(licence: Licence, folder: Path) -> list[Path]:
    """The licence's files, copied into a folder."""
    return [Path(shutil.copyfile(file, folder / name)) for name, file in licence.files.items()]


def write_notice(model: Model, backend: Backend, origin: Origin, folder: Path) -> list[Path]:
    """What the licence wants handed on, after the checkpoint's own notice; nothing for none."""
    if not model.licence.owed:
        return []
    place = folder / NOTICE
    given = read_text(place) if place.is_file() else ""
    merged = ", LoRAs were merged into it" if model.checkpoint.loras else ""
    changes = (
        f"The files of this package were made of that model by fourstep, and changed: it was cut "
        f"into graphs for {backend.name}{merged}, and its weights are stored in the scheme "
        f"{origin.scheme.name}."
    )
    text = notice_text(given, model.licence.owed, changes)
    place.write_text(text, encoding="utf-8", newline="\n")
    return [place]


def _write_recipe(model: Model, backend: Backend, folder: Path) -> list[Path]:
    """The recipe in its normal form, whose digest the manifest has."""
    text = model.recipe.normal_form(backend.name)
    (folder / RECIPE).write_text(text, encoding="utf-8", newline="\n")
    return [folder / RECIPE]


def _with_bill(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest with a bill of materials of all that it lists, which is written."""
    text = bill_of(manifest, evidence_in(folder, manifest))
    (folder / SBOM).write_text(text, encoding="utf-8", newline="\n")
    files = (*manifest.files, *describe(folder, [folder / SBOM]))
    listed = tuple(sorted(files, key=lambda entry: entry.path))
    manifest = replace(manifest, files=listed, bom=SBOM)
    return replace(manifest, format_version=version_of(manifest))


def tools_of(backend: Backend, choices: Mapping[str, str]) -> dict[str, str]:
    """Versions of fourstep, of a backend's own distribution, of what it builds and runs with.

    Args:
        choices: the recipe's of the backend, which may ask for a compiler.
    """
    distributions = {*backend.to_build.modules.values(), *backend.to_run.modules.values()}
    distributions |= {backends.distribution(backend.name)} - {"fourstep"}
    distributions.add(LIBRARY)  # which writes the bill
    versions = {name: _installed(name) for name in sorted(distributions)}
    compiler = backend.compiler(choices) if isinstance(backend, ForNpu) else {}
    return {"fourstep": __version__, **versions, **compiler}


@functools.cache
def _installed(distribution: str) -> str:
    """The version of a distribution, whose metadata is read once in a process."""
    return importlib.metadata.version(distribution)
