"""A hub id's files: from the hub's cache if they are all there, else fetched into it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from exporter.errors import InputError

# Of each component, the folder of the tokenizer that goes with it.
TOKENIZERS = {
    "text_encoder": "tokenizer",
    "text_encoder_2": "tokenizer_2",
    "text_encoder_3": "tokenizer_3",
}
ABOUT = ("model_index.json", "LICENSE*", "LICENCE*", "NOTICE*")
# Weights as they are: not their copies in other precisions (model.fp16.safetensors).
WEIGHTS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model-?????-of-?????.safetensors",
    "diffusion_pytorch_model-?????-of-?????.safetensors",
    "*.safetensors.index.json",
)


def patterns_of(components: Iterable[str]) -> list[str]:
    """The files of a repository that these components need."""
    found = [*ABOUT]
    for name in components:
        found += [f"{name}/{file}" for file in ("config.json", *WEIGHTS)]
        if name in TOKENIZERS:
            found += [f"{TOKENIZERS[name]}/*.json", f"{TOKENIZERS[name]}/merges.txt"]
    return found


def names_a_path(place: str) -> bool:
    """Whether a checkpoint's name can only be that of a folder, not ``owner/name`` of the hub."""
    parts = place.split("/")
    return (
        len(parts) != 2
        or not all(parts)
        or place.startswith((".", "~"))
        or "\\" in place
        or Path(parts[0]).exists()
    )


def from_hub(place: str, components: Sequence[str], revision: str | None = None) -> Path:
    """The local snapshot of a hub id; the network is asked only for what the cache lacks.

    Args:
        components: folders that are needed; nothing else is fetched.
        revision: branch, tag or commit; None: the main branch.
    """
    if names_a_path(place):
        raise InputError(
            f"checkpoint {place}: no such folder; name one in diffusers layout, or a hub id"
        )
    try:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise InputError(
            f"checkpoint {place}: no such folder, and huggingface_hub is not installed to fetch it "
            "as a hub id: pip install 'fourstep[build]'"
        ) from None
    asked: dict[str, Any] = {"allow_patterns": patterns_of(components), "revision": revision}
    try:
        try:
            cached = Path(huggingface_hub.snapshot_download(place, local_files_only=True, **asked))
            if _is_whole(cached, components):
                return cached
        except LocalEntryNotFoundError:
            pass  # nothing of it is in the cache
        return Path(huggingface_hub.snapshot_download(place, **asked))
    except Exception as error:  # the library raises a dozen unrelated types
        raise InputError(f"checkpoint {place}: {_hub_reason(error, revision)}") from None


def _is_whole(folder: Path, components: Iterable[str]) -> bool:
    """Whether a snapshot has every file that its components need; shards as their index says."""
    wanted = ["model_index.json"]
    for name in components:
        wanted.append(f"{name}/config.json")
        if name in TOKENIZERS:
            wanted.append(TOKENIZERS[name])
        weights = [f for pattern in WEIGHTS for f in (folder / name).glob(pattern)]
        if not any(f.suffix == ".safetensors" for f in weights):
            return False
        for shard in (f for f in weights if "-of-" in f.name):
            stem, _, total = shard.stem.rpartition("-of-")
            first = stem.rpartition("-")[0]
            wanted += [
                f"{name}/{first}-{i:05}-of-{total}.safetensors" for i in range(1, int(total) + 1)
            ]
    return all((folder / file).exists() for file in wanted)


def _hub_reason(error: Exception, revision: str | None) -> str:
    names = {cls.__name__ for cls in type(error).__mro__}
    if "GatedRepoError" in names:
        return "the hub repository is gated; accept its licence there, then: hf auth login"
    if "RevisionNotFoundError" in names:
        return f"the hub repository has no revision {revision!r}"
    if "RepositoryNotFoundError" in names:
        return "no such folder, and the hub has no such public repository; private: hf auth login"
    if "HFValidationError" in names:
        return "no such folder, and no name that a hub repository can have"
    return (
        "no such folder, and the hub cannot be reached to fetch it by that id "
        f"({type(error).__name__}); download it elsewhere and name its folder"
    )
