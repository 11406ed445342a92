"""Which files of a component's folder are its weights: by their names, as diffusers gives them.

A set of weights is one file or several shards with an index, in the plain form or in a variant::

    model.safetensors                         model.fp16.safetensors
    model.safetensors.index.json              model.safetensors.index.fp16.json
    model-00001-of-00002.safetensors          model.fp16-00001-of-00002.safetensors

A folder on disk and the list of files that a hub gives are read alike. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exporter.errors import InputError, known

PLAIN = ""  # the variant of weights that are none
STEMS = ("diffusion_pytorch_model", "model")
# Older versions of diffusers wrote a variant's name in other places; both are read.
SHARD = re.compile(
    r"(?P<stem>[^.]+?)(?:\.(?P<variant>.+?))?-(?P<part>\d{5})-of-(?P<parts>\d{5})"
    r"(?:\.(?P<legacy>.+))?\.safetensors"
)
INDEX = re.compile(
    r"(?P<stem>[^.]+)\.safetensors(?:\.(?P<legacy>.+))?\.index(?:\.(?P<variant>.+))?\.json"
)
SINGLE = re.compile(r"(?P<stem>[^.]+)(?:\.(?P<variant>.+))?\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class WeightSet:
    """One set of weights of a component.

    Attributes:
        stem: ``model`` or ``diffusion_pytorch_model``, or whatever somebody called it.
        variant: such as ``fp16``; ``PLAIN`` for none.
        first: the one file, or the index.
        shards: the files that go with an index, by their names; none for one file.
    """

    stem: str
    variant: str
    first: str
    shards: tuple[str, ...] = ()

    @property
    def is_sharded(self) -> bool:
        return self.first.endswith(".json")

    @property
    def files(self) -> tuple[str, ...]:
        return (self.first, *self.shards)


def weight_sets(names: Iterable[str]) -> list[WeightSet]:
    """The sets of weights among the files of a folder; an index before the file of its stem."""
    sets: dict[tuple[str, str], WeightSet] = {}
    listed = sorted(names)
    shards: dict[tuple[str, str], list[str]] = {}
    for name in listed:
        if found := SHARD.fullmatch(name):
            key = (found["stem"], found["variant"] or found["legacy"] or PLAIN)
            shards.setdefault(key, []).append(name)
    for name in listed:
        if found := INDEX.fullmatch(name):
            key = (found["stem"], found["variant"] or found["legacy"] or PLAIN)
            sets[key] = WeightSet(*key, name, tuple(shards.get(key, ())))
    for name in listed:
        if not SHARD.fullmatch(name) and (found := SINGLE.fullmatch(name)):
            key = (found["stem"], found["variant"] or PLAIN)
            sets.setdefault(key, WeightSet(*key, name))
    return list(sets.values())


def choose(names: Sequence[str], variant: str | None, where: object) -> WeightSet:
    """The set of weights that is meant; raises InputError when none is, or none can be told.

    Args:
        names: of the files of the component's folder.
        variant: that is asked for; where the folder has it not, the plain set is, as in diffusers.
            None: the plain set, else the only one.
        where: the folder, for errors.
    """
    sets = weight_sets(names)
    asked = [found for found in sets if variant and found.variant == variant]
    plain = [found for found in sets if found.variant == PLAIN]
    if asked:
        return _only(asked, where)
    if variant and sets and not plain:
        have = sorted({found.variant for found in sets})
        raise InputError(f"{where}: {known('variant', variant, have)}; set it in [model] variant")
    usual = [found for found in plain if found.is_sharded or found.stem in STEMS]
    if usual:
        return _only([s for s in usual if s.is_sharded] or usual, where)
    if len(sets) > 1 and not plain:
        return _only_variant(sets, where)
    if sets:
        return _only(sets, where)
    raise _none(names, where)


def _only(sets: Sequence[WeightSet], where: object) -> WeightSet:
    if len(sets) == 1:
        return sets[0]
    names = ", ".join(found.first for found in sets)
    raise InputError(f"{where}: several sets of weights: {names}; keep one of them")


def _only_variant(sets: Sequence[WeightSet], where: object) -> WeightSet:
    variants = sorted({found.variant for found in sets})
    if len(variants) == 1:
        return _only(sets, where)
    raise InputError(
        f"{where}: the weights are there in the variants {', '.join(variants)}; say which is meant "
        f'in the recipe: [model] variant = "{variants[0]}"'
    )


def _none(names: Iterable[str], where: object) -> InputError:
    """Why there are no weights in a folder of these files."""
    shards = sorted(name for name in names if SHARD.fullmatch(name))
    if shards:
        return InputError(
            f"{where}: {shards[0]} is one of several shards, and their index is missing; copy "
            "the file *.safetensors.index.json too"
        )
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        return InputError(
            f"{where}/{pickles[0]}: pickled weights can run code and are never opened; "
            "save the checkpoint again with safe_serialization=True"
        )
    return InputError(f"{where}: no .safetensors file")
