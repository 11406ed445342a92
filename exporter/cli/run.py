"""``fourstep run``: draw prompts with a package."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter import __version__
from exporter.backends.contract import Precision, SessionOptions
from exporter.cli.options import (
    PASSPHRASE,
    PLACE,
    RANDOM,
    Seed,
    as_typed,
    at_once_option,
    cache_option,
    check_always_option,
    device_option,
    half_option,
    json_option,
    size_option,
    trusted_option,
)
from exporter.cli.output import show, show_json
from exporter.drawing.start import FITS, Fit
from exporter.errors import CheckFailed, InputError, PicturesRejected
from exporter.files.colours import BACKGROUND
from exporter.progress import Progress, bar_on_terminal, end_of_bar

if TYPE_CHECKING:
    from exporter.credentials.sign import Credentials, Signer
    from exporter.drawing.loop import Image, Player, Rejected, Request, Step
    from exporter.files.pictures import Seal
    from exporter.package.manifest import Manifest, PictureEntry
    from exporter.runtime.package import Checks, Package

GROUP = 32  # pictures for which prompts are encoded at a time: what was encoded stays in memory
STDIN = Path("-")


@dataclass(frozen=True)
class Chosen:
    """The package's folder, a file of whom it has to be signed by, if it matters, and checks."""

    folder: Path
    trusted: Path | None
    checks: Checks = "once"

    def opened(self) -> Package:
        """Opened so; raises InputError, CheckFailed."""
        from exporter.runtime import open_package

        return open_package(self.folder, self.trusted, self.checks)


@dataclass(frozen=True)
class Start:
    """The picture to start from, as it was asked for, and the size of what is drawn."""

    image: Path | None
    strength: float
    fit: Fit | None
    background: str | None
    size: str | None


@dataclass(frozen=True)
class Output:
    """Where pictures and previews go, whether they say what they show, and what signs them."""

    out: Path
    previews: Path | None
    metadata: bool
    credentials: Credentials | None


@dataclass(frozen=True, eq=False)
class Finish:
    """What is done with pictures: a folder for previews, a seal, and what is said of it."""

    previews: Path | None
    seal: Seal
    credentials: Mapping[str, str] | None


@dataclass(frozen=True, eq=False)
class Wanted:
    """A picture: what to draw, where it goes, and what is said in its file."""

    request: Request
    place: Path
    about: Mapping[str, str]


@click.command("run")
@click.argument("package", type=PLACE)
@click.argument("prompts", nargs=-1, callback=as_typed)
@click.option(
    "--prompts",
    "listed",
    type=PLACE,
    help="A text file with more prompts, one per line; - reads them from standard input.",
)
@click.option(
    "--seed",
    "seeds",
    type=Seed(drawn=True),
    multiple=True,
    default=(0,),
    show_default=True,
    help=f"Seed of the noise, or {RANDOM} (repeatable: one picture per seed).",
)
@click.option(
    "--out",
    type=PLACE,
    default=Path("fourstep.png"),
    show_default=True,
    help="Picture to write, in any format of Pillow's; several get -0, -1, ... before the suffix.",
)
@size_option
@click.option("--image", type=PLACE, help="Start from this picture.")
@click.option(
    "--strength",
    type=float,
    default=1.0,
    show_default=True,
    help="With --image: how much of it is drawn anew, above 0 up to 1.",
)
@click.option(
    "--fit",
    type=click.Choice(FITS),
    help="With --image: to another size; cover (default) cuts, contain pads, stretch distorts.",
)
@click.option(
    "--background",
    callback=as_typed,
    help=f"With --image: colour below what is transparent and beside it [default: {BACKGROUND}].",
)
@click.option(
    "--negative",
    callback=as_typed,
    help="What not to draw, for packages with guidance; empty unless given.",
)
@click.option("--previews", type=PLACE, help="Folder for a preview per step.")
@click.option(
    "--no-metadata", is_flag=True, help="Do not write prompt, seed and package into pictures."
)
@click.option(
    "--credentials",
    nargs=2,
    metavar="CERT KEY",
    callback=as_typed,
    help="Sign Content Credentials (C2PA) into .png, .jpg or .webp: a certificate chain and its "
    f"key, PEM files, or a pkcs11: URI as key. {PASSPHRASE}: of an encrypted one.",
)
@click.option(
    "--exact", is_flag=True, help="Compute in float32 even where activations are rounded."
)
@device_option
@half_option
@at_once_option
@cache_option
@trusted_option
@check_always_option
@json_option
def command(
    package: Path,
    prompts: Sequence[str],
    listed: Path | None,
    seeds: Sequence[int],
    out: Path,
    size: str | None,
    image: Path | None,
    strength: float,
    fit: Fit | None,
    background: str | None,
    negative: str | None,
    previews: Path | None,
    no_metadata: bool,
    credentials: tuple[str, str] | None,
    exact: bool,
    device: str | None,
    half: bool,
    at_once: bool,
    cache: Path | None,
    trusted: Path | None,
    check_always: bool,
    as_json: bool,
) -> None:
    """Draw PROMPTS with PACKAGE, one picture per prompt and seed."""
    if half and exact:
        raise InputError("--half and --exact ask for opposites; leave one out")
    precision: Precision = "half" if half else "float32" if exact else "packaged"
    options = SessionOptions(precision, device, cache)
    chosen = Chosen(package, trusted, "always" if check_always else "once")
    start = Start(image, strength, fit, background, size)
    output = Output(out, previews, not no_metadata, _credentials(credentials))
    try:
        asked = _prompts(prompts, listed)
        rows = _run(chosen, asked, seeds, negative, start, output, options, at_once)
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    if as_json:
        show_json(rows)
    else:
        for row in rows:
            signed = row["credentials"]
            by = f"  signed by {signed['signer']!r}" if signed else ""
            what = f"rejected, score {row['score']:.3g}" if row["rejected"] else row["path"]
            show(f"{what}  {row['prompt']!r}  seed {row['seed']}{by}")
    _tell_rejected(rows)


def _tell_rejected(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise PicturesRejected if a package's filter held pictures back."""
    rejected = [row for row in rows if row["rejected"]]
    if rejected:
        labels = ", ".join(sorted({row["label"] for row in rejected if row["label"]}))
        what = f" ({labels})" if labels else ""
        raise PicturesRejected(
            f"{len(rejected)} of {len(rows)} pictures were rejected by the package's filter{what}; "
            "nothing was written of them"
        )


def _credentials(given: tuple[str, str] | None) -> Credentials | None:
    """What to sign with, as it was typed."""
    from exporter.credentials.sign import Credentials
    from exporter.credentials.token import SCHEME

    if not given:
        return None
    certificate, key = given
    place = key if key.startswith(SCHEME) else PLACE.convert(key, None, None)
    return Credentials(
        PLACE.convert(certificate, None, None), place, os.environ.get(PASSPHRASE) or None
    )


def _prompts(typed: Sequence[str], listed: Path | None) -> list[str]:
    """What to draw: what was typed, then what is in the file."""
    from exporter.drawing.text import check_prompt

    if any(not prompt.strip() for prompt in typed):
        raise InputError("the prompt is empty; say what to draw")
    for prompt in typed:
        check_prompt(prompt)
    lines = _listed(listed) if listed is not None else {}
    for number, prompt in lines.items():
        try:
            check_prompt(prompt)
        except InputError as error:
            raise InputError(f"{listed}, line {number}: {error}", field="prompts") from None
    if not typed and not lines:
        raise InputError("say what to draw: a prompt, or --prompts FILE with one per line")
    return [*typed, *lines.values()]


def _listed(file: Path) -> dict[int, str]:
    from exporter.files.prompts import prompts_from, read_prompts

    def failure(said: str) -> InputError:
        return InputError(said, field="prompts")

    if file != STDIN:
        return read_prompts(file, failure)
    if sys.stdin is None:  # closed
        raise failure("standard input is closed; name a file")
    return prompts_from(sys.stdin.buffer, failure)


def _run(
    chosen: Chosen,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str | None,
    start: Start,
    output: Output,
    options: SessionOptions,
    at_once: bool,
) -> list[dict[str, Any]]:
    from exporter.files.pictures import check_picture

    if start.image is None:
        for field in ("strength", "fit", "background"):
            if getattr(start, field) not in (None, 1.0):
                raise InputError(f"--{field} applies to --image only")
    places = _places(output, len(prompts) * len(seeds))
    with _signer(output.credentials) as signer:
        package = chosen.opened()
        size = package.sizes[0] if start.size is None else start.size
        picture = package.at(size).manifest.picture
        requests = _requests(picture, prompts, seeds, negative, start)
        wanted = [
            Wanted(request, place, _about(package.manifest, request) if output.metadata else {})
            for request, place in zip(requests, places, strict=True)
        ]
        finish = _finish(package, signer, start.image, output.previews)
        longest = max(wanted, key=lambda w: len(w.request.prompt))
        sides = picture.width_px, picture.height_px
        check_picture(longest.place, *sides, longest.about, finish.seal)
        if output.previews is not None:
            _make_folder(output.previews)
        with package.player(options, keep=at_once, size=size) as player:
            return _draw(player, wanted, finish)


def _signer(credentials: Credentials | None) -> AbstractContextManager[Signer | None]:
    """What signs, opened; nothing without credentials."""
    from exporter.credentials.sign import open_signer

    return nullcontext() if credentials is None else open_signer(credentials)


def _finish(
    package: Package, signer: Signer | None, image: Path | None, previews: Path | None
) -> Finish:
    """What is done with every picture of a run, previews among them."""
    from exporter.files.pictures import as_it_is
    from exporter.runtime.signed import claim_of

    if signer is None:
        return Finish(previews, as_it_is, None)
    return Finish(previews, partial(signer.signed, claim=claim_of(package, image)), signer.about)


def _requests(
    picture: PictureEntry,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str | None,
    start: Start,
) -> list[Request]:
    """A request for each prompt and seed; the picture to start from is read."""
    from exporter.runtime import Request, start_picture

    source, sides = None, (picture.width_px, picture.height_px)
    if start.image is not None:
        source = start_picture(start.image, *sides, start.fit or "cover", start.background)
    return [
        Request(p, s, source, start.strength, negative=negative) for p in prompts for s in seeds
    ]


def _about(manifest: Manifest, request: Request) -> dict[str, str]:
    """What is said in a picture's file: enough to draw it again, and no path."""
    found = {
        "prompt": request.prompt,
        "seed": str(request.seed),
        "package": f"{manifest.name} {manifest.backend}-{manifest.scheme}",
        "version": __version__,
        "Software": f"fourstep {__version__}",
    }
    if request.negative is not None:
        found["negative"] = request.negative
    if request.image is not None:
        found["strength"] = f"{request.strength:g}"
    return found


def _draw(player: Player, wanted: Sequence[Wanted], finish: Finish) -> list[dict[str, Any]]:
    """Draw and save; a row of facts for each picture."""
    groups = range(0, len(wanted), GROUP)
    lines = len(wanted) * (player.schedule.steps + 1) + len(groups)
    progress = Progress(bar_on_terminal, expected=lines)
    rows, started = [], time.perf_counter()
    for first in groups:
        for done in _draw_group(player, wanted[first : first + GROUP], first, finish, progress):
            rows.append({**done, "seconds": round(time.perf_counter() - started, 3)})
    end_of_bar()
    return rows


def _draw_group(
    player: Player, wanted: Sequence[Wanted], first: int, finish: Finish, progress: Progress
) -> Iterator[dict[str, Any]]:
    """What is to be told of each of some pictures when it is saved, or rejected.

    Where the package has a filter, previews are saved with their picture, once it has passed.

    Args:
        first: the number of the first.
    """
    from exporter.drawing.loop import Conditioned, Rejected, Step, generate
    from exporter.files.pictures import write_picture

    held: dict[int, list[Callable[[], None]]] = {}
    for event in generate(player, [w.request for w in wanted]):
        if isinstance(event, Conditioned):
            progress(f"{event.prompts} prompt(s) encoded")
            continue
        number, own = first + event.index, wanted[event.index]
        if isinstance(event, Step):
            progress(f"picture {number + 1}: step {event.step} of {event.steps}")
            write = _preview(event, number, own, finish)
            if write is not None and player.filter is None:
                write()
            elif write is not None:
                held.setdefault(event.index, []).append(write)
            continue
        previews = held.pop(event.index, [])
        if isinstance(event, Rejected):
            progress(f"picture {number + 1}: rejected by the package's filter")
        else:
            for write in previews:
                write()
            write_picture(event.pixels, own.place, own.about, finish.seal)
            progress(f"picture {number + 1}: {own.place}")
        yield _row(player, own, event, finish)


def _preview(event: Step, number: int, own: Wanted, finish: Finish) -> Callable[[], None] | None:
    """What writes the preview of a step, or None where none is wanted or shown."""
    from exporter.files.pictures import write_picture

    if finish.previews is None or event.preview is None:
        return None
    pixels = event.preview()
    if pixels is None:
        return None
    step = {"step": f"{event.step} of {event.steps}"} if own.about else {}
    file = finish.previews / f"{number}-{event.step}.png"
    return partial(write_picture, pixels, file, {**own.about, **step}, finish.seal)


def _row(player: Player, own: Wanted, event: Image | Rejected, finish: Finish) -> dict[str, Any]:
    """What is told of a picture."""
    from exporter.drawing.loop import Rejected

    rejected = isinstance(event, Rejected)
    judged = {} if player.filter is None else {"score": event.score, "label": player.filter.label}
    return {
        "path": None if rejected else str(own.place),
        "prompt": own.request.prompt,
        "seed": own.request.seed,
        "credentials": None if rejected else finish.credentials,
        "rejected": rejected,
        **judged,
    }


def _places(output: Output, count: int) -> list[Path]:
    """Where pictures go; refuses before anything is drawn."""
    from exporter.credentials.sign import check_format
    from exporter.files.pictures import format_of
    from exporter.files.staging import SHORTER

    out = output.out
    form = format_of(out)
    if output.credentials is not None:
        check_format(form, out)
    places = [out]
    if count > 1:
        places = [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(count)]
    try:
        problem = _problem(places)
    except OSError as error:  # a name that is too long
        problem = f"{error.strerror}; {SHORTER}"
    if problem:
        raise InputError(problem, field="out", given=out)
    return places


def _problem(places: Sequence[Path]) -> str | None:
    """Why pictures cannot be written there, or None."""
    folder = places[0].parent
    if not folder.is_dir():
        return f"folder '{folder}' does not exist; make it or name another file"
    if not os.access(folder, os.W_OK):
        return f"folder '{folder}' cannot be written; name a file in another"
    taken = [place for place in places if place.is_dir()]
    return f"'{taken[0]}' is a folder; name a file" if taken else None


def _make_folder(previews: Path) -> None:
    try:
        previews.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}; name another folder"
        raise InputError(reason, field="previews", given=previews) from None
