"""The VAE in strips of rows: the same picture, in memory that does not grow with its height."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter import backends
from exporter.backends.contract import EmitOptions, SessionOptions
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.network import strips
from exporter.network.assemble import cut_graphs
from exporter.network.cut import Cut
from exporter.network.strips import Doubling
from exporter.network.vae import DecoderNet, EncoderNet, VaeConfig
from exporter.package.measures import relative_error
from exporter.program.run import run
from exporter.program.sizes import activation_bytes
from exporter.program.trace import trace
from exporter.quantize.program import unquantized
from exporter.synth.presets import find_preset
from exporter.synth.write import synthesize
from tests.conftest import SMALL, needs

VAE = VaeConfig((8, 8, 16, 16), 4, 1, 4, 1.5, 0.06, True)
MIB = 1 << 20


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Strips of a few rows, whatever the picture."""
    monkeypatch.setattr(strips, "STRIP_BYTES", 20_000)
    yield


@pytest.mark.parametrize("strip_bytes", [1, 3_000, 20_000])
@pytest.mark.parametrize("size", [(8, 8), (11, 5)])
def test_strips_are_exact(
    monkeypatch: pytest.MonkeyPatch, strip_bytes: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    latent = torch.randn(1, 4, *size, dtype=torch.float64)
    image = torch.randn(1, 3, 8 * size[0], 8 * size[1], dtype=torch.float64)
    decode, encode = DecoderNet(VAE).double(), EncoderNet(VAE).double()
    for module in (decode, encode):
        for weight in module.parameters():
            torch.nn.init.normal_(weight, 1.0 if weight.ndim == 1 else 0.0, 0.15)
    with torch.inference_mode():
        whole = decode(latent), encode(image)
        monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
        in_strips = decode(latent), encode(image)
    for expected, found in zip(whole, in_strips, strict=True):
        assert found.shape == expected.shape
        assert relative_error(found.numpy(), expected.numpy()) < 1e-12


@pytest.mark.parametrize("strip_bytes", [1, 1_000, 1 << 20])
def test_a_doubling_is_a_convolution_of_the_doubled_map(
    monkeypatch: pytest.MonkeyPatch, strip_bytes: int
) -> None:
    torch.manual_seed(0)
    x, kernel, bias = torch.randn(1, 3, 9, 5), torch.randn(4, 3, 3, 3), torch.randn(4)
    twice = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    expected = torch.nn.functional.conv2d(twice, kernel, bias, padding=1)
    conv, doubling = torch.nn.Conv2d(3, 16, 2), Doubling()
    for name, stored in (("weight", kernel), ("bias", bias)):
        value = doubling.value(lambda _, stored=stored: stored).float()  # type: ignore[misc]
        assert doubling.stored_shape(tuple(value.shape)) == stored.shape
        setattr(conv, name, torch.nn.Parameter(value))
    monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
    with torch.inference_mode():
        found = strips.join(tuple(strips.double(conv, (x,))))
    assert found.shape == expected.shape
    assert relative_error(found.numpy(), expected.numpy()) < 1e-6


def test_a_map_that_fits_goes_through_torchs_own_layers(tiny: Checkpoint) -> None:
    program = trace(graph_of(tiny, SMALL, "vae_decoder"))
    kinds = {str(node.target) for node in program.nodes()}
    assert "aten.group_norm.default" in kinds
    assert not {"aten.mean.dim", "aten.cat.default", "aten.pad.default"} & kinds


def graph_of(checkpoint: Checkpoint, cut: Cut, name: str) -> Any:
    return next(g for g in cut_graphs(checkpoint, cut) if g.name == name)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", ["vae_decoder", "vae_encoder"])
@pytest.mark.parametrize("backend_name", backends.names())
def test_every_backend_computes_strips(
    backend_name: str, name: str, tiny: Checkpoint, tmp_path: Path
) -> None:
    backend = backends.load(backend_name)
    if backends.missing(needs(backend_name)):
        pytest.skip(f"{backend_name}: pip install '{backend.to_build.install}'")
    program = unquantized(trace(graph_of(tiny, SMALL, name)))
    assert sum(node.target is torch.ops.aten.mean.dim for node in program.nodes()) > 20
    weights = Weights(tiny)
    (port,) = program.inputs
    values = torch.randn(port.shape, generator=torch.Generator().manual_seed(0))
    expected = run(program, weights.read, {port.name: values})
    options = backends.default_choices(backend)
    emitted = backend.emit(program, weights.read, tmp_path, EmitOptions(options))
    session = backend.open_graph(emitted.entry, emitted.session, SessionOptions("float32"))
    found = session({port.name: values.numpy()})
    for key, value in expected.items():
        error = relative_error(np.asarray(found[key]), value.numpy())
        assert error <= emitted.tolerance.graph_relative


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The full-size VAE."""
    from exporter.checkpoint.open import open_checkpoint

    folder = tmp_path_factory.mktemp("synth") / "mini"
    synthesize(find_preset("sd3.5-flash-mini"), folder, with_t5=False)
    return open_checkpoint(str(folder))


@pytest.mark.parametrize(("px", "most"), [(512, 640), (1024, 1400)])
@pytest.mark.parametrize("name", ["vae_decoder", "vae_encoder"])
def test_activations_of_the_full_size_vae_are_bounded(
    mini: Checkpoint, name: str, px: int, most: int
) -> None:
    """Without strips the decoder's are 3073 MiB at 1024 px."""
    cut = replace(SMALL, width_px=px, height_px=px, t5=False)
    assert activation_bytes(trace(graph_of(mini, cut, name))) < most * MIB
