"""The command line: a thin shell over the library.

Progress goes to stderr, the result to stdout. Exit codes: 0 done, 1 a check failed, 2 the input
is at fault. A mistake gets one line and no traceback.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from exporter import __version__, backends
from exporter.errors import CheckFailed, FourstepError, InputError, known, needs_extra
from exporter.progress import Progress, bar_on_terminal, end_of_bar

BASE = ("numpy", "tokenizers", "Pillow", "click", "safetensors")
MOST_BITS = 32  # per weight
MOST_DB = 200  # that a floor may ask for; float32 itself keeps less
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Commands(click.Group):
    """Turns what a user can mend into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FourstepError as error:
            end_of_bar()
            click.echo(f"fourstep: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            end_of_bar()
            place = f"{error.filename}: " if error.filename else ""
            click.echo(f"fourstep: {place}{error.strerror or error}", err=True)
            ctx.exit(2)
        except (MemoryError, RuntimeError) as error:
            # torch raises RuntimeError for memory it cannot get; any other one is a defect.
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            end_of_bar()
            click.echo(
                "fourstep: out of memory; nothing was left half-written: close other programs, or "
                "choose a smaller size or scheme",
                err=True,
            )
            ctx.exit(2)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fourstep")
def main() -> None:
    """Turn a Stable Diffusion 3.5 Flash checkpoint into packages that draw in four steps."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Whoever is told to stop cleans up as for Ctrl-C; a build keeps the graphs that are whole.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    click.echo(f"fourstep: warning: {message}", err=True)


device_option = click.option("--device", help="Where to run, such as CPU, GPU or NPU.")
half_option = click.option(
    "--half", is_flag=True, help="Compute in 16 bits where the device has them: faster, less exact."
)
at_once_option = click.option(
    "--at-once",
    is_flag=True,
    help="Open graphs while others run and keep them for the next picture: in the memory of all.",
)
cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder where the runtime keeps compiled graphs.",
)
statistics_option = click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    help="Folder of calibration statistics: used again if they fit, else measured into it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the packages.")
@click.option("--backend", "backend_names", multiple=True, help="Only this backend (repeatable).")
@click.option("--scheme", "scheme_names", multiple=True, help="Only this scheme (repeatable).")
@click.option(
    "--no-golden", is_flag=True, help="Draw no golden pictures: faster, and nothing to verify with."
)
@statistics_option
@json_option
def build(
    recipe: Path,
    out: Path | None,
    backend_names: Sequence[str],
    scheme_names: Sequence[str],
    no_golden: bool,
    statistics: Path | None,
    as_json: bool,
) -> None:
    """Build one package per backend and scheme of RECIPE into artifacts/<recipe>/.

    A scheme is a name, or the file of a plan.
    """
    _require_build()
    from exporter.build.pipeline import build as build_packages
    from exporter.quantize.schemes import scheme_names as all_schemes
    from exporter.recipe.plan import is_plan
    from exporter.recipe.recipe import read_recipe

    for flag, names, options in (
        ("--backend", backend_names, backends.names()),
        ("--scheme", scheme_names, all_schemes()),
    ):
        for name in names:
            if name not in options and not (flag == "--scheme" and is_plan(name)):
                raise InputError(f"{flag}: {known(flag.lstrip('-'), name, options)}")
    plan = read_recipe(recipe)
    plan = replace(plan, prompts=()) if no_golden else plan
    progress = Progress(bar_on_terminal)
    built = build_packages(
        plan,
        out or Path("artifacts") / plan.name,
        backend_names,
        scheme_names,
        progress,
        statistics,
    )
    end_of_bar()
    rows = [
        {"path": str(b.path), "backend": b.backend, "scheme": b.scheme, "bytes": b.bytes}
        for b in built
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for b in built:
        losses = [i.loss_db for i in b.report.images]
        quality = f"{min(losses):.1f} dB from unquantized" if losses else "not verified"
        click.echo(f"{b.path}  {_megabytes(b.bytes)}  {quality}")


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--out", "file", type=click.Path(path_type=Path), help="The plan's file.")
@click.option("--budget", help="Bytes that all weights may take, such as 1.2GB or 900MB.")
@click.option("--memory", help="Memory that drawing may take, such as 2GB (predicted).")
@click.option("--bits", type=float, help="Bits per weight of the MMDiT on average, such as 4.5.")
@click.option("--floor", "floor_db", type=float, help="Least SNR of the final latent, in dB.")
@click.option("--format", "formats", multiple=True, help="A format that weights may get.")
@click.option("--graph", "graphs", multiple=True, help="Plan only this graph (repeatable).")
@click.option(
    "--probes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Random directions per prompt that sensitivities are measured along.",
)
@click.option("--no-draw", is_flag=True, help="Do not draw with the plan to measure it.")
@click.option(
    "--from",
    "earlier",
    type=click.Path(path_type=Path),
    help="An earlier plan of the same model, whose sensitivities are used again.",
)
@statistics_option
@json_option
def plan(
    recipe: Path,
    file: Path | None,
    budget: str | None,
    memory: str | None,
    bits: float | None,
    floor_db: float | None,
    formats: Sequence[str],
    graphs: Sequence[str],
    probes: int,
    no_draw: bool,
    earlier: Path | None,
    statistics: Path | None,
    as_json: bool,
) -> None:
    """Choose a format for every weight of RECIPE under a budget, or for a floor of quality."""
    _require_build()
    from exporter.package.names import UPSTREAM
    from exporter.plan.road import plan as make_plan
    from exporter.plan.search import Aim
    from exporter.recipe.recipe import read_recipe

    if sum(aim is not None for aim in (budget, memory, bits, floor_db)) != 1:
        raise InputError("give one of --budget 1.2GB, --memory 2GB, --bits 4.5 and --floor 35")
    if floor_db is not None and not 0 <= floor_db <= MOST_DB:
        raise InputError(f"--floor {floor_db:g}: decibels from 0 to {MOST_DB} are expected")
    if bits is not None and not 0 < bits <= MOST_BITS:
        raise InputError(f"--bits {bits:g}: more than 0 and at most {MOST_BITS} are expected")
    for graph in graphs:
        if graph not in UPSTREAM:
            raise InputError(f"--graph: {known('graph', graph, UPSTREAM)}")
    found = read_recipe(recipe)
    file = file or Path(f"{found.name}.plan.toml")
    if file.suffix != ".toml":
        raise InputError(f"-o {file}: must end in .toml")
    aim = Aim(_size("--budget", budget), _size("--memory", memory), bits, floor_db)
    progress = Progress(bar_on_terminal)
    done = make_plan(
        found, file, aim, formats, graphs, probes, not no_draw, earlier, statistics, progress
    )
    end_of_bar()
    if as_json:
        row = {key: value for key, value in vars(done).items() if key != "path"}
        click.echo(json.dumps({"path": str(done.path), **row}, indent=1))
        return
    drawn = "" if done.measured_snr_db is None else f", drawn {done.measured_snr_db:.1f} dB"
    click.echo(
        f"{done.path}  {_megabytes(done.weight_bytes)} of weights, MMDiT "
        f"{done.bits_per_weight:.2f} bits a weight; final latent predicted "
        f"{done.predicted_snr_db:.1f} dB{drawn}"
    )


def _size(flag: str, text: str | None) -> int | None:
    """Bytes of a size such as 1.2GB, 900 MB, 1GiB or 123456; raises InputError."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]?)(i?)B?\s*", text)
    if found is None:
        raise InputError(f"{flag} {text!r}: a size is expected, such as 1.2GB or 900MB")
    number, prefix, binary = found.groups()
    power = " kMGT".index(prefix.replace("K", "k")) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


@main.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1, required=True)
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0),
    multiple=True,
    default=(0,),
    show_default=True,
    help="Seed of the noise (repeatable: one picture per seed).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("fourstep.png"),
    show_default=True,
    help="Picture to write; several get -0, -1, ... before the suffix.",
)
@click.option("--image", type=click.Path(path_type=Path), help="Start from this picture.")
@click.option(
    "--strength",
    type=float,
    default=1.0,
    show_default=True,
    help="With --image: how much of it is drawn anew, above 0 up to 1.",
)
@click.option("--previews", type=click.Path(path_type=Path), help="Folder for a preview per step.")
@click.option(
    "--exact", is_flag=True, help="Compute in float32 even where activations are rounded."
)
@device_option
@half_option
@at_once_option
@cache_option
@json_option
def run(
    package: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    image: Path | None,
    strength: float,
    previews: Path | None,
    exact: bool,
    device: str | None,
    half: bool,
    at_once: bool,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Draw PROMPTS with PACKAGE, one picture per prompt and seed."""
    from exporter.drawing.text import PromptCut

    setup = backends.Setup(exact, device, cache, half)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PromptCut)
            warnings.showwarning = _show_warning
            rows = _run(package, prompts, seeds, out, image, strength, previews, setup, at_once)
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            click.echo(f"{row['path']}  {row['prompt']!r}  seed {row['seed']}")


def _run(
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    image: Path | None,
    strength: float,
    previews: Path | None,
    setup: backends.Setup,
    at_once: bool,
) -> list[dict[str, Any]]:
    from exporter import runtime

    if any(not p.strip() for p in prompts):
        raise InputError("the prompt is empty; say what to draw")
    if strength != 1.0 and image is None:
        raise InputError("--strength applies to --image only")
    source = None if image is None else _read_image(image)
    requests = [runtime.Request(p, s, source, strength) for p in prompts for s in seeds]
    places = _places(out, len(requests))
    player = runtime.open_package(folder).player(setup, keep=at_once)
    if previews is not None:
        previews.mkdir(parents=True, exist_ok=True)
    progress = Progress(bar_on_terminal, expected=len(requests) * (player.schedule.steps + 1) + 1)
    rows, started = [], time.perf_counter()
    for event in runtime.generate(player, requests):
        if isinstance(event, runtime.Conditioned):
            progress(f"{event.prompts} prompt(s) encoded")
        elif isinstance(event, runtime.Step):
            progress(f"picture {event.index + 1}: step {event.step} of {event.steps}")
            if previews is not None and event.preview is not None:
                _save(event.preview(), previews / f"{event.index}-{event.step}.png")
        else:
            _save(event.pixels, places[event.index])
            progress(f"picture {event.index + 1}: {places[event.index]}")
            rows.append(
                {
                    "path": str(places[event.index]),
                    "prompt": event.request.prompt,
                    "seed": event.request.seed,
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
    end_of_bar()
    return rows


def _places(out: Path, count: int) -> list[Path]:
    """Where pictures go; refuses before anything is drawn."""
    if out.suffix.lower() not in PICTURES:
        raise InputError(f"--out {out}: must end in {', '.join(PICTURES)}")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: folder '{out.parent}' does not exist")
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"--out {out}: folder '{out.parent}' cannot be written")
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(count)]


def _save(pixels: Any, place: Path) -> None:
    from PIL import Image as Picture

    partial = place.with_name(f".{place.stem}.partial{place.suffix}")
    try:
        Picture.fromarray(pixels).save(partial)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def _read_image(place: Path) -> Any:
    import numpy as np
    from PIL import Image as Picture

    try:
        with Picture.open(place) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"--image {place}: no such file") from None
    except OSError as error:
        raise InputError(f"--image {place}: not a picture: {error}") from None


@main.command()
@click.argument("package", type=click.Path(path_type=Path))
@device_option
@cache_option
@json_option
def verify(package: Path, device: str | None, cache: Path | None, as_json: bool) -> None:
    """Check PACKAGE: every file, every graph's golden outputs, whole pictures."""
    from exporter.runtime.package import open_package
    from exporter.runtime.verify import Report
    from exporter.runtime.verify import verify as check

    opened = open_package(package)
    graphs, images = len(opened.manifest.graphs), len(opened.manifest.golden)
    progress = Progress(bar_on_terminal, expected=graphs + images + 1)
    report: Report = check(opened, progress, backends.Setup(device=device, cache=cache))
    end_of_bar()
    if as_json:
        click.echo(report.to_json())
    else:
        click.echo(_verify_table(report))
    if not report.ok:
        raise CheckFailed(f"{package}: {'; '.join(report.failures)}")


def _verify_table(report: Any) -> str:
    lines = [f"{report.package}: {report.files} files whole"]
    for graph in report.graphs:
        if not graph.calls:
            lines.append(f"  {graph.graph:<12} opens; no golden outputs to compare with")
            continue
        lines.append(
            f"  {graph.graph:<12} {graph.calls:>3} calls  relative error {graph.exact:.1e}"
            f"  as it runs {graph.as_run:.1e}"
        )
    for image in report.images:
        lines.append(
            f"  {image.prompt!r}: {image.exact_db:.1f} dB, as it runs {image.as_run_db:.1f} dB; "
            f"from unquantized {image.loss_db:.1f} dB, final latent {image.latent_snr_db:.1f} dB"
        )
    lines.append("ok" if report.ok else "FAILED")
    return "\n".join(lines)


@main.command()
@click.argument("packages", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--prompt", default="two red circles left of a blue square", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@device_option
@half_option
@at_once_option
@cache_option
@json_option
def bench(
    packages: Sequence[Path],
    prompt: str,
    seed: int,
    device: str | None,
    half: bool,
    at_once: bool,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Time PACKAGES: two pictures of each, in a process of its own.

    With --cache each draws once while the folder fills and once from it.
    """
    from exporter.bench.bench import bench as measure
    from exporter.bench.bench import table
    from exporter.bench.process import Asked, Manner
    from exporter.runtime.package import open_package

    if not prompt.strip():
        raise InputError("the prompt is empty; say what to draw")
    opened = [open_package(folder) for folder in packages]
    for package in opened:
        backends.load_to_run(package.manifest.backend)
        setup = backends.Setup(device=device, cache=cache, half=half)
        backends.check_setup(package.manifest.backend, setup)
    pictures = 2 * (2 if cache else 1) * len(opened)
    steps = opened[0].manifest.schedule.steps
    progress = Progress(bar_on_terminal, expected=pictures * (steps + 1))
    manner = Manner(device, str(cache) if cache else None, half, at_once)
    rows = list(measure(opened, Asked(prompt, seed), manner, progress))
    end_of_bar()
    for remark in dict.fromkeys(remark for row in rows for remark in row.drawn.remarks):
        click.echo(f"fourstep: warning: {remark}", err=True)
    if as_json:
        click.echo(json.dumps([row.to_json() for row in rows], indent=1))
    else:
        click.echo(table(rows))


@main.command()
@click.argument("place", metavar="CHECKPOINT|PACKAGE")
@click.option("--recipe", type=click.Path(path_type=Path), help="Cut a checkpoint as this recipe.")
@json_option
def inspect(place: str, recipe: Path | None, as_json: bool) -> None:
    """Show a package's contents, or what a checkpoint would become in each scheme."""
    if (Path(place) / "manifest.json").is_file():
        _inspect_package(Path(place), as_json)
    else:
        _inspect_checkpoint(place, recipe, as_json)


def _inspect_package(folder: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from exporter.runtime.package import open_package

    manifest = open_package(folder).manifest
    if as_json:
        click.echo(json.dumps(asdict(manifest), indent=1))
        return
    schedule = manifest.schedule
    click.echo(
        f"{manifest.name}  {manifest.backend}-{manifest.scheme}  {_megabytes(manifest.bytes)}  "
        f"{manifest.width_px} x {manifest.height_px} px\n"
        f"{schedule.steps} steps, {schedule.mode}, sigmas {list(schedule.sigmas)}; "
        f"T5 {'on board' if manifest.t5 else 'replaced by null tokens'}; "
        f"predicted peak memory {_megabytes(manifest.predicted_peak_bytes)}"
    )
    for graph in manifest.graphs:
        formats = ", ".join(f"{n:,} {name}" for name, n in graph.formats.items())
        click.echo(f"  {graph.name:<12} {_megabytes(graph.bytes):>10}  {formats}")
        for weight in graph.adjusted:
            click.echo(f"    {weight.weight}: {weight.used} in place of {weight.asked}")
        for remark in graph.remarks:
            click.echo(f"    {remark}")


def _inspect_checkpoint(place: str, recipe_file: Path | None, as_json: bool) -> None:
    _require_build()
    from dataclasses import asdict

    from exporter.build.model import traced
    from exporter.calibrate.trajectories import call_counts
    from exporter.checkpoint.folder import open_checkpoint
    from exporter.predict.checkpoint import default_cut, sizes
    from exporter.quantize.schemes import load_scheme, scheme_names
    from exporter.recipe.recipe import calibration_prompts, read_recipe

    checkpoint = open_checkpoint(place)
    recipe = read_recipe(recipe_file) if recipe_file else None
    cut = recipe.cut if recipe else default_cut(checkpoint)
    prompts = recipe.calibration.prompts if recipe else calibration_prompts()
    scheme_of = recipe.scheme if recipe else load_scheme
    found = sizes(
        traced(checkpoint, cut),
        {
            name: recipe.backend(name).options
            if recipe
            else backends.default_options(backends.load(name))
            for name in (recipe.backends if recipe else backends.names())
        },
        {name: scheme_of(name) for name in scheme_names()},
        recipe.t5_parts if recipe else 1,
        call_counts(len(prompts), cut.steps),
    )
    if as_json:
        shape = {"width_px": cut.width_px, "height_px": cut.height_px, "t5": cut.t5}
        click.echo(json.dumps({**shape, "graphs": [asdict(size) for size in found]}, indent=1))
        return
    click.echo(f"{place}  {cut.width_px} x {cut.height_px} px, {cut.steps} steps")
    for backend in dict.fromkeys(size.backend for size in found):
        own = [size for size in found if size.backend == backend]
        for title, what, total in (
            ("files", "bytes", sum),
            ("peak memory to build", "build_bytes", max),
            ("peak memory to run", "run_bytes", max),
        ):
            cells = {(s.graph, s.scheme): getattr(s, what) for s in own}
            _table(f"{backend}: {title}", cells, total)


def _table(
    title: str, cells: Mapping[tuple[str, str], int], total: Callable[[Iterable[int]], int]
) -> None:
    """Megabytes by row and column, and a last row with the total of each column."""
    rows, columns = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    click.echo(f"\n{title}, MB")
    width = max(10, *(len(name) for name in columns))
    click.echo(f"{'':<14} " + " ".join(f"{name:>{width}}" for name in columns))
    lines = {row: [cells[row, column] for column in columns] for row in rows}
    lines["all" if total is sum else "at most"] = [
        total(cells[row, column] for row in rows) for column in columns
    ]
    for name, values in lines.items():
        click.echo(f"{name:<14} " + " ".join(f"{v / 1e6:>{width},.1f}" for v in values))


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the page and its data; DIR/report unless given.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="Draw these, one per line, in place of the golden ones.",
)
@click.option(
    "--metric",
    type=click.Path(path_type=Path),
    help="A Python file with measure(prompts, pictures, references) -> numbers by name.",
)
@json_option
def report(
    folder: Path, out: Path | None, prompts: Path | None, metric: Path | None, as_json: bool
) -> None:
    """Write one self-contained HTML page about all packages in DIR."""
    from exporter.package.measures import finite
    from exporter.report.facts import summary
    from exporter.report.make import make
    from exporter.report.markup import decibels

    place = out or folder / "report"
    try:
        made = make(folder, place, prompts, metric, Progress(bar_on_terminal))
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    rows = [summary(entry) for entry in made.packages]
    if as_json:
        found = {"path": str(place / "index.html"), "packages": finite(rows)}
        click.echo(json.dumps(found, indent=1))
        return
    for entry in made.packages:
        quality = f"final latent {decibels(entry.latent_snr_db)} dB"
        state = quality if entry.drawn else "; ".join(entry.remarks[:1])
        click.echo(f"{entry.name}  {_megabytes(entry.manifest.bytes)}  {state}")
    click.echo(place / "index.html")


@main.command()
@click.argument("preset")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--no-t5", is_flag=True, help="Leave T5-XXL out: 9.5 GB less.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
def synth(preset: str, folder: Path, no_t5: bool, seed: int, as_json: bool) -> None:
    """Write a full-size checkpoint of random weights to DIR, to measure memory and speed with.

    PRESET is sd3.5-flash; sd3.5-flash-half has 12 of the transformer's 24 layers, and
    sd3.5-flash-mini two of each network's.
    """
    _require_build()
    from exporter.synth.presets import find_preset
    from exporter.synth.write import synthesize

    made = synthesize(find_preset(preset), folder, not no_t5, seed, Progress(bar_on_terminal))
    end_of_bar()
    row = {"path": str(folder), "parameters": made.parameters, "bytes": made.bytes}
    if as_json:
        click.echo(json.dumps(row, indent=1))
    else:
        click.echo(f"{folder}  {made.parameters:,} parameters  {_megabytes(made.bytes)}")


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show what is installed, what is missing and how to get it."""
    rows: list[dict[str, Any]] = [
        {"name": "python", "version": platform.python_version(), "missing": [], "get": ""}
    ]
    rows += [{"name": n, "version": _version(n), "missing": [], "get": ""} for n in BASE]
    builds = backends.missing({"torch": "torch"})
    rows.append(_row("build", "torch", builds, "build"))
    for name in backends.names():
        backend = backends.load(name)
        absent = backends.missing(backend.RUNS_WITH)
        last = list(backend.RUNS_WITH.values())[-1]
        rows.append(_row(f"run {name}", last, absent, backend.EXTRA))
        absent = backends.missing(backend.REQUIRES)
        last = list(backend.REQUIRES.values())[-1]
        rows.append(_row(f"build {name}", last, absent, backend.BUILD_EXTRA))
    absent = backends.missing({"skimage": "scikit-image"})
    rows.append(_row("report", "scikit-image", absent, "report"))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        state = row["version"] if not row["missing"] else f"missing {', '.join(row['missing'])}"
        click.echo(f"{row['name']:<14} {state:<24} {row['get']}".rstrip())


def _row(name: str, distribution: str, absent: list[str], extra: str) -> dict[str, Any]:
    get = f"pip install 'fourstep[{extra}]'" if absent else ""
    version = "" if absent else f"{distribution} {_version(distribution)}"
    return {"name": name, "version": version, "missing": absent, "get": get}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _require_build() -> None:
    absent = backends.missing({"torch": "torch"})
    if absent:
        raise needs_extra("build", ", ".join(absent))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
