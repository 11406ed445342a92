"""The command line: a thin shell over the library.

Progress goes to stderr, the result to stdout. Exit codes: 0 done, 1 a check failed, 2 the input
is at fault, 3 a package's filter rejected pictures, 130 and 143 stopped by Ctrl-C or SIGTERM. A
mistake gets one line and no traceback.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any, NoReturn

import click

from exporter import __version__
from exporter.cli import (
    apply,
    bench,
    bom,
    build,
    bundle,
    credentials,
    delta,
    doctor,
    fetch,
    inspect,
    mark,
    matrix,
    pack,
    plan,
    rebuild,
    recipe,
    report,
    run,
    sign,
    synth,
    unpack,
    verify,
)
from exporter.cli.options import GivenOnce
from exporter.cli.output import FLAGS, complain, remarks_shown
from exporter.errors import FourstepError, is_out_of_memory
from exporter.files.staging import SHORTER
from exporter.files.stop import forget, stop
from exporter.progress import end_of_bar, nowhere

COMMANDS = (
    fetch, recipe, build, matrix, plan, run, credentials, verify, sign, bom, rebuild, bundle, pack,
    unpack, delta, apply, bench, inspect, mark, report, synth, doctor,
)  # fmt: skip
TERMINATED = 143  # exit code after SIGTERM, as shells count it
INTERRUPTED = 130  # after Ctrl-C


NO_MEMORY_LEFT = (
    "out of memory; nothing was left half-written: close other programs, or choose a smaller size "
    "or scheme"
)


class Commands(GivenOnce):
    """Turns what a user can mend into one line on stderr and an exit code."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run a command line and exit, as click does, but with errors of one line."""
        _steady_streams()
        try:
            with remarks_shown():
                code = super().main(*arguments, **options | {"standalone_mode": False})
        except FourstepError as error:
            _end(error.worded(FLAGS.get(error.field, error.field)), error.exit_code)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            known = f"; see: {context.command_path} --help" if context else ""
            _end(f"{error.format_message()}{known}", 2)
        except OSError as error:
            if is_out_of_memory(error):
                _end(NO_MEMORY_LEFT, 2)
            if error.errno == errno.EPIPE:  # whoever read stdout has enough
                sys.stdout = nowhere()
                sys.exit(1)
            place = f"{error.filename}: " if error.filename else ""
            remedy = f"; {SHORTER}" if error.errno == errno.ENAMETOOLONG else ""
            _end(f"{place}{error.strerror or error}{remedy}", 2)
        except (KeyboardInterrupt, click.Abort):
            _end("stopped", INTERRUPTED)
        except SystemExit as ended:
            if ended.code == TERMINATED:
                _end("told to stop", TERMINATED)
            raise
        except Exception as error:
            if not is_out_of_memory(error):  # a defect
                raise
            _end(NO_MEMORY_LEFT, 2)
        sys.exit(code if isinstance(code, int) else 0)


def _end(line: str, code: int) -> NoReturn:
    end_of_bar()
    complain(line)
    sys.exit(code)


def _steady_streams() -> None:
    """Standard streams that can be written to, whatever they were started as.

    A closed one would be given to the next file that is opened, and a library that writes to
    stderr would write into it. What cannot be encoded is escaped.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or nowhere()
    sys.stderr = sys.stderr or nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _terminate(*_: object) -> NoReturn:
    stop(SystemExit(TERMINATED))


def _interrupt(*_: object) -> NoReturn:
    stop(KeyboardInterrupt())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fourstep")
def main() -> None:
    """Turn a Stable Diffusion 3.5 Flash checkpoint into packages that draw in four steps."""
    # Whoever is told to stop cleans up as for Ctrl-C; a build keeps the graphs that are whole.
    forget()
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored by a shell
        signal.signal(signal.SIGINT, _interrupt)


for module in COMMANDS:
    main.add_command(module.command)
