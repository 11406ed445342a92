"""The choices that make every shape static. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

End = Literal["full", "tiny"]  # the VAE, or the tiny autoencoder that stands in for it
Previews = Literal["linear", "tiny"]


@dataclass(frozen=True)
class Ends:
    """What stands at the ends of the latent.

    Attributes:
        decoder: what makes the picture of it.
        encoder: what makes it of a picture.
        previews: what shows it between steps: one map of colours, or the tiny decoder.
    """

    decoder: End = "full"
    encoder: End = "full"
    previews: Previews = "linear"


@dataclass(frozen=True)
class Cut:
    """The choices that make every shape static.

    Attributes:
        sigmas: S + 1 noise levels, from 1 down to 0; S is the number of steps.
        width_px, height_px: size of the image.
        t5: run T5; otherwise ``t5_tokens`` identical zero tokens stand in its place, of which
            one is kept (see ``denoiser``).
        t5_tokens: L, the number of T5 tokens, real or null.
        image_to_image: also emit an encoder.
        ends: which decoder and encoder.
        fixed_negative: the conditioner also gives the conditions of a negative prompt, whose text
            is fixed.
    """

    sigmas: tuple[float, ...]
    width_px: int
    height_px: int
    t5: bool = True
    t5_tokens: int = 77
    image_to_image: bool = True
    ends: Ends = Ends()
    fixed_negative: bool = False

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def vae_ends(self) -> tuple[str, ...]:
        """What is used of the VAE: ``decoder``, ``encoder``, both or none."""
        return self._used("full", self.ends.decoder == "full")

    @property
    def tiny_ends(self) -> tuple[str, ...]:
        """The same of the tiny autoencoder."""
        return self._used("tiny", "tiny" in (self.ends.decoder, self.ends.previews))

    def _used(self, kind: End, decodes: bool) -> tuple[str, ...]:
        encodes = self.image_to_image and self.ends.encoder == kind
        return (*["decoder"] * decodes, *["encoder"] * encodes)
