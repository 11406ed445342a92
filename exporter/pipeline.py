"""The whole road: checkpoint -> graphs -> trace -> quantize -> emit -> verify."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from tokenizers import Tokenizer as Tokens

from exporter import __version__, backends, golden, package
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import CheckFailed, InputError
from exporter.formats import Scheme
from exporter.golden import Drawing
from exporter.graphs import Port, cut_graphs
from exporter.inspect import package_peak_bytes
from exporter.progress import Progress
from exporter.quantize import QuantizedProgram, Weights, quantize, roles, unquantized
from exporter.recipe import Recipe
from exporter.runtime import preview
from exporter.runtime.manifest import (
    FORMAT_VERSION,
    GraphEntry,
    Manifest,
    Schedule,
    Tolerance,
    to_json,
)
from exporter.runtime.package import open_package
from exporter.runtime.text import Encode, prompt_encoder
from exporter.tokenizers import TokenizerFile, tokenizer_files
from exporter.trace import Program, activation_bytes, bind, trace
from exporter.verify import Report, verify

TOLERANCE = Tolerance(graph_relative=1e-4, image_psnr_db=40.0)


@dataclass(frozen=True)
class Built:
    """A finished package."""

    path: Path
    backend: str
    scheme: str
    bytes: int
    report: Report


@dataclass(frozen=True)
class Source:
    """What all packages of a build share: read once, traced once, drawn unquantized once."""

    recipe: Recipe
    checkpoint: Checkpoint
    weights: Weights
    programs: dict[str, Program]
    tokenizers: dict[str, TokenizerFile]
    encode: dict[str, Encode]
    unquantized: list[Drawing]

    @property
    def schedule(self) -> Schedule:
        return golden.schedule_of(self.recipe.mode, self.recipe.cut)


def build(
    recipe: Recipe,
    out: Path,
    backend_names: Sequence[str] = (),
    scheme_names: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[Built]:
    """Build one package per backend and scheme into ``out``/<backend>-<scheme>.

    Raises InputError for what a user can mend, CheckFailed when a package does not verify; either
    way nothing half-written stays.
    """
    progress = progress or Progress()
    chosen = [backends.load_to_build(n) for n in backend_names or recipe.backends]
    schemes = [recipe.scheme(n) for n in scheme_names or recipe.schemes]

    checkpoint = open_checkpoint(recipe.checkpoint)
    graphs = cut_graphs(checkpoint, recipe.cut)  # on the meta device, no weights
    count, pictures = len(graphs), len(recipe.prompts)
    progress.expect(count + 1 + len(schemes) * (1 + len(chosen) * (2 * count + 2 + pictures)))
    weights = Weights(checkpoint)
    programs = {}
    for graph in graphs:
        progress(f"trace {graph.name}")
        programs[graph.name] = trace(graph)
        bind(programs[graph.name], weights.shape)
    quantized = {s.name: _quantize_all(programs, s) for s in schemes}
    for backend in chosen:
        for scheme in schemes:
            _refuse_inexpressible(backend, scheme, quantized[scheme.name])

    source = _source(recipe, checkpoint, weights, programs, progress)
    built = []
    for scheme in schemes:
        progress(f"{scheme.name}: golden pictures in torch")
        drawings = _drawings(source, quantized[scheme.name])
        for backend in chosen:
            built.append(
                _build_one(source, backend, scheme, quantized[scheme.name], drawings, out, progress)
            )
    return built


def _quantize_all(programs: dict[str, Program], scheme: Scheme) -> dict[str, QuantizedProgram]:
    _refuse_unmatched(programs, scheme)
    return {name: quantize(program, scheme.format_of) for name, program in programs.items()}


def _refuse_unmatched(programs: dict[str, Program], scheme: Scheme) -> None:
    """A pattern of a recipe that matches no weight is a mistake, not a wish."""
    weights = [
        (program.name, source.name, role)  # type: ignore[attr-defined]
        for program in programs.values()
        for source, role in ((program.tensors[p], r) for p, r in roles(program).items())
    ]
    for rule in scheme.rules:
        if rule.weight != "*" and not any(rule.matches(*w) for w in weights):
            same_graph = sorted(
                {w for g, w, _ in weights if rule.matches(g, rule.weight, "linear")}
            )
            example = f", such as '{same_graph[0]}'" if same_graph else ""
            raise InputError(
                f"{scheme.name}: no weight of {rule.graph} that can be {rule.format} matches "
                f"'{rule.weight}'{example}"
            )


def _refuse_inexpressible(
    backend: ModuleType, scheme: Scheme, programs: dict[str, QuantizedProgram]
) -> None:
    for program in programs.values():
        for weight, form in program.formats.items():
            reason = backend.refuse(form)
            if reason:
                name = backend.__name__.rpartition(".")[2]
                raise InputError(
                    f"{name} cannot express scheme {scheme.name} ({program.name}: {weight} as "
                    f"{form}): {reason}"
                )


def _source(
    recipe: Recipe,
    checkpoint: Checkpoint,
    weights: Weights,
    programs: dict[str, Program],
    progress: Progress,
) -> Source:
    """Tokenizers and the unquantized pictures, shared by all schemes and backends."""
    tokens = {
        n: p.inputs[0].shape[1] for n, p in programs.items() if n in ("clip_l", "clip_g", "t5")
    }
    files = tokenizer_files(checkpoint, tokens)
    encode = {n: prompt_encoder(Tokens.from_str(f.text), f.entry, n) for n, f in files.items()}
    source = Source(recipe, checkpoint, weights, programs, files, encode, [])
    progress("golden pictures, unquantized, in torch")
    plain = {name: unquantized(program) for name, program in programs.items()}
    source.unquantized.extend(_drawings(source, plain))
    return source


def _drawings(source: Source, programs: dict[str, QuantizedProgram]) -> list[Drawing]:
    player = golden.reference_player(programs, source.weights, source.schedule, source.encode)
    recipe = source.recipe
    return golden.draw(player, recipe.prompts, recipe.seed, recipe.cut.image_to_image)


def _write_tokenizers(files: dict[str, TokenizerFile], folder: Path) -> list[Path]:
    (folder / "tokenizer").mkdir()
    written = []
    for file in files.values():
        place = folder / file.entry.path
        place.write_text(file.text, encoding="utf-8")
        written.append(place)
    return written


def _build_one(
    source: Source,
    backend: ModuleType,
    scheme: Scheme,
    programs: dict[str, QuantizedProgram],
    drawings: list[Drawing],
    out: Path,
    progress: Progress,
) -> Built:
    backend_name = backend.__name__.rpartition(".")[2]
    target = out / f"{backend_name}-{scheme.name}"
    started = time.perf_counter()
    with package.staging(target) as folder:
        entries = tuple(
            _emit(backend, p, source.weights, folder, progress) for p in programs.values()
        )
        entries_golden, files = golden.write(folder, drawings, source.unquantized)
        files += _write_tokenizers(source.tokenizers, folder)
        files += package.copy_licences(source.checkpoint.folder, folder)
        files.append(folder / "preview.json")
        preview.write(_fit_preview(source.unquantized), files[-1])
        latent = programs["denoiser"].inputs[0].shape
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=source.recipe.name,
            backend=backend_name,
            scheme=scheme.name,
            layout=source.recipe.layout,
            recipe_sha256=source.recipe.digest,
            checkpoint_sha256=source.checkpoint.digest,
            tools=_tools(backend),
            schedule=source.schedule,
            width_px=source.recipe.cut.width_px,
            height_px=source.recipe.cut.height_px,
            latent_channels=latent[1],
            latent_scale_px=source.recipe.cut.height_px // latent[2],
            t5=source.recipe.cut.t5,
            tokenizers={n: f.entry for n, f in source.tokenizers.items()},
            graphs=entries,
            golden=entries_golden,
            tolerance=TOLERANCE,
            preview="preview.json",
            files=package.describe(folder, files),
            licence=next((f.name for f in files if f.name.startswith("LICEN")), ""),
            predicted_peak_bytes=package_peak_bytes(entries),
        )
        (folder / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
        progress(f"verify {target.name}")
        report = verify(open_package(folder), progress)
        if not report.ok:
            raise CheckFailed(f"{target.name}: {'; '.join(report.failures)}")
        _write_log(target, manifest, report, time.perf_counter() - started)
    return Built(target, backend_name, scheme.name, manifest.bytes, report)


def _emit(
    backend: ModuleType,
    program: QuantizedProgram,
    weights: Weights,
    folder: Path,
    progress: Progress,
) -> GraphEntry:
    progress(f"emit {program.name}")
    place = folder / "graphs" / program.name
    place.mkdir(parents=True)
    emitted: backends.Emitted = backend.emit(program, weights.read, place)
    ports: tuple[tuple[Port, ...], tuple[Port, ...]] = (program.inputs, program.outputs)
    return GraphEntry(
        program.name,
        emitted.entry.relative_to(folder).as_posix(),
        *ports,
        files=package.describe(folder, list(emitted.files)),
        formats=program.values_by_format(),
        adjusted=program.adjusted,
        activation_bytes=activation_bytes(program),
        session=emitted.session,
    )


def _fit_preview(drawings: list[Drawing]) -> preview.Preview:
    return preview.fit([d.image.latent for d in drawings], [d.decoded for d in drawings])


def _tools(backend: ModuleType) -> dict[str, str]:
    versions = {"fourstep": __version__}
    for distribution in {**backend.REQUIRES, **backend.RUNS_WITH}.values():
        versions[distribution] = importlib.metadata.version(distribution)
    return dict(sorted(versions.items()))


def _write_log(target: Path, manifest: Manifest, report: Report, seconds: float) -> None:
    """Figures that differ from build to build, beside the package rather than in it."""
    log = {
        "package": target.name,
        "bytes": manifest.bytes,
        "seconds": round(seconds, 2),
        "verify": json.loads(report.to_json()),
        "graphs": {g.name: g.bytes for g in manifest.graphs},
        "schedule": asdict(manifest.schedule),
    }
    file = target.parent / f"{target.name}.log.json"
    file.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
