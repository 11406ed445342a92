"""Normalised programs: one operator for what is one thing, the same bits, the same names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter import backends
from exporter.errors import InputError
from exporter.network.graph import Graph
from exporter.package.manifest import Port
from exporter.program.normalise import CASTS, EMPTY, RESHAPES, only_asserts
from exporter.program.program import Program
from exporter.program.run import run
from exporter.program.trace import trace
from tests.conftest import needs

ATEN = torch.ops.aten
INPUT, OUTPUT = Port("x", (2, 3, 4)), Port("y", ())
GONE = {*EMPTY, *RESHAPES, *CASTS, ATEN.transpose.int} - {ATEN.reshape.default, ATEN.to.dtype}


class Computing(nn.Module):
    """A function as a graph."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


def traced(compute: Callable[[Tensor], Tensor]) -> Program:
    return trace(Graph("toy", "none", Computing(compute), (INPUT,), (OUTPUT,), {}))


def read(source: object) -> Tensor:
    raise AssertionError("no tensor is stored")


def count_equal(x: Tensor) -> Tensor:
    return (x == 1).to(torch.int32).to(torch.int32).type_as(x)


@pytest.mark.parametrize(
    ("compute", "left"),
    [
        (lambda x: x.flatten(1), ["reshape.default"]),
        (lambda x: x.unflatten(2, (2, 2)), ["reshape.default"]),
        (lambda x: x.view(6, 4), ["reshape.default"]),
        (lambda x: x[:, None], ["reshape.default"]),
        (lambda x: x.unsqueeze(-1).squeeze(-1), ["reshape.default", "reshape.default"]),
        (lambda x: x.transpose(0, -1), ["permute.default"]),
        (lambda x: x.permute(2, 0, 1), ["permute.default"]),
        (lambda x: x[:, -2:], ["slice.Tensor"]),
        (lambda x: functional.pad(x, (1, 2), "replicate"), ["pad.default"]),
        (lambda x: x[:, :, :] + 1, ["add.Tensor"]),
        (lambda x: x.clone().detach().contiguous() * 2, ["mul.Tensor"]),
        (lambda x: x.to(torch.float32) * 2, ["mul.Tensor"]),
        (count_equal, ["eq.Scalar", "to.dtype", "to.dtype"]),
    ],
)
def test_one_operator_says_it(compute: Callable[[Tensor], Tensor], left: list[str]) -> None:
    program = traced(compute)
    assert [str(node.target).removeprefix("aten.") for node in program.nodes()] == left
    x = torch.arange(24, dtype=torch.float32).reshape(INPUT.shape)
    (found,) = run(program, read, {"x": x}).values()
    assert torch.equal(found, compute(x))


def test_names_stay() -> None:
    """They are in the graphs that backends write."""
    (node,) = traced(lambda x: x.flatten(1)).nodes()
    assert node.name == "flatten"


def test_a_slice_has_its_bounds() -> None:
    (node,) = traced(lambda x: x[:, :, -3:100]).nodes()
    assert node.args[1:] == (2, 1, 4)


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda x: x[:, ::2], "slice.* was traced with step = 2"),
        (lambda x: torch.add(x, x, alpha=3), "add was traced with alpha = 3"),
        (lambda x: torch.sub(x, x, alpha=3), "sub was traced with alpha = 3"),
        (lambda x: x.argmax(1, keepdim=True), "argmax was traced with keepdim = True"),
        (lambda x: functional.pad(x, (1, 1), value=2.0), "pad was traced with value = 2.0"),
        (lambda x: functional.pad(x, (1, 1), "circular"), "pad was traced with mode = circular"),
        (lambda x: functional.pad(x, (1, 1), mode="reflect"), "pad was traced with mode = reflect"),
        (
            lambda x: functional.conv2d(x[None], x[None, :, :1, :1], dilation=2),
            "conv2d.* dilation = ",
        ),
    ],
)
def test_what_no_backend_would_see_is_refused(
    compute: Callable[[Tensor], Tensor], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        traced(compute)


def test_only_what_gives_and_changes_nothing_asserts() -> None:
    assert only_asserts(ATEN._assert_tensor_metadata.default)
    assert only_asserts(ATEN._assert_scalar.default)
    assert not only_asserts(ATEN.add.Tensor)
    assert not only_asserts(ATEN._foreach_add_.Scalar)  # gives nothing, in place


@pytest.mark.parametrize("name", ["onnx", "openvino", "coreml", "reference"])
def test_no_backend_translates_what_is_gone(name: str) -> None:
    if backends.missing(needs(name)):
        pytest.skip(f"pip install '{backends.load(name).to_build.install}'")
    table: dict[Any, object] = importlib.import_module(f"exporter.backends.{name}.ops").TABLE
    assert not GONE & {*table}
