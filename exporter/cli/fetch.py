"""``fourstep fetch``: a hub id's files into the hub's cache."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import PLACE, json_option
from exporter.cli.output import megabytes, require_build, show, show_json
from exporter.errors import InputError
from exporter.progress import bar_on_terminal, end_of_bar, redraws


@click.command("fetch")
@click.argument("hub_id", metavar="[HUB_ID]", required=False)
@click.option("--revision", help="Branch, tag or commit; the main branch otherwise.")
@click.option("--variant", help="Of the weights' files, such as fp16; the plain ones otherwise.")
@click.option("--recipe", type=PLACE, help="Fetch what this recipe needs; it may name the id too.")
@click.option("--no-t5", is_flag=True, help="Leave T5 out.")
@json_option
def command(
    hub_id: str | None,
    revision: str | None,
    variant: str | None,
    recipe: Path | None,
    no_t5: bool,
    as_json: bool,
) -> None:
    """Fetch from the hub what a build needs, into the hub's cache, where builds look for it.

    No other command opens a connection. A fetch that ends early goes on where it stopped.
    """
    require_build()
    from exporter.checkpoint.component import COMPONENTS
    from exporter.checkpoint.fetch import fetch
    from exporter.network.assemble import components_of
    from exporter.recipe.recipe import read_recipe

    read = read_recipe(recipe) if recipe else None
    if read and hub_id in (None, read.checkpoint):
        hub_id, revision = read.checkpoint, revision or read.revision
        variant = variant or read.variant
    if hub_id is None:
        raise InputError("say what to fetch: fourstep fetch owner/name, or --recipe RECIPE")
    needed = components_of(read.cut) if read else tuple(COMPONENTS)
    needed = tuple(name for name in needed if not (no_t5 and name == "text_encoder_3"))
    bar = _Bar()
    folder = fetch(hub_id, needed, revision, variant, bar)
    end_of_bar()
    if as_json:
        show_json({"path": str(folder), "files": len(bar.sizes), "bytes": sum(bar.sizes.values())})
    else:
        show(f"{folder}  {len(bar.sizes)} files  {megabytes(sum(bar.sizes.values()))}")


class _Bar:
    """Shows a bar of megabytes on a terminal; elsewhere a line for each file that begins.

    Attributes:
        sizes: bytes of each file so far, by name.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self._shown = (-1, "")

    def __call__(self, name: str, done: int, size_bytes: int) -> None:
        begins = name not in self.sizes
        self.sizes[name] = size_bytes
        now = (done >> 20, name)
        if begins or (redraws() and now != self._shown):
            bar_on_terminal(f"MB  {name}", done >> 20, max(size_bytes >> 20, 1))
            self._shown = now
