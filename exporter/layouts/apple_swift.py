"""The apple-swift layout: what ml-stable-diffusion's StableDiffusion3Pipeline loads, unchanged.

Its widths are compiled in: CLIP states of 768 and 1280 channels, text states of 4096 and 154
tokens, two pictures at once, of which the second is drawn from the negative prompt. A narrower
checkpoint's states are padded with zeros, and the MMDiT takes the channels that are there out
again. It computes one picture and gives it twice: of a velocity and the same velocity any guidance
makes that velocity. The pipeline's schedule is that of shift 3, whatever the recipe; it is bent in
the graph. What the command line does to a latent before it is decoded is undone in the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.errors import InputError
from exporter.layouts import Form
from exporter.layouts.adapters import Gain, Ids, PickStep, adapter
from exporter.layouts.beside import tokenizer_files
from exporter.layouts.chain import Link, chain
from exporter.layouts.contract import Call, ClientDrawing, ClientFacts, ClientGraph, Maker
from exporter.layouts.schedule import ClientSchedule, bent, client_sigmas
from exporter.network.layers import CLIP_TOKENS
from exporter.package.manifest import Port, Tokenizer
from exporter.package.names import DECODERS
from exporter.quantize.program import QuantizedProgram

NAMES = {"clip_l": "TextEncoder", "clip_g": "TextEncoder2", "t5": "TextEncoderT5"}
WIDTHS = {"clip_l": 768, "clip_g": 1280, "t5": 4096}  # of states, as compiled in
POOLED = {"clip_l": 768, "clip_g": 1280}
T5_TOKENS = 77  # that the pipeline keeps
PICTURES = 2  # the prompt's, the negative prompt's
SHIFT, TRAIN_TIMESTEPS = 3.0, 1000
SCALE, OFFSET = 1.5305, 0.0609  # of the command line: a latent over the one, plus the other
UNKNOWN = 6e4  # the gain of a timestep that is not of the schedule; NaN is no constant of Core ML
MMDIT, DECODER = "MultiModalDiffusionTransformer", "VAEDecoder"
COMPILE = """#!/bin/sh
# On a Mac with Xcode: compiles the models, as the pipeline loads them.
cd "$(dirname "$0")" || exit
for model in *.mlpackage; do
  xcrun coremlcompiler compile "$model" . || exit
done
"""


class FloatIds(nn.Module):
    """Ids that come as floats, as whole numbers."""

    def forward(self, ids: Tensor) -> Tensor:
        return ids.to(torch.int32)


class Widened(nn.Module):
    """CLIP's states (1, 77, D) and pooled vector (1, P), with zeros up to a client's widths."""

    def __init__(self, states: int, pooled: int) -> None:
        super().__init__()
        self.states, self.pooled = states, pooled

    def forward(self, states: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return (
            F.pad(states, (0, self.states - states.shape[2])),
            F.pad(pooled, (0, self.pooled - pooled.shape[1])),
        )


class Columns(nn.Module):
    """T5's states (1, T, D) as columns (1, 4096, 1, N), zeros where there is nothing."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, states: Tensor) -> Tensor:
        _, tokens, width = states.shape
        wide = F.pad(states, (0, WIDTHS["t5"] - width, 0, self.tokens - tokens))
        return wide.permute(0, 2, 1).reshape(1, WIDTHS["t5"], 1, self.tokens)


class FirstOfTwo(nn.Module):
    """What the MMDiT reads, of the prompt alone, out of what two pictures are given.

    latents (2, C, h, w), timesteps (2,), states (2, 4096, 1, 154), pooled (2, 2048, 1, 1).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.l, self.g = shapes["hidden_l"][2], shapes["hidden_g"][2]
        self.pooled_l, self.pooled_g = shapes["pooled_l"][1], shapes["pooled_g"][1]
        self.t5 = shapes["hidden_t5"][1:] if "hidden_t5" in shapes else None

    def forward(
        self, latents: Tensor, timesteps: Tensor, states: Tensor, pooled: Tensor
    ) -> tuple[Tensor, ...]:
        """(latent, timestep (1,), hidden_l, hidden_g, pooled_l, pooled_g, and hidden_t5)."""
        text = states[:1].reshape(1, WIDTHS["t5"], 2 * CLIP_TOKENS).permute(0, 2, 1)
        vector = pooled[:1].reshape(1, sum(POOLED.values()))
        clip, at_g, vector_g = text[:, :CLIP_TOKENS], WIDTHS["clip_l"], POOLED["clip_l"]
        found = [
            latents[:1],
            timesteps[:1],
            clip[:, :, : self.l],
            clip[:, :, at_g : at_g + self.g],
            vector[:, : self.pooled_l],
            vector[:, vector_g : vector_g + self.pooled_g],
        ]
        if self.t5 is not None:
            tokens, width = self.t5
            found.append(text[:, CLIP_TOKENS : CLIP_TOKENS + tokens, :width])
        return tuple(found)


class Twice(nn.Module):
    """A velocity (1, C, h, w) as both of two."""

    def forward(self, velocity: Tensor) -> Tensor:
        return torch.cat([velocity, velocity], 0)


class Undone(nn.Module):
    """The latent (1, C, h, w) of what the command line has made of it."""

    def forward(self, scaled: Tensor) -> Tensor:
        return (scaled - OFFSET) * SCALE


class AppleSwift:
    """The layout of Apple's pipeline in Swift."""

    __slots__ = ()
    tokenizer_folders: Final[Mapping[str, str]] = {}

    def schedule(self, sigmas: Sequence[float]) -> ClientSchedule:
        """Shift 3 of 1000 timesteps, as the pipeline has it."""
        theirs = client_sigmas(SHIFT, TRAIN_TIMESTEPS, len(sigmas) - 1)
        return bent(SHIFT, TRAIN_TIMESTEPS, theirs, sigmas)

    def graphs(
        self,
        programs: Mapping[str, QuantizedProgram],
        tokenizers: Mapping[str, Tokenizer],
        schedule: ClientSchedule,
        form: Form,
    ) -> tuple[ClientGraph, ...]:
        """Text encoders, the MMDiT, the decoder; the pipeline cannot start from a picture."""
        _refuse_wide(programs)
        graphs = [_clip(name, programs[name], tokenizers[name]) for name in POOLED]
        if "t5" in programs:
            graphs.append(_t5(programs["t5"], tokenizers["t5"]))
        graphs.append(_mmdit(programs, schedule))
        graphs.append(_decoder(next(programs[name] for name in DECODERS if name in programs)))
        return tuple(graphs)

    def texts(self, told: ClientFacts) -> dict[str, str]:
        """One vocabulary for both CLIPs, T5's own tokenizer, and how to compile the models."""
        clip = told.tokenizers["clip_l"]
        files = tokenizer_files("clip_l", clip.text, clip.entry)
        found = {name: files[name] for name in ("vocab.json", "merges.txt")}
        if "t5" in told.tokenizers:
            t5 = told.tokenizers["t5"]
            found |= tokenizer_files("t5", t5.text, t5.entry)
        return found | {"compile_on_mac.sh": COMPILE}

    def draw(
        self,
        call: Call,
        graphs: Mapping[str, QuantizedProgram],
        ids: Mapping[str, np.ndarray],
        noise: np.ndarray,
        schedule: ClientSchedule,
    ) -> ClientDrawing:
        """The calls of StableDiffusion3Pipeline, with guidance 1 and an empty negative prompt."""
        clips = [call(NAMES[name], {"input_ids": _floats(ids[name])}) for name in POOLED]
        states = np.concatenate([found["hidden_embeds"] for found in clips], 2)
        states = np.pad(states, ((0, 0), (0, 0), (0, WIDTHS["t5"] - states.shape[2])))
        rest = np.zeros((1, WIDTHS["t5"], 1, T5_TOKENS), np.float32)
        if "t5" in ids:
            rest = _t5_states(call, graphs[NAMES["t5"]], ids["t5"])
        text = np.concatenate([states.transpose(0, 2, 1)[:, :, None], rest], 3)
        pooled = np.concatenate([found["pooled_outputs"] for found in clips], 1)[:, :, None, None]
        latent, drawn = noise, []
        for i, timestep in enumerate(schedule.timesteps):
            given = {
                "latent_image_embeddings": np.concatenate([latent, latent]),
                "timestep": np.full(PICTURES, timestep, np.float32),
                "token_level_text_embeddings": np.concatenate([text, np.zeros_like(text)]),
                "pooled_text_embeddings": np.concatenate([pooled, np.zeros_like(pooled)]),
            }
            positive, negative = call(MMDIT, given)["denoiser_output"]
            velocity = (negative + 1.0 * (positive - negative))[None]
            clean = latent - np.float32(schedule.sigmas[i]) * velocity
            latent = clean + np.float32(schedule.sigmas[i + 1]) * velocity
            drawn.append(latent)
        scaled = latent / np.float32(SCALE) + np.float32(OFFSET)
        return ClientDrawing(tuple(drawn), call(DECODER, {"z": scaled})["image"])


def _floats(ids: np.ndarray) -> np.ndarray:
    return ids.astype(np.float32)


def _t5_states(call: Call, program: QuantizedProgram, ids: np.ndarray) -> np.ndarray:
    """T5's states of as many tokens as the pipeline keeps: (1, 4096, 1, 77)."""
    tokens = program.inputs[0].shape[1]
    padded = np.pad(_floats(ids), ((0, 0), (0, tokens - ids.shape[1])))
    given = {"input_ids": padded, "attention_mask": np.zeros_like(padded)}
    return call(NAMES["t5"], given)["encoder_hidden_states"][..., :T5_TOKENS]


def _refuse_wide(programs: Mapping[str, QuantizedProgram]) -> None:
    """Raise InputError for states that the pipeline has no place for."""
    for name, width in WIDTHS.items():
        if name not in programs:
            continue
        for port in programs[name].outputs:
            limit = POOLED[name] if port.name == "pooled" else width
            if port.shape[-1] > limit:
                raise InputError(
                    f"[build] layout = 'apple-swift': {name} gives {port.shape[-1]} channels, and "
                    f"the pipeline has {limit}; leave the layout out"
                )
    if "t5" in programs and programs["t5"].outputs[0].shape[1] > T5_TOKENS:
        raise InputError(
            f"[text] t5_tokens: the pipeline of [build] layout = 'apple-swift' keeps {T5_TOKENS} "
            "tokens of T5; say no more"
        )


def _adapted(module: nn.Module, name: str, given: Sequence[Port], made: Sequence[str]) -> Link:
    """An adapter whose values go by the names of its ports."""
    program = adapter(name, module, given, made)
    return Link(program, {port.name: port.name for port in given}, {one: one for one in made})


def _clip(name: str, native: QuantizedProgram, entry: Tokenizer) -> ClientGraph:
    given = Port("input_ids", (1, entry.tokens))
    whole = Port("whole_ids", (1, entry.tokens), "int32")
    with torch.device("meta"):
        floats, ids = FloatIds(), Ids(entry, is_free=False)
        widened = Widened(WIDTHS[name], POOLED[name])
    program = chain(
        name,
        (given,),
        (
            _adapted(floats, "floats", (given,), (whole.name,)),
            _adapted(ids, "ids", (whole,), ("ids",)),
            Link(native, {"ids": "ids"}, {port.name: port.name for port in native.outputs}),
            _adapted(widened, "wide", native.outputs, ("wide", "wide_pooled")),
        ),
        {"hidden_embeds": "wide", "pooled_outputs": "wide_pooled"},
    )
    return ClientGraph(NAMES[name], program, {}, (name,))


def _t5(native: QuantizedProgram, entry: Tokenizer) -> ClientGraph:
    """T5, which is not masked here; the pipeline gives as many tokens as its input has."""
    given = Port("input_ids", (1, T5_TOKENS))
    whole = Port("whole_ids", (1, T5_TOKENS), "int32")
    with torch.device("meta"):
        floats, ids, columns = FloatIds(), Ids(entry, is_free=True), Columns(T5_TOKENS)
    program = chain(
        "t5",
        (given, Port("attention_mask", (1, T5_TOKENS))),
        (
            _adapted(floats, "floats", (given,), (whole.name,)),
            _adapted(ids, "ids", (whole,), ("ids",)),
            Link(native, {"ids": "ids"}, {"hidden": "hidden"}),
            _adapted(columns, "columns", native.outputs, ("columns",)),
        ),
        {"encoder_hidden_states": "columns"},
    )
    return ClientGraph(NAMES["t5"], program, {}, ("t5",))


def _mmdit(programs: Mapping[str, QuantizedProgram], schedule: ClientSchedule) -> ClientGraph:
    """The whole MMDiT, of the first of two pictures, given twice."""
    conditioner, denoiser = programs["conditioner"], programs["denoiser"]
    shapes = {port.name: port.shape for port in conditioner.inputs}
    latent = denoiser.inputs[0].shape
    inputs = (
        Port("latent_image_embeddings", (PICTURES, *latent[1:])),
        Port("timestep", (PICTURES,)),
        Port("token_level_text_embeddings", (PICTURES, WIDTHS["t5"], 1, 2 * CLIP_TOKENS)),
        Port("pooled_text_embeddings", (PICTURES, sum(POOLED.values()), 1, 1)),
    )
    texts = ("hidden_l", "hidden_g", "pooled_l", "pooled_g", "hidden_t5")[: len(shapes)]
    modulation, velocity = conditioner.outputs[1], denoiser.outputs[0]
    timestep = Port("one_timestep", (1,))
    rows = Port("rows", modulation.shape)
    with torch.device("meta"):
        first, step = FirstOfTwo(shapes), PickStep(schedule, UNKNOWN)
        gain, twice = Gain(), Twice()
    links = (
        _adapted(first, "first", inputs, ("latent", timestep.name, *texts)),
        Link(
            conditioner,
            {name: name for name in texts},
            {"context": "context", "modulation": rows.name},
        ),
        _adapted(step, "step", (timestep, rows), ("row", "gain")),
        Link(
            denoiser,
            {"latent": "latent", "context": "context", "modulation": "row"},
            {"velocity": "velocity"},
        ),
        _adapted(gain, "gain", (velocity, Port("gain", (1, 1))), ("bent",)),
        _adapted(twice, "twice", (Port("bent", velocity.shape),), ("both",)),
    )
    program = chain("transformer", inputs, links, {"denoiser_output": "both"})
    return ClientGraph(MMDIT, program, {}, ("conditioner", "denoiser"))


def _decoder(native: QuantizedProgram) -> ClientGraph:
    (taken,), (gives,) = native.inputs, native.outputs
    given = Port("z", taken.shape)
    with torch.device("meta"):
        undone = Undone()
    program = chain(
        native.name,
        (given,),
        (
            _adapted(undone, "undone", (given,), ("latent",)),
            Link(native, {taken.name: "latent"}, {gives.name: "image"}),
        ),
        {"image": "image"},
    )
    return ClientGraph(DECODER, program, {}, (native.name,))


MAKER: Final[Maker] = AppleSwift()
