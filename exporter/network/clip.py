"""clip_l and clip_g: the two CLIP text encoders (transformers' CLIPTextModelWithProjection).

ids (1, 77) -> penultimate hidden state (1, 77, hidden), pooled (1, projection).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.checkpoint.component import Component
from exporter.network.graph import Graph
from exporter.network.layers import MOST_LAYERS, MOST_WIDTH, attend, constant, constants_of
from exporter.package.manifest import Port

MASKED = -1e9  # finite, so that no backend meets inf; exp underflows to 0 all the same


@dataclass(frozen=True)
class ClipConfig:
    """What ``config.json`` of a CLIP text encoder says."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    activation: str
    projection: int
    tokens: int
    vocabulary: int
    eos_id: int
    eps: float


def read_config(component: Component) -> ClipConfig:
    """Read and check ``config.json``; raises InputError for what the graph cannot express."""
    config = ClipConfig(
        hidden=component.integer("hidden_size", high=MOST_WIDTH),
        intermediate=component.integer("intermediate_size", high=MOST_WIDTH),
        layers=component.integer("num_hidden_layers", high=MOST_LAYERS),
        heads=component.integer("num_attention_heads"),
        activation=component.require("hidden_act", ("quick_gelu", "gelu")),
        projection=component.integer("projection_dim", high=MOST_WIDTH),
        tokens=component.require("max_position_embeddings", (77,)),
        vocabulary=component.integer("vocab_size"),
        eos_id=component.integer("eos_token_id", low=0),
        eps=component.number("layer_norm_eps", high=1.0),
    )
    component.require_divisible("hidden_size", config.hidden, "num_attention_heads", config.heads)
    return config


class Attention(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.scale = (config.hidden // config.heads) ** -0.5
        self.q_proj = nn.Linear(config.hidden, config.hidden)
        self.k_proj = nn.Linear(config.hidden, config.hidden)
        self.v_proj = nn.Linear(config.hidden, config.hidden)
        self.out_proj = nn.Linear(config.hidden, config.hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        mixed: Tensor = self.out_proj(attend(q, k, v, self.heads, self.scale, mask))
        return mixed


class FeedForward(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.quick = config.activation == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden, config.intermediate)
        self.fc2 = nn.Linear(config.intermediate, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x)
        x = self.fc2(x)
        return x


class Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden, eps=config.eps)
        self.mlp = FeedForward(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden, eps=config.eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class Embeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.position_embedding = nn.Embedding(config.tokens, config.hidden)

    def forward(self, ids: Tensor) -> Tensor:
        tokens: Tensor = self.token_embedding(ids)
        return tokens + self.position_embedding.weight


class Encoder(nn.Module):
    """The layers; returns the states before the last layer and after it."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = x
        for layer in self.layers:
            penultimate, x = x, layer(x, mask)
        return penultimate, x


class TextModel(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden, eps=config.eps)


class ClipEncoder(nn.Module):
    """A CLIP text encoder that returns only what SD3 uses of it."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.eos_id = config.eos_id
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(config.hidden, config.projection, bias=False)
        causal = np.triu(np.full((config.tokens, config.tokens), MASKED), k=1)
        constant(self, "causal_mask", causal[None, None])

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.text_model.embeddings(ids)
        penultimate, x = self.text_model.encoder(x, self.causal_mask)
        x = self.text_model.final_layer_norm(x)
        # Configurations that say eos 2 predate a fix and mean: the highest id (transformers).
        score = ids if self.eos_id == 2 else (ids == self.eos_id).to(torch.int32)
        end = torch.argmax(score, dim=1)
        pooled = self.text_projection(torch.index_select(x, 1, end)[:, 0])
        return penultimate, pooled


def cut(name: str, component: str, config: ClipConfig) -> Graph:
    """The graph ``clip_l`` or ``clip_g``."""
    with torch.device("meta"):
        module = ClipEncoder(config)
    return Graph(
        name,
        component,
        module,
        inputs=(Port("ids", (1, config.tokens), "int32"),),
        outputs=(
            Port("hidden", (1, config.tokens, config.hidden)),
            Port("pooled", (1, config.projection)),
        ),
        constants=constants_of(module),
    )
