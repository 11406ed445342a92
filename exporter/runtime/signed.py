"""Content Credentials for what a package draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.credentials.claim import Claim, DrawnWith, SourcePicture
from exporter.credentials.sign import Signer
from exporter.errors import InputError
from exporter.files.pictures import opened, write_picture
from exporter.files.read import read_bytes

if TYPE_CHECKING:
    from exporter.drawing.loop import Image
    from exporter.drawing.start import Given
    from exporter.runtime.package import Package

MOST_SOURCE_BYTES = 1 << 28


def claim_of(package: Package, image: Given | None = None) -> Claim:
    """What Content Credentials say of a picture that a package drew.

    Args:
        image: what it was started from, as ``Request.image``. Of a file, the Content Credentials
            that it has are kept.
    """
    manifest, licence = package.manifest, package.manifest.origin.licence
    digests = {file.path: file.sha256 for file in manifest.files}
    drawn_with = DrawnWith(
        manifest.name,
        manifest.backend,
        manifest.scheme,
        package.sha256,
        manifest.origin.checkpoint_sha256,
        licence,
        digests.get(licence, ""),
    )
    source = None if image is None else _source(image)
    return Claim(drawn_with, source, is_marked=manifest.mark is not None)


def write_signed(image: Image, file: Path, package: Package, signer: Signer) -> None:
    """Write a picture with Content Credentials, whole or not at all.

    Raises InputError of ``out`` for a file that does not end in .png, .jpg or .webp.
    """
    claim = claim_of(package, image.request.image)
    write_picture(
        image.pixels, file, None, lambda content, form: signer.signed(content, form, claim)
    )


def _source(image: Given) -> SourcePicture:
    """What was started from, as the library takes it; raises InputError of ``image``."""
    if not isinstance(image, str | Path):
        return SourcePicture()
    from PIL import Image as Pictures

    file = Path(image)
    with opened(file, file, _wrong) as picture:
        mime = Pictures.MIME.get(picture.format or "", SourcePicture.mime)
    return SourcePicture(read_bytes(file, _wrong, MOST_SOURCE_BYTES), mime)


def _wrong(message: str) -> InputError:
    return InputError(message, field="image")
