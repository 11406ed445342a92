"""What a single file lacks, as it often lies near it: encoders, the VAE, folders of tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from exporter.checkpoint.hub import TOKENIZERS
from exporter.checkpoint.single_file import SUFFIXES

# Of each component, what its files are called, in small letters.
CALLED = {
    "transformer": ("*sd3*", "*mmdit*"),
    "text_encoder": ("*clip_l*", "*clip-l*"),
    "text_encoder_2": ("*clip_g*", "*clip-g*"),
    "text_encoder_3": ("t5*", "*t5xxl*", "*t5-xxl*", "*t5_xxl*"),
    "vae": ("*vae*",),
}
BESIDE = ("text_encoders", "clip", "vae")  # where ComfyUI keeps them, beside the folder of the file


def parts_near(file: Path, missing: Iterable[str]) -> dict[str, str]:
    """A file for each component that is missing, where one is called so; the first by its name."""
    found = {}
    for name in missing:
        for place in _files(file):
            called = place.name.lower()
            if any(fnmatchcase(called, pattern) for pattern in CALLED.get(name, ())):
                found[name] = str(place)
                break
    return found


def tokenizers_near(file: Path) -> str | None:
    """The folder that holds the tokenizers' folders: that of the file, or the one above."""
    needed = [name for name in TOKENIZERS.values() if name != "tokenizer_3"]
    for folder in (file.parent, file.parent / "tokenizers", file.parent.parent):
        if all((folder / name).is_dir() for name in needed):
            return str(folder)
    return None


def _files(file: Path) -> Iterator[Path]:
    """Weights in the folder of a file, and in those beside it."""
    folders = [file.parent]
    folders += [base / name for base in (file.parent, file.parent.parent) for name in BESIDE]
    for folder in folders:
        if folder.is_dir():
            for place in sorted(folder.iterdir()):
                if place.suffix in SUFFIXES and place != file:
                    yield place
