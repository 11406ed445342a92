"""Stop 1, checkpoint: a diffusers folder opened by memory map, one tensor at a time.

Only safetensors are read. A pickle can run code when it is loaded, so ``.bin``, ``.pt``, ``.pth``,
``.ckpt`` and ``.pkl`` files are refused by name and never opened.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from exporter.checkpoint.hub import from_hub
from exporter.errors import InputError, known
from exporter.files.read import file_digest, read_json

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
READ_AT_ONCE = 2  # files, for the digest
COMPONENTS = {
    "transformer": "SD3Transformer2DModel",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
    "vae": "AutoencoderKL",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one stored tensor lies: file, shape and dtype (``F32``, ``F16`` or ``BF16``)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Component:
    """One folder of a checkpoint: its ``config.json`` and an index of its tensors."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of ``config.json``; without a default the key must be there."""
        if key in self.config:
            return self.config[key]
        if default is None:
            raise InputError(f"{self.folder / 'config.json'}: key '{key}' is missing")
        return default

    def require(self, key: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
        """A value of ``config.json`` that must be one of those the graphs can express."""
        value = self.config.get(key, default)
        if value not in allowed:
            raise InputError(
                f"{self.folder / 'config.json'}: {key} = {value!r} is not supported; "
                f"supported: {', '.join(repr(a) for a in allowed)}"
            )
        return value

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
        with safe_open(info.file, framework="pt") as file:
            if rows is None:
                return file.get_tensor(tensor)  # type: ignore[no-any-return]
            return file.get_slice(tensor)[:, rows]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers layout Stable Diffusion 3.5 checkpoint on disk."""

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
        """SHA-256 over the weights and configurations, independent of the folder's place."""
        total = hashlib.sha256()
        for name, found in self._digests:
            total.update(f"{name}\0{found.result()}\n".encode())
        return total.hexdigest()

    def begin_digest(self) -> None:
        """Start to read the files for ``digest`` in threads, beside what else is to be done."""
        _ = self._digests

    @cached_property
    def _digests(self) -> list[tuple[str, Future[str]]]:
        files = [
            (f"{name}/{file.name}", file)
            for name, component in sorted(self.components.items())
            for file in (component.folder / "config.json", *component.files)
        ]
        work = [(functools.partial(file_digest, file), Future[str]()) for _, file in files]
        _begin(work)
        return [(name, digest) for (name, _), (_, digest) in zip(files, work, strict=True)]


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


def open_checkpoint(place: str) -> Checkpoint:
    """Open a checkpoint folder, or a hub id whose files are fetched into the hub's cache.

    Reads headers and configurations only. Raises InputError for whatever a user can mend.
    """
    folder = Path(place)
    if not folder.exists():
        folder = from_hub(place)
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
    parts = {
        name: _open_component(folder / name, name, index)
        for name in COMPONENTS
        if (folder / name).is_dir()
    }
    checkpoint = Checkpoint(folder, parts)
    for name in COMPONENTS:
        if name != "text_encoder_3":
            checkpoint.component(name)
    return checkpoint


def _open_component(folder: Path, name: str, index: Mapping[str, Any]) -> Component:
    config = read_json(folder / "config.json")
    declared = index.get(name) or [None, COMPONENTS[name]]
    if declared[1] != COMPONENTS[name]:
        raise InputError(
            f"{folder.parent / 'model_index.json'}: {name} is a {declared[1]}; "
            f"supported: {COMPONENTS[name]}"
        )
    files = _weight_files(folder)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        tensors.update(_read_header(file))
    return Component(name, folder, config, tensors, files)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors of a component: the shards of an index, or the one file."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [s for s in shards if not (folder / s).is_file()]
        if missing or not shards:
            raise InputError(f"{index}: shard {missing[0] if missing else '(none)'} is missing")
        if any(Path(s).name != s for s in shards):
            raise InputError(f"{index}: a shard lies outside its folder")
        return tuple(folder / s for s in shards)
    singles = sorted(folder.glob("*.safetensors"))
    preferred = ("diffusion_pytorch_model.safetensors", "model.safetensors")
    chosen = [f for f in singles if f.name in preferred] or singles
    if len(chosen) == 1:
        return (chosen[0],)
    if len(chosen) > 1:
        names = ", ".join(f.name for f in chosen)
        raise InputError(f"{folder}: several weight files and no index: {names}; keep one")
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise InputError(
            f"{folder / pickles[0]}: pickled weights can run code and are never opened; "
            "save the checkpoint again with safe_serialization=True"
        )
    raise InputError(f"{folder}: no .safetensors file")


def _read_header(file: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            infos = {
                key: TensorInfo(file, tuple(part.get_shape()), part.get_dtype())
                for key, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a whole safetensors file ({error}); copy it again") from None
    for key, info in infos.items():
        if info.dtype not in DTYPES and "position_ids" not in key:
            raise InputError(f"{file}: tensor '{key}': {known('dtype', info.dtype, DTYPES)}")
    return infos
