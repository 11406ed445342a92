"""Trains the classifier that the filter is tested with: is there a red circle in the picture?

    python -m benchmarks.shapes_flash.red_circles --out artifacts/shapes-flash/filter

It learns from rendered pictures in seconds, and is written for each engine: ONNX, OpenVINO's IR and
an ML Program. Each takes (1, 3, 64, 64) float32 from 0 to 1 and gives (1, 1) from 0 to 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.shapes_flash.world import (
    BACKGROUNDS,
    CANVAS_PX,
    COLOURS,
    HALF_PX,
    PITCH_PX,
    SHAPES,
    Item,
    render,
)
from exporter.drawing.judge import fed
from exporter.package.manifest import Filter

SIDE_PX = 64
WIDTH = 16
STRIDES = (2, 2, 1, 1)
ENTRY = Filter(
    0.5, "above", 0, "none", "red circle", SIDE_PX, SIDE_PX, "NCHW", "RGB", "bilinear", "unit",
    (0.0, 0.0, 0.0), (1.0, 1.0, 1.0),
)  # fmt: skip
INPUT, OUTPUT = "picture", "red_circle"


def example(rng: Random) -> tuple[NDArray[np.uint8], bool]:
    """A picture (128, 128, 3) of one to four objects, and whether a red circle is among them.

    In half of the pictures one is put there; objects that are red or round are common in others.
    """
    cells = rng.sample(range((CANVAS_PX // PITCH_PX) ** 2), rng.randint(1, 4))
    has_one = rng.random() < 0.5
    items = []
    for number, cell in enumerate(cells):
        kind = "circle", "red"
        while kind == ("circle", "red") and not (has_one and number == 0):
            near = rng.random()
            shape = "circle" if near < 0.25 else rng.choice(SHAPES)
            kind = shape, "red" if 0.25 <= near < 0.5 else rng.choice(list(COLOURS))
        row, column = divmod(cell, CANVAS_PX // PITCH_PX)
        x_px, y_px = (PITCH_PX * (at + 0.5) + rng.uniform(-6, 6) for at in (column, row))
        items.append(Item(*kind, x_px, y_px, rng.uniform(*HALF_PX)))
    return render(tuple(items), rng.choice(list(BACKGROUNDS)), CANVAS_PX), has_one


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (N, 3, 64, 64) as the filter makes them of pictures, and labels (N, 1)."""
    rng = Random(f"red circles {seed}")
    found = [example(rng) for _ in range(count)]
    inputs = np.concatenate([fed(pixels, ENTRY) for pixels, _ in found])
    labels = np.array([[float(label)] for _, label in found], np.float32)
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def build_network() -> nn.Sequential:
    """Four convolutions; the last has a number for each place, of which the largest counts."""
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, 1, 3, 1, 1),
    )


def train(count: int, steps: int, seed: int) -> nn.Sequential:
    """A network that has learned from so many pictures."""
    torch.manual_seed(seed)
    inputs, labels = examples(count, seed)
    network = build_network()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(0, count, (64,))
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits(network, inputs[rows]), labels[rows]
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network


def logits(network: nn.Sequential, inputs: Tensor) -> Tensor:
    """(N, 1): the largest of all places."""
    found: Tensor = network(inputs).amax((2, 3))
    return found


@torch.no_grad()
def mistakes(network: nn.Sequential, count: int, seed: int) -> float:
    """The share of pictures that it takes for what they are not."""
    inputs, labels = examples(count, seed)
    return ((logits(network, inputs) > 0) != (labels > 0.5)).float().mean().item()


def convolutions(network: nn.Sequential) -> list[tuple[NDArray[np.float32], ...]]:
    """Weight and bias of each, in order."""
    values = {name: value.numpy() for name, value in network.state_dict().items()}
    layers = [name.removesuffix(".weight") for name in values if name.endswith(".weight")]
    return [(values[f"{name}.weight"], values[f"{name}.bias"]) for name in layers]


def write_onnx(network: nn.Sequential, file: Path) -> None:
    """As an ONNX graph."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, last = [], [], INPUT
    layers = convolutions(network)
    for i, ((weight, bias), stride) in enumerate(zip(layers, STRIDES, strict=True)):
        for name, value in ((f"w{i}", weight), (f"b{i}", bias)):
            constants.append(numpy_helper.from_array(value, name))
        inputs = [last, f"w{i}", f"b{i}"]
        last = f"c{i}"
        nodes.append(helper.make_node("Conv", inputs, [last], strides=[stride] * 2, pads=[1] * 4))
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [last], [f"r{i}"]))
            last = f"r{i}"
    constants.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    nodes.append(helper.make_node("ReduceMax", [last, "axes"], ["most"], keepdims=0))
    nodes.append(helper.make_node("Sigmoid", ["most"], [OUTPUT]))
    picture = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 3, SIDE_PX, SIDE_PX])
    score = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "red_circles", [picture], [score], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())


def write_openvino(onnx_file: Path, file: Path) -> None:
    """As IR, from the ONNX graph."""
    import openvino as ov

    ov.save_model(ov.Core().read_model(str(onnx_file)), str(file), compress_to_fp16=False)


def write_coreml(network: nn.Sequential, folder: Path) -> None:
    """As an ML Program of float32."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(
        input_specs=[mb.TensorSpec((1, 3, SIDE_PX, SIDE_PX))], opset_version=ct.target.iOS17
    )
    def program(picture):  # type: ignore[no-untyped-def]
        layers, value = convolutions(network), picture
        for i, ((weight, bias), stride) in enumerate(zip(layers, STRIDES, strict=True)):
            value = mb.conv(
                x=value, weight=weight, bias=bias, strides=[stride] * 2, pad_type="custom",
                pad=[1] * 4,
            )  # fmt: skip
            value = mb.relu(x=value) if i + 1 < len(layers) else value
        most = mb.reduce_max(x=value, axes=[2, 3], keep_dims=False)
        return mb.sigmoid(x=most, name=OUTPUT)

    model = ct.convert(
        program, minimum_deployment_target=ct.target.iOS17, compute_precision=ct.precision.FLOAT32
    )
    model.save(str(folder))


def write(network: nn.Sequential, folder: Path) -> None:
    """For every engine."""
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(network, folder / "red_circles.onnx")
    write_openvino(folder / "red_circles.onnx", folder / "red_circles.xml")
    write_coreml(network, folder / "red_circles.mlpackage")


def main() -> None:
    """Train the classifier of red circles."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    network = train(args.count, args.steps, args.seed)
    wrong = mistakes(network, 1000, args.seed + 1)
    print(f"takes {wrong:.2%} of new pictures for what they are not")
    write(network, args.out)


if __name__ == "__main__":
    main()
