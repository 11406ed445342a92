"""What a checkpoint would become, before building: bytes of files, memory to build and to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exporter import backends
from exporter.checkpoint.open import Checkpoint
from exporter.network.cut import Cut
from exporter.network.graph import Crop
from exporter.network.layers import VAE_SCALE
from exporter.package.names import graph_of
from exporter.predict.graph import build_bytes, file_bytes, is_widened, run_bytes
from exporter.program.program import Program
from exporter.quantize.formats import Format, Scheme
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.split import emitted


@dataclass(frozen=True)
class GraphSize:
    """One graph in a scheme on a backend.

    Attributes:
        parameters: weight values.
        bytes: of its files.
        build_bytes, run_bytes: peak anonymous memory.

    All three are None where the backend's costs have not been measured.
    """

    backend: str
    scheme: str
    graph: str
    parameters: int
    bytes: int | None
    build_bytes: int | None
    run_bytes: int | None


def sizes(
    programs: Mapping[str, Program],
    choices: Mapping[str, Mapping[str, str]],
    schemes: Mapping[str, Scheme],
    parts: Mapping[str, int],
    calls: Mapping[str, int],
    weights_are_there: bool = False,
    most_bytes: int | None = None,
) -> list[GraphSize]:
    """Predictions for all graphs in all schemes that a backend can express.

    Args:
        parts: into how many consecutive graphs a graph is cut, by its name.
        choices: what a recipe chooses of each backend (``backends.default_choices`` without one).
        calls: of a graph on the calibration prompts, by graph (``trajectories.call_counts``).
        weights_are_there: as at another size of pictures: files hold operators and positions alone.
        most_bytes: that the device has; a graph's weights are decoded where that fits.
    """
    found = []
    for scheme_name, scheme in schemes.items():
        quantized = quantize_all(programs, scheme)
        graphs = emitted(quantized, parts)
        for name, chosen in choices.items():
            backend = backends.load(name)
            if any(backend.refuse(form, chosen) for form in _formats(quantized)):
                continue
            found += [
                _size(
                    graph,
                    name,
                    scheme_name,
                    calls.get(graph_of(graph.name), 0),
                    _shared_bytes(graph) if weights_are_there else 0,
                    most_bytes,
                )
                for graph in graphs
            ]
    return found


def _shared_bytes(program: QuantizedProgram) -> int:
    """Of its weights what every size has: all but the crop of the table of positions."""
    found = program.stored().items()
    own = (item for item in found if not isinstance(item[1].derivation, Crop))
    return sum(program.formats[name].stored_bytes(source.shape) for name, source in own)


def _formats(programs: Mapping[str, QuantizedProgram]) -> set[Format]:
    return {form for program in programs.values() for form in program.formats.values()}


def _size(
    program: QuantizedProgram,
    backend: str,
    scheme: str,
    calls: int,
    there_bytes: int,
    most_bytes: int | None,
) -> GraphSize:
    costs = backends.load(backend).costs
    return GraphSize(
        backend,
        scheme,
        program.name,
        sum(program.values_by_format().values()),
        file_bytes(program, costs) - there_bytes if costs else None,
        build_bytes(program, costs, calls) if costs else None,
        run_bytes(program, costs, is_widened(program, costs, most_bytes)) if costs else None,
    )


def default_cut(checkpoint: Checkpoint) -> Cut:
    """The resolution that the transformer was trained at, four steps, T5 if there is one."""
    size = checkpoint.component("transformer").integer("sample_size") * VAE_SCALE
    return Cut((1.0, 0.9, 0.75, 0.5, 0.0), size, size, t5=checkpoint.has_t5)
