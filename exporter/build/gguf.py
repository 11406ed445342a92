"""Builds a folder in the gguf layout: the MMDiT in one file, read back before it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from exporter.build import write
from exporter.build.layout import LayoutWork, Told, write_manifest
from exporter.build.model import open_asked
from exporter.layouts import GGUF
from exporter.layouts.gguf import check_gguf, refuse_formats, refuse_narrow, write_gguf
from exporter.network import denoiser
from exporter.package.layout import LayoutGraph
from exporter.package.names import MMDIT
from exporter.quantize.program import QuantizedProgram
from exporter.recipe.recipe import Recipe
from exporter.runtime.verify import Report


def refuse_foreign_widths(recipe: Recipe) -> None:
    """Raise InputError for a checkpoint of widths that the file's readers do not have.

    Its headers are read for that alone, before anything is traced.
    """
    if GGUF.name in recipe.layouts:
        refuse_narrow(denoiser.read_config(open_asked(recipe).component("transformer")))


def refuse_foreign_numbers(scheme: str, programs: Mapping[str, QuantizedProgram]) -> None:
    """Raise InputError for a scheme that the file has no types for."""
    refuse_formats(scheme, _of_mmdit(programs))


def _of_mmdit(programs: Mapping[str, QuantizedProgram]) -> dict[str, QuantizedProgram]:
    return {name: programs[name] for name in MMDIT}


def build_gguf(work: LayoutWork, folder: Path, origin: write.Origin) -> Report:
    """Write a folder; raises CheckFailed where the file is read back as other numbers."""
    programs = _of_mmdit(work.programs)
    file = folder / f"{work.model.recipe.name}-{origin.scheme.name}.gguf"
    kept = write_gguf(file, programs, work.weights)
    check_gguf(file, kept)
    counts: dict[str, int] = {}
    for program in programs.values():
        for form, count in program.values_by_format().items():
            counts[form] = counts.get(form, 0) + count
    latent = programs["denoiser"].inputs[:1]
    graph = LayoutGraph(
        file.name, latent, programs["denoiser"].outputs, counts, tuple(programs), {},
        file.stat().st_size,
    )  # fmt: skip
    write_manifest(work, folder, origin, [file], Told((), (), True, (graph,)))
    files = sum(1 for found in folder.rglob("*") if found.is_file()) - 1  # but the manifest
    return Report(folder.name, files, (), (), ())
