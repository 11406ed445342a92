"""What a backend gets and gives: options to emit by, what was emitted, how to open it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from exporter.calibrate.activations import Rounding
    from exporter.package.manifest import Adjusted, Tolerance
    from exporter.quantize.program import QuantizedProgram

Session = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Order:
    """What a recipe decides about one backend's files.

    Attributes:
        options: a value for each key of the backend's ``OPTIONS``.
        roundings: how layers of a graph round their inputs, by the weight's name
            (``exporter.calibrate.activations``): for those of w8a8. Chosen when first asked for.
    """

    options: Mapping[str, str]
    roundings: Callable[[QuantizedProgram], Mapping[str, Rounding]]


@dataclass(frozen=True)
class Emitted:
    """What ``emit`` wrote: the file or folder that a session opens, and all files.

    ``tolerance`` is what ``verify`` allows the graph; ``session`` holds settings to open it with.
    ``adjusted`` lists the weights that did not get what their format promises; ``remarks`` say what
    whoever ships the graph should know.
    """

    entry: Path
    files: tuple[Path, ...]
    tolerance: Tolerance
    session: dict[str, str] = field(default_factory=dict)
    adjusted: tuple[Adjusted, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setup:
    """How a session is to run.

    Attributes:
        exact: compute in float32 even where the package's settings round activations.
        device: one of the backend's ``DEVICES``; None: its default.
        cache: a folder where the runtime may keep what it compiled, or None.
        half: compute in 16 bits what the package computes in float32: faster, less exact.
    """

    exact: bool = False
    device: str | None = None
    cache: Path | None = None
    half: bool = False


@dataclass(frozen=True)
class Memory:
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
