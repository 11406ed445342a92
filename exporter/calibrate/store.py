"""Statistics of a model's own trajectories, kept in a folder so that they can be used again.

The folder has a folder for each provenance: an index, a safetensors file for every distinct layer
input and one for the scalings. The index says what they were measured on; a build with another
checkpoint, cut or prompts measures anew, beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from exporter.calibrate.equalize import Scaling, equalize, load_scalings, save_scalings
from exporter.calibrate.inputs import gather
from exporter.calibrate.layer_inputs import LayerInputs
from exporter.calibrate.trajectories import Inputs
from exporter.checkpoint.open import Checkpoint
from exporter.errors import InputError
from exporter.files.lock import locked
from exporter.files.read import convert, file_digest, parse_json, read_json, read_text
from exporter.files.staging import remove, staging
from exporter.files.tensors import opened
from exporter.network.cut import Cut, Ends
from exporter.package.manifest import Schedule
from exporter.program.program import Program, Stored

FORMAT_VERSION = 1
INDEX = "index.json"
SCALINGS = "scalings.safetensors"
REMEDY = "choose another folder for statistics"
REMEASURE = "delete the folder, and the next build measures anew"
Place = tuple[str, str]  # component and name of a stored tensor


@dataclass(frozen=True)
class Provenance:
    """What statistics were gathered from; they fit another build only if all of it is the same."""

    checkpoint_sha256: str
    cut_sha256: str
    prompts_sha256: str
    prompts: int
    seed: int
    graphs: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name of its folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def covers(self, other: Provenance) -> bool:
        """Whether these statistics hold all that ``other`` asks for."""
        return replace(self, graphs=()) == replace(other, graphs=()) and {*other.graphs} <= {
            *self.graphs
        }


@dataclass(frozen=True)
class _Index:
    """The file ``INDEX``; layers are component, weight and file."""

    format_version: int
    provenance: Provenance
    layers: tuple[tuple[str, str, str], ...]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Calibration:
    """A folder of layer inputs, read as they are asked for, and the scalings chosen from them.

    Attributes:
        files: by component and weight, the file that holds its layer's inputs.
        scalings: by component and tensor (``exporter.calibrate.equalize``).
        sha256: digest of the index, which names every file's digest.
        digests: of the files, by name.
    """

    folder: Path
    provenance: Provenance
    files: Mapping[Place, str]
    scalings: Mapping[Place, Scaling]
    sha256: str
    digests: Mapping[str, str] = field(default_factory=dict)

    def layer_sha256(self, source: Stored) -> str | None:
        """The digest of what ``layer`` reads, or None when it was not measured."""
        return self.digests.get(self.files.get((source.component, source.name), ""))

    def layer(self, source: Stored) -> LayerInputs | None:
        """The inputs of a linear layer by its weight, or None when they were not measured."""
        name = self.files.get((source.component, source.name))
        if name is None:
            return None
        with opened(self.folder / name, "pt", remedy=REMEASURE) as found:
            mean, covariance, tokens = map(found.get_tensor, ("mean", "covariance", "tokens"))
            return LayerInputs(mean, covariance, int(tokens))

    def scaling(self, source: Stored) -> Scaling | None:
        """How a tensor is scaled against its neighbours, or None when it is left as it is."""
        return self.scalings.get((source.component, source.name))


def provenance_of(
    checkpoint: Checkpoint,
    cut: Cut,
    schedule: Schedule,
    prompts: Sequence[str],
    seed: int,
    graphs: Sequence[str],
) -> Provenance:
    """What statistics of these graphs would be measured on."""
    shape = asdict(cut)
    del shape["fixed_negative"]  # guidance says it
    if cut.ends == Ends():
        del shape["ends"]  # statistics from before there were others stay what they are
    decisive: list[object] = [shape, schedule.mode]
    if schedule.guidance is not None:
        decisive.append(asdict(schedule.guidance))
    shapes = json.dumps(decisive, sort_keys=True)
    return Provenance(
        checkpoint.digest,
        hashlib.sha256(shapes.encode()).hexdigest(),
        hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        len(prompts),
        seed,
        tuple(graphs),
    )


def lines_to_measure(graphs: Sequence[str]) -> int:
    """How many lines of progress ``write_statistics`` shows."""
    return len(graphs) + 1


def write_statistics(
    folder: Path,
    provenance: Provenance,
    programs: Mapping[str, Program],
    read: Callable[[object], Tensor],
    calls: Mapping[str, Sequence[Inputs]],
    progress: Callable[[str], None],
) -> None:
    """Measure the inputs of every layer of the provenance's graphs, and choose scalings.

    Args:
        folder: where the statistics go; exists, and is empty.
        programs: unquantized, by graph.
        calls: inputs of every call of each graph on the trajectories.
    """
    files: dict[Place, str] = {}
    digests: dict[str, str] = {}

    def keep(weights: Sequence[Stored], inputs: LayerInputs) -> None:
        name = f"{len(digests):04}.safetensors"
        digests[name] = _write_inputs(folder / name, inputs)
        files.update({(weight.component, weight.name): name for weight in weights})

    for graph in provenance.graphs:
        progress(f"calibrate {graph}")
        gather(programs[graph], read, calls[graph], keep)
    measured = Calibration(folder, provenance, files, {}, "")
    progress("equalize channels")
    save_scalings(equalize(programs, read, measured.layer), folder / SCALINGS)
    digests[SCALINGS] = file_digest(folder / SCALINGS)
    index = {
        "format_version": FORMAT_VERSION,
        "provenance": asdict(provenance),
        "layers": [[component, weight, name] for (component, weight), name in files.items()],
        "sha256": digests,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8", newline="\n")


def _write_inputs(file: Path, inputs: LayerInputs) -> str:
    """Write what a layer met; returns the file's digest."""
    tensors = {
        "mean": inputs.mean.contiguous(),
        "covariance": inputs.covariance.contiguous(),
        "tokens": torch.tensor(inputs.tokens),
    }
    content = save(tensors)
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def open_statistics(folder: Path) -> Calibration:
    """Open a folder of statistics; raises InputError when it is not one, or is damaged."""

    def damaged(said: str) -> InputError:
        return InputError(f"{folder}: not a folder of statistics ({said}); {REMEASURE}")

    text = read_text(folder / INDEX, damaged)
    index = convert(parse_json(text, folder / INDEX, damaged), _Index, folder / INDEX, damaged)
    if index.format_version != FORMAT_VERSION:
        raise InputError(
            f"{folder}: statistics of format {index.format_version}, this fourstep reads "
            f"{FORMAT_VERSION}; {REMEASURE}"
        )
    for name in (SCALINGS, *(file for _, _, file in index.layers)):
        if name not in index.sha256:
            raise damaged(f"{folder / INDEX}: '{name}' has no digest")
    there = {f.name for f in folder.iterdir() if f.is_file()}
    for name, digest in index.sha256.items():
        if name not in there:
            raise damaged(f"{name:.80}: No such file")
        if file_digest(folder / name) != digest:
            raise InputError(f"{folder / name}: is damaged; {REMEASURE}")
    return Calibration(
        folder,
        index.provenance,
        {(component, weight): name for component, weight, name in index.layers},
        load_scalings(folder / SCALINGS),
        hashlib.sha256(text.encode()).hexdigest(),
        index.sha256,
    )


def kept(folder: Path, provenance: Provenance) -> Calibration | None:
    """The statistics in ``folder`` that cover a provenance, if there are any.

    Raises InputError when they are damaged. Those of another provenance are not looked into.
    """
    for place in _places(folder):
        if place.name == provenance.key or _covers(place, provenance):
            return open_statistics(place)
    return None


def _places(folder: Path) -> list[Path]:
    """The folders with an index; the first may be ``folder`` itself, as earlier versions wrote."""
    return [
        place.parent for pattern in (INDEX, f"*/{INDEX}") for place in sorted(folder.glob(pattern))
    ]


def _covers(place: Path, provenance: Provenance) -> bool:
    try:
        found = convert(read_json(place / INDEX).get("provenance"), Provenance, place / INDEX)
    except InputError:
        return False
    return found.covers(provenance)


def obtain(
    folder: Path,
    provenance: Provenance,
    measure: Callable[[Path], None],
    say: Callable[[str], None],
) -> Calibration:
    """The statistics in ``folder``, if they are of the same provenance; else measured into it.

    Two that measure take turns: the second waits, says for whom to ``say``, and finds them there.

    Raises InputError for a folder that holds anything else, which is left as it is.
    """
    known = kept(folder, provenance)
    if known is not None:
        return known
    if folder.exists() and not _is_ours(folder):
        raise InputError(f"{folder}: is there and holds no statistics; {REMEDY}")
    with locked(folder, say, REMEDY):
        known = kept(folder, provenance)
        if known is None:
            for left in folder.glob(".*.partial"):  # by a kill
                remove(left)
            with staging(folder / provenance.key, REMEDY) as partial:
                measure(partial)
            known = open_statistics(folder / provenance.key)
    return known


def _is_ours(folder: Path) -> bool:
    """Whether a folder is empty, but for what a kill has left, or has statistics."""
    if not folder.is_dir():
        return False
    return bool(_places(folder)) or all(f.name.startswith(".") for f in folder.iterdir())
