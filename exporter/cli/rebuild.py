"""``fourstep rebuild``: a package built again, and compared byte for byte."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from exporter.cli.options import PLACE, json_option, statistics_option
from exporter.cli.output import require_build, show, show_json
from exporter.errors import CheckFailed, InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("rebuild")
@click.argument("package", type=PLACE)
@click.option("--checkpoint", required=True, help="The folder, file or hub id of the weights.")
@click.option(
    "--lora", "loras", type=PLACE, multiple=True, help="A LoRA that was merged (repeatable)."
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="KEY=PLACE",
    help="What came from elsewhere, by its key in [model], such as vae=FILE (repeatable).",
)
@click.option("--mark-key", type=PLACE, help="The key's file, of a package with a mark.")
@click.option("--recipe", type=PLACE, help="Of a package from before format 4.2.")
@click.option("-o", "--out", type=PLACE, help="Keep what is built in this folder.")
@statistics_option
@json_option
def command(
    package: Path,
    checkpoint: str,
    loras: Sequence[Path],
    parts: Sequence[str],
    mark_key: Path | None,
    recipe: Path | None,
    out: Path | None,
    statistics: Path | None,
    as_json: bool,
) -> None:
    """Build PACKAGE again from the recipe that it holds, and say whether every byte is the same.

    Exit code 0: it is; 1: some file differs, and which and where is said, tools of other versions
    first. Another checkpoint, LoRA or key than the package's is refused before anything is built.
    Example: fourstep rebuild artifacts/shapes-flash/onnx-int8 --checkpoint artifacts/shapes-flash
    """
    require_build()
    from exporter.build.rebuild import Rebuilt, rebuild
    from exporter.marking.key import read_key
    from exporter.recipe.again import Givens
    from exporter.recipe.recipe import read_recipe
    from exporter.runtime.package import open_package
    from exporter.runtime.verify import check_files

    progress = Progress(bar_on_terminal)
    try:
        opened = open_package(package)
        check_files(opened)
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    key = read_key(mark_key, "--mark-key") if mark_key else None
    given = Givens(checkpoint, _places(parts), loras, key)
    read = read_recipe(recipe) if recipe else None
    with _folder(out) as place:
        found: Rebuilt = rebuild(opened, given, place, progress, read, statistics)
    end_of_bar()
    if as_json:
        show_json(
            {
                "package": str(package),
                "same": found.same,
                "files": found.files,
                "tools": {name: list(versions) for name, versions in found.tools.items()},
                "differences": [asdict(difference) for difference in found.differences],
            }
        )
    else:
        for name, (then, now) in found.tools.items():
            show(f"{name}: {then or 'not there'} then, {now or 'not there'} now")
        for difference in found.differences:
            show(f"{difference.path}: {difference.where}")
        if found.same:
            show(f"{package}: built again, {found.files} files, every byte the same")
    if not found.same:
        named = ", ".join(found.tools)
        why = f"; tools of other versions: {named}" if named else ""
        many = f"{len(found.differences)} of {found.files} files differ"
        raise CheckFailed(f"{package}: built again, {many}{why}")


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where it is built: a folder that is there and stays, or one for a while."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="fourstep-rebuild-") as folder:
        yield Path(folder)


def _places(parts: Sequence[str]) -> dict[str, str]:
    """Places by key; raises InputError for what has no ``=``, and a key given twice."""
    found: dict[str, str] = {}
    for part in parts:
        key, sign, place = part.partition("=")
        if not (key and sign and place):
            raise InputError(f"--part {part}: a key of [model] and a place are expected: vae=FILE")
        if key in found:
            raise InputError(f"--part {key}: is given twice")
        found[key] = place
    return found
