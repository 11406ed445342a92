"""coremltools' post-training compression of ML Programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.fidelity.variant import Quantize, Samples, Variant

G16 = {"granularity": "per_grouped_channel", "group_size": 16}


def variants() -> list[Variant]:
    """Every setting that is measured."""
    found = {}
    for bits in (3, 4, 6, 8):
        found[f"palette {bits} bits"] = palettize(nbits=bits)
        found[f"palette {bits} bits g16"] = palettize(nbits=bits, **G16)
    found["palette 4 bits g4"] = palettize(nbits=4, **{**G16, "group_size": 4})
    found["palette 4 bits g16, channel scales"] = palettize(
        nbits=4, **G16, enable_per_channel_scale=True
    )
    found["palette 8 bits of pairs"] = palettize(nbits=8, cluster_dim=2)
    for sign, mode in (("sym", "linear_symmetric"), ("asym", "linear")):
        found[f"int8-{sign}"] = linear(mode=mode, dtype="int8")
        for block in (32, 64):
            found[f"int4-{sign} b{block}"] = linear(
                mode=mode, dtype="int4", granularity="per_block", block_size=block
            )
    found["int8-sym b32"] = linear(
        mode="linear_symmetric", dtype="int8", granularity="per_block", block_size=32
    )
    return [
        Variant(f"coremltools {name}", "coremltools", "coreml", call)
        for name, call in found.items()
    ]


def palettize(**options: Any) -> Quantize:
    """``palettize_weights`` by k-means."""
    return _compress("palettize_weights", "OpPalettizerConfig", {"mode": "kmeans", **options})


def linear(**options: Any) -> Quantize:
    """``linear_quantize_weights``."""
    return _compress("linear_quantize_weights", "OpLinearQuantizerConfig", options)


def _compress(verb: str, config: str, options: dict[str, Any]) -> Quantize:
    def quantize(file: Path, samples: Samples, folder: Path) -> Path:
        import coremltools as ct
        from coremltools.optimize import coreml as peer

        model = ct.models.MLModel(str(file), skip_model_load=True)
        chosen = peer.OptimizationConfig(global_config=getattr(peer, config)(**options))
        compressed = getattr(peer, verb)(model, config=chosen)
        compressed.save(str(folder / file.name))
        return folder / file.name

    return quantize
