"""16-bit computing where it is faster: in attention, beside products that are 8-bit already.

Told to compute in bfloat16, OpenVINO's CPU plugin gives up 8-bit products of compressed weights for
16-bit ones (2026.4.1). So a graph of linear layers is told float32 still, and its attention is
wrapped in conversions.
"""

from __future__ import annotations

from typing import Any


def halve_attention(model: Any) -> None:
    """Compute every attention of an ov.Model in bfloat16, between conversions."""
    from openvino import opset15 as op

    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        for port in node.inputs():
            # Ahead of the transposition, which the plugin computes with the attention.
            source = port.get_source_output().get_node()
            place = source.input(0) if source.get_type_name() == "Transpose" else port
            halved = op.convert(place.get_source_output(), "bf16")
            place.replace_source_output(halved.output(0))
        (behind,) = (reader.get_node() for reader in node.output(0).get_target_inputs())
        end = behind.output(0) if behind.get_type_name() == "Transpose" else node.output(0)
        readers = end.get_target_inputs()  # before the conversion is one of them
        whole = op.convert(end, "f32").output(0)
        for reader in readers:
            reader.replace_source_output(whole)
    model.validate_nodes_and_infer_types()
