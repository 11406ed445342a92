"""What a backend is, and what it gets and gives: how to emit, what was emitted, how to open it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

from exporter.package.consistent import WEIGHTS as WEIGHTS
from exporter.package.manifest import BASE as BASE

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.package.manifest import (
        Adjusted,
        ContextEntry,
        NpuEntry,
        Port,
        Tokenizer,
        Tolerance,
    )
    from exporter.quantize.formats import Format, Scheme
    from exporter.quantize.program import QuantizedProgram

Session = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
Precision = Literal["packaged", "float32", "half"]


@dataclass(frozen=True)
class Requirement:
    """What has to be installed.

    Attributes:
        install: what to give ``pip install``, such as ``fourstep[build,onnx]``.
        modules: the distribution of each module that has to be there.
    """

    install: str
    modules: Mapping[str, str]


@dataclass(frozen=True)
class PortForm:
    """How an input is written where clients of others want it otherwise than the loop does.

    Attributes:
        is_wide: whole numbers of 64 bits, made 32 bits inside.
        free_axes: of any size; the program has the largest and reads no more than it needs.
    """

    is_wide: bool = False
    free_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class EmitOptions:
    """What a recipe decides about one backend's files.

    Attributes:
        choices: a value for each key of the backend's ``options``.
        ports: how inputs are written, by name.
        is_foreign: the graph is for clients of others: what ours would tell a session stands in
            the graph where its form has a place for it.
        is_widened: the graph is small, and its device has the memory: a session may decode its
            weights once. False of a backend whose ``costs.widened`` are 0.
    """

    choices: Mapping[str, str]
    ports: Mapping[str, PortForm] = field(default_factory=dict)
    is_foreign: bool = False
    is_widened: bool = False


@dataclass(frozen=True)
class Emitted:
    """What ``emit`` wrote: the file or folder that a session opens, and all files.

    ``tolerance`` is what ``verify`` allows the graph; ``session`` holds settings to open it with.
    ``adjusted`` lists the weights that did not get what their format promises; ``remarks`` say what
    whoever ships the graph should know. ``on_npu`` is what ``verify`` allows it on an NPU that
    takes it whole; None: it stays on the processor.
    """

    entry: Path
    files: tuple[Path, ...]
    tolerance: Tolerance
    session: dict[str, str] = field(default_factory=dict)
    adjusted: tuple[Adjusted, ...] = ()
    remarks: tuple[str, ...] = ()
    on_npu: Tolerance | None = None


@dataclass(frozen=True)
class Traffic:
    """What goes between a chip's memory and its NPU when a graph runs once, as a compiler predicts.

    Attributes:
        read_bytes, written_bytes: all of it.
        spilled_bytes: of what is written, values that the NPU's own memory has no room for.
        filled_bytes: of what is read, such values again.
    """

    read_bytes: int
    written_bytes: int
    spilled_bytes: int
    filled_bytes: int


@dataclass(frozen=True)
class CompiledGraph:
    """A graph of one size that was compiled.

    Attributes:
        entry: the file that a session opens.
        files: all of it; of several sizes the largest is the same.
        traffic: as the compiler predicts it; None: it does not say.
    """

    entry: Path
    files: tuple[Path, ...]
    traffic: Traffic | None = None


@dataclass(frozen=True)
class Compiled:
    """A graph that was compiled for a chip.

    Attributes:
        graphs: of each size.
        htp_arch: of the chip's NPU.
        soc_model: the maker's number of the chip.
        qairt: the version of the compiler.
        seconds, cpu_seconds, peak_bytes: what compiling took, another thing from time to time.
    """

    graphs: tuple[CompiledGraph, ...]
    soc_model: int
    htp_arch: int
    qairt: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Classifier:
    """A graph of the user's own that looks at pictures, as it lies on the disk.

    Attributes:
        entry: the file or folder that ``open_graph`` takes.
        files: all of it, inside the entry or beside it.
        inputs: the shape of each by its name, None for a size that is free. They take float32.
        settings: to open it with.
    """

    entry: Path
    files: tuple[Path, ...]
    inputs: Mapping[str, tuple[int | None, ...]]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operator:
    """An operator of a classifier.

    Attributes:
        reads: the names of the values that it takes.
        gives: bytes of its results, by name; None where the size is not known.
    """

    reads: tuple[str, ...]
    gives: Mapping[str, int | None]


@dataclass(frozen=True)
class SessionOptions:
    """How a session is to run.

    Attributes:
        precision: ``packaged``: as the package says. ``float32``: also where the package's
            settings round activations. ``half``: in 16 bits what the package computes in float32,
            faster and less exact.
        device: one of the backend's ``devices``; None: its default.
        cache: a folder where the runtime may keep what it compiled, or None.
    """

    precision: Precision = "packaged"
    device: str | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class MeasuredCosts:
    """What a graph takes, as ``benchmarks.memory`` measured it: anonymous memory, and files.

    Attributes:
        process_bytes: with the runtime imported and no graph open.
        node_bytes: for each operator.
        held: for each byte of weights as stored, by kind and format such as ``linear int4``;
            ``other`` is all else. A kind that is not named takes what it has.
        activations: for each byte of ``program.sizes.activation_bytes``, by graph; ``""``: others.
        patches: for each byte of ``exporter.predict.graph.patch_bytes``.
        build_process_bytes: to write a graph, without its weights.
        build_weight: for each byte of the largest weight in float32, by format; ``""``: others.
        build_node_bytes: for each operator, while the graph is written.
        node_file_bytes: of the graph's files, for each operator.
        widened: for each byte in float32 of weights that a session decodes once, more than is held
            of them as stored; 0: the backend's sessions never do.
    """

    process_bytes: int
    node_bytes: int
    held: Mapping[str, float]
    activations: Mapping[str, float]
    patches: float
    build_process_bytes: int
    build_weight: Mapping[str, float]
    build_node_bytes: int
    node_file_bytes: int
    widened: float = 0.0


class Backend(Protocol):
    """One runtime: what it needs and can do, how its files are written and opened.

    A frozen object without state, named ``BACKEND`` in its module. Importing that module brings in
    neither torch nor the vendor's library; the verbs do. ``emit`` and ``write_beside`` may import
    both, ``open_graph`` the vendor's runtime alone.
    """

    @property
    def name(self) -> str:
        """As recipes and packages name it; the name of its entry point."""

    @property
    def to_run(self) -> Requirement:
        """What ``open_graph`` imports."""

    @property
    def to_build(self) -> Requirement:
        """What ``emit`` and ``write_beside`` import."""

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """What a recipe's table ``[<backend>]`` may choose, default first."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Where a session can run, default first."""

    @property
    def caching_devices(self) -> tuple[str, ...]:
        """Those of ``devices`` that can keep compiled graphs in a folder."""

    @property
    def half_devices(self) -> tuple[str, ...]:
        """Those of ``devices`` that can be told to compute in 16 bits."""

    @property
    def costs(self) -> MeasuredCosts | None:
        """What building and running a graph take; None: not measured."""

    def refuse(self, form: Format, choices: Mapping[str, str]) -> str | None:
        """Why a weight format cannot be expressed with these ``choices``, or None."""

    def emit(
        self,
        program: QuantizedProgram,
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> Emitted:
        """Write one graph into a folder; ``read`` gives the value of a tensor of the program.

        Raises InputError for an operator or a value that the runtime cannot express.
        """

    def write_beside(self, folder: Path, tokenizers: Mapping[str, Tokenizer]) -> tuple[Path, ...]:
        """Write what the runtime's devices want beside the graphs into a package's folder."""

    def open_graph(
        self, entry: Path, settings: Mapping[str, str], options: SessionOptions
    ) -> Session:
        """Open a graph by the ``entry`` and ``session`` of what was emitted.

        Raises CheckFailed when the runtime cannot read the file or has no such device.
        """


@dataclass(frozen=True)
class GraphFiles:
    """A graph as it lies on the disk, before any engine sees it.

    Attributes:
        entry: its path in the package.
        inputs, outputs: as the manifest says.
        settings: of its session.
        sizes: bytes of every file of the package, by path.
        texts: what is in the files of the graph that hold more than weights, by path.
        is_own: whether fourstep wrote it; else it is a classifier of the user's.
        is_compiled: whether it was compiled for a chip.
    """

    entry: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    settings: Mapping[str, str]
    sizes: Mapping[str, int]
    texts: Mapping[str, memoryview]
    is_own: bool
    is_compiled: bool = False


@runtime_checkable
class Checking(Protocol):
    """What a backend has besides that knows which graphs it could have written."""

    def check_graph(self, graph: GraphFiles) -> Mapping[str, int]:
        """How many bytes of each file of weights a graph uses, by path.

        Raises ValueError for a graph that no emitter of this backend writes. Asked when a package
        is opened, of every graph; neither an engine nor weights are loaded.
        """


@runtime_checkable
class Filtering(Protocol):
    """What a backend has besides that takes classifiers of the user's as filters."""

    @property
    def classifier_suffix(self) -> str:
        """Of the file or folder that holds one, such as ``.onnx``."""

    def read_classifier(self, entry: Path) -> Classifier:
        """What is on the disk; raises InputError for what is no such graph."""

    def operators_of(self, classifier: Classifier, shape: tuple[int, ...]) -> Sequence[Operator]:
        """What it computes of an input of this shape, in order; constants are no operators."""


@runtime_checkable
class Sizing(Protocol):
    """What a backend has besides whose graphs of several sizes share their weights."""

    def emit_sizes(
        self,
        programs: Mapping[str, QuantizedProgram],
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> dict[str, Emitted]:
        """Write the graphs of one name for several sizes into a folder, each weight once.

        Args:
            programs: by what their files are to be called; the first is called as ``emit`` does it.

        Files of what was emitted for a further size are all that it needs, those that it shares
        among them. Each computes what ``emit`` of its program alone computes, to the last bit.
        """


@runtime_checkable
class TokenizerWriting(Protocol):
    """What a backend has besides whose clients want tokenizers as graphs."""

    def write_tokenizer(self, text: str, entry: Tokenizer, folder: Path) -> tuple[Path, ...]:
        """Write a tokenizer into a folder of its own, under the name that clients look for.

        Args:
            text: of its ``tokenizer.json``.
        """


@runtime_checkable
class ForNpu(Protocol):
    """What a backend has besides whose graphs an NPU can take whole."""

    @property
    def npu_devices(self) -> tuple[str, ...]:
        """Those of ``devices`` that are NPUs which take such graphs alone."""

    @property
    def lists(self) -> Mapping[str, tuple[str, ...]]:
        """Keys of a recipe's table that take several of these names; none by default.

        In ``choices`` they stand with commas between them.
        """

    def refuse_choices(self, choices: Mapping[str, str]) -> str | None:
        """Why what a recipe chose does not go together, or None."""

    def suits(self, scheme: Scheme, choices: Mapping[str, str]) -> bool:
        """Whether the graphs of a shipped scheme are what these ``choices`` are for."""

    def refuse_program(self, program: QuantizedProgram, choices: Mapping[str, str]) -> str | None:
        """Why a graph cannot be written with these ``choices``, or None."""

    def compiler(self, choices: Mapping[str, str]) -> Mapping[str, str]:
        """The version of what compiles for chips, by its distribution; nothing without any.

        Raises InputError with the pip line where it is not installed.
        """

    def chips(self, choices: Mapping[str, str]) -> tuple[str, ...]:
        """What graphs are to be compiled for."""

    def compile_bytes(self, stored_bytes: int, value_bytes: int, activation_bytes: int) -> int:
        """What compiling a graph takes of memory, predicted.

        Args:
            stored_bytes: of the graph's files, once for each size.
            value_bytes: ``program.sizes.value_bytes`` of the program before inputs are rounded.
            activation_bytes: ``program.sizes.activation_bytes`` of the one that was emitted.
        """

    def compile(self, entries: Sequence[Path], chip: str, most_bytes: int) -> Compiled:
        """Compile a graph that ``emit`` wrote, into a folder of the chip's name beside it.

        Args:
            entries: of each size, the first one first; their weights are shared.

        Raises InputError for what the chip's NPU lacks, and where the compiler is not installed.
        """

    def where_off(
        self, entry: Path, device: str, inputs: Mapping[str, np.ndarray], allowed: float
    ) -> str:
        """The operator at which a graph that ``emit`` wrote goes off on an NPU, in words.

        Empty where none stands out, or where it cannot be said here.
        """

    def keeps_graphs(self, choices: Mapping[str, str]) -> bool:
        """Whether what is compiled stands beside the graphs, and not in their place."""

    def fitting(self, npu: NpuEntry, device: str) -> ContextEntry | None:
        """What was compiled for a device; None: nothing was, and the graph is compiled when opened.

        Raises InputError that says why none of several fits.
        """
