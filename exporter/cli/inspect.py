"""``fourstep inspect``: what a package holds, or what a checkpoint would become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter import backends
from exporter.cli.credentials import show_credentials
from exporter.cli.options import PLACE, json_option
from exporter.cli.output import megabytes, require_build, show, show_json
from exporter.errors import InputError
from exporter.package.layout import is_layout, read_layout
from exporter.package.manifest import (
    Filter,
    Manifest,
    NpuEntry,
    Schedule,
    licence_words,
    mark_words,
)
from exporter.package.sizes import sized_files, sizes_of

if TYPE_CHECKING:
    from exporter.checkpoint.open import Checkpoint
    from exporter.checkpoint.survey import Survey
    from exporter.network.cut import Cut
    from exporter.package.sizes import PictureSize
    from exporter.predict.checkpoint import GraphSize
    from exporter.recipe.recipe import Recipe


PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@click.command("inspect")
@click.argument("place", metavar="CHECKPOINT|PACKAGE|PICTURE")
@click.option("--recipe", type=PLACE, help="Cut a checkpoint as this recipe.")
@click.option("--revision", help="Of a hub id: branch, tag or commit.")
@click.option("--variant", help="Of a checkpoint's files, such as fp16.")
@json_option
def command(
    place: str, recipe: Path | None, revision: str | None, variant: str | None, as_json: bool
) -> None:
    """Show a package's contents, or what a checkpoint holds and would become in each scheme.

    A checkpoint is a folder, a single file, a GGUF file, a LoRA, or a hub id that was fetched. Of a
    picture, who signed it.
    """
    if recipe and (revision or variant):
        raise InputError(
            "--revision and --variant: the recipe says them; leave out one or the other"
        )
    place = str(PLACE.convert(place, None, None)) if place.startswith("~") else place
    if is_layout(Path(place)):
        _inspect_layout(Path(place), as_json)
    elif (Path(place) / "manifest.json").is_file():
        _inspect_package(Path(place), as_json)
    elif Path(place).suffix.lower() in PICTURES and Path(place).is_file():
        if recipe or revision or variant:
            raise InputError(
                "--recipe, --revision and --variant apply to checkpoints, not pictures"
            )
        show_credentials(Path(place), as_json)
    else:
        _inspect_checkpoint(place, recipe, revision, variant, as_json)


def _inspect_layout(folder: Path, as_json: bool) -> None:
    """A folder for clients of others."""
    from dataclasses import asdict

    from exporter.trust.check import signer_of

    found, signed_by = read_layout(folder), signer_of(folder)
    if as_json:
        show_json({**asdict(found), "signed_by": signed_by})
        return
    show(
        f"{found.name}  {found.backend}-{found.scheme}  {megabytes(found.bytes)}  layout "
        f"{found.layout}, for {', '.join(found.clients)}\n"
        f"{found.schedule.steps} steps, {found.schedule.mode}, sigmas "
        f"{list(found.schedule.sigmas)}; no other number of steps, guidance 1\n"
        f"  {mark_words(found.mark)}\n"
        f"  {licence_words(found.origin.licence_id)}\n"
        f"{_signed_told(signed_by)}"
    )
    for graph in found.graphs:
        made_of = " and ".join(graph.made_of)
        show(f"  {graph.folder:24} {megabytes(graph.bytes):>10}  {made_of}")


def _signed_told(signed_by: str | None) -> str:
    """Who signed, as nobody checked."""
    checked = "; verify --trusted KEY|CERT|ROOT checks it"
    return f"package: {f'signed by {signed_by}{checked}' if signed_by else 'not signed'}"


def _inspect_package(folder: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from exporter.runtime.package import open_package
    from exporter.trust.check import signer_of

    manifest, signed_by = open_package(folder).manifest, signer_of(folder)
    if as_json:  # a package holds no key
        show_json({**asdict(manifest), "credentials": None, "signed_by": signed_by})
        return
    schedule = manifest.schedule
    show(
        f"{manifest.name}  {manifest.backend}-{manifest.scheme}  {megabytes(manifest.bytes)}  "
        f"{manifest.picture.width_px} x {manifest.picture.height_px} px\n"
        f"{schedule.steps} steps, {schedule.mode}, sigmas {list(schedule.sigmas)}; "
        f"{_guidance(schedule)}"
        f"T5 {'on board' if manifest.text.t5 else 'replaced by null tokens'}; "
        f"predicted peak memory {_predicted(manifest.device.predicted_peak_bytes)}\n"
        "pictures: not signed, unless run is given --credentials CERT KEY"
    )
    show(_signed_told(signed_by))
    if manifest.sizes:
        show(_sizes_told(manifest))
    show(f"  {mark_words(manifest.mark)}")
    show("\n".join(f"  {line}" for line in _papers(manifest)))
    for lora in manifest.origin.loras:
        show(f"  LoRA {lora.sha256[:12]} merged at weight {lora.weight:g}")
    for graph in manifest.graphs:
        formats = ", ".join(f"{n:,} {name}" for name, n in graph.formats.items())
        show(f"  {graph.name:<12} {megabytes(graph.bytes):>10}  {formats}")
        for weight in graph.adjusted:
            show(f"    {weight.weight}: {weight.used} in place of {weight.asked}")
        for remark in graph.remarks:
            show(f"    {remark}")
        if graph.npu:
            show(f"    {_on_npu(graph.npu, {f.path: f.bytes for f in manifest.all_files})}")
    show(_filter(manifest.filter))


def _papers(manifest: Manifest) -> list[str]:
    """What goes along with a package for those who answer for it."""
    origin = manifest.origin
    shown = f"; to be shown: {origin.attribution!r}" if origin.attribution else ""
    lines = [f"{licence_words(origin.licence_id)}{shown}"]
    named = {"bill of materials": manifest.bom, "recipe": origin.recipe, "notice": origin.notice}
    found = ", ".join(f"{what} in {file}" for what, file in named.items() if file)
    return [*lines, found] if found else lines


def _sizes_told(manifest: Manifest) -> str:
    """The sizes of a package: what each adds, and what drawing it takes."""
    first, *others = sizes_of(manifest)
    lines = [f"sizes: {first}, drawn unless run --size names another"]
    bytes_of = {file.path: file.bytes for file in manifest.files}
    beside = sized_files(manifest)
    for size, entry in zip(others, manifest.sizes, strict=True):
        own = {path for graph in entry.graphs for path in graph.files if path in beside}
        for golden in entry.pictures:
            own |= {golden.image, golden.unquantized, golden.tensors}
        added = megabytes(sum(bytes_of[path] for path in own))
        peak = _predicted(entry.predicted_peak_bytes)
        names = ", ".join(graph.name for graph in entry.graphs)
        lines.append(f"  {size}  {added} of its own: {names}; predicted peak memory {peak}")
    return "\n".join(lines)


def _on_npu(npu: NpuEntry, bytes_of: Mapping[str, int]) -> str:
    """What an NPU is allowed, and what was compiled for which chip."""
    found = [
        f"{c.soc} (v{c.htp_arch}, QAIRT {c.qairt}, "
        f"{megabytes(sum(bytes_of[path] for path in c.files))}{' for all sizes' * c.shared})"
        for c in npu.contexts
    ]
    compiled = f"compiled for {', '.join(found)}" if found else "compiled where it is opened"
    where = "on an NPU alone" if npu.alone else "whole on an NPU"
    return f"{where}, error at most {npu.tolerance.graph_relative:.1e}; {compiled}"


def _filter(entry: Filter | None) -> str:
    """What pictures have to pass."""
    if entry is None:
        return "filter: none"
    side = "or more" if entry.reject == "above" else "or less"
    what = f" for {entry.label!r}" if entry.label else ""
    return f"filter: a picture is rejected that scores {entry.threshold:g} {side}{what}"


def _guidance(schedule: Schedule) -> str:
    """What is said of guidance, if there is any."""
    if schedule.guidance is None:
        return ""
    text = schedule.guidance.negative_prompt
    of_run = "as run --negative gives it, else empty"
    return (
        f"guidance {schedule.guidance.scale:g}, negative prompt "
        f"{of_run if text is None else repr(text)}; "
    )


def _predicted(size_bytes: int | None) -> str:
    return "not measured" if size_bytes is None else megabytes(size_bytes)


def _inspect_checkpoint(
    place: str,
    recipe_file: Path | None,
    revision: str | None,
    variant: str | None,
    as_json: bool,
) -> None:
    require_build()
    from dataclasses import asdict

    from exporter.build.model import open_asked
    from exporter.checkpoint.component import COMPONENTS
    from exporter.checkpoint.open import open_partly
    from exporter.checkpoint.survey import lora_summary, survey
    from exporter.recipe.recipe import read_recipe

    file = Path(place)
    lora = lora_summary(file) if file.suffix == ".safetensors" and file.is_file() else None
    if lora is not None:
        if as_json:
            show_json({"layout": "LoRA", **asdict(lora)})
        else:
            show(f"{place}  LoRA, {lora.worded}")
        return
    recipe = read_recipe(recipe_file) if recipe_file else None
    checkpoint = open_asked(recipe, place) if recipe else open_partly(place, (), revision, variant)
    found = survey(place, checkpoint)
    told = {
        "layout": found.layout,
        "network": found.network,
        "components": [asdict(component) for component in found.components],
        "missing": list(found.missing),
        "unused": list(found.unused),
    }
    if not as_json:
        show("\n".join(_lines(place, found)))
    if recipe is None and set(found.lacks) & set(COMPONENTS):
        if as_json:
            show_json(told)
        return
    _sizes(place, checkpoint, recipe, told if as_json else None)


def _lines(place: str, found: Survey) -> list[str]:
    """What a checkpoint holds: its layout, the network, a line for each component, what is not."""
    lines = [f"{place}  {found.layout}{f', {found.network}' if found.network else ''}"]
    lines += [f"  {component.worded}" for component in found.components]
    if found.missing:
        lines.append(f"  missing: {', '.join(found.missing)}")
    if found.unused:
        lines.append(f"  not used: {', '.join(found.unused)}")
    return lines


def _sizes(
    place: str, checkpoint: Checkpoint, recipe: Recipe | None, told: Mapping[str, object] | None
) -> None:
    """What the graphs would take in each scheme; as JSON beside what is told, if that is given."""
    from dataclasses import asdict

    from exporter.predict.checkpoint import default_cut

    cut = recipe.cut if recipe else default_cut(checkpoint)
    mark = recipe.mark.entry if recipe and recipe.mark else None
    found, further = _predictions(checkpoint, recipe, cut)
    if told is not None:
        shape = {"width_px": cut.width_px, "height_px": cut.height_px, "t5": cut.t5}
        entry = asdict(mark) if mark else None
        rows: dict[str, object] = {"mark": entry, "graphs": [asdict(size) for size in found]}
        if further:
            rows["sizes"] = [
                {"size": str(size), "graphs": [asdict(one) for one in graphs]}
                for size, graphs in further.items()
            ]
        show_json({**told, **shape, **rows})
        return
    show(f"{place}  {cut.width_px} x {cut.height_px} px, {cut.steps} steps")
    show(f"  {mark_words(mark)}")
    for backend in dict.fromkeys(size.backend for size in found):
        if backends.load(backend).costs is None:
            show(f"\n{backend}: not measured")
            continue
        _tables(backend, "", found)
        for size, graphs in further.items():
            _tables(backend, f", besides, at {size}", graphs)


def _predictions(
    checkpoint: Checkpoint, recipe: Recipe | None, cut: Cut
) -> tuple[list[GraphSize], dict[PictureSize, list[GraphSize]]]:
    """Of all graphs at the first size, and at each further one of those that it has besides."""
    from exporter.build.model import depends_on_size, refuse_sizes, traced
    from exporter.calibrate.trajectories import call_counts
    from exporter.package.names import graph_of
    from exporter.predict.checkpoint import sizes
    from exporter.quantize.schemes import load_scheme, scheme_names
    from exporter.recipe.recipe import DEFAULT_BACKENDS, calibration_prompts

    schedule = recipe.schedule if recipe else Schedule("euler", cut.sigmas)
    prompts = recipe.calibration.prompts if recipe else calibration_prompts()
    scheme_of = recipe.scheme if recipe else load_scheme
    choices = {
        name: recipe.backend(name).choices
        if recipe
        else backends.default_choices(backends.load(name))
        for name in (recipe.backends if recipe else DEFAULT_BACKENDS)
    }
    schemes = {name: scheme_of(name) for name in scheme_names()}
    given = choices, schemes, recipe.graph_parts if recipe else {}
    calls = call_counts(len(prompts), schedule)
    most_bytes = recipe.device_memory_bytes if recipe else None
    tile = recipe.mark.tile if recipe and recipe.mark else None
    if recipe is not None:
        refuse_sizes(checkpoint, recipe)
    first = traced(checkpoint, cut, tile)
    further = {}
    for size in recipe.further_sizes if recipe else ():
        other = replace(cut, width_px=size.width_px, height_px=size.height_px)
        programs = traced(checkpoint, other, tile)
        own = {name for name in programs if depends_on_size(first[name], programs[name])}
        found = sizes(programs, *given, calls, weights_are_there=True, most_bytes=most_bytes)
        further[size] = [one for one in found if graph_of(one.graph) in own]
    return sizes(first, *given, calls, most_bytes=most_bytes), further


def _tables(backend: str, at: str, sizes: Iterable[GraphSize]) -> None:
    """What a backend's graphs take.

    Args:
        at: of which size, in words; empty for the first.
    """
    own = [size for size in sizes if size.backend == backend]
    for title, what, total in (
        ("files", "bytes", sum),
        ("peak memory to build", "build_bytes", max),
        ("peak memory to run", "run_bytes", max),
    ):
        cells = {(s.graph, s.scheme): getattr(s, what) for s in own}
        _table(f"{backend}: {title}{at}", cells, total)


def _table(
    title: str, cells: Mapping[tuple[str, str], int], total: Callable[[Iterable[int]], int]
) -> None:
    """Megabytes by row and column, and a last row with the total of each column."""
    rows, columns = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    show(f"\n{title}, MB")
    width = max(10, *(len(name) for name in columns))
    show(f"{'':<14} " + " ".join(f"{name:>{width}}" for name in columns))
    lines = {row: [cells[row, column] for column in columns] for row in rows}
    lines["all" if total is sum else "at most"] = [
        total(cells[row, column] for row in rows) for column in columns
    ]
    for name, values in lines.items():
        show(f"{name:<14} " + " ".join(f"{v / 1e6:>{width},.1f}" for v in values))
