"""``fourstep plan``: a format for every weight of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from exporter.cli.options import PLACE, json_option, statistics_option
from exporter.cli.output import bytes_of, megabytes, require_build, show, show_json
from exporter.errors import InputError, known
from exporter.progress import Progress, bar_on_terminal, end_of_bar

MOST_BITS = 32  # per weight
MOST_DB = 200  # that a floor may ask for; float32 itself keeps less


@click.command("plan")
@click.argument("recipe", type=PLACE)
@click.option("-o", "--out", "file", type=PLACE, help="The plan's file.")
@click.option("--budget", help="Bytes that all weights may take, such as 1.2GB or 900MB.")
@click.option("--memory", help="Memory that drawing may take, such as 2GB (predicted).")
@click.option("--bits", type=float, help="Bits per weight of the MMDiT on average, such as 4.5.")
@click.option("--floor", "floor_db", type=float, help="Least SNR of the final latent, in dB.")
@click.option("--format", "formats", multiple=True, help="A format that weights may get.")
@click.option("--graph", "graphs", multiple=True, help="Plan only this graph (repeatable).")
@click.option(
    "--probes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Random directions per prompt that sensitivities are measured along.",
)
@click.option("--no-draw", is_flag=True, help="Do not draw with the plan to measure it.")
@click.option(
    "--from",
    "earlier",
    type=PLACE,
    help="An earlier plan of the same model, whose sensitivities are used again.",
)
@statistics_option
@json_option
def command(
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
    require_build()
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
    aim = Aim(bytes_of("--budget", budget), bytes_of("--memory", memory), bits, floor_db)
    progress = Progress(bar_on_terminal)
    done = make_plan(
        found, file, aim, formats, graphs, probes, not no_draw, earlier, statistics, progress
    )
    end_of_bar()
    if as_json:
        row = {key: value for key, value in vars(done).items() if key != "path"}
        show_json({"path": str(done.path), **row})
        return
    drawn = "" if done.measured_snr_db is None else f", drawn {done.measured_snr_db:.1f} dB"
    show(
        f"{done.path}  {megabytes(done.weight_bytes)} of weights, MMDiT "
        f"{done.bits_per_weight:.2f} bits a weight; final latent predicted "
        f"{done.predicted_snr_db:.1f} dB{drawn}"
    )
