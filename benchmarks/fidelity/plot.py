"""Bits against quality, one colour per quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PANELS = {
    "latent_snr_db": "SNR of the final latent, dB",
    "psnr_db": "PSNR of pictures, dB",
    "shapeeval": "ShapeEval",
}
MOST_BITS = 12  # unquantized rows would flatten the rest


def plot(rows: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draw every measured row with standard errors; lines join each quantizer's best ones."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [r for r in rows.values() if "error" not in r and r["bits"] < MOST_BITS]
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(18, 6), layout="constrained")
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        for i, quantizer in enumerate(dict.fromkeys(r["quantizer"] for r in shown)):
            points = sorted(
                (r["bits"], r[key], r[f"{key}_se"]) for r in shown if r["quantizer"] == quantizer
            )
            axis.errorbar(*zip(*points, strict=True), fmt="o", ms=4, color=f"C{i}", label=quantizer)
            axis.plot(*_front([p[:2] for p in points]), color=f"C{i}", lw=0.8)
        axis.set(xlabel="bits per weight of the MMDiT", ylabel=title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _front(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Of points in order of bits, those that are better than all before."""
    best: list[tuple[float, float]] = []
    for point in points:
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return [p[0] for p in best], [p[1] for p in best]
