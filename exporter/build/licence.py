"""The licence of a checkpoint's weights, and what of it has to travel with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.bom.licence import Obligation, named_by, named_by_card, obligations, together
from exporter.checkpoint.open import Checkpoint
from exporter.errors import InputError, Remark
from exporter.files.read import file_digest, read_bytes
from exporter.recipe.recipe import Recipe

NOTICE, CARD = "NOTICE", "README.md"
LICENCES = ("LICENSE", "LICENCE", NOTICE)  # how names of files begin, in capitals


class LicenceWarning(Remark):
    """A licence asks for something that the checkpoint does not bring."""


@dataclass(frozen=True)
class Licence:
    """What is known of the licence of a checkpoint's weights.

    Attributes:
        id: an identifier or an expression of SPDX; empty where it is not known.
        files: those that travel with the weights, by their names in a package.
    """

    id: str
    files: Mapping[str, Path]

    @property
    def owed(self) -> tuple[Obligation, ...]:
        """What it obliges to, whoever hands the weights on."""
        return obligations(self.id)

    @property
    def attribution(self) -> str:
        """The lines to show where people see pictures, as one; may be empty."""
        return "; ".join(obligation.attribution for obligation in self.owed)


def licence_of(recipe: Recipe, checkpoint: Checkpoint) -> Licence:
    """The licence as the checkpoint's files say it, else as the recipe does.

    Raises InputError where both do and they differ.
    """
    said = _said_in(checkpoint.folder)
    if recipe.licence is not None and said not in ("", recipe.licence):
        raise InputError(
            f"[model] licence = '{recipe.licence}', and the files in {checkpoint.folder} say "
            f"{said}; leave the key out, or put the licence that you hold in their place"
        )
    others = [_said_in(folder) for _, folder in sorted(checkpoint.beside.items())]
    name = together([said or recipe.licence or "", *others])
    return Licence(name, licences_of(checkpoint))


def warn_of_missing(licence: Licence, checkpoint: Checkpoint) -> None:
    """Warn of a licence that wants a copy of itself handed on, and that has no file."""
    if licence.owed and all(_is_notice(name) for name in licence.files):
        warnings.warn(
            f"{checkpoint.folder}: has no LICENSE, and {licence.id} asks for a copy of it beside "
            "the weights; put its text there and build again",
            LicenceWarning,
            stacklevel=2,
        )


def licences_of(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files that travel with the weights, by their names in a package.

    Those of components from elsewhere too: under their own names, or with the component's where
    another file is called the same.
    """
    found = {file.name: file for file in _licences_in(checkpoint.folder)}
    for component, folder in sorted(checkpoint.beside.items()):
        digests = {file_digest(file) for file in found.values()}
        for file in _licences_in(folder):
            if file_digest(file) not in digests:
                other = f"{file.stem}-{component}{file.suffix}"
                found[other if file.name in found else file.name] = file
    return found


def _licences_in(folder: Path) -> list[Path]:
    named = (f for f in folder.iterdir() if f.name.upper().startswith(LICENCES))
    return sorted(file for file in named if file.is_file())


def _is_notice(name: str) -> bool:
    return name.upper().startswith(NOTICE)


def _said_in(folder: Path) -> str:
    """The licence that the files of a folder name: licences themselves, else a model card."""
    licences = [named_by(_text(f)) for f in _licences_in(folder) if not _is_notice(f.name)]
    card = folder / CARD
    return together(licences) or (named_by_card(_text(card)) if card.is_file() else "")


def _text(file: Path) -> str:
    return read_bytes(file).decode("utf-8", "replace").replace("\r\n", "\n")
