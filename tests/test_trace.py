"""A traced graph keeps what it computes, and nothing of the device that it was traced on."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from exporter.network.graph import Graph
from exporter.package.manifest import Port
from exporter.program.run import run
from exporter.program.trace import trace


class Casting(nn.Module):
    """Operators of which torch.export asserts something, and some that make a value from none."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(3, device=x.device, dtype=torch.int32).to(torch.float32)
        halves = torch.zeros(3, device=x.device) + 0.5
        return (x > places).to(torch.int32).to(torch.float32) * halves + torch.ones_like(x)


def test_nothing_names_the_device_of_tracing() -> None:
    port = Port("x", (2, 3))
    program = trace(Graph("toy", "none", Casting(), (port,), (Port("y", (2, 3)),), {}))
    for node in program.nodes():
        assert isinstance(node.target, torch._ops.OpOverload) and node.target._schema.returns
        named: list[object] = []
        fx.node.map_aggregate((node.args, node.kwargs), named.append)
        assert not [value for value in named if isinstance(value, torch.device)], node.format_node()
    x = torch.tensor([[-1.0, 2.0, 2.0], [1.0, 1.0, 3.0]])

    def read(source: object) -> Tensor:
        raise AssertionError("no tensor is stored")

    (found,) = run(program, read, {"x": x}).values()
    assert torch.equal(found, Casting()(x))
