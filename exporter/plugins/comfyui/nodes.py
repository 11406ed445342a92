"""Two nodes: one opens a package, one draws with it, as ``fourstep run`` does, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from exporter.runtime import (
    CheckFailed,
    Image,
    Package,
    Player,
    Rejected,
    Request,
    Step,
    generate,
    open_package,
)

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 255
LARGEST_SEED = 2**64 - 1
MOST_PICTURES = 64
Inputs = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class OpenPackage:
    """A package and what draws with it."""

    package: Package
    player: Player


class LoadPackage:
    """Opens a package; shows along which sigmas it draws."""

    CATEGORY = "fourstep"
    FUNCTION = "load"
    RETURN_TYPES = ("FOURSTEP_PACKAGE", "SIGMAS", "STRING")
    RETURN_NAMES = ("package", "sigmas", "about")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The folder, and whether its graphs stay open: faster, in the memory of all of them."""
        return {
            "required": {
                "folder": ("STRING", {"default": "artifacts/shapes-flash/onnx-int8"}),
                "keep_open": ("BOOLEAN", {"default": True}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, folder: str, keep_open: bool) -> str:
        """Another build in the same folder is opened anew."""
        digest = Path(folder).expanduser() / "manifest.json"
        return f"{digest.stat().st_mtime_ns if digest.is_file() else 0} {keep_open}"

    def load(self, folder: str, keep_open: bool) -> tuple[OpenPackage, Tensor, str]:
        """Open a package; raises FourstepError for what is none, or is damaged."""
        import torch

        package = open_package(Path(folder).expanduser())
        told = package.manifest
        sigmas = told.schedule.sigmas
        about = (
            f"{told.name} {told.backend}-{told.scheme}: {told.picture.width_px} x "
            f"{told.picture.height_px} px, {told.schedule.steps} steps, sigmas "
            f"{', '.join(f'{sigma:g}' for sigma in sigmas)}"
        )
        opened = OpenPackage(package, package.player(keep=keep_open))
        return opened, torch.tensor(sigmas, dtype=torch.float32), about


class DrawPictures:
    """Draws a batch of a prompt's pictures: of the seed, the next seed, and so on."""

    CATEGORY = "fourstep"
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("pictures",)
    INPUT: ClassVar[Inputs] = {
        "required": {
            "package": ("FOURSTEP_PACKAGE",),
            "prompt": ("STRING", {"multiline": True, "default": "a red circle"}),
            "seed": ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED}),
            "batch_size": ("INT", {"default": 1, "min": 1, "max": MOST_PICTURES}),
            "strength": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01}),
        },
        "optional": {"image": ("IMAGE",)},
    }

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """``strength`` is how much of the schedule an ``image`` to start from goes through."""
        return cls.INPUT

    def draw(
        self,
        package: OpenPackage,
        prompt: str,
        seed: int,
        batch_size: int,
        strength: float,
        image: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Pictures (batch, H, W, 3) float32 from 0 to 1.

        Shows every step in the queue, and stops between two steps when ComfyUI is told to. Raises
        FourstepError for what the package cannot do, CheckFailed for a picture that its filter
        rejects.
        """
        import torch
        from comfy.utils import ProgressBar

        starts = None if image is None else _levels(image.cpu().numpy())
        requests = [
            Request(prompt, (seed + i) % (LARGEST_SEED + 1))
            if starts is None
            else Request(prompt, seed + i, starts[min(i, len(starts) - 1)], strength)
            for i in range(batch_size)
        ]
        steps = package.player.schedule.steps
        progress = ProgressBar(batch_size * steps)
        pictures = _drawn(package.player, requests, progress, steps)
        unit = np.stack(pictures).astype(np.float32) / np.float32(LEVELS)
        return (torch.from_numpy(unit),)


def _levels(image: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) from 0 to 1 -> uint8, rounded as pictures are."""
    found: np.ndarray = np.round(np.clip(image[..., :3], 0, 1) * LEVELS).astype(np.uint8)
    return found


def _drawn(player: Player, requests: list[Request], progress: Any, steps: int) -> list[np.ndarray]:
    """The pixels (H, W, 3) uint8 of each request."""
    from comfy.model_management import throw_exception_if_processing_interrupted

    pictures = []
    events = generate(player, requests)
    try:
        for event in events:
            if isinstance(event, Step):
                done = event.index * steps + steps - event.steps + event.step
                progress.update_absolute(done, len(requests) * steps, _preview(event))
            elif isinstance(event, Image):
                pictures.append(event.pixels)
            elif isinstance(event, Rejected):
                raise CheckFailed(
                    f"the package's filter rejects the picture of seed {event.request.seed}; "
                    "choose another seed or prompt"
                )
            throw_exception_if_processing_interrupted()
    finally:
        events.close()
    return pictures


def _preview(step: Step) -> tuple[str, Any, int] | None:
    """What ComfyUI shows of a step: a format, a picture of Pillow's, its largest side."""
    from PIL import Image as Picture

    pixels = step.preview() if step.preview else None
    if pixels is None:
        return None
    return "JPEG", Picture.fromarray(pixels), max(pixels.shape[:2])


NODE_CLASS_MAPPINGS = {"FourstepLoad": LoadPackage, "FourstepDraw": DrawPictures}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FourstepLoad": "fourstep: load a package",
    "FourstepDraw": "fourstep: draw",
}
