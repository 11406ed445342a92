"""The whole road: checkpoint -> graphs -> trace -> quantize -> emit -> verify."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter import backends, golden, package
from exporter.checkpoint import open_checkpoint
from exporter.errors import CheckFailed
from exporter.graphs import cut_graphs
from exporter.progress import Progress
from exporter.quantize import QuantizedProgram, Weights, quantize_all, unquantized
from exporter.recipe import Recipe
from exporter.runtime.manifest import Schedule
from exporter.runtime.package import open_package
from exporter.tokenizers import tokenizer_files
from exporter.trace import bind, trace
from exporter.verify import Report, check_files, verify

KEEP_BYTES = 1 << 30  # of codes, when pictures are drawn with them before they are emitted


@dataclass(frozen=True)
class Built:
    """A finished package."""

    path: Path
    backend: str
    scheme: str
    bytes: int
    report: Report


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
    plan = {
        name: tuple(scheme_names) or recipe.backend(name).schemes
        for name in backend_names or recipe.backends
    }
    modules = {name: backends.load_to_build(name) for name in plan}
    schemes = [recipe.scheme(n) for n in dict.fromkeys(n for names in plan.values() for n in names)]

    # Checkpoint: headers only; a weight is read when a stage below asks for it.
    checkpoint = open_checkpoint(recipe.checkpoint)
    weights = Weights(checkpoint, keep_bytes=KEEP_BYTES if recipe.prompts else 0)

    # Graphs and trace: operators and shapes, no weights in memory.
    graphs = cut_graphs(checkpoint, recipe.cut)
    progress.expect(_lines(len(graphs), plan, len(recipe.prompts)))
    programs = {}
    for graph in graphs:
        progress(f"trace {graph.name}")
        programs[graph.name] = trace(graph)
        bind(programs[graph.name], weights.shape)

    # Quantize: in the program. What cannot be built is refused here, before anything is computed.
    quantized = {s.name: quantize_all(programs, s) for s in schemes}
    for name, names in plan.items():
        options = recipe.backend(name).options
        for scheme in names:
            backends.refuse_inexpressible(name, modules[name], options, scheme, quantized[scheme])
    package.refuse_place(out, sum(_bytes(quantized[s]) for names in plan.values() for s in names))

    # Golden pictures: the unquantized program in torch once, then each scheme's.
    tokenizers = tokenizer_files(checkpoint, programs)
    painter = golden.Painter(weights, Schedule(recipe.mode, recipe.cut.sigmas), tokenizers, recipe)
    if recipe.prompts:
        progress("golden pictures, unquantized, in torch")
    unrounded = {name: unquantized(p) for name, p in programs.items()}
    plain = painter.draw(unrounded)
    samples = functools.cache(lambda graph: painter.samples(unrounded, graph))

    built = []
    for scheme in (s.name for s in schemes):
        if recipe.prompts:
            progress(f"{scheme}: golden pictures in torch")
        drawings = painter.draw(quantized[scheme])
        for name in (n for n, names in plan.items() if scheme in names):
            order = backends.Order(recipe.backend(name).options, samples)
            target = out / f"{name}-{scheme}"
            with package.staging(target) as folder:
                # Emit: each backend translates the same programs, reading weights one at a time.
                entries = []
                for program in quantized[scheme].values():
                    progress(f"emit {program.name}")
                    entries.append(
                        package.emit_graph(modules[name], program, weights.read, folder, order)
                    )
                manifest = package.fill(
                    folder, recipe, checkpoint, (name, modules[name]), scheme, entries,
                    tokenizers, drawings, plain,
                )  # fmt: skip
                # Verify: the files, every graph against torch, whole pictures. Without golden
                # outputs no graph is opened: a runtime may need more memory than the build.
                progress(f"verify {target.name}")
                written = open_package(folder)
                if recipe.prompts:
                    report = verify(written, progress)
                else:
                    report = Report(target.name, check_files(written, progress), (), (), ())
                if not report.ok:
                    raise CheckFailed(f"{target.name}: {'; '.join(report.failures)}")
                package.write_log(target, manifest, report.to_json())
            built.append(Built(target, name, scheme, manifest.bytes, report))
    return built


def _bytes(programs: dict[str, QuantizedProgram]) -> int:
    return sum(p.stored_bytes() for p in programs.values())


def _lines(graphs: int, plan: Mapping[str, Sequence[str]], pictures: int) -> int:
    """How many progress lines a build shows."""
    packages = sum(len(names) for names in plan.values())
    schemes = len({scheme for names in plan.values() for scheme in names})
    per_package = graphs + 1 + 1 + (graphs + pictures if pictures else 0)
    drawings = 1 + schemes if pictures else 0
    return graphs + drawings + packages * per_package
