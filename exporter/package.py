"""Writes packages: whole or absent. A package is built beside its final name and moved there."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import Tensor

from exporter import __version__, golden
from exporter.backends import Emitted, Order
from exporter.checkpoint import Checkpoint, file_digest
from exporter.errors import InputError
from exporter.golden import Drawing
from exporter.inspect import package_peak_bytes
from exporter.quantize import QuantizedProgram
from exporter.recipe import Recipe
from exporter.runtime import preview
from exporter.runtime.manifest import (
    FORMAT_VERSION,
    FileEntry,
    GraphEntry,
    Manifest,
    Schedule,
    to_json,
)
from exporter.tokenizers import TokenizerFile
from exporter.trace import activation_bytes

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


def refuse_place(out: Path, weight_bytes: int) -> None:
    """Raise InputError if packages of so many bytes cannot be written at ``out``.

    Asked before anything is computed; what changes later is caught when it is written.
    """
    existing = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"{out}: {existing} is not a folder; choose another --out")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{out}: {existing} cannot be written; choose another --out")
    free_bytes = shutil.disk_usage(existing).free
    if weight_bytes > free_bytes:
        raise InputError(
            f"{out}: needs {weight_bytes / 1e6:,.0f} MB and {free_bytes / 1e6:,.0f} MB are free; "
            "free space or choose another --out"
        )


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well and vanishes when it does not.

    An older package at ``target`` stays in place until the new one is whole. Raises InputError
    when the place cannot be written or the disk is full.
    """
    made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
    partial = target.parent / f".{target.name}.partial"
    retired = target.parent / f".{target.name}.old"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(retired, ignore_errors=True)
        if target.exists():
            target.rename(retired)
        partial.rename(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
        if not target.exists():
            for folder in made:
                _remove_if_empty(folder)


def _unwritable(target: Path, error: OSError) -> InputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{target}: the disk is full; free space or choose another --out")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return InputError(
            f"{target}: cannot be written ({os.strerror(error.errno)}); choose another --out"
        )
    return InputError(f"{target}: {error.strerror or error}")


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


def emit_graph(
    backend: ModuleType,
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    folder: Path,
    order: Order,
) -> GraphEntry:
    """Let a backend write one graph into ``folder``/graphs/<graph>; returns its manifest entry."""
    place = folder / "graphs" / program.name
    place.mkdir(parents=True)
    emitted: Emitted = backend.emit(program, read, place, order)
    return GraphEntry(
        name=program.name,
        entry=emitted.entry.relative_to(folder).as_posix(),
        inputs=program.inputs,
        outputs=program.outputs,
        files=_describe(folder, emitted.files),
        formats=program.values_by_format(),
        adjusted=program.adjusted + emitted.adjusted,
        activation_bytes=activation_bytes(program),
        tolerance=emitted.tolerance,
        session=emitted.session,
        remarks=emitted.remarks,
    )


def fill(
    folder: Path,
    recipe: Recipe,
    checkpoint: Checkpoint,
    backend: tuple[str, ModuleType],
    scheme: str,
    graphs: Sequence[GraphEntry],
    tokenizers: Mapping[str, TokenizerFile],
    drawings: Sequence[Drawing],
    plain: Sequence[Drawing],
) -> Manifest:
    """Write everything that stands beside the graphs, the manifest last.

    Args:
        drawings, plain: the golden pictures, by the quantized and by the unquantized program;
            both may be empty.
    """
    entries, files = golden.write(folder, drawings, plain)
    files += _write_tokenizers(folder, tokenizers)
    described = {name: file.entry for name, file in tokenizers.items()}
    files += backend[1].finish(folder, described)
    licences = _copy_licences(checkpoint.folder, folder)
    files += licences
    if plain:
        colours = preview.fit([d.image.latent for d in plain], [d.decoded for d in plain])
        files.append(preview.write(colours, folder / "preview.json"))
    latent = next(g.inputs[0].shape for g in graphs if g.name == "denoiser")
    cut = recipe.cut
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=recipe.name,
        backend=backend[0],
        scheme=scheme,
        layout=recipe.layout,
        recipe_sha256=recipe.digest(backend[0]),
        checkpoint_sha256=checkpoint.digest,
        tools=_tools(backend[1]),
        schedule=Schedule(recipe.mode, cut.sigmas),
        width_px=cut.width_px,
        height_px=cut.height_px,
        latent_channels=latent[1],
        latent_scale_px=cut.height_px // latent[2],
        t5=cut.t5,
        tokenizers=described,
        graphs=tuple(graphs),
        golden=entries,
        preview="preview.json" if plain else "",
        files=_describe(folder, files),
        licence=licences[0].name if licences else "",
        predicted_peak_bytes=package_peak_bytes(tuple(graphs)),
    )
    (folder / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
    return manifest


def write_log(target: Path, manifest: Manifest, report: str) -> None:
    """What may differ from build to build, beside the package rather than in it."""
    log = {
        "package": target.name,
        "bytes": manifest.bytes,
        "graphs": {g.name: g.bytes for g in manifest.graphs},
        "verify": json.loads(report),
    }
    file = target.parent / f"{target.name}.log.json"
    file.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


def _describe(folder: Path, files: Sequence[Path]) -> tuple[FileEntry, ...]:
    entries = [
        FileEntry(f.relative_to(folder).as_posix(), f.stat().st_size, file_digest(f)) for f in files
    ]
    return tuple(sorted(entries, key=lambda e: e.path))


def _write_tokenizers(folder: Path, tokenizers: Mapping[str, TokenizerFile]) -> list[Path]:
    (folder / "tokenizer").mkdir()
    for file in tokenizers.values():
        (folder / file.entry.path).write_text(file.text, encoding="utf-8")
    return [folder / file.entry.path for file in tokenizers.values()]


def _copy_licences(source: Path, folder: Path) -> list[Path]:
    """Licences travel with the weights."""
    found = sorted({f for pattern in LICENCES for f in source.glob(pattern) if f.is_file()})
    return [Path(shutil.copyfile(f, folder / f.name)) for f in found]


def _tools(backend: ModuleType) -> dict[str, str]:
    distributions = {*backend.REQUIRES.values(), *backend.RUNS_WITH.values()}
    versions = {name: importlib.metadata.version(name) for name in sorted(distributions)}
    return {"fourstep": __version__, **versions}
