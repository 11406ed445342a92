"""t5: the T5 encoder (transformers' T5EncoderModel, gated GELU), run without an attention mask.

ids (1, L) -> hidden state (1, L, d_model). Diffusers feeds SD3 the padded tokens too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.checkpoint.component import Component
from exporter.network.graph import Graph
from exporter.network.layers import MOST_LAYERS, MOST_WIDTH, RMSNorm, attend, constant, constants_of
from exporter.package.manifest import Port


@dataclass(frozen=True)
class T5Config:
    """What ``config.json`` of a T5 encoder says."""

    width: int
    feed_forward: int
    head_width: int
    heads: int
    layers: int
    vocabulary: int
    buckets: int
    max_distance: int
    eps: float


def read_config(component: Component) -> T5Config:
    """Read and check ``config.json``; raises InputError for what the graph cannot express."""
    component.require("feed_forward_proj", ("gated-gelu",))
    buckets = component.integer("relative_attention_num_buckets", low=4, high=4096)
    return T5Config(
        width=component.integer("d_model", high=MOST_WIDTH),
        feed_forward=component.integer("d_ff", high=MOST_WIDTH),
        head_width=component.integer("d_kv", high=MOST_WIDTH),
        heads=component.integer("num_heads", high=MOST_WIDTH),
        layers=component.integer("num_layers", high=MOST_LAYERS),
        vocabulary=component.integer("vocab_size"),
        buckets=buckets,
        max_distance=component.integer("relative_attention_max_distance", low=buckets // 4 + 1),
        eps=component.number("layer_norm_epsilon", high=1.0),
    )


def position_buckets(tokens: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every (query, key) pair, bidirectional: (tokens, tokens) int32.

    Half of the buckets serve keys after the query. In each half, the first half are exact
    distances and the rest widen logarithmically up to ``max_distance`` (Raffel et al. 2020, 2.1).
    """
    half, exact = buckets // 2, buckets // 4
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    table = list(range(exact))
    # Each operation is rounded to float32 as transformers rounds it: where a logarithm falls on a
    # bucket's edge, that decides which of two it is.
    single, whole = np.float32, np.float32(math.log(max_distance / exact))
    for d in range(exact, tokens):
        near = single(math.log(single(d) / single(exact)))
        far = near / whole * single(half - exact)
        table.append(min(exact + int(far), half - 1))
    near_or_far = np.array(table[:tokens], dtype=np.int32)[np.abs(distance)]
    result: np.ndarray = (near_or_far + (distance > 0) * half).astype(np.int32)
    return result


class Attention(nn.Module):
    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.q = nn.Linear(config.width, inner, bias=False)
        self.k = nn.Linear(config.width, inner, bias=False)
        self.v = nn.Linear(config.width, inner, bias=False)
        self.o = nn.Linear(inner, config.width, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        # T5 does not scale its logits.
        mixed: Tensor = self.o(attend(self.q(x), self.k(x), self.v(x), self.heads, 1.0, bias))
        return mixed


class GatedFeedForward(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.width, config.feed_forward, bias=False)
        self.wi_1 = nn.Linear(config.width, config.feed_forward, bias=False)
        self.wo = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))
        return y


class SelfAttentionLayer(nn.Module):
    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.SelfAttention = Attention(config, first)
        self.layer_norm = RMSNorm(config.width, config.eps)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = x + self.SelfAttention(self.layer_norm(x), bias)
        return y


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config)
        self.layer_norm = RMSNorm(config.width, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return y


class Block(nn.Module):
    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([SelfAttentionLayer(config, first), FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = self.layer[1](self.layer[0](x, bias))
        return y


class Stack(nn.Module):
    """The blocks and the last norm; all blocks share the first one's position bias."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, i == 0) for i in range(config.layers))
        self.final_layer_norm = RMSNorm(config.width, config.eps)

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        table = self.get_parameter("block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        bias = F.embedding(buckets, table).permute(2, 0, 1).unsqueeze(0)
        for block in self.block:
            x = block(x, bias)
        y: Tensor = self.final_layer_norm(x)
        return y


class T5Encoder(nn.Module):
    """A T5 encoder over a fixed number of tokens."""

    def __init__(self, config: T5Config, tokens: int) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocabulary, config.width)
        self.encoder = Stack(config)
        buckets = position_buckets(tokens, config.buckets, config.max_distance)
        constant(self, "position_buckets", buckets)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.encoder(self.shared(ids), self.position_buckets)
        return y


def cut(config: T5Config, tokens: int) -> Graph:
    """The graph ``t5`` over ``tokens`` tokens."""
    with torch.device("meta"):
        module = T5Encoder(config, tokens)
    return Graph(
        "t5",
        "text_encoder_3",
        module,
        inputs=(Port("ids", (1, tokens), "int32"),),
        outputs=(Port("hidden", (1, tokens, config.width)),),
        constants=constants_of(module),
    )
