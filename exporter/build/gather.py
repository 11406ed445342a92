"""Gathers the native packages of a build in one folder, where a layout is made of all of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from exporter.backends.onnx.model_package import read_model_package
from exporter.bom.check import SBOM
from exporter.build import resume, write
from exporter.files.read import file_digest
from exporter.files.staging import refuse_place, staging, write_whole
from exporter.layouts import ORT_PACKAGE
from exporter.layouts.ort_package import (
    MANIFEST,
    NativePackage,
    check_package,
    manifest_text,
    write_graphs,
)
from exporter.package.layout import LAYOUT_FILE, LAYOUT_VERSION, LayoutGraph, LayoutManifest
from exporter.package.layout import check_layout as check_files
from exporter.package.names import graph_of
from exporter.package.read import MANIFEST as NATIVE_MANIFEST
from exporter.package.read import read_manifest
from exporter.progress import Progress
from exporter.recipe.recipe import Recipe
from exporter.runtime.verify import Report

SUFFIX = ".ortpackage"
PLANS = ("plan.toml", "plan.json")
LINES = 1  # of progress


def gather(
    recipe: Recipe, natives: Sequence[Path], out: Path, progress: Progress
) -> tuple[Path, LayoutManifest, Report]:
    """Make ``out``/<recipe>.ortpackage of native packages for onnxruntime, which are whole.

    Raises CheckFailed for what its reader refuses; then there is no such folder.
    """
    target = out / f"{recipe.name}{SUFFIX}"
    target_of_graphs = recipe.backend("onnx").choices["target"]
    sources = [NativePackage(folder, read_manifest(folder), target_of_graphs) for folder in natives]
    basis = _basis(recipe, natives)
    kept = resume.whole_layout(target, basis)
    if kept is not None:
        progress(f"{target.name} is whole already")
        return target, *kept
    refuse_place(out, sum(graph.bytes for s in sources for graph in s.manifest.graphs))
    progress(f"write {target.name}")
    with staging(target) as folder:
        found = write_graphs(sources, folder)
        write_whole(folder / MANIFEST, manifest_text(found))
        _copy_beside(sources[0], folder)
        _write_manifest(recipe, sources, folder)
        check_package(folder)
        read_model_package(folder)
        manifest = check_files(folder)
        report = Report(target.name, len(manifest.files), (), (), ())
        write.write_log(target, folder / LAYOUT_FILE, {"basis": basis}, report.to_json())
    return target, manifest, report


def _basis(recipe: Recipe, natives: Sequence[Path]) -> str:
    """SHA-256 of what decides the folder's bytes."""
    facts = [recipe.digest("onnx", ORT_PACKAGE.name)]
    facts += [file_digest(folder / NATIVE_MANIFEST) for folder in natives]
    facts.append(resume.code_of_own())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _copy_beside(source: NativePackage, folder: Path) -> None:
    """Tokenizers and licences, which all schemes share."""
    manifest = source.manifest
    own = (write.RECIPE, SBOM, *PLANS)  # which tell of one of the packages alone
    paths = [entry.path for entry in manifest.text.tokenizers.values()]
    paths += [f.path for f in manifest.files if "/" not in f.path and f.path not in own]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / path, folder / path)


def _write_manifest(recipe: Recipe, sources: Sequence[NativePackage], folder: Path) -> None:
    first = sources[0].manifest
    text = recipe.normal_form("onnx", ORT_PACKAGE.name)
    (folder / write.RECIPE).write_text(text, encoding="utf-8", newline="\n")
    files = [file for file in folder.rglob("*") if file.is_file()]
    manifest = LayoutManifest(
        layout_version=LAYOUT_VERSION,
        layout=ORT_PACKAGE.name,
        name=first.name,
        backend=first.backend,
        scheme=", ".join(source.manifest.scheme for source in sources),
        clients=ORT_PACKAGE.forms[first.backend].clients,
        origin=replace(first.origin, recipe_sha256=recipe.digest("onnx", ORT_PACKAGE.name)),
        schedule=first.schedule,
        timesteps=(),  # a loop gives the conditioner's rows
        gains=(),
        starts_from_pictures=any(stage.image_to_image_only for stage in first.stages),
        graphs=tuple(
            LayoutGraph(
                f"{graph.name}/{source.manifest.scheme}", graph.inputs, graph.outputs,
                dict(graph.formats), (graph_of(graph.name),), {}, graph.bytes,
            )
            for source in sources
            for graph in source.manifest.graphs
        ),
        files=write.describe(folder, files),
        mark=first.mark,
    )  # fmt: skip
    write_whole(folder / LAYOUT_FILE, json.dumps(asdict(manifest), indent=1) + "\n")
