"""What every backend must do: each graph, in each scheme that it can express, equals torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from exporter import backends
from exporter.checkpoint import Checkpoint
from exporter.errors import CheckFailed, InputError
from exporter.formats import FORMATS, scheme_names
from exporter.graphs import Graph, Port, cut_graphs
from exporter.quantize import QuantizedProgram, Weights, quantize, unquantized
from exporter.recipe import Recipe
from exporter.trace import Program, run, trace
from exporter.verify import relative_error
from tests.conftest import SMALL, needs


@pytest.fixture(scope="module", params=backends.names())
def backend(request: pytest.FixtureRequest) -> ModuleType:
    """Each backend that is installed; another says which pip install would enable it."""
    found = backends.load(request.param)
    if backends.missing(needs(request.param)):
        pytest.skip(f"{request.param}: pip install 'fourstep[{found.BUILD_EXTRA}]'")
    return found


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> list[Program]:
    """All graphs, and both that differ when T5's null tokens are collapsed."""
    plain = [trace(g) for g in cut_graphs(tiny, SMALL)]
    without = [trace(g) for g in cut_graphs(tiny, replace(SMALL, t5=False))]
    return plain + [p for p in without if p.name in ("conditioner", "denoiser")]


EXACT = backends.Setup(exact=True)


def order(backend: ModuleType, *samples: dict[str, torch.Tensor]) -> backends.Order:
    given = [{name: value.numpy() for name, value in sample.items()} for sample in samples]
    return backends.Order(backends.default_options(backend), lambda graph: given)


def random_inputs(program: Program) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {
        p.name: torch.randint(0, 200, p.shape, dtype=torch.int32)
        if p.dtype == "int32"
        else torch.randn(p.shape)
        for p in program.inputs
    }


def worst_error(
    backend: ModuleType,
    program: QuantizedProgram,
    read: Callable[[object], torch.Tensor],
    folder: Path,
) -> tuple[float, float]:
    """Largest relative error of an emitted graph's outputs, computed exactly, against torch; and
    what the backend allows."""
    folder.mkdir()
    inputs = random_inputs(program)
    expected = run(program, read, inputs)
    emitted = backend.emit(program, read, folder, order(backend, inputs))
    session = backend.session(emitted.entry, emitted.session, EXACT)
    found = session({name: value.numpy() for name, value in inputs.items()})
    assert set(found) == set(expected)
    worst = max(relative_error(found[p], value.numpy()) for p, value in expected.items())
    return worst, emitted.tolerance.graph_relative


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scheme", scheme_names())
def test_every_graph_equals_torch(
    backend: ModuleType,
    programs: list[Program],
    tiny: Checkpoint,
    tiny_recipe: Recipe,
    tmp_path: Path,
    scheme: str,
    symmetric: bool,
) -> None:
    rules = replace(tiny_recipe, symmetric=symmetric).scheme(scheme)
    weights = Weights(tiny)
    for i, program in enumerate(programs):
        quantized = quantize(program, rules.format_of)
        options = backends.default_options(backend)
        if any(backend.refuse(form, options) for form in quantized.formats.values()):
            continue  # refused before a build starts; see test_package
        error, allowed = worst_error(backend, quantized, weights.read, tmp_path / str(i))
        assert error <= allowed, program.name


def test_large_activations_stay_exact(
    backend: ModuleType, programs: list[Program], tiny: Checkpoint, tmp_path: Path
) -> None:
    decoder = unquantized(next(p for p in programs if p.name == "vae_decoder"))
    weights = Weights(tiny)
    latent = {"latent": 30 * torch.randn(decoder.inputs[0].shape)}
    expected = run(decoder, weights.read, latent)["image"].numpy()
    emitted = backend.emit(decoder, weights.read, tmp_path, order(backend))
    session = backend.session(emitted.entry, emitted.session, EXACT)
    found = session({"latent": latent["latent"].numpy()})
    assert np.isfinite(found["image"]).all()
    assert relative_error(found["image"], expected) <= emitted.tolerance.graph_relative


def test_unknown_operators_are_refused_by_name(
    backend: ModuleType, tiny: Checkpoint, tmp_path: Path
) -> None:
    program = trace(cut_graphs(tiny, SMALL)[0])
    for node in program.nodes():
        if node.target is torch.ops.aten.layer_norm.default:
            node.target = torch.ops.aten.cumsum.default
    quantized = quantize(program, lambda *_: FORMATS["fp32"])
    with pytest.raises(InputError, match=r"clip_l: operator aten\.cumsum\.default has no"):
        backend.emit(quantized, Weights(tiny).read, tmp_path, order(backend))


def test_a_file_that_is_no_graph(
    backend: ModuleType, programs: list[Program], tiny: Checkpoint, tmp_path: Path
) -> None:
    program = unquantized(programs[0])
    emitted = backend.emit(program, Weights(tiny).read, tmp_path, order(backend))
    for file in emitted.files:
        whole = file.read_bytes()
        file.write_bytes(b"nothing that a runtime knows")
        with pytest.raises(CheckFailed, match="cannot open it"):
            backend.session(emitted.entry, emitted.session, backends.Setup())
        file.write_bytes(whole)


def no_weights(source: object) -> torch.Tensor:
    raise AssertionError("a program without weights")


class ManyParts(torch.nn.Module):
    """As the denoiser at full depth, which cuts its modulation row into 365 vectors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(x.flatten(), 4)
        return parts[0] + parts[399] * parts[7]


def test_a_split_into_hundreds_of_parts(backend: ModuleType, tmp_path: Path) -> None:
    port, out = Port("x", (1, 1600)), Port("y", (4,))
    program = trace(Graph("many", "transformer", ManyParts(), (port,), (out,), {}))
    error, allowed = worst_error(backend, unquantized(program), no_weights, tmp_path / "many")
    assert error <= allowed
