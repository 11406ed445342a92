"""A package built again from what it says of itself, and compared byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from exporter import backends
from exporter.build.model import open_asked
from exporter.build.pipeline import build
from exporter.build.write import tools_of
from exporter.errors import CheckFailed, InputError
from exporter.files.read import parse_json, parse_text, read_text
from exporter.package.manifest import Manifest
from exporter.package.read import DIGEST, MANIFEST, read_manifest
from exporter.progress import Progress
from exporter.recipe.again import Givens, loras_of, recipe_again
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import Package

BLOCK_BYTES = 1 << 20  # that are compared at a time


@dataclass(frozen=True)
class Difference:
    """A file that is not the same in both packages.

    Attributes:
        path: in the package.
        where: the first byte that differs, the first key of a JSON file, or which package lacks it.
    """

    path: str
    where: str


@dataclass(frozen=True)
class Rebuilt:
    """What came of building a package again.

    Attributes:
        folder: of the package that was built again.
        files: how many were compared.
        tools: of those whose versions differ, the version then and now; empty for none.
        differences: in the order of paths.
    """

    folder: Path
    files: int
    tools: Mapping[str, tuple[str, str]]
    differences: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        return not self.differences


def rebuild(
    package: Package,
    given: Givens,
    out: Path,
    progress: Progress | None = None,
    recipe: Recipe | None = None,
    statistics: Path | None = None,
) -> Rebuilt:
    """Build a package again into the folder ``out``, and compare every file.

    Args:
        recipe: of a package from before format 4.2, which holds none.
        statistics: folder of calibration statistics; None: measured again, below ``out``.

    Raises InputError, before anything is built, for another checkpoint, LoRA, key or recipe than
    the package was built from.
    """
    manifest = package.manifest
    backend = backends.load_to_build(manifest.backend)
    found = _recipe(package, given, recipe)
    now = tools_of(backend, found.backend(manifest.backend).choices)
    tools = differing(manifest.origin.tools, now)
    _refuse_others(found, manifest)
    scheme = _scheme(package, out)
    calibrated = manifest.origin.calibrated
    (built,) = build(
        found, out, [manifest.backend], [scheme], progress, statistics, calibrated=calibrated
    )
    paths = sorted({*_paths(package.folder), *_paths(built.path)} & _listed(package, built.path))
    differences = [_difference(path, package.folder, built.path) for path in paths]
    return Rebuilt(built.path, len(paths), tools, tuple(d for d in differences if d is not None))


def differing(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Tools whose versions are not the same, with both; empty for one that is not there."""
    names = [*then, *(name for name in now if name not in then)]
    both = {name: (then.get(name, ""), now.get(name, "")) for name in names}
    return {name: versions for name, versions in both.items() if versions[0] != versions[1]}


def _recipe(package: Package, given: Givens, recipe: Recipe | None) -> Recipe:
    """The recipe in the package, or the one that is given for a package without."""
    manifest, file = package.manifest, package.manifest.origin.recipe
    if file:
        if recipe is not None:
            raise InputError(f"is given, and the package holds its own, {file}", field="recipe")
        where = package.folder / file
        text = parse_text(package.read(file), where, CheckFailed)
        return recipe_again(text, where, package.folder, manifest, given)
    if recipe is None:
        raise InputError(
            f"{package.folder}: holds no recipe, as packages from before format 4.2; give the one "
            "that it was built from",
            field="recipe",
        )
    if given.places or given.mark_key is not None:
        raise InputError("a recipe that is given names parts and keys itself", field="recipe")
    found = replace(recipe, name=manifest.name, checkpoint=given.checkpoint)
    found = replace(found, loras=loras_of(manifest, given.loras) if given.loras else recipe.loras)
    if not manifest.golden.pictures:
        found = replace(found, prompts=())
    if found.digest(manifest.backend) != manifest.origin.recipe_sha256:
        raise InputError("is not the recipe that the package was built from", field="recipe")
    return found


def _refuse_others(recipe: Recipe, manifest: Manifest) -> None:
    """Raise InputError for LoRAs or a checkpoint whose digest is not the manifest's."""
    opened = open_asked(recipe)
    for entry, lora, asked in zip(manifest.origin.loras, opened.loras, recipe.loras, strict=True):
        if entry.sha256 != lora.digest:
            raise InputError(f"{asked.file}: {_another('LoRA', lora.digest, entry.sha256)}")
    if opened.digest != manifest.origin.checkpoint_sha256:
        digests = opened.digest, manifest.origin.checkpoint_sha256
        raise InputError(f"{recipe.checkpoint}: {_another('checkpoint', *digests)}")


def _another(what: str, found: str, expected: str) -> str:
    return (
        f"another {what} than the package was built from (SHA-256 {found[:12]}..., and the "
        f"manifest says {expected[:12]}...)"
    )


def _scheme(package: Package, out: Path) -> str:
    """A scheme's name; of a plan, the file that it is copied to under the scheme's name."""
    manifest = package.manifest
    if not manifest.origin.plan_sha256:
        return manifest.scheme
    folder = out / "plan"
    folder.mkdir(parents=True, exist_ok=True)
    listed = {file.path for file in manifest.files}
    for suffix in (".toml", ".json"):
        if f"plan{suffix}" in listed:
            content = package.read(f"plan{suffix}")
            (folder / f"{manifest.scheme}{suffix}").write_bytes(content)
    return str(folder / f"{manifest.scheme}.toml")


def _paths(folder: Path) -> set[str]:
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}


def _listed(package: Package, built: Path) -> set[str]:
    """What either manifest names: others may keep files of theirs beside a package.

    A signature is over the manifest, and nobody builds it.
    """
    files = (*package.manifest.all_files, *read_manifest(built).all_files)
    return {MANIFEST, DIGEST, *(file.path for file in files)}


def _difference(path: str, then: Path, now: Path) -> Difference | None:
    """What is not the same of a file, or None."""
    if not (now / path).is_file():
        return Difference(path, "is not there when it is built again")
    if not (then / path).is_file():
        return Difference(path, "is there only when it is built again")
    at = _first_difference(then / path, now / path)
    if at is None:
        return None
    keys = _key(then / path, now / path) if path.endswith(".json") else ""
    sizes = [(folder / path).stat().st_size for folder in (then, now)]
    size = f"of {sizes[0]:,}" if sizes[0] == sizes[1] else f"{sizes[0]:,} bytes then, {sizes[1]:,}"
    return Difference(path, f"{keys}from byte {at:,}, {size}")


def _first_difference(one: Path, other: Path) -> int | None:
    """The place of the first byte that differs, counted from 0; None for the same bytes."""
    at = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(BLOCK_BYTES), right.read(BLOCK_BYTES)
            if a != b:
                pairs = enumerate(zip_longest(a, b))
                return at + next(i for i, (x, y) in pairs if x != y)
            if not a:
                return None
            at += len(a)


def _key(one: Path, other: Path) -> str:
    """The first key of JSON files that differs, as ``origin.tools.onnx: ``; else empty."""
    try:
        values = [parse_json(read_text(file), file) for file in (one, other)]
    except InputError:
        return ""
    return next((f"{'.'.join(keys)}: " for keys in _keys(*values)), "")


def _keys(one: Any, other: Any) -> Iterator[tuple[str, ...]]:
    """The keys of values that differ, from the outermost on."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            if (key in one) != (key in other):
                yield (key,)
            elif one[key] != other[key]:
                yield from ((key, *rest) for rest in _keys(one[key], other[key]))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            if a != b:
                yield from ((str(i), *rest) for rest in _keys(a, b))
    else:
        yield ()
