"""What a package says of itself: ``manifest.json`` as frozen data. No torch, no vendor library."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from exporter.errors import CheckFailed
from exporter.package.names import graph_of

FORMAT_VERSION = 3
T = TypeVar("T")


@dataclass(frozen=True)
class Port:
    """An input or output of a graph. ``dtype`` is ``float32`` or ``int32``."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class FileEntry:
    """A file of the package, by its path from the package's folder."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Adjusted:
    """A weight whose format had to differ from the scheme's, and how."""

    weight: str
    asked: str
    used: str


@dataclass(frozen=True)
class Tolerance:
    """How far a graph may be from its golden outputs, in relative L2 error, and a picture drawn
    with it from the golden one, in decibels of PSNR."""

    graph_relative: float
    image_psnr_db: float


@dataclass(frozen=True)
class GraphEntry:
    """One graph of the package.

    Attributes:
        entry: the file or folder that a session opens.
        files: every file of the graph.
        formats: how many weight values are stored in each format.
        adjusted: weights whose width the scheme's group does not divide.
        activation_bytes: most bytes of activations alive at once, predicted.
        run_bytes: peak anonymous memory of a process that runs it, predicted; None: not measured.
        tolerance: what ``verify`` allows it.
        session: what the backend wants to be told when it opens the graph.
        remarks: what whoever ships the graph should know of it.
    """

    name: str
    entry: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: tuple[FileEntry, ...]
    formats: dict[str, int]
    adjusted: tuple[Adjusted, ...]
    activation_bytes: int
    run_bytes: int | None
    tolerance: Tolerance
    session: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)


@dataclass(frozen=True)
class Schedule:
    """``sigmas``: S + 1 noise levels from 1 to 0. ``mode``: ``euler`` or ``renoise``."""

    mode: str
    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer file and how its ids are padded to ``tokens``."""

    path: str
    tokens: int
    pad_id: int


@dataclass(frozen=True)
class Golden:
    """One golden image: the prompt, what the quantized and the unquantized program drew."""

    prompt: str
    seed: int
    image: str
    unquantized: str
    tensors: str


@dataclass(frozen=True)
class Manifest:
    """Everything a device must know. See DESIGN: package format."""

    format_version: int
    name: str
    backend: str
    scheme: str
    layout: str
    recipe_sha256: str
    checkpoint_sha256: str
    methods: tuple[str, ...]
    statistics_sha256: str
    plan_sha256: str
    tools: dict[str, str]
    schedule: Schedule
    width_px: int
    height_px: int
    latent_channels: int
    latent_scale_px: int
    t5: bool
    tokenizers: dict[str, Tokenizer]
    graphs: tuple[GraphEntry, ...]
    golden: tuple[Golden, ...]
    preview: str
    files: tuple[FileEntry, ...]
    licence: str
    predicted_peak_bytes: int | None

    def graph(self, name: str) -> GraphEntry | None:
        """The graph of that name, or None when the package has none."""
        return next((g for g in self.graphs if g.name == name), None)

    def parts(self, name: str) -> tuple[GraphEntry, ...]:
        """The parts of a graph in the order in which they run: itself, unless it is cut."""
        return tuple(g for g in self.graphs if graph_of(g.name) == name)

    @property
    def names(self) -> tuple[str, ...]:
        """The graphs, in the order in which they run; one that is cut counts once."""
        return tuple(dict.fromkeys(graph_of(g.name) for g in self.graphs))

    @property
    def bytes(self) -> int:
        return sum(f.bytes for g in self.graphs for f in g.files) + sum(f.bytes for f in self.files)


def to_json(manifest: Manifest) -> str:
    """Deterministic JSON text."""
    return json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``; raises CheckFailed naming the file and what is wrong."""
    file = folder / "manifest.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckFailed(f"{file}: cannot be read as a manifest: {error}") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise CheckFailed(
            f"{file}: format version {version!r}; this fourstep reads {FORMAT_VERSION}: "
            "build the package again"
        )
    try:
        return parse(Manifest, raw)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckFailed(f"{file}: damaged: {error}; build the package again") from None


def parse(kind: type[T], raw: Any) -> T:
    """A frozen dataclass from parsed JSON; raises ValueError for other keys or types."""
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(raw, dict) or set(raw) != names:
        found = set(raw) if isinstance(raw, dict) else set()
        raise ValueError(f"{kind.__name__}: keys {sorted(names ^ found)} missing or unknown")
    return kind(**{name: _convert(hints[name], raw[name], name) for name in names})


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name}: a list is expected")
        return tuple(_convert(arguments[0], v, name) for v in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{name}: an object is expected")
        return {k: _convert(arguments[1], v, name) for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(arguments[0], value, name)
    if dataclasses.is_dataclass(hint):
        return parse(hint, value)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{name}: {value!r} is not of type {hint.__name__}")
    return value
