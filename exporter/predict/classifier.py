"""What a classifier of the user's will take where it runs: its graph is not one of ours."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.backends.contract import MeasuredCosts, Operator


def activation_bytes(operators: Sequence[Operator], input_bytes: int) -> int:
    """Most bytes of values alive at once when the operators run in order.

    A value whose size is not known is taken to be as large as the largest that is.
    """
    sizes = {name: size for one in operators for name, size in one.gives.items()}
    largest = max((size for size in sizes.values() if size is not None), default=input_bytes)
    last = {name: i for i, one in enumerate(operators) for name in one.reads}
    alive = peak = input_bytes
    for i, one in enumerate(operators):
        for name, size in one.gives.items():
            alive += largest if size is None else size
            sizes[name] = largest if size is None else size
        peak = max(peak, alive)
        ended = {name for name in (*one.reads, *one.gives) if last.get(name, i) == i}
        alive -= sum(sizes.pop(name, 0) or 0 for name in ended)
    return peak


def run_bytes(
    operators: Sequence[Operator], file_bytes: int, input_bytes: int, costs: MeasuredCosts
) -> int:
    """Peak of a process that opens a classifier and runs it: its weights as dear as any are."""
    held = max((*costs.held.values(), 1.0)) * file_bytes
    factor = max(costs.activations.values())
    nodes = costs.node_bytes * len(operators)
    alive = factor * activation_bytes(operators, input_bytes)
    return int(costs.process_bytes + nodes + held + alive)
