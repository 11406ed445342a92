"""Small graphs without weights between a client's ports and those of native graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from exporter.layouts.schedule import ClientSchedule
from exporter.network.graph import Graph
from exporter.network.layers import CLIP_TOKENS, constant, constants_of
from exporter.package.manifest import Port, Tokenizer
from exporter.program.trace import trace
from exporter.quantize.program import QuantizedProgram, unquantized


class Ids(nn.Module):
    """A client's ids (1, any number) as an encoder's (1, T): what is missing is padded.

    Of a prompt that is too long some clients keep the first T ids and lose the closing one, at
    whose place CLIP pools: where the last id is no padding, it becomes the closing one.
    """

    padding: Tensor

    def __init__(self, entry: Tokenizer, is_free: bool) -> None:
        super().__init__()
        self.tokens, self.pad, self.closing = entry.tokens, entry.pad_id, entry.closing_id
        self.is_free = is_free
        if is_free:
            constant(self, "padding", np.full((1, entry.tokens), entry.pad_id, np.int32))

    def forward(self, ids: Tensor) -> Tensor:
        if self.is_free:
            ids = torch.cat([ids, self.padding], 1)[:, : self.tokens]
            ids = ids.reshape(1, self.tokens)  # of one size, whatever the client's is
        if self.closing is None:
            return ids
        last = ids[:, self.tokens - 1 :]
        is_padding = (last == self.pad).to(torch.float32)
        last = (is_padding * (self.pad - self.closing) + self.closing).to(torch.int32)
        return torch.cat([ids[:, : self.tokens - 1], last], 1)


class Conditions(nn.Module):
    """A client's text states (1, any number, D) and pooled vector (1, P) taken apart.

    What stands behind the tokens that the MMDiT reads is left out: zeros in the place of T5, whose
    number differs from client to client, and is folded into the MMDiT.
    """

    def __init__(self, hidden: tuple[int, int], pooled_l: int, width: int, t5_tokens: int) -> None:
        super().__init__()
        self.hidden, self.pooled_l = hidden, pooled_l
        self.width, self.t5_tokens = width, t5_tokens

    def forward(self, states: Tensor, pooled: Tensor) -> tuple[Tensor, ...]:
        """(hidden_l, hidden_g, pooled_l, pooled_g, and hidden_t5 where there is one)."""
        clip = states[:, :CLIP_TOKENS].reshape(1, CLIP_TOKENS, self.width)
        of_l, of_g = self.hidden
        found = [clip[:, :, :of_l], clip[:, :, of_l : of_l + of_g]]
        found += [pooled[:, : self.pooled_l], pooled[:, self.pooled_l :]]
        if self.t5_tokens:
            t5 = states[:, CLIP_TOKENS : CLIP_TOKENS + self.t5_tokens]
            found.append(t5.reshape(1, self.t5_tokens, self.width))
        return tuple(found)


class PickStep(nn.Module):
    """The step that a client's timestep (1,) is of: its row of the modulation (S, M), its gain.

    A timestep that is not one of the schedule's has no gain but ``unknown``: with NaN the picture
    is black and not a wrong one.
    """

    known: Tensor
    gains: Tensor
    limit: Tensor

    def __init__(self, schedule: ClientSchedule, unknown: float = np.nan) -> None:
        super().__init__()
        constant(self, "known", np.array([schedule.timesteps]))
        constant(self, "gains", np.array([*schedule.gains, unknown])[:, None])
        constant(self, "limit", np.array([[-(schedule.tolerance**2)]]))

    def forward(self, timestep: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        away = timestep.reshape(1, 1) - self.known
        near = away * away * -1.0
        row = torch.index_select(modulation, 0, torch.argmax(near, 1))
        nearest = torch.argmax(torch.cat([near, self.limit], 1), 1)
        return row, torch.index_select(self.gains, 0, nearest)


class Gain(nn.Module):
    """A velocity (1, C, h, w) times a gain (1, 1)."""

    def forward(self, velocity: Tensor, gain: Tensor) -> Tensor:
        return velocity * gain.reshape(1, 1, 1, 1)


def adapter(
    name: str, module: nn.Module, inputs: Sequence[Port], outputs: Sequence[str]
) -> QuantizedProgram:
    """A module without weights as a program; ``module`` was made on the meta device."""
    graph = Graph(
        name, "", module, tuple(inputs), tuple(Port(o, ()) for o in outputs), constants_of(module)
    )
    program = unquantized(trace(graph))
    kinds = {torch.int32: "int32"}
    ports = tuple(
        Port(name, tuple(value.shape), kinds.get(value.dtype, "float32"))  # type: ignore[arg-type]
        for name, value in zip(outputs, (n.meta["val"] for n in program.results()), strict=True)
    )
    return QuantizedProgram(name, program.inputs, ports, program.graph, program.tensors)
