"""Options that several commands share."""

from __future__ import annotations

import functools
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.drawing.noise import LEAST_SEED, MOST_SEED
from exporter.errors import InputError

if TYPE_CHECKING:
    from exporter.trust.check import Trust


class Place(click.Path):
    """A path; ``~`` is the home folder also where a shell leaves it (``--out=~/x``)."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = os.fspath(value)
        if "\0" in text:
            self.fail("a path cannot hold a zero character", param, ctx)
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            self.fail(f"{text}: {error}", param, ctx)


class Seed(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions alone
    """A seed as torch takes it; with ``drawn``, ``random`` is one that nobody chose.

    A drawn one has 32 bits: the generator takes no more of any.
    """

    name = "seed"

    def __init__(self, drawn: bool = False) -> None:
        self._drawn = drawn

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if self._drawn and value == RANDOM:
            return secrets.randbits(32)
        if isinstance(value, int):
            return value
        found = int(value) if re.fullmatch("[+-]?[0-9]{1,20}", value) else MOST_SEED + 1
        if LEAST_SEED <= found <= MOST_SEED:
            return found
        instead = f", or {RANDOM}" if self._drawn else ""
        said = f"{value!r}: a whole number from -2^63 to 2^64 - 1 is expected{instead}"
        self.fail(said, param, ctx)


PASSPHRASE = "FOURSTEP_PASSPHRASE"  # an environment variable: flags are seen by every process


class GivenOnce(click.Group):
    """A group of commands, none of which takes an option twice."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; refuses an option that is given twice, of which click drops the first."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            inner = click.Context(command, parent=ctx, info_name=name)
            _, _, given = command.make_parser(inner).parse_args([*rest])
            for parameter, times in Counter(given).items():
                if isinstance(parameter, click.Option) and times > 1 and not _adds_up(parameter):
                    inner.fail(f"{parameter.opts[-1]} is given {times} times; give it once")
        return name, command, rest


def _adds_up(option: click.Option) -> bool:
    """Whether giving an option again drops nothing."""
    return option.multiple or option.is_flag or option.count


PLACE = Place()
RANDOM = "random"
SEED = Seed()


def as_typed(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Text as UTF-8, in which terminals type it, whatever Python took the locale for."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(as_typed(context, parameter, part) for part in value)
    return None if value is None else os.fsencode(value).decode("utf-8", "surrogateescape")


size_option = click.option(
    "--size", help="Of the pictures, such as 768x512, one of the package's [default: its first]."
)
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
    type=PLACE,
    help="Folder where the runtime keeps compiled graphs.",
)
statistics_option = click.option(
    "--statistics",
    type=PLACE,
    help="Folder of calibration statistics: used again if they fit, else measured into it.",
)


def trusted_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Three options that say by whom a package has to be signed; the command gets a ``Trust``."""

    @click.option(
        "--trusted",
        type=PLACE,
        metavar="KEY|CERT|ROOT",
        help="The package has to be signed: by a key or certificate of this PEM file, or by the "
        "--identity, under this trusted root of Sigstore's (JSON).",
    )
    @click.option(
        "--identity", callback=as_typed, help="Who has to have signed: a mail address or a URI."
    )
    @click.option("--issuer", callback=as_typed, help="The URL of who vouched for the --identity.")
    @functools.wraps(command)
    def with_trust(
        *args: Any, trusted: Path | None, identity: str | None, issuer: str | None, **others: Any
    ) -> Any:
        return command(*args, trusted=_trust(trusted, identity, issuer), **others)

    return with_trust


def _trust(file: Path | None, identity: str | None, issuer: str | None) -> Trust | None:
    from exporter.trust.check import Trust

    if file is not None:
        return Trust(file, identity or "", issuer or "")
    if identity is not None or issuer is not None:
        raise InputError(
            "--identity and --issuer say who --trusted ROOT has to vouch for; give it, or leave "
            "them out"
        )
    return None


check_always_option = click.option(
    "--check-always",
    is_flag=True,
    help="Read every file for its digest, also those that had it before and were not changed.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
