"""Stop 6, verify: a package is whole, its graphs compute what torch computes, its pictures hold.

Needs no torch: the golden tensors are the quantized program's own inputs and outputs.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np

from exporter import backends
from exporter.backends.contract import SessionOptions
from exporter.bom.check import disagreements
from exporter.drawing.loop import Image, Player, Ports, Request, generate, run
from exporter.package.manifest import (
    Golden,
    GraphEntry,
    Manifest,
    NpuEntry,
    SizedGraph,
    SizeEntry,
)
from exporter.package.measures import finite, psnr_db, relative_error, snr_db
from exporter.package.sizes import size_of
from exporter.package.strays import unlisted
from exporter.runtime.golden import golden_pixels, picture_tensors
from exporter.runtime.package import DEFAULT, Package
from exporter.runtime.vectors import compare

G = TypeVar("G", GraphEntry, SizedGraph)
Progress = Callable[[str], None]
READ_AT_ONCE = 2  # files
REMEDY = "copy or build the package again"
Players = Mapping[bool, Player]  # by whether they compute exactly
CALL = re.compile(r"(\d{1,6})/(in|out)/(\w+)")  # of a golden tensor's name, after its graph


@dataclass(frozen=True)
class GraphParity:
    """Largest relative L2 error of a graph over the golden calls: exact, and as it runs.

    ``size``: at which it stands in for the graph of the first; empty for that one. ``allowed``:
    what the package allows it on the device. ``culprit``: of a graph that is off on an NPU, the
    operator from which on; may be empty.
    """

    graph: str
    calls: int
    exact: float
    as_run: float
    size: str = ""
    allowed: float = 0.0
    culprit: str = ""

    @property
    def worded(self) -> str:
        """The graph, and at which size."""
        return f"{self.graph} at {self.size}" if self.size else self.graph


@dataclass(frozen=True)
class ImageParity:
    """A golden picture drawn again.

    Attributes:
        exact_db, as_run_db: PSNR against the quantized program's picture in torch.
        loss_db: PSNR of the picture as it runs against the unquantized program's: what
            quantization costs.
        latent_snr_db: the same of the final latent, as a ratio of powers.
        size: of the picture, where it is not the first; else empty.
    """

    prompt: str
    seed: int
    exact_db: float
    as_run_db: float
    loss_db: float
    latent_snr_db: float
    size: str = ""


@dataclass(frozen=True)
class Report:
    """What ``verify`` found. ``failures`` is empty when the package holds.

    ``vectors`` counts what was compared without a graph: ids, noise, steps, pixels, previews.
    ``beside`` names files that are not the package's and do no harm: a hub's README. ``device`` is
    the one that was named; empty: the backend's default.
    """

    package: str
    files: int
    graphs: tuple[GraphParity, ...]
    images: tuple[ImageParity, ...]
    failures: tuple[str, ...]
    vectors: int = 0
    beside: tuple[str, ...] = ()
    device: str = ""

    @property
    def ok(self) -> bool:
        return not self.failures

    def to_json(self) -> str:
        """JSON text; an infinite PSNR (identical pictures) becomes null."""
        return json.dumps(finite(asdict(self) | {"ok": self.ok}), indent=1)


def verify(
    package: Package, progress: Progress = lambda line: None, options: SessionOptions = DEFAULT
) -> Report:
    """Check integrity, then parity of every graph, then whole pictures, on the options' device.

    Raises CheckFailed when a file is damaged, InputError for options that the package's backend
    does not take; parity out of tolerance is in ``failures``.
    """
    backends.check_session(package.manifest.backend, options)
    package = _on_npu(package.forgetful(), options)
    manifest = package.manifest
    files = check_files(package, progress)
    as_run = package.player(options)
    if _is_npu(manifest, options):  # it computes in one way
        players: Players = {True: as_run, False: as_run}
    else:
        players = {True: package.player(replace(options, precision="float32")), False: as_run}
    explained = functools.partial(_explained, options=options)
    found = [_checked(package, players, manifest.names, "", progress, explained)]
    for entry in manifest.sizes:
        size = size_of(entry)
        view = {exact: player.at(size) for exact, player in players.items()}
        own = _own_graphs(manifest, entry)
        found.append(_checked(package.at(size), view, own, str(size), progress, explained))
    others = unlisted(package.folder, manifest)
    failures = [
        *(f"{path}: not listed in the manifest; delete it" for path in others.strays),
        *_failures_of_bill(package),
        *(failure for one in found for failure in one.failures),
    ]
    return Report(
        package.folder.name,
        files,
        tuple(graph for one in found for graph in one.graphs),
        tuple(image for one in found for image in one.images),
        tuple(failures),
        sum(one.vectors for one in found),
        others.beside,
        options.device or "",
    )


def _is_npu(manifest: Manifest, options: SessionOptions) -> bool:
    return options.device in backends.npu_devices(backends.load(manifest.backend))


def _on_npu(package: Package, options: SessionOptions) -> Package:
    """The package, held on an NPU to what it allows there."""
    manifest = package.manifest
    if not _is_npu(manifest, options):
        return package
    sizes = tuple(
        replace(entry, graphs=tuple(map(_held_there, entry.graphs))) for entry in manifest.sizes
    )
    graphs = tuple(map(_held_there, manifest.graphs))
    return replace(package, manifest=replace(manifest, graphs=graphs, sizes=sizes))


def _held_there(graph: G) -> G:
    npu = graph.npu
    return replace(graph, tolerance=npu.tolerance) if isinstance(npu, NpuEntry) else graph


def _own_graphs(manifest: Manifest, entry: SizeEntry) -> list[str]:
    """The graphs that another stands in for at a further size."""
    own = {graph.name for graph in entry.graphs}
    return [s.graph for s in manifest.stages if own.intersection(s.parts)]


def _checked(
    package: Package,
    players: Players,
    names: Sequence[str],
    size: str,
    progress: Progress,
    explained: Callable[[Package, GraphParity], GraphParity],
) -> Report:
    """What is found of one size: of these graphs and of its golden pictures.

    Args:
        size: in words; empty for the first.
        explained: a graph, with its culprit if it is off.
    """
    vectors = tuple(compare(package, players[False]))
    graphs = tuple(
        explained(package, _graph_parity(package, players, name, size, progress)) for name in names
    )
    pictures = package.manifest.golden.pictures
    images = tuple(_image_parity(package, players, g, size, progress) for g in pictures)
    failures = (
        *(_at(size, vector.what) for vector in vectors if not vector.same),
        *_failures(package, graphs, images),
    )
    return Report(package.folder.name, 0, graphs, images, failures, len(vectors))


def _explained(package: Package, graph: GraphParity, options: SessionOptions) -> GraphParity:
    """A graph, with the operator from which on it is off on an NPU."""
    parts = package.manifest.parts(graph.graph)
    backend = backends.load(package.manifest.backend)
    npu = parts[0].npu
    is_off = graph.calls and not graph.exact <= graph.allowed and not (npu and npu.alone)
    if not is_off or len(parts) > 1 or not _is_npu(package.manifest, options):
        return graph
    assert isinstance(backend, backends.ForNpu) and options.device is not None
    inputs, _ = golden_calls(package, package.manifest.golden.pictures[0], graph.graph)[-1]
    entry = package.folder / parts[0].entry
    culprit = backend.where_off(entry, options.device, inputs, graph.allowed)
    return replace(graph, culprit=culprit)


def _at(size: str, what: str) -> str:
    return f"{what} at {size}" if size else what


def lines_to_verify(graphs: int, pictures: int) -> int:
    """How many lines of progress ``verify`` shows: the files, each graph, each golden picture.

    Args:
        graphs, pictures: of all sizes; what serves several counts once.
    """
    return 1 + graphs + pictures


def lines_of(manifest: Manifest) -> int:
    """``lines_to_verify`` of a package."""
    sizes = manifest.sizes
    graphs = len(manifest.names) + sum(len(_own_graphs(manifest, entry)) for entry in sizes)
    pictures = len(manifest.golden.pictures) + sum(len(entry.pictures) for entry in sizes)
    return lines_to_verify(graphs, pictures)


def check_files(package: Package, progress: Progress = lambda line: None) -> int:
    """Check every file's digest; returns how many. Raises CheckFailed naming a damaged one."""
    manifest = package.manifest
    files = manifest.all_files
    with ThreadPoolExecutor(READ_AT_ONCE) as readers:
        for _ in readers.map(package.check, files):
            pass
    progress(f"{len(files)} files whole")
    return len(files)


def _failures_of_bill(package: Package) -> list[str]:
    """In what the package's bill of materials is not of this package; nothing without one."""
    manifest = package.manifest
    return disagreements(package.read(manifest.bom), manifest) if manifest.bom else []


def _failures(
    package: Package, graphs: tuple[GraphParity, ...], images: tuple[ImageParity, ...]
) -> list[str]:
    manifest = package.manifest
    least_db = min(g.tolerance.image_psnr_db for g in manifest.graphs)
    found = [
        f"{g.worded}: relative error {g.exact:.1e}, allowed {g.allowed:.1e}"
        + (f"; {g.culprit}" if g.culprit else "")
        for g in graphs
        if not g.exact <= g.allowed
    ]
    if manifest.golden.pictures:
        found += [f"{g.worded}: no golden call covers it" for g in graphs if g.calls == 0]
    found += [
        f"{_at(i.size, f'image {i.prompt!r}')}: PSNR {i.exact_db:.1f} dB, at least {least_db:.1f}"
        for i in images
        if not i.exact_db >= least_db
    ]
    return found


def _graph_parity(
    package: Package, players: Players, name: str, size: str, progress: Progress
) -> GraphParity:
    said, allowed = _at(size, name), package.manifest.parts(name)[-1].tolerance.graph_relative
    pictures = package.manifest.golden.pictures
    calls = [call for golden in pictures for call in golden_calls(package, golden, name)]
    if not calls:
        for part in package.manifest.parts(name):
            players[False].open(part.name)
        progress(f"{said}: opens; no golden outputs to compare with")
        return GraphParity(name, 0, 0.0, 0.0, size, allowed)
    worst = {exact: _worst(player, name, calls) for exact, player in _different(players).items()}
    worst.setdefault(False, worst[True])
    progress(f"{said}: relative error {worst[True]:.1e}, as it runs {worst[False]:.1e}")
    return GraphParity(name, len(calls), worst[True], worst[False], size, allowed)


def _different(players: Players) -> Players:
    """The players, those that are the same one once."""
    return {True: players[True]} if players[True] is players[False] else players


def _worst(player: Player, name: str, calls: Sequence[tuple[Ports, Ports]]) -> float:
    """The largest error of an output of a graph."""
    found = run(player, name, [inputs for inputs, _ in calls])
    return max(
        _error(outputs.get(port), value)
        for outputs, (_, expected) in zip(found, calls, strict=True)
        for port, value in expected.items()
    )


def _error(found: np.ndarray | None, expected: np.ndarray) -> float:
    if found is None or found.shape != expected.shape:
        return math.inf
    return relative_error(found, expected)


def golden_calls(package: Package, golden: Golden, graph: str) -> list[tuple[Ports, Ports]]:
    """Inputs and expected outputs of each recorded call of a graph, in order.

    Raises CheckFailed for a call without one of the graph's ports.
    """
    tensors = picture_tensors(package, golden)
    parts = package.manifest.parts(graph)
    count = 1 + max((_call_of(key, graph) for key in tensors), default=-1)
    return [
        (
            {p.name: tensors[f"{graph}/{i}/in/{p.name}"] for p in parts[0].inputs},
            {p.name: tensors[f"{graph}/{i}/out/{p.name}"] for p in parts[-1].outputs},
        )
        for i in range(count)
    ]


def _call_of(key: str, graph: str) -> int:
    """The number in ``<graph>/<call>/...``, -1 in any other key."""
    name, _, rest = key.partition("/")
    number = rest.partition("/")[0]
    return int(number) if name == graph and re.fullmatch("[0-9]{1,6}", number) else -1


def _image_parity(
    package: Package, players: Players, golden: Golden, size: str, progress: Progress
) -> ImageParity:
    expected = golden_pixels(package, golden.image)
    plain = golden_pixels(package, golden.unquantized)
    plain_latent = picture_tensors(package, golden)["unquantized_latent"]
    drawn = {exact: _drawn(player, golden) for exact, player in _different(players).items()}
    exact, as_run = drawn[True], drawn.get(False, drawn[True])
    result = ImageParity(
        golden.prompt,
        golden.seed,
        psnr_db(exact.pixels, expected),
        psnr_db(as_run.pixels, expected),
        psnr_db(as_run.pixels, plain),
        snr_db(as_run.latent, plain_latent),
        size,
    )
    said = _at(size, f"image {golden.prompt!r}")
    progress(
        f"{said}: PSNR {result.exact_db:.1f} dB, as it runs "
        f"{result.as_run_db:.1f} dB; against unquantized {result.loss_db:.1f} dB"
    )
    return result


def _drawn(player: Player, golden: Golden) -> Image:
    """A golden picture, drawn for comparing alone: its filter's graph is compared by itself."""
    events = generate(replace(player, filter=None), [Request(golden.prompt, golden.seed)])
    (image,) = [e for e in events if isinstance(e, Image)]
    return image
