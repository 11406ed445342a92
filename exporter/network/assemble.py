"""Every graph of a checkpoint, in the order in which the runtime runs them."""

from __future__ import annotations

from exporter.checkpoint.folder import Checkpoint
from exporter.network.cut import Cut
from exporter.network.graph import Graph


def cut_graphs(checkpoint: Checkpoint, cut: Cut) -> tuple[Graph, ...]:
    """Every graph that this cut needs, in the order in which the runtime runs them.

    Raises InputError when the checkpoint's configuration cannot be expressed.
    """
    from exporter.network import clip, conditioner, denoiser, t5, vae

    transformer = denoiser.read_config(checkpoint.component("transformer"))
    clip_l = clip.read_config(checkpoint.component("text_encoder"))
    clip_g = clip.read_config(checkpoint.component("text_encoder_2"))
    graphs = [
        clip.cut("clip_l", "text_encoder", clip_l),
        clip.cut("clip_g", "text_encoder_2", clip_g),
    ]
    if cut.t5:
        config = t5.read_config(checkpoint.component("text_encoder_3"))
        graphs.append(t5.cut(config, cut.t5_tokens))
    graphs.append(conditioner.cut(transformer, clip_l, clip_g, cut))
    graphs.append(denoiser.cut(transformer, cut))
    autoencoder = vae.read_config(checkpoint.component("vae"))
    graphs.append(vae.cut_decoder(autoencoder, cut))
    if cut.image_to_image:
        graphs.append(vae.cut_encoder(autoencoder, cut))
    return tuple(graphs)
