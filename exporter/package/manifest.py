"""What a package says of itself: ``manifest.json`` as frozen data. No torch, no vendor library.

Everything that a runtime in any language has to know is here, so that it knows nothing by heart:
which graphs run when and what each input is, tokenizers, noise, schedule, pixels. The JSON Schema
(``manifest.schema.json``) and the tables of ``docs/package-format.md`` are made from these records.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from exporter.package.paths import OptionalPath, RelativePath

FORMAT_VERSION = "4.4"  # the latest that is read; a package says the first that has its fields
FIRST_VERSION = "4.0"
SINCE_4_1 = {"since": "4.1"}  # a field that is written where it says something
SINCE_4_2 = {"since": "4.2"}
SINCE_4_3 = {"since": "4.3"}
SINCE_4_4 = {"since": "4.4"}
# A setting that names the file which a graph's entry says the differences from. Readers of 4.2 open
# the entry and find no graph in it.
BASE, BASE_SINCE = "base", "4.3"
MOST = 2**53 - 1  # what every language's numbers hold
MOST_PX = 1 << 14
MOST_STEPS = 1000
MOST_GUIDANCE = 100

Count = Annotated[int, Meta(ge=0, le=MOST)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Id = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Meta(gt=0)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
OptionalDigest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)", max_length=100)]

# Characters that mean nothing in the languages that projects show it in: HTML, XML, Swift.
Line = Annotated[str, Meta(pattern=r"^[A-Za-z0-9 .,;:()/+©-]*$(?!\n)", max_length=1000)]

Runs = Literal[
    "once per prompt", "each step", "twice each step", "once", "for previews", "for the filter"
]
SourceKind = Literal["tokens", "output", "negative output", "latent", "image", "picture"]
Mode = Literal["euler", "renoise"]
Result = Literal["velocity", "start", "image", "preview", "scores"]


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: as the graph knows it.
        shape: sizes of the axes, all fixed.
        dtype: of its values.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: Literal["float32", "int32"] = "float32"


@dataclass(frozen=True)
class FileEntry:
    """A file of the package.

    Attributes:
        path: from the package's folder, with ``/`` between names, inside the folder.
        bytes: its size.
        sha256: its digest.
    """

    path: RelativePath
    bytes: Count
    sha256: Digest


@dataclass(frozen=True)
class Adjusted:
    """A weight whose format had to differ from the scheme's, and how.

    Attributes:
        weight: its name.
        asked: the format that the scheme gives it.
        used: the format that it has.
    """

    weight: str
    asked: str
    used: str


@dataclass(frozen=True)
class Tolerance:
    """How far a graph may be from its golden outputs.

    Attributes:
        graph_relative: relative L2 error of an output.
        image_psnr_db: PSNR of a picture drawn with it against the golden one.
    """

    graph_relative: Positive
    image_psnr_db: Positive


@dataclass(frozen=True)
class ContextEntry:
    """A graph compiled ahead of time for one chip, by Qualcomm's compiler.

    Attributes:
        soc: the chip, as recipes name it.
        soc_model: Qualcomm's number of it.
        htp_arch: of its NPU: 73 is v73.
        qairt: the version of the compiler; a device's libraries have to be as new.
        entry: an ONNX file of one operator, EPContext, that names the binary beside it.
        files: the paths of both, which are among ``files`` of the manifest or of its graph.
        shared: whether the binary is that of several sizes, which share the weights in it. What
            emulates an NPU opens none of these.
    """

    soc: Name
    soc_model: Size
    htp_arch: Size
    qairt: Annotated[str, Meta(pattern=r"^[0-9]{1,4}(\.[0-9]{1,6}){1,3}$(?!\n)")]
    entry: RelativePath
    files: tuple[RelativePath, ...]
    shared: bool = field(default=False, metadata=SINCE_4_4)


@dataclass(frozen=True)
class NpuEntry:
    """What a graph is on an NPU, which takes it whole.

    Attributes:
        tolerance: what ``verify`` allows it there.
        contexts: what was compiled of it, at most once for a chip.
        alone: whether contexts stand in the graph's place: its entry and its files are then those
            of the first of them, and the processor cannot run it.
    """

    tolerance: Tolerance
    contexts: tuple[ContextEntry, ...] = ()
    alone: bool = field(default=False, metadata=SINCE_4_4)


@dataclass(frozen=True)
class GraphEntry:
    """One graph of the package.

    Attributes:
        name: of the graph, or of a part of one.
        entry: the file or folder that an engine opens.
        inputs: what it takes, in order.
        outputs: what it gives, in order.
        files: every file of the graph.
        formats: how many weight values are stored in each format.
        adjusted: weights whose width the scheme's group does not divide.
        activation_bytes: most bytes of activations alive at once, predicted.
        run_bytes: peak anonymous memory of a process that runs it, predicted; None: not measured.
        tolerance: what ``verify`` allows it.
        session: what the backend wants to be told when it opens the graph, in the project's words.
        remarks: what whoever ships the graph should know of it.
        npu: what it is on an NPU; null: it runs on the processor alone.
    """

    name: Name
    entry: RelativePath
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: tuple[FileEntry, ...]
    formats: dict[str, Count]
    adjusted: tuple[Adjusted, ...]
    activation_bytes: Count
    run_bytes: Count | None
    tolerance: Tolerance
    session: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    npu: NpuEntry | None = field(default=None, metadata=SINCE_4_3)

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)


@dataclass(frozen=True)
class Source:
    """Where an input of a graph comes from.

    Attributes:
        kind: ``tokens``: the prompt's ids by the tokenizer ``name``; ``output``: what the graph
            ``name`` gave at ``port`` for the prompt; ``negative output``: what it gave there for
            the negative prompt; ``latent``: the latent as it is now; ``image``: the picture to
            start from; ``picture``: the finished picture, as ``Filter`` says.
        name: of a tokenizer or a graph; else empty.
        port: of that graph; else empty.
        row_of_step: of an output take row k of the first axis at step k, counted from 0, and keep
            the axis with size 1.
    """

    kind: SourceKind
    name: str = ""
    port: str = ""
    row_of_step: bool = False


@dataclass(frozen=True)
class Stage:
    """One graph's turn in the loop.

    Stages run in the order in which they are listed. What runs ``once`` runs for each picture:
    before its first step when it is listed before the stages of ``each step``, else after its last.

    Attributes:
        graph: its name.
        parts: names of the entries of ``graphs`` that it is cut into, in order: itself, unless it
            is cut. The first takes the inputs; each other takes the outputs of the one before by
            their names; the last gives the outputs.
        runs: when. ``twice each step``: once with ``inputs`` and once with ``negative_inputs``, for
            the two velocities of ``Guidance``. ``for the filter``: on every finished picture,
            before it is handed out.
        inputs: the source of each input port.
        results: output ports that the loop itself takes: ``velocity`` for the schedule's step,
            ``start`` as the latent of a picture to start from, ``image`` as the picture,
            ``preview`` as what a latent between steps would be, ``scores`` for the filter.
        image_to_image_only: whether it runs only for requests that start from a picture.
        negative_inputs: the source of each input port in the second call; empty without guidance.
    """

    graph: Name
    parts: tuple[Name, ...]
    runs: Runs
    inputs: dict[str, Source]
    results: dict[str, Result] = field(default_factory=dict)
    image_to_image_only: bool = False
    negative_inputs: dict[str, Source] = field(default_factory=dict, metadata=SINCE_4_1)

    @property
    def in_steps(self) -> bool:
        """Whether it runs in every step."""
        return self.runs in ("each step", "twice each step")

    @property
    def sources(self) -> tuple[Source, ...]:
        """Of all its calls."""
        return (*self.inputs.values(), *self.negative_inputs.values())


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: every step is taken away from what a negative prompt asks for.

    With the velocities v of the prompt and n of the negative prompt, the step's velocity is
    n + scale * (v - n): in float32, the difference first, then the product, then the sum.

    Attributes:
        scale: above 1; rounded to float32.
        negative_prompt: a fixed one, whose conditions a graph holds as constants; null: each
            request may name its own, and the empty text stands where it names none.
    """

    scale: Annotated[float, Meta(gt=1, le=MOST_GUIDANCE)]
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Schedule:
    """How noise becomes a picture: x is the latent, v the velocity, s and s' neighbouring sigmas.

    Attributes:
        mode: ``euler``: x' = x + (s' - s) v; ``renoise``: x' = (1 - s') (x - s v) + s' noise, with
            new noise at every step. In float32.
        sigmas: S + 1 noise levels that fall from at most 1 to 0.
        guidance: away from a negative prompt, or nothing.
    """

    mode: Mode
    sigmas: Annotated[tuple[float, ...], Meta(min_length=2, max_length=MOST_STEPS + 1)]
    guidance: Guidance | None = field(default=None, metadata=SINCE_4_1)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class NoiseEntry:
    """The noise: what ``torch.randn`` draws with a CPU generator.

    Attributes:
        algorithm: ``torch-cpu-randn``: MT19937 and Box-Muller as ``docs/package-format.md`` says.
        seed_bits: how many low bits of the seed are used.
        block: from this many values on they are drawn in blocks of so many.
    """

    algorithm: Literal["torch-cpu-randn"] = "torch-cpu-randn"
    seed_bits: Literal[32] = 32
    block: Literal[16] = 16


@dataclass(frozen=True)
class Pixels:
    """Numbers between pictures of whole levels and tensors.

    Attributes:
        to_levels_scale: level = round(clip(value * scale + offset, 0, 1) * levels), in float32.
        to_levels_offset: see ``to_levels_scale``.
        levels: the largest level.
        rounding: of a half: to the even neighbour.
        from_levels_scale: value = scale * (level / levels) + offset, in float32.
        from_levels_offset: see ``from_levels_scale``.
    """

    to_levels_scale: float = 0.5
    to_levels_offset: float = 0.5
    levels: Annotated[int, Meta(ge=1, le=255)] = 255
    rounding: Literal["half to even"] = "half to even"
    from_levels_scale: float = 2.0
    from_levels_offset: float = -1.0


@dataclass(frozen=True)
class PreviewEntry:
    """A small picture of a latent: colours = latent @ factors + bias, then as ``pixels`` says.

    Attributes:
        factors: three for each channel of the latent, (channels, 3).
        bias: one for each colour.
    """

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


@dataclass(frozen=True)
class PictureEntry:
    """What is drawn, and the latent that it is drawn in.

    Attributes:
        width_px: of the picture.
        height_px: of the picture.
        latent_channels: of the latent, whose shape is (1, channels, height / scale, width / scale).
        latent_scale_px: pixels of the picture along a pixel of the latent.
        pixels: between levels and tensors (1, 3, height, width).
        preview: of a latent, or nothing.
        preview_graph: whose stage takes a latent between steps and shows it as a picture of full
            size, in place of ``preview``; or empty.
    """

    width_px: Annotated[int, Meta(ge=1, le=MOST_PX)]
    height_px: Annotated[int, Meta(ge=1, le=MOST_PX)]
    latent_channels: Annotated[int, Meta(ge=1, le=4096)]
    latent_scale_px: Annotated[int, Meta(ge=1, le=256)]
    pixels: Pixels = field(default_factory=Pixels)
    preview: PreviewEntry | None = None
    preview_graph: str = field(default="", metadata=SINCE_4_1)

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """(1, channels, h, w)."""
        scale = self.latent_scale_px
        return (1, self.latent_channels, self.height_px // scale, self.width_px // scale)


@dataclass(frozen=True)
class Filter:
    """A classifier that every finished picture has to pass before it is handed out.

    It is the graph of the stage that runs ``for the filter``. The picture's levels are resized to
    its input in whole levels, as Pillow's ``resize`` does it, the whole picture to the whole input.
    A level becomes level / 255 in ``range``, and that (value - mean) / std of its channel, in
    float32. Of a picture that is rejected nothing is handed out: no pixels, no latent, no preview.

    Attributes:
        threshold: of the score.
        reject: ``above``: a picture is rejected whose score is the threshold or above it;
            ``below``: or below it.
        index: which value of the output is the score, counted from 0 through all its axes.
        activation: of all values of the output, before the score is taken.
        label: what the score is of, for people; may be empty.
        width_px: of the classifier's input.
        height_px: of the classifier's input.
        layout: of the input: (1, 3, height, width) or (1, height, width, 3).
        channels: their order.
        resample: Pillow's name of how a picture is resized.
        range: what levels from 0 to 255 become: ``unit``: 0 to 1; ``signed``: -1 to 1; ``levels``:
            0 to 255.
        mean: of each channel in its order, subtracted.
        std: of each channel in its order, divided by.
    """

    threshold: float
    reject: Literal["above", "below"]
    index: Id
    activation: Literal["none", "sigmoid", "softmax"]
    label: Annotated[str, Meta(max_length=200)]
    width_px: Annotated[int, Meta(ge=1, le=MOST_PX)]
    height_px: Annotated[int, Meta(ge=1, le=MOST_PX)]
    layout: Literal["NCHW", "NHWC"]
    channels: Literal["RGB", "BGR"]
    resample: Literal["bilinear", "bicubic", "lanczos", "nearest"]
    range: Literal["unit", "signed", "levels"]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the classifier's input."""
        sizes = (self.height_px, self.width_px)
        return (1, 3, *sizes) if self.layout == "NCHW" else (1, *sizes, 3)


@dataclass(frozen=True)
class Tokenizer:
    """How a prompt becomes ids (1, tokens).

    Attributes:
        path: a file as the ``tokenizers`` library reads it.
        tokens: how many ids the encoder reads.
        pad_id: what stands behind the ids of a short prompt.
        kind: the file's model: ``BPE`` or ``Unigram``.
        closing_id: the last id of every prompt, or nothing.
        vocabulary_size: ids are below it.
        cut: of a prompt that is too long: ``keep closing``: its first ``tokens`` - 1 ids and its
            last.
    """

    path: RelativePath
    tokens: Annotated[int, Meta(ge=2, le=1 << 16)]
    pad_id: Id
    kind: str = ""
    closing_id: Id | None = None
    vocabulary_size: Size = 2**31 - 1
    cut: Literal["keep closing"] = "keep closing"


@dataclass(frozen=True)
class TextEntry:
    """The text encoders.

    Attributes:
        t5: whether T5 is on board; else constants stand in its place.
        tokenizers: of each text encoder, by name.
    """

    t5: bool
    tokenizers: dict[str, Tokenizer]


@dataclass(frozen=True)
class Golden:
    """One golden picture: what the quantized and the unquantized program drew in torch.

    Attributes:
        prompt: its text.
        seed: of its noise.
        image: the quantized program's picture.
        unquantized: the unquantized program's picture.
        tensors: every call of every graph, and what lies between them.
        like: the first size's ``tensors`` of the same prompt and seed, in a further size: what is
            not in ``tensors`` is as it is there; else empty.
        same: of tensors that are left out of ``tensors``, the one there that they are the same as.
    """

    prompt: str
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    image: RelativePath
    unquantized: RelativePath
    tensors: RelativePath
    like: OptionalPath = field(default="", metadata=SINCE_4_2)
    same: dict[str, str] = field(default_factory=dict, metadata=SINCE_4_2)


@dataclass(frozen=True)
class GoldenEntry:
    """What a runtime in any language proves itself with.

    Attributes:
        pictures: drawn with every graph.
        tokens: a file of hard prompts and their ids by each tokenizer, or empty.
        noise: a file of noise by seeds and sizes, or empty.
    """

    pictures: tuple[Golden, ...] = ()
    tokens: OptionalPath = ""
    noise: OptionalPath = ""


@dataclass(frozen=True)
class LoraEntry:
    """A LoRA that was merged into the checkpoint.

    Attributes:
        sha256: of what it changes, at a weight of 1, whatever its file calls it.
        weight: that its changes were multiplied by.
    """

    sha256: Digest
    weight: float


@dataclass(frozen=True)
class OriginEntry:
    """What decided the package's bytes.

    Attributes:
        recipe_sha256: of the recipe.
        checkpoint_sha256: of the checkpoint.
        statistics_sha256: of the statistics that codes were chosen with; empty without any.
        plan_sha256: of the plan; empty without one.
        methods: by which codes were chosen, beyond rounding to nearest.
        tools: versions of what built it.
        licence: the file of the weights' licence, or empty.
        loras: that were merged into the checkpoint, in order.
        licence_id: of that licence: an identifier or an expression of SPDX; empty where it is not
            known.
        attribution: a line that the licence wants shown where people see the pictures; may be
            empty.
        notice: the file of what the licence wants handed on, or empty.
        recipe: the file of the recipe as its digest has it, or empty.
        calibrated: graphs that the statistics were measured on.
    """

    recipe_sha256: Digest
    checkpoint_sha256: Digest
    statistics_sha256: OptionalDigest = ""
    plan_sha256: OptionalDigest = ""
    methods: tuple[str, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    licence: OptionalPath = ""
    loras: tuple[LoraEntry, ...] = field(default=(), metadata=SINCE_4_1)
    licence_id: Annotated[str, Meta(max_length=1000)] = field(default="", metadata=SINCE_4_2)
    attribution: Line = field(default="", metadata=SINCE_4_2)
    notice: OptionalPath = field(default="", metadata=SINCE_4_2)
    recipe: OptionalPath = field(default="", metadata=SINCE_4_2)
    calibrated: tuple[str, ...] = field(default=(), metadata=SINCE_4_2)


@dataclass(frozen=True)
class MarkEntry:
    """The invisible mark that the graphs put into every picture, previews of full size included.

    Attributes:
        scheme: how: ``fourstep-1`` is ``docs/marking.md``.
        payload: 32 bits, as 8 hexadecimal digits.
        key_id: names the key that reads it, and tells nothing about it.
    """

    scheme: str
    payload: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}$(?!\n)")]
    key_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")]


@dataclass(frozen=True)
class DeviceEntry:
    """What a device needs.

    Attributes:
        predicted_peak_bytes: anonymous memory of a process that draws, graphs opened in turn, a
            filter not counted; None: not measured.
    """

    predicted_peak_bytes: Count | None


@dataclass(frozen=True)
class SizedGraph:
    """What stands in place of a graph of the first size, for pictures of another size.

    It has the same weights, which lie in the same files.

    Attributes:
        name: of the entry of ``graphs`` that it stands in for.
        entry: the file or folder that an engine opens.
        inputs: what it takes, in order.
        outputs: what it gives, in order.
        files: the paths of every file that it needs: of its own ones, which are among ``files`` of
            the manifest, and of those of the graph that it stands in for.
        activation_bytes: most bytes of activations alive at once, predicted.
        run_bytes: peak anonymous memory of a process that runs it, predicted; None: not measured.
        tolerance: what ``verify`` allows it.
        session: what the backend wants to be told when it opens the graph, in the project's words.
        remarks: what whoever ships the graph should know of it.
        npu: what it is on an NPU; null: it runs on the processor alone.
    """

    name: Name
    entry: RelativePath
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: tuple[RelativePath, ...]
    activation_bytes: Count
    run_bytes: Count | None
    tolerance: Tolerance
    session: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    npu: NpuEntry | None = field(default=None, metadata=SINCE_4_3)


@dataclass(frozen=True)
class SizeEntry:
    """A further size of pictures, by what differs from the first.

    Attributes:
        width_px: of the picture.
        height_px: of the picture.
        graphs: that stand in for those of the first size; all others serve every size.
        pictures: drawn with every graph, to compare with.
        predicted_peak_bytes: as ``device`` says it of the first size.
    """

    width_px: Annotated[int, Meta(ge=1, le=MOST_PX)]
    height_px: Annotated[int, Meta(ge=1, le=MOST_PX)]
    graphs: tuple[SizedGraph, ...]
    pictures: tuple[Golden, ...] = ()
    predicted_peak_bytes: Count | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything that a device must know.

    Attributes:
        format_version: 4.x, the first that has all its fields; a reader of 4.0 reads every 4.x, and
            leaves out what it does not know.
        name: of the recipe.
        backend: of the graphs.
        scheme: of their weights.
        layout: which graphs and files there are.
        origin: what decided the bytes.
        schedule: sigmas and mode.
        picture: sizes and pixels.
        noise: how it is drawn.
        text: tokenizers.
        stages: the loop.
        graphs: what the stages open.
        golden: what to compare with.
        files: every file but the graphs' and the manifest's own.
        device: what a device needs.
        mark: in every picture, or nothing.
        filter: what every picture has to pass, or nothing.
        bom: the file of its bill of materials, a CycloneDX ML-BOM, or empty.
        sizes: further sizes of pictures; everything else here is of the first size alone, which
            a reader that does not know this field draws.
    """

    format_version: Annotated[str, Meta(pattern=r"^4\.[0-9]{1,4}$(?!\n)")]
    name: str
    backend: Name
    scheme: Name
    layout: str
    origin: OriginEntry
    schedule: Schedule
    picture: PictureEntry
    noise: NoiseEntry
    text: TextEntry
    stages: tuple[Stage, ...]
    graphs: tuple[GraphEntry, ...]
    golden: GoldenEntry
    files: tuple[FileEntry, ...]
    device: DeviceEntry
    mark: MarkEntry | None = field(default=None, metadata=SINCE_4_1)
    filter: Filter | None = field(default=None, metadata=SINCE_4_1)
    bom: OptionalPath = field(default="", metadata=SINCE_4_2)
    sizes: tuple[SizeEntry, ...] = field(default=(), metadata=SINCE_4_2)

    def graph(self, name: str) -> GraphEntry | None:
        """The graph of that name, or None when the package has none."""
        return next((g for g in self.graphs if g.name == name), None)

    def stage(self, name: str) -> Stage | None:
        """The turn of the graph of that name, or None when the package has none."""
        return next((s for s in self.stages if s.graph == name), None)

    def parts(self, name: str) -> tuple[GraphEntry, ...]:
        """The parts of a graph in the order in which they run: itself, unless it is cut."""
        stage = self.stage(name)
        found = [self.graph(part) for part in stage.parts] if stage else []
        return tuple(part for part in found if part is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The graphs, in the order in which they run; one that is cut counts once."""
        return tuple(stage.graph for stage in self.stages)

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """Every file of the package but the manifest's own."""
        return (*self.files, *(f for g in self.graphs for f in g.files))

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.all_files)


def mark_words(mark: MarkEntry | None) -> str:
    """What is said of a mark in pictures, or of none."""
    if mark is None:
        return "pictures are not marked"
    return f"pictures are marked: payload {mark.payload}, key {mark.key_id}, scheme {mark.scheme}"


def licence_words(identifier: str) -> str:
    """What is said of the weights' licence, or of none."""
    if identifier:
        return f"licence of the weights: {identifier}"
    return "licence of the weights: not known; a recipe names it as licence in [model]"


def to_json(manifest: Manifest) -> str:
    """Deterministic JSON text; fields of later versions stand in it where they say something."""
    return json.dumps(_plain(manifest), indent=1, ensure_ascii=False) + "\n"


def version_of(manifest: Manifest) -> str:
    """The first format that has every field that says something."""
    later: list[str] = [f.metadata["since"] for f in _later_fields(manifest)]
    if any(BASE in graph.session for size in manifest.sizes for graph in size.graphs):
        later.append(BASE_SINCE)
    return max([FIRST_VERSION, *later])


def _plain(value: object) -> object:
    """A record as JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if not dataclasses.is_dataclass(value):
        return value
    return {
        f.name: _plain(getattr(value, f.name))
        for f in dataclasses.fields(value)
        if "since" not in f.metadata or getattr(value, f.name)
    }


def _later_fields(value: object) -> Iterator[dataclasses.Field[object]]:
    """The fields of versions after the first that say something, at every level."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for part in value:
            yield from _later_fields(part)
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            found = getattr(value, f.name)
            if "since" in f.metadata and found:
                yield f
            yield from _later_fields(found)
