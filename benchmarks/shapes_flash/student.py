"""Distil the teacher into a student that draws in four fixed steps without guidance.

    python -m benchmarks.shapes_flash.student --teacher RUN --data FILE --tokenizers DIR --out RUN

Trajectory guidance on the student's own timesteps, as in the first stage of SD3.5-Flash (arXiv
2509.21318): the student starts from noise and takes its own four steps. From each state that it
reaches, the teacher follows the flow in several small steps to the student's next noise level; the
student learns the mean velocity that leads there at once. The teacher always sees T5; the student
does without it in two prompts of five. The text encoders stay the teacher's.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shapes_flash.data import PHRASINGS, Examples
from benchmarks.shapes_flash.flow import SIGMAS, Guided, null_tokens, velocity
from benchmarks.shapes_flash.networks import Condition, Tokenizers
from benchmarks.shapes_flash.teacher import (
    LONG_NULL_TOKENS,
    NULL_SHARE,
    Artist,
    TextPlan,
    compile_blocks,
)
from benchmarks.shapes_flash.text import CLIP_TOKENS
from benchmarks.shapes_flash.training import Plan, Run, load_weights

PROMPTS = 5000


@dataclass(frozen=True)
class Guidance:
    """How the teacher draws: guidance scale, small steps per student step."""

    scale: float
    substeps: int


@dataclass(frozen=True)
class Prompts:
    """Training prompts and the empty one, encoded once with T5; `clip` tokens come first."""

    context: Tensor
    pooled: Tensor
    empty: Condition
    clip: int

    @staticmethod
    @torch.no_grad()
    def encode(
        teacher: Artist, tokenizers: Tokenizers, examples: Examples, text_tokens: int | None
    ) -> Prompts:
        """Encode up to `PROMPTS` prompts, cut as the teacher's were."""
        device = examples.latents.device
        rows = torch.arange(min(PROMPTS, len(examples.latents)), device=device) * PHRASINGS
        rows += torch.randint(PHRASINGS, rows.shape, device=device)
        ids = examples.ids.cut(text_tokens)
        encoded = [
            teacher.encoders(ids.take(part), torch.zeros_like(part, dtype=torch.bool))
            for part in torch.split(rows, 500)
        ]
        nothing = tokenizers.ids([""]).to(device).cut(text_tokens)
        return Prompts(
            torch.cat([condition.context for condition in encoded]),
            torch.cat([condition.pooled for condition in encoded]),
            teacher.encoders(nothing, torch.zeros(1, dtype=torch.bool, device=device)),
            min(CLIP_TOKENS, text_tokens or CLIP_TOKENS),
        )

    def sample(self, batch: int) -> tuple[Condition, Condition]:
        """Random prompts and as many empty ones."""
        rows = torch.randint(len(self.context), (batch,), device=self.context.device)
        positive = Condition(self.context[rows], self.pooled[rows])
        negative = Condition(
            self.empty.context.expand_as(positive.context),
            self.empty.pooled.expand_as(positive.pooled),
        )
        return positive, negative

    def without_t5(self, condition: Condition, long: bool) -> Condition:
        """What the student is told: T5 missing from some prompts or, if `long`, from all."""
        if long:
            return null_tokens(condition, self.clip, LONG_NULL_TOKENS)
        batch, tokens, _ = condition.context.shape
        is_t5 = torch.arange(tokens, device=condition.context.device) >= self.clip
        null = torch.rand(batch, 1, device=condition.context.device) < NULL_SHARE
        return Condition(condition.context * ~(null & is_t5)[..., None], condition.pooled)


def train(
    folder: Path,
    plan: Plan,
    guidance: Guidance,
    teacher_run: Path,
    data: Path,
    tokenizers: Tokenizers,
    text: TextPlan,
) -> None:
    """Distil and write the run folder."""
    torch.manual_seed(plan.seed)
    torch.set_float32_matmul_precision("high")
    examples = Examples.load(data, plan.device)
    teacher = Artist.build(tokenizers).to(plan.device)
    load_weights(teacher, teacher_run)
    teacher.requires_grad_(False).eval()
    lengths = {text.at(step) for step in range(text.full_every or 1)} | {text.tokens}
    prompts = {n: Prompts.encode(teacher, tokenizers, examples, n) for n in lengths}
    student = copy.deepcopy(teacher.transformer).requires_grad_(True)
    run = Run(folder, student, plan, decay=0.99)
    if plan.compile:
        compile_blocks(teacher.transformer)
        compile_blocks(student)
    torch.manual_seed(plan.seed + run.step)
    for step in run.steps():
        known = prompts[text.at(step)]
        positive, negative = known.sample(plan.batch)
        guided = Guided(teacher.transformer, positive, negative, guidance.scale)
        own = known.without_t5(positive, text.long_null(step))
        x = torch.randn(plan.batch, *examples.latents.shape[1:], device=plan.device)
        losses: dict[str, Tensor] = {}
        for here, there in pairwise(SIGMAS):
            with plan.autocast():
                with torch.no_grad():
                    goal = guided.integrate(x, here, there, guidance.substeps)
                sigma = torch.full((plan.batch,), here, device=plan.device)
                predicted = velocity(student, x, sigma, own)
            loss = ((predicted - (goal - x) / (there - here)) ** 2).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            losses[f"loss_{here}"] = loss
            x = (x + (there - here) * predicted).detach()
        run.update()
        run.count(losses)


def main() -> None:
    """Distil the student."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="run folder of the teacher")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--substeps", type=int, default=3)
    TextPlan.add_arguments(parser)
    Plan.add_arguments(parser, batch=16, rate=3e-4)
    args = parser.parse_args()
    train(
        args.out,
        Plan.from_arguments(args),
        Guidance(args.guidance, args.substeps),
        args.teacher,
        args.data,
        Tokenizers.load(args.tokenizers),
        TextPlan(args.text_tokens, args.full_every),
    )


if __name__ == "__main__":
    main()
