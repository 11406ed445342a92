"""The whole road of ``fourstep report``: find packages, draw, compare, write the page."""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from exporter import __version__, backends
from exporter.bench.process import Asked, Drawn, draw_apart
from exporter.errors import CheckFailed, FourstepError, InputError
from exporter.files.lock import alone
from exporter.files.prompts import read_prompts
from exporter.files.read import convert, read_json, read_text
from exporter.files.staging import refuse_place, staging
from exporter.files.tensors import opened
from exporter.package.manifest import Golden, Manifest
from exporter.package.measures import has_ssim, psnr_db, snr_db, ssim
from exporter.progress import Progress
from exporter.quantize.formats import STORAGE
from exporter.report.chips import CompileStep, chips_of
from exporter.report.facts import UNQUANTIZED, Comparison, Entry, Figures, Machine
from exporter.report.metric import Metric, read_metric
from exporter.report.page import page
from exporter.report.pictures import Shown
from exporter.report.sensitivities import read_sensitivities
from exporter.runtime.golden import golden_pixels
from exporter.runtime.package import Package, open_package
from exporter.runtime.verify import check_files

PAGE, DATA = "index.html", "report.json"
SHOWN_PROMPTS = 6  # whose pictures are on the page; figures are means over all


@dataclass(frozen=True, eq=False)
class Reference:
    """What a picture is compared with: pixels (H, W, 3), and latents after steps, from 1."""

    pixels: np.ndarray
    latent: np.ndarray
    steps: Mapping[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Compared:
    """A package's entry, and its pictures of the prompts that are shown."""

    entry: Entry
    pictures: Mapping[Asked, np.ndarray]
    previews: Mapping[Asked, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _LoggedImage:
    prompt: str
    seed: int
    loss_db: float | None
    latent_snr_db: float | None


@dataclass(frozen=True)
class _Verified:
    images: tuple[_LoggedImage, ...]


@dataclass(frozen=True)
class _Log:
    """What a report reads of a build's log."""

    verify: _Verified


@dataclass(frozen=True)
class _CompileLog:
    """The same of what was compiled for chips."""

    compiled: tuple[CompileStep, ...] = ()


Refer = Callable[[Package, Asked], Reference]


def make(
    folder: Path,
    out: Path,
    prompts: Path | None = None,
    metric: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Write the page about the packages in ``folder`` into the folder ``out``.

    Args:
        prompts: a file with a prompt per line, drawn in place of the golden ones; the line's
            number, from 0, is the seed.
        metric: a Python file with a function ``measure``.

    Raises InputError for what a user can mend, CheckFailed for a damaged package.
    """
    progress = progress or Progress()
    _refuse_other_files(out)
    refuse_place(out, 0)
    asked = asked_in(prompts) if prompts else ()
    measure = read_metric(metric) if metric else None
    packages = find(folder, progress)
    progress.expect(sum(_lines(p, asked) for p in packages))
    with tempfile.TemporaryDirectory() as place:
        report, shown = _compare_all(packages, asked, measure, Path(place), progress)
    with alone(out, lambda _: None), staging(out) as fresh:
        (fresh / DATA).write_text(report.to_json(), encoding="utf-8", newline="\n")
        (fresh / PAGE).write_text(page(report, shown), encoding="utf-8", newline="\n")
    return report


def asked_in(file: Path) -> tuple[Asked, ...]:
    """A prompt per line, the line's number from 0 as its seed; raises InputError."""
    return tuple(Asked(prompt, number - 1) for number, prompt in read_prompts(file).items())


def find(folder: Path, progress: Callable[[str], None] = lambda line: None) -> list[Package]:
    """The whole packages in a folder, by backend, the largest MMDiT first.

    Raises InputError where there are none or they draw different things, CheckFailed for a damaged
    one.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that fourstep build wrote into")
    if (folder / "manifest.json").is_file():
        raise InputError(f"{folder}: is one package; name the folder that it lies in")
    places = sorted(f.parent for f in folder.glob("*/manifest.json"))
    found = [open_package(p) for p in places if not p.name.startswith(".")]
    if not found:
        raise InputError(
            f"{folder}: no packages in it; build some: fourstep build RECIPE --out {folder}"
        )
    for package in found:
        _refuse_another_model(found[0], package)
        check_files(package, _about(package, progress))
    return sorted(found, key=lambda p: (p.manifest.backend, -_entry(p).mmdit_bytes))


def _about(package: Package, progress: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: progress(f"{package.folder.name}: {line}")


def _refuse_another_model(first: Package, other: Package) -> None:
    theirs = _model(other.manifest)
    for what, value in _model(first.manifest).items():
        if theirs[what] != value:
            raise InputError(
                f"{other.folder}: its {what} is not that of {first.folder.name}, so their pictures "
                "cannot be compared; keep packages of one recipe in a folder"
            )


def _model(manifest: Manifest) -> dict[str, object]:
    """What packages have in common whose pictures can be compared."""
    return {
        "checkpoint_sha256": manifest.origin.checkpoint_sha256,
        "width_px": manifest.picture.width_px,
        "height_px": manifest.picture.height_px,
        "schedule": manifest.schedule,
        "t5": manifest.text.t5,
    }


def _refuse_other_files(out: Path) -> None:
    if out.exists() and (not out.is_dir() or {f.name for f in out.iterdir()} - {PAGE, DATA}):
        raise InputError(f"{out}: holds something other than a report; choose another folder")


def _lines(package: Package, asked: Sequence[Asked]) -> int:
    pictures = len(asked) or len(package.manifest.golden.pictures)
    return pictures * (package.manifest.schedule.steps + 1)


def _compare_all(
    packages: Sequence[Package],
    given: Sequence[Asked],
    metric: Metric | None,
    place: Path,
    progress: Progress,
) -> tuple[Comparison, list[Shown]]:
    yardstick = least_rounded(packages) if given else None
    drawn: dict[str, Drawn | FourstepError] = {}
    refer: Refer = _stored
    if yardstick is not None:
        first = _draw(yardstick, given, place, progress)
        if isinstance(first, FourstepError):
            raise InputError(
                f"{yardstick.folder}: is to be the prompts' yardstick and did not run: {first}"
            )
        drawn[yardstick.folder.name] = first
        refer = _drawn_by(first, given)
    rows: dict[str, Compared] = {}
    for package in packages:
        name = package.folder.name
        asked = given or golden_of(package)
        result = drawn.get(name) or _draw(package, asked, place, progress)
        rows[name] = _compare(package, asked, result, refer, metric)
        if package is not yardstick and isinstance(result, Drawn):
            shutil.rmtree(result.place)  # a long list of prompts fills a disk
    everything = tuple(dict.fromkeys(a for p in packages for a in given or golden_of(p)))
    entries = tuple(rows[p.folder.name].entry for p in packages)
    wanted = everything if metric else everything[:SHOWN_PROMPTS]
    references = {a: refer(_owner(packages, a, given), a).pixels for a in wanted}
    baseline = _measured(metric, everything, references, references)
    shown = [
        Shown(
            a,
            references[a],
            {n: r.pictures[a] for n, r in rows.items() if a in r.pictures},
            {n: r.previews[a] for n, r in rows.items() if a in r.previews},
        )
        for a in everything[:SHOWN_PROMPTS]
    ]
    report = _report(
        packages[0].manifest,
        yardstick.folder.name if yardstick else UNQUANTIZED,
        everything,
        metric,
        baseline or {},
        entries,
    )
    return report, shown


def _report(
    first: Manifest,
    yardstick: str,
    asked: tuple[Asked, ...],
    metric: Metric | None,
    baseline: Mapping[str, float],
    entries: tuple[Entry, ...],
) -> Comparison:
    return Comparison(
        name=first.name,
        checkpoint_sha256=first.origin.checkpoint_sha256,
        width_px=first.picture.width_px,
        height_px=first.picture.height_px,
        schedule=first.schedule,
        t5=first.text.t5,
        fourstep=__version__,
        machine=Machine(
            platform.system(), platform.processor() or platform.machine(), os.cpu_count() or 1
        ),
        yardstick=yardstick,
        asked=asked,
        ssim=has_ssim(),
        metric=metric.file.name if metric else "",
        baseline=baseline,
        packages=entries,
    )


def least_rounded(packages: Sequence[Package]) -> Package:
    """The package that runs here and whose weights have the most bits.

    Among equals, the one that ``verify`` allows least. Raises InputError where none runs.
    """
    able = [p for p in packages if _why_not(p) is None]
    if not able:
        raise InputError(f"{packages[0].folder.parent}: {_why_not(packages[0])}")

    def order(package: Package) -> tuple[float, float, str]:
        graphs = package.manifest.graphs
        allowed = max(g.tolerance.graph_relative for g in graphs)
        return (-_mean_bits(package.manifest), allowed, package.folder.name)

    return min(able, key=order)


def _mean_bits(manifest: Manifest) -> float:
    """Bits of a weight value without scales, over all graphs."""
    formats = [item for g in manifest.graphs for item in g.formats.items()]
    values = sum(count for _, count in formats)
    bits = sum(_bits(name) * count for name, count in formats)
    return bits / values if values else 0.0


def _bits(form: str) -> int:
    """Of a format as a manifest names it; 0 for one of another version."""
    storage = STORAGE.get(form.split("-")[0])
    return storage.bits if storage else 0


def golden_of(package: Package) -> tuple[Asked, ...]:
    """A package's golden prompts and seeds."""
    return tuple(Asked(g.prompt, g.seed) for g in package.manifest.golden.pictures)


def _owner(packages: Sequence[Package], asked: Asked, given: Sequence[Asked]) -> Package:
    return next(p for p in packages if given or asked in golden_of(p))


def _why_not(package: Package) -> FourstepError | None:
    """Why a package cannot run here, with the remedy, or None."""
    try:
        backends.load_to_run(package.manifest.backend)
    except FourstepError as error:
        return error
    return None


def _draw(
    package: Package, asked: Sequence[Asked], place: Path, progress: Callable[[str], None]
) -> Drawn | FourstepError:
    """What a package drew, or why it did not."""
    reason = _why_not(package)
    if reason is None and not asked:
        reason = InputError("built without golden pictures: give prompts to draw others")
    if reason is not None:
        return reason
    own = place / package.folder.name
    own.mkdir()
    try:
        return draw_apart(package.folder, asked, own, progress)
    except CheckFailed as error:
        return error


def _compare(
    package: Package,
    asked: Sequence[Asked],
    result: Drawn | FourstepError,
    refer: Refer,
    metric: Metric | None,
) -> Compared:
    entry = _entry(package)
    if not isinstance(result, Drawn):
        stored = refer is _stored
        return _from_log(package, replace(entry, remarks=(str(result),)), stored)
    figures = tuple(
        _figures(a, result.picture(i), result.latents(i), refer(package, a))
        for i, a in enumerate(asked)
    )
    remarks = result.remarks
    if any(not f.steps_db for f in figures):
        remarks += ("built before latents after each step were kept; build it again to see them",)
    previews_db = [
        psnr_db(preview, result.picture(i))
        for i in range(len(asked))
        if (preview := result.preview(i)) is not None
    ]
    done = replace(
        entry,
        drawn=True,
        remarks=remarks,
        figures=figures,
        metrics=_measured_pictures(package, asked, result, refer, metric),
        times=result.times,
        memory=result.memory,
        previews_db=tuple(previews_db),
    )
    pages = list(enumerate(asked[:SHOWN_PROMPTS]))
    previews = {a: p for i, a in pages if (p := result.preview(i)) is not None}
    return Compared(done, {a: result.picture(i) for i, a in pages}, previews)


def _measured_pictures(
    package: Package, asked: Sequence[Asked], drawn: Drawn, refer: Refer, metric: Metric | None
) -> dict[str, float] | None:
    if metric is None:
        return None
    pictures = {a: drawn.picture(i) for i, a in enumerate(asked)}
    return _measured(metric, asked, pictures, {a: refer(package, a).pixels for a in asked})


def _measured(
    metric: Metric | None,
    asked: Sequence[Asked],
    pictures: Mapping[Asked, np.ndarray],
    references: Mapping[Asked, np.ndarray],
) -> dict[str, float] | None:
    if metric is None or not asked:
        return None
    rows = [[images[a] for a in asked] for images in (pictures, references)]
    return metric([a.prompt for a in asked], *rows)


def _figures(
    asked: Asked, picture: np.ndarray, latents: Mapping[int, np.ndarray], reference: Reference
) -> Figures:
    return Figures(
        asked,
        psnr_db(picture, reference.pixels),
        ssim(picture, reference.pixels) if has_ssim() else None,
        snr_db(latents[max(latents)], reference.latent),
        {s: snr_db(latents[s], plain) for s, plain in sorted(reference.steps.items())},
    )


def _stored(package: Package, asked: Asked) -> Reference:
    """The unquantized program's picture and latents, from a package's golden outputs."""
    golden = _golden(package, asked)
    file = package.folder / golden.tensors
    with opened(file, "numpy", CheckFailed) as tensors:
        keys = [k for k in tensors.keys() if k.startswith("unquantized/")]  # noqa: SIM118
        steps = {int(k.rpartition("/")[2]): tensors.get_tensor(k) for k in keys}
        latent = tensors.get_tensor("unquantized_latent")
    return Reference(golden_pixels(package, golden.unquantized), latent, steps)


def _golden(package: Package, asked: Asked) -> Golden:
    return next(g for g in package.manifest.golden.pictures if Asked(g.prompt, g.seed) == asked)


def _drawn_by(drawn: Drawn, asked: Sequence[Asked]) -> Refer:
    """References that a package drew here."""

    def refer(_: Package, wanted: Asked) -> Reference:
        index = asked.index(wanted)
        steps = drawn.latents(index)
        return Reference(drawn.picture(index), steps[max(steps)], steps)

    return refer


def _from_log(package: Package, entry: Entry, stored: bool) -> Compared:
    """What a package that did not run here showed when it was built, where that was the same."""
    if not stored or not package.manifest.golden.pictures:
        return Compared(entry, {})
    file = package.folder.with_name(f"{package.folder.name}.log.json")
    try:
        log = convert(read_json(file), _Log, file)
        found = {Asked(i.prompt, i.seed): i for i in log.verify.images}
        figures = tuple(_stored_figures(package, a, found[a]) for a in golden_of(package))
        remark = "figures are those that verify measured when it was built"
    except (InputError, KeyError):
        figures, remark = (), f"no figures of its build: {file.name} is not there or not whole"
    pictures = {
        a: golden_pixels(package, _golden(package, a).image)
        for a in golden_of(package)[:SHOWN_PROMPTS]
    }
    remarks = (*entry.remarks, remark, "pictures are the quantized program's in torch")
    return Compared(replace(entry, figures=figures, remarks=remarks), pictures)


def _stored_figures(package: Package, asked: Asked, image: _LoggedImage) -> Figures:
    pixels = golden_pixels(package, _golden(package, asked).image)
    similar = ssim(pixels, _stored(package, asked).pixels) if has_ssim() else None
    return Figures(asked, _db(image.loss_db), similar, _db(image.latent_snr_db), {})


def _db(value: float | None) -> float:
    """A ratio of ``verify``'s JSON, where null stands for no difference."""
    return math.inf if value is None else value


def _entry(package: Package) -> Entry:
    text = package.folder / "plan.toml"
    return Entry(
        name=package.folder.name,
        manifest=package.manifest,
        drawn=False,
        plan=read_sensitivities(package.folder),
        plan_text=read_text(text, CheckFailed) if text.is_file() else "",
        chips=chips_of(package.manifest, _compiled(package)),
    )


def _compiled(package: Package) -> tuple[CompileStep, ...]:
    """What compiling for chips took, by the log of the package's build; nothing without one."""
    file = package.folder.with_name(f"{package.folder.name}.log.json")
    try:
        return convert(read_json(file), _CompileLog, file).compiled
    except InputError:
        return ()
