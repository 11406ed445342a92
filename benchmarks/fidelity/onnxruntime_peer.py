"""onnxruntime's MatMulNBitsQuantizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from benchmarks.fidelity.variant import Quantize, Samples, Variant

BLOCKS = (32, 64, 128)
ENDS = ("embed", "proj_out")  # of names of weights: what touches prompts or pixels
REMARKS = {
    # It multiplies by the zeros below the diagonal of a triangular factor.
    "gptq asym int4 b64": "carries no error from column to column: the codes are rtn's, to 0.1 %"
}


def variants() -> list[Variant]:
    """Every setting that is measured."""
    found = {}
    for block in BLOCKS:
        for bits in (4, 8):
            found[f"rtn sym int{bits} b{block}"] = blockwise(bits, block, symmetric=True)
            found[f"rtn asym int{bits} b{block}"] = blockwise(bits, block, symmetric=False)
        found[f"hqq int4 b{block}"] = matmul_nbits(
            "HQQ", block, config={"bits": 4, "block_size": block}
        )
        found[f"k-quant int4 b{block}"] = matmul_nbits("KQuant", block)
        found[f"k-quant int4 b{block}, ends int8"] = matmul_nbits("KQuant", block, eight=ENDS)
        found[f"k-quant int8 b{block}"] = matmul_nbits("KQuant", block, eight=("",))
    found["gptq asym int4 b64"] = matmul_nbits("GPTQ", 64)
    found["rtn asym int2 b32"] = blockwise(2, 32, symmetric=False)
    return [
        Variant(f"onnxruntime {name}", "onnxruntime", "onnx", call, REMARKS.get(name, ""))
        for name, call in found.items()
    ]


def blockwise(bits: int, block: int, symmetric: bool) -> Quantize:
    """Round to nearest by the native kernels."""
    config = {"bits": bits, "block_size": block, "is_symmetric": symmetric}
    return matmul_nbits("Default", block, symmetric, config=config)


def matmul_nbits(
    algorithm: str,
    block: int,
    symmetric: bool = False,
    eight: tuple[str, ...] = (),
    config: dict[str, Any] | None = None,
) -> Quantize:
    """``MatMulNBitsQuantizer`` on every product with a constant.

    Args:
        algorithm: the start of the name of a ``WeightOnlyQuantConfig``.
        eight: parts of names of the weights that get 8 bits instead of 4.
        config: what the algorithm's configuration takes.
    """

    def quantize(file: Path, samples: Samples, folder: Path) -> Path:
        from onnxruntime.quantization import matmul_nbits_quantizer as peer

        model = onnx.load(file)
        settings = dict(config or {})
        if eight:
            settings["customized_weight_config"] = {
                node.name: {"bits": 8}
                for node in model.graph.node
                if node.op_type == "MatMul" and any(part in node.input[1] for part in eight)
            }
        if algorithm == "GPTQ":
            settings["calibration_data_reader"] = list(samples)
        make: Callable[..., Any] = getattr(peer, f"{algorithm}WeightOnlyQuantConfig")
        quantizer = peer.MatMulNBitsQuantizer(
            model, block_size=block, is_symmetric=symmetric, algo_config=make(**settings)
        )
        quantizer.process()
        onnx.save(quantizer.model.model, folder / file.name)
        return folder / file.name

    return quantize
