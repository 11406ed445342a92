"""Every graph of a checkpoint, in the order in which the runtime runs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from exporter.checkpoint.component import Component
from exporter.checkpoint.open import Checkpoint
from exporter.checkpoint.tiny import NAME
from exporter.errors import InputError
from exporter.network.cut import Cut
from exporter.network.graph import Graph


def components_of(cut: Cut) -> tuple[str, ...]:
    """The folders of a checkpoint that this cut needs."""
    t5 = ("text_encoder_3",) if cut.t5 else ()
    vae = ("vae",) if cut.vae_ends else ()
    return ("transformer", "text_encoder", "text_encoder_2", *t5, *vae)


def cut_graphs(
    checkpoint: Checkpoint, cut: Cut, tile: np.ndarray | None = None
) -> tuple[Graph, ...]:
    """Every graph that this cut needs, in the order in which the runtime runs them.

    Args:
        tile: (32, 32) signs of a mark (``marking.pattern.tile``), for every decoder; or None.

    Raises InputError when the checkpoint's configuration cannot be expressed, or its weights are
    not those that it describes.
    """
    from exporter.network import clip, conditioner, denoiser, t5

    transformer = denoiser.read_config(checkpoint.component("transformer"))
    clip_l = clip.read_config(checkpoint.component("text_encoder"))
    clip_g = clip.read_config(checkpoint.component("text_encoder_2"))
    graphs = [
        clip.cut("clip_l", "text_encoder", clip_l),
        clip.cut("clip_g", "text_encoder_2", clip_g),
    ]
    if cut.t5:
        config = t5.read_config(checkpoint.component("text_encoder_3"))
        _require_equal(checkpoint, "text_encoder_3", "d_model", config.width,
                       "joint_attention_dim", transformer.context_width)  # fmt: skip
        graphs.append(t5.cut(config, cut.t5_tokens))
    graphs.append(conditioner.cut(transformer, clip_l, clip_g, cut))
    graphs.append(denoiser.cut(transformer, cut))
    graphs += _ends(checkpoint, transformer.channels, cut, tile)
    _check_tensors(checkpoint, graphs, cut)
    return tuple(graphs)


def _ends(
    checkpoint: Checkpoint, channels: int, cut: Cut, tile: np.ndarray | None
) -> Iterator[Graph]:
    """What makes pictures of latents of so many channels, and latents of pictures."""
    from exporter.network import tiny, vae

    if cut.vae_ends:
        autoencoder = vae.read_config(checkpoint.component("vae"))
        _require_equal(checkpoint, "vae", "latent_channels", autoencoder.latent_channels,
                       "in_channels", channels)  # fmt: skip
        if "decoder" in cut.vae_ends:
            yield vae.cut_decoder(autoencoder, cut, tile)
        if "encoder" in cut.vae_ends:
            yield vae.cut_encoder(autoencoder, cut)
    if "decoder" in cut.tiny_ends:
        yield tiny.cut_decoder(tiny.read_config(checkpoint.component(NAME), "decoder"), cut, tile)
    if "encoder" in cut.tiny_ends:
        yield tiny.cut_encoder(tiny.read_config(checkpoint.component(NAME), "encoder"), cut)


def _require_equal(
    checkpoint: Checkpoint, component: str, key: str, value: int, other: str, expected: int
) -> None:
    if value != expected:
        described, transformer = (
            checkpoint.component(name).described_in for name in (component, "transformer")
        )
        raise InputError(f"{described}: {key} = {value}; {transformer} says {other} = {expected}")


def _check_tensors(checkpoint: Checkpoint, graphs: Iterable[Graph], cut: Cut) -> None:
    """Check that a component's tensors are those of its graphs; raises InputError.

    What no graph reads would be left out of the picture silently.
    """
    expected: dict[str, dict[str, tuple[int, ...]]] = {}
    for graph in graphs:
        of_component = expected.setdefault(graph.component, {})
        for name, parameter in graph.module.named_parameters():
            shape = tuple(parameter.shape)
            derived = graph.derived.get(name)
            of_component[name] = derived.stored_shape(shape) if derived else shape
    for name, shapes in expected.items():
        unread = {"decoder", "encoder"} - {*cut.vae_ends} if name == "vae" else ()
        _compare(checkpoint.component(name), shapes, [f"{end}.*" for end in unread])


def _compare(
    component: Component, expected: Mapping[str, tuple[int, ...]], unused: Sequence[str]
) -> None:
    """Raise InputError naming the tensors that are missing, of another shape or not expected."""
    found, told = component.tensors, component.configuration
    missing = [name for name in expected if name not in found]
    misshapen = [n for n, shape in expected.items() if n in found and found[n].shape != shape]
    left = sorted(
        name
        for name in found.keys() - expected.keys()
        if not any(fnmatchcase(name, pattern) for pattern in unused)
    )
    listed = f"{component.worded(left[0])}{_more(left)}" if left else ""
    if missing:
        also = f"; {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        others = f"; it holds {listed}, which {told} does not speak of" if left else ""
        raise InputError(
            f"{component.place}: tensor {component.worded(missing[0])} is missing; the weights do "
            f"not fit {told}{also}{others}"
        )
    if misshapen:
        name = misshapen[0]
        raise InputError(
            f"{component.place}: tensor {component.worded(name)} has shape "
            f"{list(found[name].shape)}; {told} implies {list(expected[name])}{_more(misshapen)}"
        )
    if left:
        raise InputError(
            f"{component.place}: the weights hold tensors that {told} does not speak of: {listed}; "
            f"the picture would be wrong without them: copy {told} again from where the weights "
            "are from"
        )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
