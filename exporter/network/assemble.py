"""Every graph of a checkpoint, in the order in which the runtime runs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

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


def cut_graphs(checkpoint: Checkpoint, cut: Cut) -> tuple[Graph, ...]:
    """Every graph that this cut needs, in the order in which the runtime runs them.

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
    graphs += _ends(checkpoint, transformer.channels, cut)
    _check_shapes(checkpoint, graphs)
    _refuse_unread(checkpoint, graphs, cut)
    return tuple(graphs)


def _ends(checkpoint: Checkpoint, channels: int, cut: Cut) -> Iterator[Graph]:
    """What makes pictures of latents of so many channels, and latents of pictures."""
    from exporter.network import tiny, vae

    if cut.vae_ends:
        autoencoder = vae.read_config(checkpoint.component("vae"))
        _require_equal(checkpoint, "vae", "latent_channels", autoencoder.latent_channels,
                       "in_channels", channels)  # fmt: skip
        cuts = {"decoder": vae.cut_decoder, "encoder": vae.cut_encoder}
        yield from (cuts[end](autoencoder, cut) for end in cut.vae_ends)
    small = {"decoder": tiny.cut_decoder, "encoder": tiny.cut_encoder}
    for end in cut.tiny_ends:
        yield small[end](tiny.read_config(checkpoint.component(NAME), end), cut)


def _require_equal(
    checkpoint: Checkpoint, component: str, key: str, value: int, other: str, expected: int
) -> None:
    if value != expected:
        described, transformer = (
            checkpoint.component(name).described_in for name in (component, "transformer")
        )
        raise InputError(f"{described}: {key} = {value}; {transformer} says {other} = {expected}")


def _check_shapes(checkpoint: Checkpoint, graphs: Iterable[Graph]) -> None:
    """Check every parameter's shape against the checkpoint; raises InputError."""
    for graph in graphs:
        component = checkpoint.component(graph.component)
        for name, parameter in graph.module.named_parameters():
            expected, found = tuple(parameter.shape), component.info(name).shape
            if name in graph.derived:
                expected = graph.derived[name].stored_shape(expected)
            if found != expected:
                raise InputError(
                    f"{component.place}: tensor {component.worded(name)} has shape {list(found)}; "
                    f"{component.configuration} implies {list(expected)}"
                )


def _refuse_unread(checkpoint: Checkpoint, graphs: Iterable[Graph], cut: Cut) -> None:
    """Raise InputError for tensors that no graph reads: what they do would be left out silently."""
    read: dict[str, set[str]] = {}
    for graph in graphs:
        parameters = graph.module.named_parameters()
        read.setdefault(graph.component, set()).update(name for name, _ in parameters)
    for component, names in read.items():
        opened = checkpoint.component(component)
        unread = {"decoder", "encoder"} - {*cut.vae_ends} if component == "vae" else ()
        unused = tuple(f"{end}.*" for end in unread)
        left = [
            name
            for name in opened.tensors
            if name not in names and not any(fnmatchcase(name, pattern) for pattern in unused)
        ]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise InputError(
                f"{opened.place}: the weights hold tensors that {opened.configuration} does not "
                f"speak of: {opened.worded(min(left))}{more}; the picture would be wrong without "
                f"them: copy {opened.configuration} again from where the weights are from"
            )
