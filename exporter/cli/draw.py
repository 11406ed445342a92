"""What ``fourstep run`` does with a package: pictures into files, and a row of facts for each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import __version__
from exporter.backends.contract import SessionOptions
from exporter.cli.output import FLAGS, complain
from exporter.drawing.start import Fit
from exporter.errors import InputError
from exporter.files.edits import Edits
from exporter.progress import Progress, bar_on_terminal, end_of_bar

if TYPE_CHECKING:
    from exporter.credentials.sign import Credentials, Signer
    from exporter.drawing.loop import Image, Player, Rejected, Request, Step
    from exporter.files.pictures import Seal
    from exporter.package.manifest import Manifest, PictureEntry
    from exporter.package.sizes import Sized
    from exporter.runtime.package import Checks, Package
    from exporter.trust.check import Trust

GROUP = 32  # pictures for which prompts are encoded at a time: what was encoded stays in memory


@dataclass(frozen=True)
class Chosen:
    """The package's folder, whom it has to be signed by, if it matters, and checks."""

    folder: Path
    trusted: Trust | None
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


@dataclass(frozen=True)
class Order:
    """What all pictures of a run have in common."""

    chosen: Chosen
    seeds: Sequence[int]
    negative: str | None
    start: Start
    output: Output
    options: SessionOptions


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

    @property
    def asked(self) -> tuple[str, int]:
        """What sets it apart from the other pictures of its run."""
        return self.request.prompt, self.request.seed


@dataclass(frozen=True, eq=False)
class Prepared:
    """What an order names, opened and read.

    Attributes:
        size: that pictures are drawn at.
        picture: its entry in the manifest.
        source: (H, W, 3) uint8, the picture to start from, or None.
    """

    package: Package
    size: Sized
    picture: PictureEntry
    source: Any
    finish: Finish


def drawn(order: Order, prompts: Sequence[str], at_once: bool) -> Iterator[dict[str, Any]]:
    """Draw and save; a row of facts for each picture."""
    places = _places(order, len(prompts))
    with _signer(order.output.credentials) as signer:
        ready = _prepared(order, signer)
        wanted = _wanted(ready, prompts, places, order)
        with ready.package.player(order.options, keep=at_once, size=ready.size) as player:
            yield from _draw(player, wanted, ready.finish)
    end_of_bar()


def drawn_at_changes(
    order: Order, file: Path, prompts_in: Callable[[], Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """The same of the prompts in a file, and at every change of what changed, without end.

    What is being drawn when the file changes is given up after its step. A mistake in the file is
    told, and the next change waited for; at first it is raised.
    """
    edits, shown = Edits(file), dict[Path, tuple[str, int]]()
    prompts = prompts_in()
    places = _places(order, len(prompts))
    with _signer(order.output.credentials) as signer:
        ready = _prepared(order, signer)
        _wanted(ready, prompts, places, order)
        with ready.package.player(order.options, keep=True, size=ready.size) as player:
            for _ in edits:
                try:
                    prompts = prompts_in()
                    wanted = _wanted(ready, prompts, _places(order, len(prompts)), order)
                    wanted = [own for own in wanted if shown.get(own.place) != own.asked]
                    rows = _draw(player, wanted, ready.finish, edits.is_stale)
                    for own, row in zip(wanted, rows, strict=False):
                        shown[own.place] = own.asked
                        yield row
                except InputError as error:
                    complain(error.worded(FLAGS.get(error.field, error.field)))
                end_of_bar()


def _prepared(order: Order, signer: Signer | None) -> Prepared:
    """The package, opened, and the picture to start from, read."""
    from exporter.runtime import start_picture

    start = order.start
    package = order.chosen.opened()
    size = package.sizes[0] if start.size is None else start.size
    picture = package.at(size).manifest.picture
    source, sides = None, (picture.width_px, picture.height_px)
    if start.image is not None:
        source = start_picture(start.image, *sides, start.fit or "cover", start.background)
    finish = _finish(package, signer, start.image, order.output.previews)
    return Prepared(package, size, picture, source, finish)


def _wanted(
    prepared: Prepared, prompts: Sequence[str], places: Sequence[Path], order: Order
) -> list[Wanted]:
    """A picture for each prompt and seed; refuses what its file cannot hold."""
    from exporter.files.pictures import check_picture
    from exporter.runtime import Request

    manifest, picture = prepared.package.manifest, prepared.picture
    requests = [
        Request(p, s, prepared.source, order.start.strength, negative=order.negative)
        for p in prompts
        for s in order.seeds
    ]
    wanted = [
        Wanted(request, place, _about(manifest, request) if order.output.metadata else {})
        for request, place in zip(requests, places, strict=True)
    ]
    longest = max(wanted, key=lambda w: len(w.request.prompt))
    sides = picture.width_px, picture.height_px
    check_picture(longest.place, *sides, longest.about, prepared.finish.seal)
    if order.output.previews is not None:
        _make_folder(order.output.previews)
    return wanted


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


def never() -> bool:
    """Whether what is drawn is out of date, where it cannot be."""
    return False


def _draw(
    player: Player, wanted: Sequence[Wanted], finish: Finish, is_stale: Callable[[], bool] = never
) -> Iterator[dict[str, Any]]:
    """Draw and save; a row of facts for each picture, as long as they are not stale."""
    groups = range(0, len(wanted), GROUP)
    lines = len(wanted) * (player.schedule.steps + 1) + len(groups)
    progress = Progress(bar_on_terminal, expected=lines)
    started = time.perf_counter()
    for first in groups:
        group = wanted[first : first + GROUP]
        for done in _draw_group(player, group, first, finish, progress, is_stale):
            yield {**done, "seconds": round(time.perf_counter() - started, 3)}


def _draw_group(
    player: Player,
    wanted: Sequence[Wanted],
    first: int,
    finish: Finish,
    progress: Progress,
    is_stale: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """What is to be told of each of some pictures when it is saved, or rejected.

    Where the package has a filter, previews are saved with their picture, once it has passed.

    Args:
        first: the number of the first.
    """
    from exporter.drawing.loop import Conditioned, Rejected, Step, generate

    held: dict[int, list[Callable[[], None]]] = {}
    with closing(generate(player, [w.request for w in wanted])) as events:
        for event in events:
            if isinstance(event, Conditioned):
                progress(f"{event.prompts} prompt(s) encoded")
            elif isinstance(event, Step):
                number, own = first + event.index, wanted[event.index]
                progress(f"picture {number + 1}: step {event.step} of {event.steps}")
                write = _preview(event, number, own, finish)
                if write is not None and player.filter is None:
                    write()
                elif write is not None:
                    held.setdefault(event.index, []).append(write)
            else:
                number, own = first + event.index, wanted[event.index]
                _save(event, own, held.pop(event.index, []), finish)
                rejected = isinstance(event, Rejected)
                told = "rejected by the package's filter" if rejected else own.place
                progress(f"picture {number + 1}: {told}")
                yield _row(player, own, event, finish)
            if is_stale():
                return


def _save(
    event: Image | Rejected, own: Wanted, previews: Sequence[Callable[[], None]], finish: Finish
) -> None:
    """Write a picture and its previews, if the filter let it pass."""
    from exporter.drawing.loop import Image
    from exporter.files.pictures import write_picture

    if isinstance(event, Image):
        for write in previews:
            write()
        write_picture(event.pixels, own.place, own.about, finish.seal)


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


def _places(order: Order, prompts: int) -> list[Path]:
    """Where pictures go; refuses before anything is drawn."""
    from exporter.credentials.sign import check_format
    from exporter.files.pictures import format_of
    from exporter.files.staging import SHORTER

    start, out = order.start, order.output.out
    if start.image is None:
        for field in ("strength", "fit", "background"):
            if getattr(start, field) not in (None, 1.0):
                raise InputError(f"--{field} applies to --image only")
    form = format_of(out)
    if order.output.credentials is not None:
        check_format(form, out)
    places, count = [out], prompts * len(order.seeds)
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
