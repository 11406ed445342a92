"""What Content Credentials say of a picture: that a model drew it, which one, and from what.

Neither the prompt nor the seed is in it: a claim cannot be taken back out of a picture that was
passed on. Where they are in the picture's metadata, the signature covers them there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from exporter import __version__

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
GENERATOR = {"name": "fourstep", "version": __version__}
MODEL = "fourstep.model"  # the label of the assertion
ACTIONS = "c2pa.actions.v2"
SOURCE = "source"  # what an action calls the picture that was started from


@dataclass(frozen=True)
class DrawnWith:
    """The package that drew a picture.

    Attributes:
        name: of its recipe.
        backend: of its graphs.
        scheme: of their weights.
        package_sha256: of its manifest, which holds the digest of every other file.
        checkpoint_sha256: of the weights it was built from.
        licence: the file of the weights' licence in the package, or empty.
        licence_sha256: of that file, or empty.
    """

    name: str
    backend: str
    scheme: str
    package_sha256: str
    checkpoint_sha256: str
    licence: str = ""
    licence_sha256: str = ""


@dataclass(frozen=True)
class SourcePicture:
    """The picture that another was started from.

    Attributes:
        content: its file, whose own Content Credentials are kept; empty for one that was no file.
        mime: the file's type.
    """

    content: bytes = b""
    mime: str = "application/octet-stream"


@dataclass(frozen=True)
class Claim:
    """What is signed of a picture, beside its bytes.

    Attributes:
        drawn_with: the package.
        source: what it was started from, or nothing.
        is_marked: whether the package's decoder put an invisible mark into it.
    """

    drawn_with: DrawnWith
    source: SourcePicture | None = None
    is_marked: bool = False

    @property
    def definition(self) -> dict[str, Any]:
        """The C2PA manifest as the library takes it."""
        found: dict[str, Any] = {
            "claim_generator_info": [GENERATOR],
            "assertions": [
                {
                    "label": ACTIONS,
                    "data": {"actions": self._actions(), "allActionsIncluded": True},
                },
                {"label": MODEL, "data": asdict(self.drawn_with)},
            ],
        }
        if self.source is not None and not self.source.content:
            found["ingredients"] = [self.ingredient]
        return found

    @property
    def ingredient(self) -> dict[str, str]:
        """What the picture that was started from is to this one."""
        return {"relationship": "parentOf", "label": SOURCE}

    def _actions(self) -> list[dict[str, Any]]:
        """Every pixel is the model's: drawn from noise alone, or from another picture."""
        drawn = {"digitalSourceType": TRAINED, "softwareAgent": GENERATOR}
        # Unbound: the mark holds the package's payload, and leads to no manifest of this picture.
        marked = [{"action": "c2pa.watermarked.unbound"}] if self.is_marked else []
        if self.source is None:
            return [{"action": "c2pa.created", **drawn}, *marked]
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [SOURCE]}}
        return [opened, {"action": "c2pa.edited", **drawn}, *marked]
