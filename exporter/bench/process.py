"""Draws with one package in a process of its own, so that seconds and memory are that package's.

    python -m exporter.bench.process PACKAGE ORDER.json FOLDER

draws what is ordered and leaves in FOLDER each picture, the latent after each step, and what it
took. The first picture is drawn from nothing, the others in a second call, which opens each graph
once, unless the first call left it open.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from exporter.backends.contract import SessionOptions
from exporter.drawing.loop import (
    Image,
    Player,
    Request,
    Session,
    Step,
    generate,
    run,
)
from exporter.drawing.text import PromptCut
from exporter.errors import CheckFailed, FourstepError
from exporter.files.read import parse_json, read_json, read_text
from exporter.package.manifest import Runs
from exporter.package.pixels import to_pixels
from exporter.runtime.package import DEFAULT, open_package

SAMPLE_S = 0.02
DECODER_CALLS = 5  # with each latent, where two decoders are compared
T = TypeVar("T")
STATUS = ("VmHWM", "RssAnon")  # of /proc/<process>/status: peak resident, anonymous now


@dataclass(frozen=True)
class Asked:
    """A picture to draw; ``size``: one of the package's, or empty for its first."""

    prompt: str
    seed: int
    size: str = ""


@dataclass(frozen=True)
class Times:
    """Seconds, after imports; files had been read before, so a disk's speed is not in them.

    Attributes:
        loads_s: to open each graph for the first picture, its digest checked; of graphs that are
            opened ahead, how long the loop waited for them.
        encode_s: text encoders and conditioner of one prompt.
        step_s, decode_s: medians over all steps and pictures; of a denoiser that is cut, with the
            opening of its parts.
        first_s: the first picture, with everything that has to be opened.
        next_s: each further picture of one call; None when only one was drawn.
        fastest_decode_s, fastest_preview_s: of several calls with final latents, by the graph that
            draws and by the one that is there for previews alone; None without one.
    """

    loads_s: dict[str, float]
    encode_s: float
    step_s: float
    decode_s: float
    first_s: float
    next_s: float | None
    fastest_decode_s: float | None = None
    fastest_preview_s: float | None = None


@dataclass(frozen=True)
class Memory:
    """Peaks of the process, Python included: resident, and resident without pages of files."""

    peak_rss_bytes: int
    peak_anonymous_bytes: int


@dataclass(frozen=True)
class Drawn:
    """What a package drew, in a folder.

    Attributes:
        memory: None where the system has no ``/proc`` and psutil is not installed.
        remarks: what the runtime said of the prompts.
    """

    place: Path
    times: Times
    memory: Memory | None
    remarks: tuple[str, ...]

    def picture(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        picture: np.ndarray = np.load(self.place / f"picture-{index}.npy")
        return picture

    def preview(self, index: int) -> np.ndarray | None:
        """The final latent by the graph that is there for previews alone, or None without one."""
        file = self.place / f"preview-{index}.npy"
        return np.load(file) if file.is_file() else None

    def latents(self, index: int) -> dict[int, np.ndarray]:
        """The latent (1, channels, h, w) after each step, from 1."""
        files = self.place.glob(f"latent-{index}-*.npy")
        return {int(f.stem.rpartition("-")[2]): np.load(f) for f in files}


def draw_apart(
    package: Path,
    asked: Sequence[Asked],
    place: Path,
    progress: Callable[[str], None],
    options: SessionOptions = DEFAULT,
    keep: bool = False,
) -> Drawn:
    """Draw with a package in another process; raises CheckFailed with what stopped it.

    Args:
        place: an empty folder for what is drawn.
        keep: whether graphs stay open, as of ``Package.player``.
    """
    order = place / "order.json"
    order.write_text(order_text(asked, options, keep), encoding="utf-8", newline="\n")
    arguments = [str(package), str(order), str(place)]
    # First on its path is this package, not the working folder, where a file may be called json.py.
    command = [sys.executable, "-P", "-m", "exporter.bench.process", *arguments]
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        ) as process,
    ):
        try:
            with _peaks(process.pid) as peaks:
                assert process.stdout is not None
                for line in process.stdout:
                    progress(f"{package.name}: {line.rstrip()}")
                code = process.wait()
        finally:
            process.kill()
        said.seek(0)
        if code:
            raise CheckFailed(_ending(code, said.read()))
    found = read_json(place / "took.json", CheckFailed)
    memory = Memory(peaks["VmHWM"], peaks["RssAnon"]) if all(peaks.values()) else None
    return Drawn(place, Times(**found["times"]), memory, tuple(found["remarks"]))


def order_text(asked: Sequence[Asked], options: SessionOptions, keep: bool) -> str:
    """What the other process is to do, as JSON; ``read_order`` reads it there."""
    cache = str(options.cache) if options.cache else None
    session = asdict(replace(options, cache=None)) | {"cache": cache}
    ordered = {"asked": [asdict(a) for a in asked], "session": session, "keep": keep}
    return json.dumps(ordered)


def read_order(text: str) -> tuple[list[Asked], SessionOptions, bool]:
    """The pictures, how graphs are opened, and whether they stay open."""
    raw = parse_json(text, "what is to be drawn")
    session = SessionOptions(**raw["session"])
    cache = Path(session.cache) if session.cache else None
    return [Asked(**a) for a in raw["asked"]], replace(session, cache=cache), raw["keep"]


def _ending(code: int, said: str) -> str:
    if code < 0:
        return f"its process was ended by signal {-code}" + (
            ", as when memory runs out" if code == -9 else ""
        )
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"its process ended with exit code {code}"


@contextmanager
def _peaks(process: int) -> Iterator[dict[str, int]]:
    """Largest figures of ``_status`` in bytes; 0 where there is none."""
    peaks, ended = dict.fromkeys(STATUS, 0), threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            for name, value in _status(process).items():
                peaks[name] = max(peaks[name], value)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _status(process: int, proc: Path = Path("/proc")) -> dict[str, int]:
    """A process's peak resident and present anonymous bytes; empty where neither can be read."""
    try:
        lines = (proc / str(process) / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return _status_elsewhere(process)
    pairs = (line.partition(":") for line in lines)
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in pairs if name in STATUS}


def _status_elsewhere(process: int) -> dict[str, int]:
    """``_status`` of macOS and Windows: resident now, and what no other process shares."""
    try:
        import psutil
    except ImportError:
        return {}
    try:
        found = psutil.Process(process).memory_full_info()
    except psutil.Error:  # it has ended
        return {}
    return dict(zip(STATUS, (found.rss, found.uss), strict=True))


@dataclass(frozen=True)
class Clock:
    """Seconds that each graph took: to open, and to run, in order."""

    opens_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    runs_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def watch(self, player: Player) -> Player:
        """The same player, timed; every prompt is encoded, though it was before."""

        def open_session(name: str) -> Session:
            session = _timed(self.opens_s[name], lambda: player.open(name))

            def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
                return _timed(self.runs_s[name], lambda: session(inputs))

            return call

        return replace(player, open=open_session, kept=None)

    def median_s(self, names: Sequence[str]) -> float:
        """Of a call of graphs that run one after the other."""
        return sum(statistics.median(self.runs_s[name]) for name in names)

    def reopened_s(self, player: Player) -> float:
        """To open, in a step, the parts of a graph of each step that is cut."""
        cut = [s.parts for s in player.stages if s.in_steps and len(s.parts) > 1]
        return sum(statistics.median(self.opens_s[name]) for parts in cut for name in parts)


def parts_of(player: Player, runs: Runs) -> list[str]:
    """What is opened for a picture from a prompt, of the stages that run so."""
    stages = [s for s in player.stages if s.runs == runs and not s.image_to_image_only]
    return [part for stage in stages for part in stage.parts]


def _parts_of_step(player: Player) -> list[str]:
    return [part for stage in player.stages if stage.in_steps for part in stage.parts]


def _calls_of_step(player: Player) -> int:
    return 1 if player.schedule.guidance is None else 2


def _timed(seconds: list[float], work: Callable[[], T]) -> T:
    started = time.perf_counter()
    done = work()
    seconds.append(time.perf_counter() - started)
    return done


def draw(
    package: Path, asked: Sequence[Asked], place: Path, options: SessionOptions, keep: bool
) -> Times:
    """Draw in this process; a line on stdout for each step and picture."""
    clock = Clock()
    seconds: list[float] = []

    def first() -> Player:
        sized = {"size": size} if (size := asked[0].size) else {}
        player = clock.watch(open_package(package, checks="always").player(options, keep, **sized))
        _draw(player, asked[:1], 0, place)
        return player

    with _timed(seconds, first) as player:
        if asked[1:]:
            _timed(seconds, lambda: _draw(player, asked[1:], 1, place))
        times = Times(
            loads_s={name: opens[0] for name, opens in clock.opens_s.items()},
            encode_s=sum(clock.runs_s[name][0] for name in parts_of(player, "once per prompt")),
            step_s=_calls_of_step(player) * clock.median_s(_parts_of_step(player))
            + clock.reopened_s(player),
            decode_s=clock.median_s(parts_of(player, "once")),
            first_s=seconds[0],
            next_s=seconds[1] / (len(asked) - 1) if len(asked) > 1 else None,
        )
        decode_s, preview_s = _compare_decoders(player, len(asked), place)
    return replace(times, fastest_decode_s=decode_s, fastest_preview_s=preview_s)


def _draw(player: Player, asked: Sequence[Asked], first: int, place: Path) -> None:
    """Draw and keep latents and pictures, which are measured: a filter keeps none of them back."""
    unfiltered = replace(player, filter=None)
    for event in generate(unfiltered, [Request(a.prompt, a.seed) for a in asked]):
        if isinstance(event, Step) and event.latent is not None:
            number = first + event.index
            np.save(place / f"latent-{number}-{event.step}.npy", event.latent)
            print(f"picture {number + 1}, step {event.step} of {event.steps}", flush=True)
        elif isinstance(event, Image):
            number = first + event.index
            np.save(place / f"picture-{number}.npy", event.pixels)
            print(f"picture {number + 1}", flush=True)


def _compare_decoders(
    player: Player, pictures: int, place: Path
) -> tuple[float | None, float | None]:
    """Give final latents to the graph that draws and to the one for previews, some times each.

    Leaves what the latter shows in ``place``. Returns seconds of the fastest call of either; None
    where there is no graph for previews alone.
    """
    draws, shows = player.giving("image"), player.giving("preview")
    if draws is None or shows is None:
        return None, None
    clock, last = Clock(), player.schedule.steps
    latents = [np.load(place / f"latent-{n}-{last}.npy") for n in range(pictures)]
    fastest: list[float] = []
    for stage in (draws, shows):
        calls = [dict.fromkeys(stage.inputs, latent) for latent in latents] * DECODER_CALLS
        outputs = run(clock.watch(player), stage.graph, calls)
        fastest.append(sum(min(clock.runs_s[part]) for part in stage.parts))
    (port,) = shows.results
    for n, found in enumerate(outputs[:pictures]):
        np.save(place / f"preview-{n}.npy", to_pixels(found[port], player.picture.pixels))
    return fastest[0], fastest[1]


def main() -> None:
    package, order, place = (Path(a) for a in sys.argv[1:])
    asked, options, keep = read_order(read_text(order))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", PromptCut)
            times = draw(package, asked, place, options, keep)
    except FourstepError as error:
        sys.exit(str(error))
    remarks = list(dict.fromkeys(str(w.message) for w in said))
    took = {"times": asdict(times), "remarks": remarks}
    (place / "took.json").write_text(json.dumps(took), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
