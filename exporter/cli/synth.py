"""``fourstep synth``: a full-size checkpoint of random weights."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import PLACE, json_option
from exporter.cli.output import megabytes, require_build, show, show_json
from exporter.drawing.noise import MOST_SEED
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("synth")
@click.argument("preset")
@click.argument("folder", metavar="DIR", type=PLACE)
@click.option("--no-t5", is_flag=True, help="Leave T5-XXL out: 9.5 GB less.")
@click.option("--seed", type=click.IntRange(0, MOST_SEED), default=0, show_default=True)
@json_option
def command(preset: str, folder: Path, no_t5: bool, seed: int, as_json: bool) -> None:
    """Write a full-size checkpoint of random weights to DIR, to measure memory and speed with.

    PRESET is sd3.5-flash, sd3-medium or sd3.5-large-turbo, or one of them with -twin: a narrow twin
    with every part of the network. sd3.5-flash-half has 12 of the transformer's 24 layers, and
    sd3.5-flash-mini two of each network's.
    """
    require_build()
    from exporter.synth.presets import find_preset
    from exporter.synth.write import synthesize

    made = synthesize(find_preset(preset), folder, not no_t5, seed, Progress(bar_on_terminal))
    end_of_bar()
    row = {"path": str(folder), "parameters": made.parameters, "bytes": made.bytes}
    if as_json:
        show_json(row)
    else:
        show(f"{folder}  {made.parameters:,} parameters  {megabytes(made.bytes)}")
