"""Writes a bundle: a package, a runtime in a device's language, licences, and what they all are.

A bundle is whole or absent, has the same bytes wherever it is written, and draws with nothing of
fourstep's installed. ``bundle.json`` has the digest of every file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter import __version__
from exporter.bundle.target import HERE, Target
from exporter.errors import CheckFailed, InputError, printable
from exporter.files.read import convert, file_digest, read_json, read_text, reason_of
from exporter.files.staging import refuse_place, staging
from exporter.package.check import changed
from exporter.package.manifest import FileEntry, Manifest
from exporter.package.read import DIGEST, MANIFEST, SIGNATURE, digest_line, read_manifest
from exporter.progress import Progress
from exporter.runtime.package import Package

BUNDLE, LICENCE, NOTICE = "bundle.json", "LICENSE", "NOTICE"
BUNDLE_VERSION = "1.0"
LEFT_OUT = ("__pycache__", "node_modules")  # folders that tools leave among sources
ELSEWHERE = "choose another place with -o"
PROMPT = "a red circle"  # where a package has no golden one
WORD = re.compile(r"\{\{(\w+)\}\}")
LINES = 2  # of progress


@dataclass(frozen=True)
class PackageOrigin:
    """The package in a bundle.

    Attributes:
        place: its folder in the bundle.
        name, backend, scheme: as its manifest says.
        manifest_sha256: of the manifest of the package that was bundled.
        golden: whether its golden files are there.
    """

    place: str
    name: str
    backend: str
    scheme: str
    manifest_sha256: str
    golden: bool


@dataclass(frozen=True)
class Bundle:
    """What ``bundle.json`` says.

    Attributes:
        bundle_version: of this record.
        target: what the bundle is for.
        fourstep: the version that wrote it.
        package: what was bundled.
        files: every file but ``bundle.json`` itself, by path.
    """

    bundle_version: str
    target: str
    fourstep: str
    package: PackageOrigin
    files: tuple[FileEntry, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def write_bundle(
    package: Package,
    target: Target,
    out: Path,
    golden: bool = True,
    progress: Progress | None = None,
    engine: Path | None = None,
) -> Bundle:
    """Write a package and the runtime that draws with it as a project in the folder ``out``.

    An earlier bundle there is replaced, unless something in it was changed.

    Args:
        golden: take along the golden files, with which a runtime proves itself.
        engine: the folder of the engine's files, for targets that take some along; None: where
            their command puts them.

    Raises InputError for a package that the target's engines cannot open, whose filter nothing
    would run or that has contexts for an NPU in place of its graphs, a file that is too large for
    it, an engine's file that is missing or another, or a place that holds anything else;
    CheckFailed for a damaged package.
    """
    say = progress or Progress()
    entries = [f for f in package.manifest.all_files if golden or not _is_golden(f, package)]
    _refuse_backend(package, target)
    _refuse_filter(package, target)
    _refuse_compiled(package, target)
    _refuse_large(package, target, entries)
    found = _engine_files(target, engine)
    _refuse_inside(package.folder, out)
    _refuse_others(out)
    size = sum(entry.bytes for entry in entries) + sum(f.stat().st_size for f in found.values())
    refuse_place(out, size, ELSEWHERE)
    with staging(out, ELSEWHERE) as folder:
        _copy_runtime(target, facts_of(package.manifest, target), folder)
        for place, file in found.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / place)
        _copy_package(package, target, entries, folder)
        if package.manifest.origin.notice:
            (folder / NOTICE).write_bytes(package.read(package.manifest.origin.notice))
        lost = not golden and (package.folder / SIGNATURE).is_file()
        told = f"; {SIGNATURE} left out: it is over the golden files too" if lost else ""
        say(f"{len(entries)} files of the package copied, and whole{told}")
        for path, text in target.extra(read_manifest(folder / target.place)).items():
            _write(folder / path, text)
        bundle = _described(package, target, golden, folder)
        _write(folder / BUNDLE, _json(asdict(bundle)))
        say(f"{len(bundle.files)} files in all")
    return bundle


def facts_of(manifest: Manifest, target: Target) -> dict[str, str]:
    """What stands in place of ``{{words}}`` in the files of a target that are filled."""
    pictures = manifest.golden.pictures
    peak_bytes = manifest.device.predicted_peak_bytes
    return {
        "attribution": manifest.origin.attribution,
        "backend": manifest.backend,
        "height_px": str(manifest.picture.height_px),
        "licences": _licences(manifest, target),
        "megabytes": f"{manifest.bytes / 1e6:,.1f}",
        "name": printable(manifest.name),
        "peak": "not known" if peak_bytes is None else f"about {peak_bytes / 1e6:,.0f} MB",
        "place": target.place,
        "prompt": shlex.quote(printable(pictures[0].prompt if pictures else PROMPT)),
        "scheme": manifest.scheme,
        "seed": str(pictures[0].seed if pictures else 0),
        "steps": str(manifest.schedule.steps),
        "version": __version__,
        "width_px": str(manifest.picture.width_px),
    }


def _licences(manifest: Manifest, target: Target) -> str:
    """What a README says of the weights' licence, and of what it wants shown."""
    origin = manifest.origin
    name = origin.licence_id or "a licence that the package does not name"
    where = f", in `{target.place}/{origin.licence}`" if origin.licence else ""
    lines = [f"`{LICENCE}` is the runtime's. The weights are under {name}{where}."]
    if origin.attribution:
        lines += [
            f"**{origin.attribution}**",
            "That line has to be seen where your users are: in a page, the interface or the "
            f"documentation. `{NOTICE}` and the licence go along with whatever you make of this.",
        ]
    return "\n\n".join(lines)


def filled(text: str, facts: Mapping[str, str]) -> str:
    """A text with facts in place of its ``{{words}}``; raises KeyError for one that is none."""
    return WORD.sub(lambda found: facts[found[1]], text)


def sources(target: Target) -> Iterator[tuple[str, Path]]:
    """The files of a target's runtime, and their places in a bundle."""
    for root, folders, files in os.walk(target.sources):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        for name in sorted(files):
            file = Path(root) / name
            if file.suffix != ".py":
                yield file.relative_to(target.sources).as_posix(), file
    for name, place in target.shared.items():
        yield place, HERE / name
    yield LICENCE, HERE / LICENCE


def _refuse_backend(package: Package, target: Target) -> None:
    backend = package.manifest.backend
    if backend not in target.backends:
        able = ", ".join(target.backends)
        raise InputError(
            f"{package.folder}: a package for {backend}, and the engines of --for {target.name} "
            f"open: {able}; fourstep build RECIPE --backend {target.backends[0]}"
        )


def _refuse_filter(package: Package, target: Target) -> None:
    """A filter that nothing runs would let every picture pass."""
    if package.manifest.filter is not None:
        raise InputError(
            f"{package.folder}: has a filter, which the runtime of --for {target.name} does not "
            "run; fourstep run does, or build without [filter]"
        )


def _refuse_compiled(package: Package, target: Target) -> None:
    """Runtimes open graphs on the processor; what was compiled for an NPU is none for it."""
    npus = [graph.npu for graph in package.manifest.graphs if graph.npu and graph.npu.alone]
    if npus:
        chips = ", ".join(context.soc for context in npus[0].contexts)
        raise InputError(
            f"{package.folder}: has contexts in place of its graphs ({chips}), which the runtime "
            f"of --for {target.name} does not open; fourstep run does, or build with "
            'contexts = "beside" in [onnx]'
        )


def _refuse_large(package: Package, target: Target, entries: Iterable[FileEntry]) -> None:
    limit = target.limit
    for entry in entries if limit is not None else ():
        if limit is not None and entry.bytes > limit.bytes:
            raise InputError(
                f"{package.folder / entry.path}: {entry.bytes / 1e6:,.1f} MB, and {limit.of} takes "
                f"files of at most {limit.bytes / 1e6:,.1f} MB; {limit.remedy}"
            )


def _engine_files(target: Target, folder: Path | None) -> dict[str, Path]:
    """The engine's files by their places in a bundle; raises InputError for one that is none."""
    engine = target.engine
    if engine is None:
        if folder is not None:
            raise InputError(
                f"--for {target.name} takes no files of an engine along", field="engine"
            )
        return {}
    home = Path(engine.folder) if folder is None else folder
    for name, digest in engine.files.items():
        if not (home / name).is_file():
            raise InputError(
                f"{home / name}: is missing, a file of {engine.title}; {engine.install}, or name "
                "its folder with --engine"
            )
        if file_digest(home / name) != digest:
            raise InputError(f"{home / name}: not the file of {engine.title}; {engine.install}")
    return {f"{engine.place}/{name}": home / name for name in engine.files}


def _refuse_inside(package: Path, out: Path) -> None:
    if out.resolve() == package.resolve() or package.resolve() in out.resolve().parents:
        raise InputError(f"{out}: lies in the package {package}; {ELSEWHERE}")


def _refuse_others(out: Path) -> None:
    """Raise InputError for a place that holds anything but a bundle as it was written."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file; {ELSEWHERE}")
    found = {f.relative_to(out).as_posix(): f for f in out.rglob("*") if not f.is_dir()}
    listed: dict[str, FileEntry] = {}
    if BUNDLE in found:
        listed = {file.path: file for file in read_bundle(out).files}
    for path, file in sorted(found.items()):
        entry = listed.get(path)
        if path != BUNDLE and (entry is None or file_digest(file) != entry.sha256):
            what = "which fourstep bundle did not write" if entry is None else "which was changed"
            raise InputError(f"{out}: holds {path}, {what}; {ELSEWHERE}, or delete {out}")


def read_bundle(folder: Path) -> Bundle:
    """What the ``bundle.json`` of a folder says; raises InputError for one that is none."""
    return convert(read_json(folder / BUNDLE), Bundle, folder / BUNDLE)


def _copy_runtime(target: Target, facts: Mapping[str, str], folder: Path) -> None:
    for path, file in sources(target):
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if path in target.filled:
            _write(place, filled(read_text(file), facts))
        else:
            shutil.copy(file, place)  # with its mode: scripts can be run


def _copy_package(package: Package, target: Target, entries: list[FileEntry], folder: Path) -> None:
    """Copy files and their manifest, which lists no other; raises CheckFailed for a damaged one."""
    moved = target.moved(package.manifest)
    for entry in entries:
        source = package.folder / entry.path
        copy = folder / moved.get(entry.path, f"{target.place}/{entry.path}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, copy)
        except OSError as error:
            if error.filename == str(source):
                raise CheckFailed(f"{source}: cannot be read: {reason_of(error)}") from None
            raise
        if file_digest(copy) != entry.sha256:
            package.check(entry)  # says what is wrong with it
            raise changed(source)
    (folder / target.place).mkdir(parents=True, exist_ok=True)
    _copy_manifest(package, {entry.path for entry in entries}, folder / target.place)


def _copy_manifest(package: Package, paths: set[str], place: Path) -> None:
    """The manifest and its signature as they are, or if files are left out, one without them.

    A signature is over every file: of fewer it is none.
    """
    if all(file.path in paths for file in package.manifest.files):
        for name in (MANIFEST, DIGEST):
            shutil.copyfile(package.folder / name, place / name)
        if (package.folder / SIGNATURE).is_file():
            shutil.copyfile(package.folder / SIGNATURE, place / SIGNATURE)
    else:
        raw: dict[str, Any] = read_json(package.folder / MANIFEST, CheckFailed)
        raw["golden"] = {}
        for size in raw.get("sizes", []):
            size["pictures"] = []
        raw["files"] = [file for file in raw["files"] if file["path"] in paths]
        _write(place / MANIFEST, _json(raw))
        (place / DIGEST).write_bytes(digest_line(_json(raw).encode()))


def _is_golden(file: FileEntry, package: Package) -> bool:
    """Whether a file is there to compare with alone."""
    golden, sizes = package.manifest.golden, package.manifest.sizes
    named = {golden.tokens, golden.noise}
    for picture in (*golden.pictures, *(p for size in sizes for p in size.pictures)):
        named |= {picture.image, picture.unquantized, picture.tensors}
    return file.path in named


def _described(package: Package, target: Target, golden: bool, folder: Path) -> Bundle:
    manifest = package.manifest
    origin = PackageOrigin(
        target.place,
        manifest.name,
        manifest.backend,
        manifest.scheme,
        file_digest(package.folder / MANIFEST),
        golden and bool(manifest.golden.pictures),
    )
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    entries = (FileEntry(p, f.stat().st_size, file_digest(f)) for p, f in sorted(files.items()))
    return Bundle(BUNDLE_VERSION, target.name, __version__, origin, tuple(entries))


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="\n")
