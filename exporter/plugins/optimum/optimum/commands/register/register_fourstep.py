"""``optimum-cli export fourstep RECIPE``: hands the recipe to fourstep, wherever that is installed.

optimum imports this file at every start, so it imports nothing of fourstep's: that runs as a
program of its own, whose pins need not be optimum's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

if TYPE_CHECKING:
    from argparse import ArgumentParser

VARIABLE = "FOURSTEP"  # of the environment: the command that starts fourstep
REPEATED = ("backend", "scheme", "layout")


class FourstepExportCommand(BaseOptimumCLICommand):
    """Builds a recipe in the layouts that optimum's own classes load."""

    COMMAND = CommandInfo(
        name="fourstep",
        help="Build offline packages of a Stable Diffusion 3.5 checkpoint with fourstep.",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """The arguments of ``fourstep build``."""
        parser.add_argument("recipe", help="A recipe of fourstep's, a TOML file.")
        parser.add_argument("--out", help="Folder of the packages.")
        parser.add_argument("--backend", action="append", help="Only this backend (repeatable).")
        parser.add_argument("--scheme", action="append", help="Only this scheme (repeatable).")
        parser.add_argument(
            "--layout",
            action="append",
            help="In this layout (repeatable); diffusers, which optimum loads, unless given.",
        )
        parser.add_argument("--json", action="store_true", help="List what was built as JSON.")

    def run(self) -> None:
        """Run fourstep; ends with its exit code."""
        program = _program()
        if program is None:
            print(
                f"optimum-cli export fourstep: no program fourstep is on the PATH; pip install "
                f"'fourstep[build]', or name its command in {VARIABLE}",
                file=sys.stderr,
            )
            sys.exit(2)
        given = [*program, "build", self.args.recipe]
        for name in REPEATED:
            values = getattr(self.args, name) or (["diffusers"] if name == "layout" else [])
            given += [part for value in values for part in (f"--{name}", value)]
        given += ["--out", self.args.out] if self.args.out else []
        given += ["--json"] if self.args.json else []
        sys.exit(subprocess.run(given, check=False).returncode)


def _program() -> list[str] | None:
    """How fourstep is started."""
    named = os.environ.get(VARIABLE)
    if named:
        return shlex.split(named)
    found = shutil.which("fourstep")
    return [found] if found else None


REGISTER_COMMANDS = [(FourstepExportCommand, ExportCommand)]
