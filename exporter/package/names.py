"""The names of the graphs and of their parts."""

from __future__ import annotations

NAMES = (  # in the order in which charts have them
    "clip_l", "clip_g", "t5", "conditioner", "denoiser",
    "vae_decoder", "vae_encoder", "tiny_decoder", "tiny_encoder",
)  # fmt: skip
FILTER = "filter"  # the graph that looks at finished pictures: the user's own
DECODERS = ("vae_decoder", "tiny_decoder")  # of the latent; the first that is there draws pictures
UPSTREAM = NAMES[:5]  # of the final latent
MMDIT = ("conditioner", "denoiser")  # the two graphs that the MMDiT is cut into
ENCODERS = NAMES[:3]  # of the prompt
NEGATIVE = "negative_"  # how the conditioner's ports for a fixed negative prompt begin


def part_name(graph: str, number: int) -> str:
    """The name of a part of a graph, counted from 1."""
    return f"{graph}-{number}"


def sized_name(name: str, size: object) -> str:
    """What the files of a graph, or a part of one, are called at another size than the first."""
    return f"{name}-{size}"


def graph_of(name: str) -> str:
    """The graph that a name is of: its own, or that of a part."""
    return name.partition("-")[0]
