"""The choices that make every shape static. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """The choices that make every shape static.

    Attributes:
        sigmas: S + 1 noise levels, from 1 down to 0; S is the number of steps.
        width_px, height_px: size of the image.
        t5: run T5; otherwise ``t5_tokens`` identical zero tokens stand in its place, of which
            one is kept (see ``denoiser``).
        t5_tokens: L, the number of T5 tokens, real or null.
        image_to_image: also emit the VAE's encoder.
    """

    sigmas: tuple[float, ...]
    width_px: int
    height_px: int
    t5: bool = True
    t5_tokens: int = 77
    image_to_image: bool = True

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1
