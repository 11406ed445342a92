"""A hub id's files: in the hub's cache, and fetched into it when that is asked for.

Only ``fetch`` opens connections; what builds looks into the cache and names the command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from exporter.checkpoint.weights import PICKLES, choose
from exporter.errors import InputError

# Of each component, the folder of the tokenizer that goes with it.
TOKENIZERS = {
    "text_encoder": "tokenizer",
    "text_encoder_2": "tokenizer_2",
    "text_encoder_3": "tokenizer_3",
}
ABOUT = ("model_index.json", "scheduler/*.json", "LICENSE*", "LICENCE*", "NOTICE*")
TOKENS = ("*.json", "merges.txt")
FILES = (".safetensors", ".gguf", *PICKLES)  # what no repository is called


def files_of(
    names: Iterable[str], components: Iterable[str], variant: str | None, where: str
) -> list[str]:
    """Those of a repository's files that these components need, in order.

    Args:
        names: of all its files, relative to it.
        variant: of the weights (``weights.choose``).
        where: the repository, for errors.

    Raises InputError for a component that it lacks.
    """
    listed = sorted(names)
    found = [name for name in listed if any(fnmatchcase(name, pattern) for pattern in ABOUT)]
    if "model_index.json" not in found:
        raise InputError(
            f"{where}: the hub repository has no model_index.json, so that it is none in diffusers "
            "layout; download the file that you mean and name it"
        )
    for component in components:
        inside = [n.rpartition("/")[2] for n in listed if n.rpartition("/")[0] == component]
        if not inside:
            hint = "; leave it out with --no-t5" if component == "text_encoder_3" else ""
            raise InputError(f"{where}: the hub repository has no {component}{hint}")
        chosen = choose(inside, variant, f"{where}: {component}")
        found += [f"{component}/{name}" for name in ("config.json", *chosen.files)]
        if component in TOKENIZERS:
            wanted = [f"{TOKENIZERS[component]}/{pattern}" for pattern in TOKENS]
            found += [n for n in listed if any(fnmatchcase(n, p) for p in wanted)]
    return list(dict.fromkeys(name for name in found if not name.endswith(PICKLES)))


def names_a_path(place: str) -> bool:
    """Whether a checkpoint's name can only be that of a path, not ``owner/name`` of the hub."""
    parts = place.split("/")
    return (
        len(parts) != 2
        or not all(parts)
        or place.startswith((".", "~"))
        or "\\" in place
        or place.lower().endswith(FILES)
        or Path(parts[0]).exists()
    )


def fetch_line(place: str, revision: str | None = None, variant: str | None = None) -> str:
    """The command that fetches a hub id."""
    options = {"--revision": revision, "--variant": variant}
    given = [f"{flag} {value}" for flag, value in options.items() if value]
    return " ".join(("fourstep fetch", place, *given))


def from_cache(place: str, revision: str | None = None, variant: str | None = None) -> Path:
    """The snapshot of a hub id in the hub's cache; opens no connection.

    Args:
        revision: branch, tag or commit; None: the main branch.
        variant: for the command that an error names.

    Raises InputError when the cache does not hold it.
    """
    hub = library(place)
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            hub.snapshot_download(
                place, revision=revision, allow_patterns=list(ABOUT[:1]), local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        raise InputError(
            f"checkpoint {place}: no such folder, and the hub's cache does not hold that id; to "
            f"fetch it: {fetch_line(place, revision, variant)}"
        ) from None
    except Exception as error:  # the library raises a dozen unrelated types
        raise InputError(f"checkpoint {place}: {hub_reason(error, revision)}") from None


def library(place: str) -> Any:
    """huggingface_hub, for a place that is no path; raises InputError."""
    if names_a_path(place):
        raise InputError(
            f"checkpoint {place}: no such file or folder; name a .safetensors or .gguf file, a "
            "folder in diffusers layout, or a hub id"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"checkpoint {place}: no such folder, and huggingface_hub is not installed to look it "
            "up as a hub id: pip install 'fourstep[build]'"
        ) from None
    return huggingface_hub


def lacking(
    folder: Path, components: Sequence[str], variant: str | None, tokenizers: bool = True
) -> str:
    """The first file of a snapshot that its components need and that is not there, or nothing.

    Args:
        variant: of the weights (``weights.choose``).
        tokenizers: whether these are needed too.

    A link whose blob is gone counts as missing. Raises InputError as ``weights.choose``.
    """
    names = [f.relative_to(folder).as_posix() for f in sorted(folder.rglob("*")) if f.is_file()]
    for name in components:
        inside = [n.rpartition("/")[2] for n in names if n.rpartition("/")[0] == name]
        if not any(n.endswith((".safetensors", *PICKLES)) for n in inside):
            return f"{name}/*.safetensors"
        chosen = choose(inside, variant, folder / name)
        wanted = [
            "model_index.json",
            f"{name}/config.json",
            *(f"{name}/{s}" for s in chosen.shards),
        ]
        if tokenizers and name in TOKENIZERS:
            wanted.append(f"{TOKENIZERS[name]}/tokenizer_config.json")
        for file in wanted:
            if file not in names:
                return file
    return ""


def hub_reason(error: Exception, revision: str | None) -> str:
    """Why the hub gave nothing, and what to do."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "GatedRepoError" in names:
        return "the hub repository is gated; accept its licence there, then: hf auth login"
    if "RevisionNotFoundError" in names:
        return f"the hub repository has no revision {revision!r}"
    if "RepositoryNotFoundError" in names:
        return "no such folder, and the hub has no such public repository; private: hf auth login"
    if "HFValidationError" in names:
        return "no such folder, and no name that a hub repository can have"
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE is set in the environment; unset it to fetch"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses it ({status}): private or gated; hf auth login"
    return (
        f"the hub cannot be reached ({type(error).__name__}); try again: what is there already is "
        "kept; or download it elsewhere and name its folder"
    )
