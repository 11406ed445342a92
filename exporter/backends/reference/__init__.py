"""The program itself, run in torch: the shortest backend, and the double of all others in tests.

A graph is two files: the operators as JSON, and the tensors as safetensors, codes as codes and
scales as scales, a code to a byte. What a session computes is what the quantized program computes,
so a package of this backend shows what a scheme costs and nothing else. It is for tests and for
whoever writes a backend, not for devices: a recipe builds it only when it names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exporter.backends.contract import (
    WEIGHTS,
    Backend,
    EmitOptions,
    Emitted,
    Requirement,
    Session,
    SessionOptions,
)
from exporter.backends.reference import session
from exporter.package.manifest import Tokenizer, Tolerance

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.quantize.formats import Format
    from exporter.quantize.program import QuantizedProgram

TORCH = Requirement("fourstep[build]", {"torch": "torch"})
# The same operators of the same library; on another machine it may add in another order.
TOLERANCE = Tolerance(graph_relative=1e-5, image_psnr_db=50.0)


class Torch:
    """The backend of torch."""

    __slots__ = ()
    name: Final = "reference"
    to_run: Final = TORCH
    to_build: Final = TORCH
    options: Final[Mapping[str, tuple[str, ...]]] = {}
    devices: Final = ("CPU",)
    caching_devices: Final = ()
    half_devices: Final = ()
    costs: Final = None

    def refuse(self, form: Format, choices: Mapping[str, str]) -> str | None:
        """Nothing: whatever is rounded is in the program."""
        return None

    def emit(
        self,
        program: QuantizedProgram,
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> Emitted:
        """Write ``<graph>.json`` and ``<graph>.safetensors``; tensors are read one at a time."""
        return self.emit_sizes({program.name: program}, read, folder, options)[program.name]

    def emit_sizes(
        self,
        programs: Mapping[str, QuantizedProgram],
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> dict[str, Emitted]:
        """Write each as ``<key>.json``, all with one file of tensors, which the others name."""
        from exporter.backends.reference.writer import write_graphs

        found = {}
        for name, (file, values) in write_graphs(programs, read, folder).items():
            settings = {WEIGHTS: values.name} if values.stem != file.stem else {}
            found[name] = Emitted(file, (file, values), TOLERANCE, settings)
        return found

    def write_beside(self, folder: Path, tokenizers: Mapping[str, Tokenizer]) -> tuple[Path, ...]:
        """Nothing: the graphs are all."""
        return ()

    def open_graph(
        self, entry: Path, settings: Mapping[str, str], options: SessionOptions
    ) -> Session:
        """Open a graph to run it in torch; it computes in float32 whatever is asked for."""
        return session.open_graph(entry, settings)


BACKEND: Final[Backend] = Torch()
