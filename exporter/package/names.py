"""The names of the graphs and of their parts."""

from __future__ import annotations

NAMES = ("clip_l", "clip_g", "t5", "conditioner", "denoiser", "vae_decoder", "vae_encoder")
UPSTREAM = NAMES[:5]  # of the final latent
MMDIT = ("conditioner", "denoiser")  # the two graphs that the MMDiT is cut into
ENCODERS = NAMES[:3]  # of the prompt


def part_name(graph: str, number: int) -> str:
    """The name of a part of a graph, counted from 1."""
    return f"{graph}-{number}"


def graph_of(name: str) -> str:
    """The graph that a name is of: its own, or that of a part."""
    return name.partition("-")[0]
