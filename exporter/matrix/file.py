"""A matrix: a TOML file of axes, as jobs, one for each package."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter import backends
from exporter.checkpoint.hub import names_a_path
from exporter.errors import FourstepError, InputError, known
from exporter.files.read import parse_toml, read_text
from exporter.layouts import NATIVE
from exporter.package.sizes import parse_size
from exporter.recipe.plan import is_plan, read_plan
from exporter.recipe.recipe import Recipe, read_recipe

AXES = {  # of a file, and what a row of include or exclude calls one value
    "recipes": "recipe",
    "checkpoints": "checkpoint",
    "sizes": "size",
    "socs": "soc",
    "backends": "backend",
    "schemes": "scheme",
}
KEYS = (*AXES, "include", "exclude")
EXAMPLES = {
    "recipes": '["recipe.toml"]',
    "checkpoints": '["model-a", "model-b"]',
    "sizes": '["512x512", "768x512"]',
    "socs": '["8gen3", "8elite"]',
    "backends": '["onnx", "openvino"]',
    "schemes": '["int8", "int4"]',
}
MOST_JOBS = 10_000
CHIPS = "socs"  # of a backend's table in a recipe, and the axis
Row = Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """A package to build.

    Attributes:
        name: its folder, from that of the whole matrix; unlike that of any other job.
        recipe: an absolute path.
        checkpoint, size, soc: in place of the recipe's; empty: the recipe's own.
        scheme: its name, or the absolute path of a plan.
        beside: all schemes that the matrix builds of the same recipe, checkpoint and size, in
            order: layers are measured for them together.
    """

    name: str
    recipe: str
    checkpoint: str
    size: str
    backend: str
    scheme: str
    beside: tuple[str, ...] = ()
    soc: str = ""

    @property
    def group(self) -> str:
        """The folder that it shares with packages of the same recipe, checkpoint and size."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class Refused:
    """A job that cannot even be begun; ``reason``: in one line."""

    name: str
    reason: str


@dataclass(frozen=True)
class Matrix:
    """The jobs of a file, those with the same traced model side by side."""

    name: str
    jobs: tuple[Job, ...]
    refused: tuple[Refused, ...] = ()

    @property
    def names(self) -> list[str]:
        return [job.name for job in self.jobs] + [one.name for one in self.refused]

    def only(self, names: Sequence[str]) -> Matrix:
        """Some of the jobs; raises InputError for a name that is none of them."""
        for name in names:
            if name not in self.names:
                raise InputError(known("job", name, self.names), field="jobs")
        chosen = set(names)
        return replace(
            self,
            jobs=tuple(job for job in self.jobs if job.name in chosen),
            refused=tuple(one for one in self.refused if one.name in chosen),
        )


def read_matrix(file: Path) -> Matrix:
    """Read a matrix, whose paths are relative to its folder.

    A recipe that cannot be read makes its own jobs refused ones. Raises InputError, which names the
    file and the key, for what is wrong with the matrix itself.
    """
    raw = parse_toml(read_text(file), file)
    try:
        return _matrix(file, raw)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def asked_recipe(job: Job) -> Recipe:
    """The recipe of a job, with its own checkpoint, size and chip; raises InputError."""
    recipe = read_recipe(Path(job.recipe))
    others = [layout for layout in recipe.layouts if layout != NATIVE]
    if others:
        raise InputError(
            f"{job.recipe}: [build] layout: a matrix builds {NATIVE} packages alone; for "
            f"{', '.join(others)}: fourstep build"
        )
    if job.checkpoint:
        recipe = replace(recipe, checkpoint=job.checkpoint, revision=None, variant=None)
    if job.size:
        size = parse_size(job.size)
        recipe = recipe.at(size)
        if recipe.calibration.size is not None:
            recipe = replace(recipe, calibration=replace(recipe.calibration, size=None))
    return _for_chip(recipe, job.backend, job.soc) if job.soc else recipe


def _for_chip(recipe: Recipe, backend: str, soc: str) -> Recipe:
    """A recipe whose graphs are compiled for one chip; raises InputError where none can be."""
    loaded = backends.load(backend)
    chips = backends.lists_of(loaded).get(CHIPS)
    if chips is None:
        raise InputError(f"soc = {soc!r}: {backend} compiles for no chips; leave it out")
    if soc not in chips:
        raise InputError(known("soc", soc, chips))
    choices = {**recipe.backend(backend).choices, CHIPS: soc}
    reason = backends.refuse_choices(loaded, choices)
    if reason:
        raise InputError(f"[{backend}] {reason}")
    return recipe.choosing(backend, choices)


def _takes_chips(recipe: Recipe, backend: str) -> bool:
    """Whether a recipe's graphs for a backend are such as are compiled for chips."""
    loaded = backends.load(backend)
    chips = backends.lists_of(loaded).get(CHIPS, ())
    choices = recipe.backend(backend).choices
    return any(backends.refuse_choices(loaded, {**choices, CHIPS: c}) is None for c in chips[:1])


def _matrix(file: Path, raw: Mapping[str, Any]) -> Matrix:
    for key in raw:
        if key not in KEYS:
            raise InputError(known("key", key, KEYS))
    axes = {axis: _axis(raw, axis) for axis in AXES}
    included = [_row(raw, "include", row) for row in _rows(raw, "include")]
    excluded = [_placed(_row(raw, "exclude", r), file.parent) for r in _rows(raw, "exclude")]
    if not axes["recipes"] and not included:
        raise InputError('recipes: at least one is expected, such as recipes = ["recipe.toml"]')
    crossed = [dict(zip(AXES.values(), c, strict=True)) for c in _combinations(axes)]
    rows = [*((row, True) for row in crossed), *((row, False) for row in included)]
    found: dict[str, Job | Refused] = {}
    for row, is_crossed in rows:
        for one, values in _expanded(_placed(row, file.parent), is_crossed):
            if any(r.items() <= values.items() for r in excluded):
                continue
            if found.setdefault(one.name, one) != one:
                raise InputError(f"two jobs would be built into {one.name}; rename one's files")
            if len(found) > MOST_JOBS:
                raise InputError(f"more than {MOST_JOBS:,} jobs; make several matrices")
    if not found:
        raise InputError("no job is left; exclude fewer")
    jobs = [one for one in found.values() if isinstance(one, Job)]
    if axes["socs"] and not any(job.soc for job in jobs):
        raise InputError(
            'socs: no job compiles for chips; say target = "qnn" in [onnx] of a recipe'
        )
    refused = [one for one in found.values() if isinstance(one, Refused)]
    return Matrix(file.stem, tuple(_together(jobs)), tuple(refused))


def _axis(raw: Mapping[str, Any], axis: str) -> tuple[str, ...]:
    """The values of an axis, each once; none where the recipe says."""
    given = raw.get(axis, [])
    if not isinstance(given, list) or not all(isinstance(v, str) and v for v in given):
        raise InputError(f"{axis}: a list of texts is expected, such as {EXAMPLES[axis]}")
    if axis in raw and not given:
        raise InputError(f"{axis}: is empty; leave it out for what the recipes say")
    return tuple(dict.fromkeys(given))


def _combinations(axes: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """One value of each axis; empty where an axis is not given."""
    if axes["recipes"]:
        yield from itertools.product(*(axes[axis] or ("",) for axis in AXES))


def _rows(raw: Mapping[str, Any], key: str) -> list[Any]:
    rows = raw.get(key, [])
    if not isinstance(rows, list):
        raise InputError(f"{key}: tables are expected, each under [[{key}]]")
    return rows


def _row(raw: Mapping[str, Any], key: str, row: object) -> Row:
    """A table of ``[[include]]`` or ``[[exclude]]``."""
    names = tuple(AXES.values())
    if not isinstance(row, dict) or not row:
        raise InputError(f"[[{key}]]: a table is expected, of some of: {', '.join(names)}")
    for name, value in row.items():
        if name not in names:
            raise InputError(f"[[{key}]] {known('key', name, names)}")
        if not isinstance(value, str) or not value:
            raise InputError(f"[[{key}]] {name}: a text is expected")
    if key == "include" and "recipe" not in row:
        raise InputError("[[include]]: recipe is missing")
    return dict.fromkeys(names, "") | row if key == "include" else row


def _placed(row: Row, folder: Path) -> Row:
    """A row with absolute paths in place of those that are relative to the matrix's folder."""
    placed = dict(row)
    if row.get("recipe"):
        placed["recipe"] = _absolute(row["recipe"], folder)
    if is_plan(row.get("scheme", "")):
        placed["scheme"] = _absolute(row["scheme"], folder)
    near = _absolute(row["checkpoint"], folder) if row.get("checkpoint") else ""
    if near and (Path(near).exists() or names_a_path(row["checkpoint"])):
        placed["checkpoint"] = near
    return placed


def _absolute(given: str, folder: Path) -> str:
    return os.path.normpath(folder.absolute() / Path(given).expanduser())


def _expanded(row: Row, is_crossed: bool) -> Iterator[tuple[Job | Refused, Row]]:
    """A row's jobs, each with its values: where it names no backend or scheme, all of the recipe's.

    What a mistake keeps from being a job is a refused one.

    Args:
        is_crossed: whether it comes from axes: a chip is for the backends alone that compile for
            chips, and others have one job for all chips.
    """
    place = _place_of({**row, "soc": ""})
    plain = Job("", row["recipe"], row["checkpoint"], row["size"], "", "")
    try:
        recipe = asked_recipe(plain)
        names = [row["backend"]] if row["backend"] else recipe.backends
    except FourstepError as error:
        asked = f"{row['backend'] or '*'}-{_label(row['scheme']) or '*'}"
        yield Refused(f"{place}/{asked}", str(error)), row
        return
    for backend in names:
        given = row
        if is_crossed and backend in recipe.works_with and not _takes_chips(recipe, backend):
            given = {**row, "soc": ""}
        job = replace(plain, backend=backend, soc=given["soc"])
        yield from _of_backend(job, _place_of(given), recipe, given)


def _of_backend(
    job: Job, place: str, recipe: Recipe, row: Row
) -> Iterator[tuple[Job | Refused, Row]]:
    values = {**row, "backend": job.backend}
    try:
        backends.load(job.backend)
        recipe = _for_chip(recipe, job.backend, job.soc) if job.soc else recipe
        schemes = [row["scheme"]] if row["scheme"] else recipe.backend(job.backend).schemes
    except FourstepError as error:
        name = f"{place}/{job.backend}-{_label(row['scheme']) or '*'}"
        yield Refused(name, str(error)), values
        return
    for scheme in schemes:
        name = f"{place}/{job.backend}-{_label(scheme)}"
        values = {**values, "scheme": scheme}
        try:
            found = read_plan(Path(scheme)).scheme if is_plan(scheme) else recipe.scheme(scheme)
        except FourstepError as error:
            yield Refused(name, str(error)), values
            continue
        named = f"{place}/{job.backend}-{found.name}"
        yield replace(job, name=named, scheme=scheme), values


def _place_of(row: Row) -> str:
    """The folder of a row's packages, from that of the matrix: a level for each axis it is on."""
    checkpoint = row["checkpoint"].rstrip("/").rpartition("/")[2]
    return "/".join(filter(None, [Path(row["recipe"]).stem, checkpoint, row["size"], row["soc"]]))


def _label(scheme: str) -> str:
    return Path(scheme).stem if is_plan(scheme) else scheme


def _together(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with what is built beside them: those of a group together, scheme by scheme."""
    groups: dict[str, dict[str, list[Job]]] = {}
    for job in jobs:
        groups.setdefault(job.group, {}).setdefault(job.scheme, []).append(job)
    return [
        replace(job, beside=tuple(schemes))
        for schemes in groups.values()
        for same in schemes.values()
        for job in same
    ]
