"""``fourstep build``: a recipe into packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from exporter import backends
from exporter.cache.url import VARIABLE
from exporter.cli.options import PLACE, json_option, statistics_option
from exporter.cli.output import complain, megabytes, require_build, show, show_json
from exporter.errors import InputError, known
from exporter.layouts import LAYOUTS
from exporter.package.manifest import licence_words, mark_words
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("build")
@click.argument("recipe", type=PLACE)
@click.option("--out", type=PLACE, help="Folder of the packages.")
@click.option("--backend", "backend_names", multiple=True, help="Only this backend (repeatable).")
@click.option("--scheme", "scheme_names", multiple=True, help="Only this scheme (repeatable).")
@click.option(
    "--layout", "layout_names", multiple=True, help="In this layout in place of the recipe's."
)
@click.option(
    "--no-golden", is_flag=True, help="Draw no golden pictures: faster, and nothing to verify with."
)
@statistics_option
@click.option(
    "--cache",
    "shared_cache",
    envvar=VARIABLE,
    show_envvar=True,
    metavar="FOLDER|URL",
    help="Where machines share what is built, such as s3://bucket/place; without credentials.",
)
@json_option
def command(
    recipe: Path,
    out: Path | None,
    backend_names: Sequence[str],
    scheme_names: Sequence[str],
    layout_names: Sequence[str],
    no_golden: bool,
    statistics: Path | None,
    shared_cache: str | None,
    as_json: bool,
) -> None:
    """Build one package per backend, scheme and layout of RECIPE into artifacts/<recipe>/.

    A scheme is a name, or the file of a plan. For OpenVINO GenAI and the optimums:

      fourstep build RECIPE.toml --layout diffusers
    """
    require_build()
    from exporter.build.pipeline import build as build_packages
    from exporter.cache.shared import open_cache
    from exporter.cache.url import parse_url
    from exporter.quantize.schemes import scheme_names as all_schemes
    from exporter.recipe.plan import is_plan
    from exporter.recipe.recipe import read_recipe

    for flag, names, options in (
        ("--backend", backend_names, backends.names()),
        ("--scheme", scheme_names, all_schemes()),
        ("--layout", layout_names, tuple(LAYOUTS)),
    ):
        for name in names:
            if name not in options and not (flag == "--scheme" and is_plan(name)):
                raise InputError(f"{flag}: {known(flag.lstrip('-'), name, options)}")
    scheme_names = [str(PLACE.convert(n, None, None)) if is_plan(n) else n for n in scheme_names]
    plan = read_recipe(recipe)
    plan = replace(plan, prompts=()) if no_golden else plan
    plan = replace(plan, layouts=tuple(dict.fromkeys(layout_names))) if layout_names else plan
    progress = Progress(bar_on_terminal)
    place = out or Path("artifacts") / plan.name
    cache = open_cache(parse_url(shared_cache), complain) if shared_cache else None
    built = build_packages(
        plan, place, backend_names, scheme_names, progress, statistics, cache=cache
    )
    end_of_bar()
    mark = plan.mark.entry if plan.mark else None
    told = {
        "mark": asdict(mark) if mark else None,
        "licence": built[0].licence_id if built else "",
    }
    rows = [
        {
            "path": str(b.path),
            "backend": b.backend,
            "scheme": b.scheme,
            "layout": b.layout,
            "bytes": b.bytes,
            **told,
        }
        for b in built
    ]
    if as_json:
        show_json(rows)
        return
    for b in built:
        losses = [i.loss_db for i in b.report.images]
        quality = f"{min(losses):.1f} dB from unquantized" if losses else "not verified"
        show(f"{b.path}  {megabytes(b.bytes)}  {quality}")
    show(mark_words(mark))
    show(licence_words(built[0].licence_id))
