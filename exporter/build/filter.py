"""The user's classifier in a package: looked at, tried, copied, and run on the golden pictures."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from exporter.backends.contract import Backend, Classifier, Filtering, SessionOptions
from exporter.build.golden import Drawing, Pictures
from exporter.drawing.judge import fed, is_rejected, score_of
from exporter.drawing.loop import Session
from exporter.errors import CheckFailed, InputError, tell_memory
from exporter.files.read import file_digest
from exporter.package.manifest import Filter, GraphEntry, Port, Tolerance
from exporter.package.names import FILTER
from exporter.predict.classifier import activation_bytes, run_bytes
from exporter.recipe.filter import FilterChoice
from exporter.runtime.refuse import refuse_classifier

GRAPH_RELATIVE = 1e-2  # of a classifier whose weights and arithmetic are the user's
CHANNELS = 3


@dataclass(frozen=True, eq=False)
class PreparedFilter:
    """A classifier that was tried.

    Attributes:
        classifier: on the disk.
        entry: for the manifest.
        session: runs it, exactly.
        input: its port for pictures.
        output: its port of scores.
        activation_bytes: of its values, most that are alive at once.
        run_bytes: predicted peak of a process that runs it; None where nobody measured the engine.
    """

    classifier: Classifier
    entry: Filter
    session: Session
    input: Port
    output: Port
    activation_bytes: int
    run_bytes: int | None

    @property
    def sha256(self) -> dict[str, str]:
        """Of its files, by their names in a package."""
        return {name: file_digest(file) for name, file in self._named().items()}

    def write(self, folder: Path, least_psnr_db: float) -> tuple[GraphEntry, list[Path]]:
        """Copy it into a package's folder; its entry for the manifest, without digests, and files.

        Args:
            least_psnr_db: what the other graphs ask of pictures, which this one does not change.
        """
        place = folder / "graphs" / FILTER
        copied = []
        for name, file in self._named().items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            copied.append(Path(shutil.copyfile(file, place / name)))
        graph = GraphEntry(
            name=FILTER,
            entry=f"graphs/{FILTER}/{FILTER}{self.classifier.entry.suffix}",
            inputs=(self.input,),
            outputs=(self.output,),
            files=(),
            formats={},
            adjusted=(),
            activation_bytes=self.activation_bytes,
            run_bytes=self.run_bytes,
            tolerance=Tolerance(GRAPH_RELATIVE, least_psnr_db),
            session=dict(self.classifier.settings),
        )
        return graph, copied

    def judged(self, pictures: Pictures) -> Pictures:
        """The golden pictures with the classifier's call on each quantized one.

        Raises InputError for one that it rejects: there would be nothing to compare with.
        """
        return replace(pictures, quantized=[self._judged(d) for d in pictures.quantized])

    def _judged(self, drawing: Drawing) -> Drawing:
        inputs = {self.input.name: fed(drawing.image.pixels, self.entry)}
        scores = np.asarray(self.session(inputs)[self.output.name], np.float32)
        score = score_of(scores, self.entry)
        if is_rejected(score, self.entry):
            raise InputError(
                f"[filter] rejects the golden picture {drawing.image.request.prompt!r} (score "
                f"{score:.3g}); choose other prompts in [golden], or another threshold"
            )
        call = (FILTER, inputs, {self.output.name: scores})
        return replace(drawing, calls=(*drawing.calls, call))

    def _named(self) -> dict[str, Path]:
        """Its files by their names below ``graphs/filter``: the entry is called ``filter``."""
        entry = self.classifier.entry
        own = f"{FILTER}{entry.suffix}"
        if entry.is_dir():
            return {f"{own}/{f.relative_to(entry).as_posix()}": f for f in self.classifier.files}
        beside = {entry.with_suffix(".bin"): f"{FILTER}.bin"} if entry.suffix == ".xml" else {}
        return {beside.get(f, own if f == entry else f.name): f for f in self.classifier.files}


def prepared(
    choice: FilterChoice, backend: Backend, most_file_bytes: int | None = None
) -> PreparedFilter:
    """A recipe's classifier for a backend, run once on a black picture.

    Args:
        most_file_bytes: of each of its files; None: any.

    Raises InputError that names the file for what is no classifier of pictures, and the key of
    ``[filter]`` for what does not go with it.
    """
    place = choice.graph(backend.name)
    assert isinstance(backend, Filtering)
    try:
        classifier = backend.read_classifier(place)
        _refuse_too_large(classifier, most_file_bytes)
        refuse_classifier(backend, classifier)
        entry, name = _entry(choice, classifier)
        session = backend.open_graph(
            classifier.entry, classifier.settings, SessionOptions("float32")
        )
        black = {name: np.zeros(entry.shape, np.float32)}
        output, values = _tried(session, black, choice, place)
    except CheckFailed as error:
        raise InputError(f"[filter] graph: {error}") from None
    if choice.index >= values.size:
        raise InputError(f"[filter] index = {choice.index}: {place} gives {values.size} values")
    shape = tuple(values.shape) or (1,)
    operators = backend.operators_of(classifier, entry.shape)
    input_bytes = black[name].nbytes
    file_bytes = sum(file.stat().st_size for file in classifier.files)
    costs = backend.costs
    return PreparedFilter(
        classifier, entry, session, Port(name, entry.shape), Port(output, shape),
        activation_bytes(operators, input_bytes),
        run_bytes(operators, file_bytes, input_bytes, costs) if costs else None,
    )  # fmt: skip


def _refuse_too_large(classifier: Classifier, most_file_bytes: int | None) -> None:
    for file in classifier.files:
        size = file.stat().st_size
        if most_file_bytes is not None and size > most_file_bytes:
            raise InputError(
                f"[filter] graph: {file} has {size:,} bytes, and most_file_bytes in [build] is "
                f"{most_file_bytes:,}"
            )


def _entry(choice: FilterChoice, classifier: Classifier) -> tuple[Filter, str]:
    """What the manifest says of a filter, and the name of the classifier's input."""
    place = classifier.entry
    if len(classifier.inputs) != 1:
        names = ", ".join(classifier.inputs) or "none"
        raise InputError(f"[filter] graph: {place} has inputs {names}; one, of a picture, is fed")
    ((name, shape),) = classifier.inputs.items()
    said = "x".join("?" if size is None else str(size) for size in shape)
    if len(shape) != 4 or shape[0] not in (None, 1):
        raise InputError(f"[filter] graph: {place}: its input is {said}; one picture has 4 axes")
    layout = choice.layout or ("NCHW" if shape[1] == CHANNELS else "NHWC")
    channel, rows, columns = (1, 2, 3) if layout == "NCHW" else (3, 1, 2)
    if shape[channel] not in (None, CHANNELS):
        raise InputError(f"[filter] layout = '{layout}': the input of {place} is {said}")
    height = _size("height_px", choice.height_px, shape[rows], place)
    width = _size("width_px", choice.width_px, shape[columns], place)
    entry = Filter(
        choice.threshold, choice.reject, choice.index, choice.activation, choice.label, width,
        height, layout, choice.channels, choice.resample, choice.range, choice.mean, choice.std,
    )  # fmt: skip
    return entry, name


def _size(key: str, given: int | None, own: int | None, place: Path) -> int:
    """A side of the input: the graph's own, or the recipe's where that is free."""
    if own is not None and given not in (None, own):
        raise InputError(f"[filter] {key} = {given}: {place} takes {own}")
    found = own if own is not None else given
    if found is None:
        raise InputError(f"[filter] {key} is missing: {place} takes any")
    return found


def _tried(
    session: Session, inputs: dict[str, np.ndarray], choice: FilterChoice, place: Path
) -> tuple[str, np.ndarray]:
    """The name and the values of the output that holds the scores."""
    try:
        outputs = session(inputs)
    except CheckFailed:
        raise
    except Exception as error:  # of engines, as they raise it
        tell_memory(error)
        reason = " ".join(str(error).split())
        raise InputError(f"[filter] graph: {place} cannot be run: {reason}") from None
    names = ", ".join(outputs)
    if choice.output is None and len(outputs) != 1:
        raise InputError(f"[filter] output is missing: {place} gives {names}")
    name = choice.output or next(iter(outputs))
    if name not in outputs:
        raise InputError(f"[filter] output = '{name}': {place} gives {names}")
    values = np.asarray(outputs[name])
    if values.dtype.kind != "f":
        raise InputError(f"[filter] output: '{name}' of {place} is {values.dtype}, no float")
    if not math.prod(values.shape):
        raise InputError(f"[filter] output: '{name}' of {place} is empty")
    return name, values
