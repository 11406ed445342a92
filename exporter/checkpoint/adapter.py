"""How strong an adapter is: PEFT's ``adapter_config.json``, or the same in a file's header."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.component import COMPONENTS
from exporter.errors import InputError, known
from exporter.files.read import parse_json, read_json
from exporter.files.tensors import read_metadata

CONFIG = "adapter_config.json"
HEADER = "lora_adapter_metadata"  # under which diffusers keeps the settings in the file itself
KINDS = ("LORA", "LOHA", "LOKR")
# Settings under which the file is not what has to be added to the checkpoint as it is.
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
NOT_MERGED = (
    *("use_qalora", "layer_replication", "alora_invocation_tokens", "trainable_token_indices"),
    *("use_bdlora", "arrow_config", "target_parameters", "kasa_config", "monteclora_config"),
    "modules_to_save",
)


@dataclass(frozen=True)
class Settings:
    """How strong an adapter is.

    Attributes:
        where: they are written, for errors.
        rank, alpha: of layers that no pattern names; None: not said.
        rank_pattern, alpha_pattern: of layers whose names end so; regular expressions, as in PEFT.
        rslora: alpha is divided by the root of the rank.
        dora: every layer has a magnitude.
    """

    where: str
    rank: int | None = None
    alpha: float | None = None
    rank_pattern: Mapping[str, float] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    rslora: bool = False
    dora: bool = False

    def scale(self, layer: str, rank: int | None) -> float:
        """Alpha / rank of a layer, whose tensors have a rank; raises InputError if it is another.

        Layers whose factors have none are divided by the rank that was asked for.
        """
        asked = self._said(self.rank_pattern, layer, self.rank)
        if rank is not None and asked is not None and asked != rank:
            raise InputError(
                f"{self.where}: rank {asked:g} of '{layer}', and its tensors have {rank}"
            )
        alpha, divisor = self._said(self.alpha_pattern, layer, self.alpha), asked or rank
        if alpha is None or divisor is None:
            return 1.0
        return alpha / (math.sqrt(divisor) if self.rslora else divisor)

    def _said(
        self, patterns: Mapping[str, float] | None, layer: str, default: float | None
    ) -> float | None:
        for pattern, value in (patterns or {}).items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", layer):
                    return value
            except re.error as error:
                raise InputError(f"{self.where}: pattern {pattern!r}: {error}") from None
        return default


def settings_of_file(file: Path) -> dict[str, Settings]:
    """What is said of the layers of each component, by its name; raises InputError.

    ``adapter_config.json`` counts beside ``adapter_model.safetensors``, as PEFT saves them.
    """
    beside = file.with_name(CONFIG)
    if file.name == "adapter_model.safetensors" and beside.is_file():
        settings = settings_of(read_json(beside), str(beside))
        return dict.fromkeys(COMPONENTS, settings)
    text = read_metadata(file).get(HEADER)
    if not text:
        return {}
    where = f"{file}: {HEADER}"
    raw = parse_json(text, where)
    if not isinstance(raw, dict):
        raise InputError(f"{where}: a JSON object is expected")
    found = {}
    for name in COMPONENTS:
        own = {k.removeprefix(f"{name}."): v for k, v in raw.items() if k.startswith(f"{name}.")}
        if own:
            found[name] = settings_of(own, where)
    return found or dict.fromkeys(COMPONENTS, settings_of(raw, where))


def settings_of(raw: Mapping[str, Any], where: str) -> Settings:
    """Settings from parsed JSON; raises InputError for a kind of adapter that is not merged."""
    kind = raw.get("peft_type") or "LORA"
    if kind not in KINDS:
        raise InputError(f"{where}: {known('peft_type', kind, KINDS)}")
    first = raw.get("init_lora_weights")
    if isinstance(first, str) and first.startswith(CHANGED_BASES):
        raise InputError(
            f"{where}: init_lora_weights = {first!r} changes the base model too; convert it to a "
            "plain LoRA first (PEFT: path_initial_model_for_weight_conversion)"
        )
    asked = [key for key in NOT_MERGED if raw.get(key)]
    if asked:
        raise InputError(f"{where}: {asked[0]} = {raw[asked[0]]!r} is not merged")
    alpha = "lora_alpha" if "lora_alpha" in raw else "alpha"
    rank = _number(raw, "r", where)
    return Settings(
        where,
        None if rank is None else int(rank),
        _number(raw, alpha, where),
        _numbers(raw, "rank_pattern", where),
        _numbers(raw, "alpha_pattern", where),
        raw.get("use_rslora") is True,
        raw.get("use_dora") is True,
    )


def _number(raw: Mapping[str, Any], key: str, where: str) -> float | None:
    value = raw.get(key)
    if value is not None and (type(value) not in (int, float) or not value):
        raise InputError(f"{where}: {key} = {value!r}: a number but 0 is expected")
    return None if value is None else float(value)


def _numbers(raw: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: {key}: an object of names and numbers is expected")
    return {name: float(_number(value, name, f"{where}: {key}") or 0) for name in value}
