"""Train the teacher: transformer and text encoders together, by flow matching.

    python -m benchmarks.shapes_flash.teacher --data FILE --tokenizers DIR --out RUN

One prompt in ten is replaced by the empty one, for guidance. T5 is dropped from two prompts in
five. To save time most of the training sees only the first `--text-tokens` tokens of each encoder,
which hold every prompt; the last part (`--full-every`) sees all of them, padding included, in some
steps. A few of those have no T5 and 256 null tokens, the number that diffusers puts in T5's place
unless told otherwise.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from benchmarks.shapes_flash.data import Examples
from benchmarks.shapes_flash.flow import null_tokens, sample_sigmas, velocity
from benchmarks.shapes_flash.networks import (
    Ids,
    TextEncoders,
    Tokenizers,
    build_text_encoders,
    build_transformer,
)
from benchmarks.shapes_flash.text import CLIP_TOKENS
from benchmarks.shapes_flash.training import Plan, Run

EMPTY_SHARE = 0.1
NULL_SHARE = 0.4
LONG_NULL_EVERY, LONG_NULL_TOKENS = 20, 256


class Artist(nn.Module):
    """Everything between token ids and latent: the text encoders and the transformer."""

    def __init__(self, encoders: TextEncoders, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        self.encoders, self.transformer = encoders, transformer

    @staticmethod
    def build(tokenizers: Tokenizers) -> Artist:
        """Untrained networks."""
        return Artist(build_text_encoders(tokenizers), build_transformer())

    def forward(self, x: Tensor, sigma: Tensor, ids: Ids, null: Tensor, long: bool) -> Tensor:
        """Velocity at x (B, 16, h, w), sigma (B,); without T5 where `null` (B,) is true."""
        condition = self.encoders(ids, null)
        if long:
            condition = null_tokens(condition, CLIP_TOKENS, LONG_NULL_TOKENS)
        return velocity(self.transformer, x, sigma, condition)


def start_at_identity(transformer: SD3Transformer2DModel) -> None:
    """Zero the modulations and the output, so that every block starts by passing its input on.

    "adaLN-Zero" of arXiv 2212.09748.
    """
    norms = [transformer.norm_out]
    for block in transformer.transformer_blocks:
        norms += [block.norm1, block.norm1_context]
    for linear in [*(norm.linear for norm in norms), transformer.proj_out]:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def compile_blocks(transformer: SD3Transformer2DModel) -> None:
    """Compile each kind of block once per shape."""
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.suppress_errors = True  # a block that fails to compile runs as it is
    for block in transformer.transformer_blocks:
        block.compile(dynamic=False)


@dataclass(frozen=True)
class TextPlan:
    """How many tokens of each encoder a step sees: `tokens`, or all in every `full_every`-th."""

    tokens: int | None
    full_every: int | None

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The options `--text-tokens` and `--full-every`."""
        parser.add_argument("--text-tokens", type=int, help="cut each encoder's tokens to these")
        parser.add_argument("--full-every", type=int, help="but not in every so many steps")

    def at(self, step: int) -> int | None:
        """Tokens of this step; None is all."""
        full = self.full_every is not None and step % self.full_every == 0
        return None if full else self.tokens

    def long_null(self, step: int) -> bool:
        """Whether this step trains with diffusers' own number of null tokens."""
        return self.at(step) is None and step % LONG_NULL_EVERY == 0


def train(folder: Path, plan: Plan, data: Path, tokenizers: Tokenizers, text: TextPlan) -> None:
    """Train and write the run folder."""
    torch.manual_seed(plan.seed)
    torch.set_float32_matmul_precision("high")
    examples = Examples.load(data, plan.device)
    artist = Artist.build(tokenizers).to(plan.device)
    start_at_identity(artist.transformer)
    run = Run(folder, artist, plan, decay=0.998)
    if plan.compile:
        compile_blocks(artist.transformer)
    empty = tokenizers.ids([""]).to(torch.device(plan.device))
    torch.manual_seed(plan.seed + run.step)
    for step in run.steps():
        chance = torch.rand(2, plan.batch, device=plan.device)
        latents, ids = examples.sample(plan.batch)
        ids = ids.where(chance[0] < EMPTY_SHARE, empty).cut(text.at(step))
        noise = torch.randn_like(latents)
        sigma = sample_sigmas(plan.batch, plan.device)
        level = sigma[:, None, None, None]
        with plan.autocast():
            x = (1 - level) * latents + level * noise
            predicted = artist(x, sigma, ids, chance[1] < NULL_SHARE, text.long_null(step))
        errors = ((predicted - (noise - latents)) ** 2).mean((1, 2, 3))
        errors.mean().backward()
        run.update()
        quarters = [part.mean() for part in errors.detach().chunk(4)]
        run.count({"loss": errors.mean(), "loss_low": quarters[0], "loss_high": quarters[-1]})


def main() -> None:
    """Train the teacher."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    TextPlan.add_arguments(parser)
    Plan.add_arguments(parser, batch=64, rate=1e-3)
    args = parser.parse_args()
    tokenizers = Tokenizers.load(args.tokenizers)
    text = TextPlan(args.text_tokens, args.full_every)
    train(args.out, Plan.from_arguments(args), args.data, tokenizers, text)


if __name__ == "__main__":
    main()
