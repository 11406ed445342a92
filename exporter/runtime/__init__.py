"""Runs packages: numpy, tokenizers, Pillow and one backend's runtime. No torch.

from exporter.runtime import Image, Request, generate, open_package

with open_package(Path("artifacts/shapes-flash/onnx-int8")).player() as player:
    for event in generate(player, [Request("two red circles left of a blue square", seed=7)]):
        if isinstance(event, Image):
            pixels = event.pixels  # (H, W, 3) uint8
"""

from __future__ import annotations

from exporter.backends.contract import Session, SessionOptions
from exporter.credentials.sign import Credentials, Signer, open_signer
from exporter.drawing.loop import (
    Conditioned,
    Event,
    Image,
    Player,
    Rejected,
    Request,
    Step,
    generate,
)
from exporter.drawing.start import Fit, PictureRemark, start_picture
from exporter.drawing.text import PromptCut
from exporter.errors import CheckFailed, FourstepError, InputError
from exporter.package.manifest import Manifest
from exporter.runtime.package import Package, open_package
from exporter.runtime.signed import write_signed
from exporter.runtime.verify import Report, verify
from exporter.trust.check import Trust
from exporter.trust.keyless import SigningIdentity
from exporter.trust.sign import SigningKey, sign_package

__all__ = [
    "CheckFailed",
    "Conditioned",
    "Credentials",
    "Event",
    "Fit",
    "FourstepError",
    "Image",
    "InputError",
    "Manifest",
    "Package",
    "PictureRemark",
    "Player",
    "PromptCut",
    "Rejected",
    "Report",
    "Request",
    "Session",
    "SessionOptions",
    "Signer",
    "SigningIdentity",
    "SigningKey",
    "Step",
    "Trust",
    "generate",
    "open_package",
    "open_signer",
    "sign_package",
    "start_picture",
    "verify",
    "write_signed",
]
