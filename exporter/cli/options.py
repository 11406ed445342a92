"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

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
