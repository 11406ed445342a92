"""A hub id's files: from the hub's cache, else downloaded into it."""

from __future__ import annotations

import os
from pathlib import Path

from exporter.errors import InputError


def from_hub(place: str) -> Path:
    """The local snapshot of a hub id: from the cache if it is there, else downloaded."""
    parts = place.split("/")
    names_a_path = place.startswith((".", "~")) or Path(parts[0]).exists()
    if len(parts) != 2 or not all(parts) or names_a_path:
        raise InputError(
            f"checkpoint {place}: no such folder; name one in diffusers layout, or a hub id"
        )
    try:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"checkpoint {place}: no such folder, and huggingface_hub is not installed to fetch it "
            "as a hub id: pip install 'fourstep[build]'"
        ) from None
    patterns = ["*.json", "*.safetensors", "*/merges.txt", "LICENSE*", "NOTICE*"]
    try:
        return Path(huggingface_hub.snapshot_download(place, local_files_only=True))
    except Exception:
        pass  # not in the cache: fetch it
    try:
        return Path(huggingface_hub.snapshot_download(place, allow_patterns=patterns))
    except Exception as error:  # the library raises a dozen unrelated types
        raise InputError(f"checkpoint {place}: {_hub_reason(error)}") from None


def _hub_reason(error: Exception) -> str:
    names = {cls.__name__ for cls in type(error).__mro__}
    if "GatedRepoError" in names:
        return "the hub repository is gated; accept its licence there, then: hf auth login"
    if "RepositoryNotFoundError" in names:
        return "no such folder, and the hub has no such public repository; private: hf auth login"
    return (
        "no such folder, and the hub cannot be reached to fetch it by that id "
        f"({type(error).__name__}); download it elsewhere and name its folder"
    )
