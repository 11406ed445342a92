"""Stop 1, checkpoint: opened by memory map, whatever its layout, one tensor at a time.

Only safetensors and GGUF are read. A pickle can run code when it is loaded, so ``.bin``, ``.pt``,
``.pth``, ``.ckpt`` and ``.pkl`` files are refused by name and never opened.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from exporter.checkpoint import folder as diffusers_folder
from exporter.checkpoint import single_file
from exporter.checkpoint.component import COMPONENTS, PARTS, Component
from exporter.checkpoint.hub import TOKENIZERS, fetch_line, from_cache, lacking
from exporter.checkpoint.lora import Lora, OpenedLora, merged, open_lora
from exporter.checkpoint.sources import TensorSource, digest_of
from exporter.errors import InputError
from exporter.files.read import file_digest

READ_AT_ONCE = 2  # tensors, for the digest
TOKENIZER_PARTS = ("vocab.json", "merges.txt")  # where there is no tokenizer.json
PAD_TOKENS = ("tokenizer_config.json", "special_tokens_map.json")  # the first that names one counts


@dataclass(frozen=True)
class Checkpoint:
    """A Stable Diffusion 3 or 3.5 checkpoint on disk; the components that are used.

    Attributes:
        folder: the licences of the weights lie in it.
        components: by name.
        descriptions: files that say what the components are, by a name that is the same wherever
            the checkpoint lies.
        tokenizers: the tokenizers' folders lie in it; None: in ``folder``.
        place: what was opened, for errors; None: ``folder``.
        beside: of components from elsewhere, the folder that their licences lie in.
        loras: that are merged into the components' tensors, in order.
    """

    folder: Path
    components: Mapping[str, Component] = field(repr=False)
    descriptions: Mapping[str, Path] = field(default_factory=dict, repr=False)
    tokenizers: Path | None = None
    place: Path | None = None
    beside: Mapping[str, Path] = field(default_factory=dict, repr=False)
    loras: tuple[OpenedLora, ...] = field(default=(), repr=False)

    def component(self, name: str) -> Component:
        """A component by its name; raises InputError when the checkpoint lacks it."""
        try:
            return self.components[name]
        except KeyError:
            key = next(key for key, part in PARTS.items() if part == name)
            hint = "set t5 = false in [text] to go without, or " if key == "t5" else ""
            raise InputError(
                f"{self.place or self.folder}: component '{name}' ({COMPONENTS[name]}) is missing; "
                f"{hint}name its file or folder as {key} in [model]"
            ) from None

    @property
    def has_t5(self) -> bool:
        return "text_encoder_3" in self.components

    def tokenizer_folder(self, name: str) -> Path:
        """``tokenizer``, ``tokenizer_2`` or ``tokenizer_3``; raises InputError when absent."""
        place = self.tokenizers or self.folder
        if not (place / name).is_dir():
            raise InputError(
                f"{place}: folder '{name}' is missing; name the folder that holds "
                f"{', '.join(TOKENIZERS.values())} as tokenizers in [model]"
            )
        return place / name

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what is read: tensors, the keys of configurations that decide, tokenizers.

        The same for every layout of the same weights, wherever they lie.
        """
        configs = {name: dict(c.config) for name, c in sorted(self.components.items())}
        total = hashlib.sha256(json.dumps(configs, sort_keys=True).encode())
        for name, found in self._digests:
            total.update(f"{name}\0{found.result()}\n".encode())
        return total.hexdigest()

    def tensor_sha256(self, component: str, name: str) -> str:
        """SHA-256 of what a tensor's values are made of; computed with those of ``digest``."""
        return self._by_name[f"{component}/{name}"].result()

    @cached_property
    def _by_name(self) -> dict[str, Future[str]]:
        return dict(self._digests)

    def begin_digest(self) -> None:
        """Start to read the tensors for ``digest`` in threads, beside what else is to be done."""
        _ = self._digests

    @cached_property
    def _digests(self) -> list[tuple[str, Future[str]]]:
        work: list[tuple[str, Callable[[], str]]] = [
            (f"{name}/{key}", functools.partial(tensor_digest, source))
            for name, component in sorted(self.components.items())
            for key, source in sorted(component.tensors.items())
        ]
        for name, folder in TOKENIZERS.items():
            if name in self.components:
                files = tokenizer_sources((self.tokenizers or self.folder) / folder)
                work += [(f"{folder}/{f.name}", functools.partial(file_digest, f)) for f in files]
        found = [(name, Future[str]()) for name, _ in work]
        _begin([(task, result) for (_, task), (_, result) in zip(work, found, strict=True)])
        return found


def tensor_digest(source: TensorSource) -> str:
    """SHA-256 of what a tensor's values are made of."""
    return digest_of(source.raw())


def tokenizer_sources(folder: Path) -> list[Path]:
    """The files that a tokenizer is read from: its text, or what that is made of, and its words."""
    text = ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else TOKENIZER_PARTS
    return [folder / name for name in (*text, *PAD_TOKENS) if (folder / name).is_file()]


def _begin(work: Sequence[tuple[Callable[[], str], Future[str]]]) -> None:
    """Do it in threads that do not keep the process from ending.

    Few, as what they run beside needs the processor too: with one for each file of a full-size
    checkpoint, tracing began 11 s later.
    """
    left = iter(work)  # two threads may ask for the next, as the interpreter runs one at a time

    def run() -> None:
        for task, result in left:
            try:
                result.set_result(task())
            except BaseException as error:
                result.set_exception(error)

    for _ in range(READ_AT_ONCE):
        threading.Thread(target=run, daemon=True).start()


def open_checkpoint(
    place: str,
    components: Sequence[str] = (),
    revision: str | None = None,
    variant: str | None = None,
    *,
    parts: Mapping[str, str] | None = None,
    tokenizers: str | None = None,
    config: str | None = None,
    loras: Sequence[Lora] = (),
) -> Checkpoint:
    """Open a checkpoint: a folder, a single file, or a hub id whose files lie in the hub's cache.

    Reads headers and configurations only, and opens no connection. Raises InputError for whatever a
    user can mend.

    Args:
        components: those that are used, which must be there; others are neither opened nor part of
            the digest. Without any: all that are there, and all but T5 must be.
        revision: of a hub id.
        variant: of a folder's weights, such as ``fp16``; None: the plain ones, else the only ones.
        parts: of some components, the file or folder to take it from in place of the checkpoint's.
        tokenizers: the folder that holds the tokenizers' folders, if it is not the checkpoint's.
        config: a folder with ``transformer/config.json`` and the like, for files whose shapes do
            not tell everything.
        loras: to merge, in order; they must fit.
    """
    checkpoint = open_partly(
        place, components, revision, variant, parts=parts, tokenizers=tokenizers, config=config
    )
    needed = components or [name for name in COMPONENTS if name != "text_encoder_3"]
    for name in needed:
        checkpoint.component(name)
    for lora in loras:
        checkpoint = with_lora(checkpoint, open_lora(lora, checkpoint.components))
    return checkpoint


def open_partly(
    place: str,
    components: Sequence[str] = (),
    revision: str | None = None,
    variant: str | None = None,
    *,
    parts: Mapping[str, str] | None = None,
    tokenizers: str | None = None,
    config: str | None = None,
) -> Checkpoint:
    """As ``open_checkpoint``, with those of the components that are there."""
    parts = parts or {}
    used = components or tuple(COMPONENTS)
    for name in parts:
        if name not in used:
            raise InputError(f"{parts[name]}: given as {name}, which is not used")
    left = [name for name in used if name not in parts]
    described = single_file.Described(Path(config) if config else None)
    file = Path(place)
    if single_file.is_file(file):
        _refuse_of_others(place, revision, variant)
        found = single_file.open_components(file, left, described)
        folder, descriptions = file.parent, {}
    else:
        folder = _folder(place, left if components else (), revision, variant, tokenizers is None)
        found = diffusers_folder.open_components(folder, left, variant)
        descriptions = diffusers_folder.descriptions(folder, found)
        described = replace(described, base=folder)
    found |= {name: _part(Path(part), name, described) for name, part in parts.items()}
    at = Path(tokenizers) if tokenizers else None
    opened = file if file.is_file() else folder
    beside = {name: _home(Path(part)) for name, part in parts.items()}
    return Checkpoint(folder, found, descriptions, at, opened, beside)


def _home(part: Path) -> Path:
    """Where the licences of a component from elsewhere lie: a checkpoint's folder, or its own."""
    inside = (part.parent / diffusers_folder.INDEX).is_file()
    return part.parent if inside or part.is_file() else part


def _refuse_of_others(place: str, revision: str | None, variant: str | None = None) -> None:
    kind = "folder" if Path(place).is_dir() else "file"
    if revision is not None:
        raise InputError(f"checkpoint {place}: is a {kind}; a revision applies to hub ids")
    if variant is not None:
        raise InputError(f"checkpoint {place}: is a {kind}; a variant applies to folders")


def _folder(
    place: str,
    components: Sequence[str],
    revision: str | None,
    variant: str | None,
    tokenizers: bool,
) -> Path:
    """A folder as it is named, or a hub id's in the cache, which holds what is needed.

    Args:
        components: those that are needed; without any, those whose folders are there.
        tokenizers: whether these are needed too.
    """
    folder = Path(place)
    if not folder.exists():
        folder = from_cache(place, revision, variant)
    else:
        _refuse_of_others(place, revision)
    cached = diffusers_folder.hub_id_of(folder)
    if cached:
        there = components or [name for name in COMPONENTS if (folder / name).is_dir()]
        gone = lacking(folder, there, variant, tokenizers)
        if gone:
            by_id = (place, revision) if place == cached[0] else cached
            raise InputError(
                f"checkpoint {place}: {gone} is missing: the hub's cache does not hold all of it; "
                f"to fetch the rest: {fetch_line(*by_id, variant)}"
            )
    return folder


def _part(place: Path, name: str, described: single_file.Described) -> Component:
    if single_file.is_file(place):
        return single_file.open_part(place, name, described)
    return diffusers_folder.open_part(place, name)


def with_lora(checkpoint: Checkpoint, lora: OpenedLora) -> Checkpoint:
    """A checkpoint whose tensors a LoRA is merged into, as they are read."""
    components = merged(checkpoint.components, lora)
    return replace(checkpoint, components=components, loras=(*checkpoint.loras, lora))
