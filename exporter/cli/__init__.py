"""The command line: a thin shell over the library.

Progress goes to stderr, the result to stdout. Exit codes: 0 done, 1 a check failed, 2 the input
is at fault. A mistake gets one line and no traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import click

from exporter import __version__
from exporter.cli import bench, build, doctor, inspect, plan, report, run, synth, verify
from exporter.errors import FourstepError
from exporter.progress import end_of_bar

COMMANDS = (build, plan, run, verify, bench, inspect, report, synth, doctor)


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


for module in COMMANDS:
    main.add_command(module.command)
