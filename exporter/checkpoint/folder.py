"""Stop 1, checkpoint: a diffusers folder opened by memory map, one tensor at a time.

Only safetensors are read. A pickle can run code when it is loaded, so ``.bin``, ``.pt``, ``.pth``,
``.ckpt`` and ``.pkl`` files are refused by name and never opened.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from exporter.checkpoint.hub import TOKENIZERS, from_hub
from exporter.errors import InputError, known
from exporter.files.read import file_digest, read_json
from exporter.files.tensors import TensorInfo, opened, read_header

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PLAIN = ("diffusion_pytorch_model.safetensors", "model.safetensors")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
READ_AT_ONCE = 2  # files, for the digest
TOKENIZER_PARTS = ("vocab.json", "merges.txt")  # where there is no tokenizer.json
PAD_TOKENS = ("tokenizer_config.json", "special_tokens_map.json")  # the first that names one counts
MOST = 1 << 20  # of a width or a count in config.json
COMPONENTS = {
    "transformer": "SD3Transformer2DModel",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
    "vae": "AutoencoderKL",
}


@dataclass(frozen=True)
class Component:
    """One folder of a checkpoint: its ``config.json`` and an index of its tensors."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = MOST) -> int:
        """A whole number of ``config.json``; without a default the key must be there."""
        value = self._value(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self._refused(key, value, f"a whole number from {low} to {high}")
        return value

    def number(
        self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e6
    ) -> float:
        """A number of ``config.json``; without a default the key must be there."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self._refused(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if type(value) is not bool:
            raise self._refused(key, value, "true or false")
        return value

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """A list of whole numbers of ``config.json``; empty when the key is missing or null."""
        value = self.config.get(key) or []
        if not isinstance(value, list) or not all(
            type(v) is int and low <= v <= high for v in value
        ):
            raise self._refused(key, value, f"a list of whole numbers from {low} to {high}")
        return tuple(value)

    def require(self, key: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
        """A value of ``config.json`` that must be one of those the graphs can express."""
        value = self.config.get(key, default)
        if value not in allowed:
            raise InputError(
                f"{self.folder / 'config.json'}: {key} = {value!r} is not supported; "
                f"supported: {', '.join(repr(a) for a in allowed)}"
            )
        return value

    def require_divisible(self, key: str, value: int, by: str, divisor: int) -> None:
        """Raise InputError unless one value of ``config.json`` is a multiple of another."""
        if value % divisor:
            raise InputError(
                f"{self.folder / 'config.json'}: {key} = {value} is no multiple of {by} = {divisor}"
            )

    def _value(self, key: str, default: Any) -> Any:
        value = self.config.get(key, default)
        if value is None:
            found = "is null" if key in self.config else "is missing"
            raise InputError(f"{self.folder / 'config.json'}: key '{key}' {found}")
        return value

    def _refused(self, key: str, value: object, expected: str) -> InputError:
        return InputError(
            f"{self.folder / 'config.json'}: {key} = {value!r}: {expected} is expected"
        )

    def info(self, tensor: str) -> TensorInfo:
        """Look a tensor up by name; raises InputError when the component lacks it."""
        try:
            return self.tensors[tensor]
        except KeyError:
            raise InputError(
                f"{self.folder}: tensor '{tensor}' is missing; the weights do not fit config.json"
            ) from None

    def read(self, tensor: str, rows: slice | None = None) -> torch.Tensor:
        """Read one tensor, or rows of axis 1 of it, in its stored dtype.

        ``rows`` serves tables (1, rows, channels) of which a part is enough.
        """
        info = self.info(tensor)
        with opened(info.file, "pt") as file:
            if rows is None:
                return file.get_tensor(tensor)  # type: ignore[no-any-return]
            return file.get_slice(tensor)[:, rows]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers layout Stable Diffusion 3.5 checkpoint on disk; the components that are used."""

    folder: Path
    components: Mapping[str, Component] = field(repr=False)

    def component(self, name: str) -> Component:
        """A component by its folder name; raises InputError when the checkpoint lacks it."""
        try:
            return self.components[name]
        except KeyError:
            hint = "; set t5 = false in [text] to go without" if name == "text_encoder_3" else ""
            raise InputError(
                f"{self.folder}: component '{name}' ({COMPONENTS[name]}) is missing{hint}"
            ) from None

    @property
    def has_t5(self) -> bool:
        return "text_encoder_3" in self.components

    def tokenizer_folder(self, name: str) -> Path:
        """``tokenizer``, ``tokenizer_2`` or ``tokenizer_3``; raises InputError when absent."""
        folder = self.folder / name
        if not folder.is_dir():
            raise InputError(f"{self.folder}: folder '{name}' is missing")
        return folder

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that is read of the components, independent of the folder's place.

        That is weights, configurations and tokenizers, and what ``model_index.json`` says of them.
        """
        total = hashlib.sha256(json.dumps(self._declared(), sort_keys=True).encode())
        for name, found in self._digests:
            total.update(f"{name}\0{found.result()}\n".encode())
        return total.hexdigest()

    def begin_digest(self) -> None:
        """Start to read the files for ``digest`` in threads, beside what else is to be done."""
        _ = self._digests

    @cached_property
    def _digests(self) -> list[tuple[str, Future[str]]]:
        files = [
            (file.relative_to(self.folder).as_posix(), file)
            for name, component in sorted(self.components.items())
            for file in (
                component.folder / "config.json",
                *component.files,
                *(tokenizer_sources(self.folder / TOKENIZERS[name]) if name in TOKENIZERS else ()),
            )
        ]
        work = [(functools.partial(file_digest, file), Future[str]()) for _, file in files]
        _begin(work)
        return [(name, digest) for (name, _), (_, digest) in zip(files, work, strict=True)]

    def _declared(self) -> dict[str, Any]:
        index = read_json(self.folder / "model_index.json")
        return {name: index.get(name) for name in ("_class_name", *self.components)}


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
    place: str, components: Sequence[str] = (), revision: str | None = None
) -> Checkpoint:
    """Open a checkpoint folder, or a hub id whose files are fetched into the hub's cache.

    Reads headers and configurations only. Raises InputError for whatever a user can mend.

    Args:
        components: those that are used, which must be there; others are neither opened nor part of
            the digest. Without any: all that are there, and all but T5 must be.
        revision: of a hub id.
    """
    folder = Path(place)
    if not folder.exists():
        folder = from_hub(place, components or tuple(COMPONENTS), revision)
    elif revision is not None:
        raise InputError(f"checkpoint {place}: is a folder; a revision applies to hub ids")
    if not folder.is_dir():
        raise InputError(f"checkpoint {place}: not a folder; name a diffusers layout folder")
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"checkpoint {place}: model_index.json is missing; "
            "name a folder in diffusers layout (StableDiffusion3Pipeline.save_pretrained)"
        )
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "StableDiffusion3Pipeline":
        raise InputError(
            f"{folder / 'model_index.json'}: pipeline class {index.get('_class_name')!r} is not "
            "supported; supported: 'StableDiffusion3Pipeline'"
        )
    needed = components or [name for name in COMPONENTS if name != "text_encoder_3"]
    there = [name for name in components or COMPONENTS if (folder / name).is_dir()]
    checkpoint = Checkpoint(folder, {name: _open_component(folder, name, index) for name in there})
    for name in needed:
        checkpoint.component(name)
    return checkpoint


def _open_component(checkpoint: Path, name: str, index: Mapping[str, Any]) -> Component:
    folder = checkpoint / name
    _check_class(checkpoint / "model_index.json", name, index.get(name))
    config = read_json(folder / "config.json")
    files = _weight_files(folder)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        tensors.update(read_header(file))
    for key, info in tensors.items():
        if info.dtype not in DTYPES and not key.endswith("position_ids"):
            raise InputError(f"{info.file}: tensor '{key}': {known('dtype', info.dtype, DTYPES)}")
    return Component(name, folder, config, tensors, files)


def _check_class(file: Path, name: str, declared: object) -> None:
    """``model_index.json`` names a library and a class for each component, or null for none."""
    if declared is None or declared == [None, None]:
        return
    if not isinstance(declared, list) or len(declared) != 2:
        raise InputError(f"{file}: {name}: a list of library and class is expected")
    if declared[1] != COMPONENTS[name]:
        raise InputError(f"{file}: {name} is a {declared[1]}; supported: {COMPONENTS[name]}")


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors of a component: the shards of an index, or the one file.

    A plain name wins over one with a variant (``model.fp16.safetensors``).
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    variants = sorted(folder.glob("*.safetensors.index.*.json"))
    singles = [f for f in sorted(folder.glob("*.safetensors")) if not SHARD.search(f.name)]
    plain = [f for f in singles if f.name in PLAIN]
    if indices:
        return _shards(indices[0])
    if len(plain) == 1:
        return (plain[0],)
    if len(singles) + len(variants) == 1:
        return (singles[0],) if singles else _shards(variants[0])
    if singles or variants:
        names = ", ".join(f.name for f in (*singles, *variants))
        raise InputError(f"{folder}: several sets of weights: {names}; keep one of them")
    shards = sorted(f.name for f in folder.glob("*.safetensors"))
    if shards:
        raise InputError(
            f"{folder}: {shards[0]} is one of several shards, and their index is missing; copy "
            "the file *.safetensors.index.json too"
        )
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise InputError(
            f"{folder / pickles[0]}: pickled weights can run code and are never opened; "
            "save the checkpoint again with safe_serialization=True"
        )
    raise InputError(f"{folder}: no .safetensors file")


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index lists, which lie beside it."""
    listed = read_json(index).get("weight_map")
    names = list(listed.values()) if isinstance(listed, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{index}: weight_map must be an object of tensors and files")
    shards = sorted(set(names))
    if any(Path(s).name != s for s in shards):
        raise InputError(f"{index}: a shard lies outside its folder")
    missing = [s for s in shards if not (index.parent / s).is_file()]
    if missing:
        raise InputError(f"{index}: shard {missing[0]} is missing")
    return tuple(index.parent / s for s in shards)
