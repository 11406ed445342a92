"""What makes the graphs of a layout that are not the native ones, and what stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from exporter.layouts import Form
from exporter.layouts.schedule import ClientSchedule

if TYPE_CHECKING:
    from exporter.backends.contract import PortForm
    from exporter.package.manifest import Tokenizer
    from exporter.quantize.program import QuantizedProgram

Call = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]  # a graph, by its folder


@dataclass(frozen=True)
class ClientGraph:
    """A graph of a layout.

    Attributes:
        folder: where its files lie.
        program: with the client's ports.
        ports: how they are written, by name; a port that is not named is static float32.
        made_of: the native graphs that are in it.
    """

    folder: str
    program: QuantizedProgram
    ports: Mapping[str, PortForm]
    made_of: tuple[str, ...]


@dataclass(frozen=True)
class TokenizerText:
    """A tokenizer: the text of its ``tokenizer.json``, and how it is used."""

    text: str
    entry: Tokenizer


@dataclass(frozen=True)
class ClientFacts:
    """What files beside the graphs say.

    Attributes:
        components: the checkpoint's own configurations, by folder (``transformer``, ``vae``...).
        tokenizers: by text encoder.
        schedule: of the client.
        width_px, height_px: of the only picture that is drawn.
        has_encoder: whether there is one of pictures.
    """

    components: Mapping[str, Mapping[str, Any]]
    tokenizers: Mapping[str, TokenizerText]
    schedule: ClientSchedule
    width_px: int
    height_px: int
    has_encoder: bool


@dataclass(frozen=True)
class ClientDrawing:
    """What a client computes on the way to a picture.

    Attributes:
        latents: (1, C, h, w) after each step.
        decoded: (1, 3, H, W), from -1 to 1.
    """

    latents: tuple[np.ndarray, ...]
    decoded: np.ndarray


class Maker(Protocol):
    """What a layout's module has as ``MAKER``: a frozen object without state."""

    @property
    def tokenizer_folders(self) -> Mapping[str, str]:
        """Where a backend that writes tokenizers as graphs puts them, by text encoder."""

    def schedule(self, sigmas: Sequence[float]) -> ClientSchedule:
        """The scheduler of its clients that is to go along these sigmas."""

    def graphs(
        self,
        programs: Mapping[str, QuantizedProgram],
        tokenizers: Mapping[str, Tokenizer],
        schedule: ClientSchedule,
        form: Form,
    ) -> tuple[ClientGraph, ...]:
        """The graphs, in the order in which a client runs them.

        Args:
            programs: the native ones, by graph, with rounded inputs where the scheme has them.
            tokenizers: by text encoder.
        """

    def texts(self, told: ClientFacts) -> dict[str, str]:
        """The text of each file beside the graphs, by its path in the folder."""

    def draw(
        self,
        call: Call,
        graphs: Mapping[str, QuantizedProgram],
        ids: Mapping[str, np.ndarray],
        noise: np.ndarray,
        schedule: ClientSchedule,
    ) -> ClientDrawing:
        """A picture by a client's order of calls.

        Args:
            graphs: by folder.
            ids: (1, tokens) int32, by text encoder.
            noise: (1, C, h, w).
        """
