"""Equalization: channels in units in which their readers' weights lose less by rounding.

Between the layer that writes a channel and those that read it, its unit is free: written divided by
s and read with weights times s, it means the same. Some s let the readers' rounded weights put out
less error (Xiao et al. 2022, SmoothQuant; Lin et al. 2023, AWQ). All of it is folded into tensors
of the checkpoint, so no operator is added, and the unquantized model computes what it did. Two
places of the MMDiT allow it:

- a modulated norm. Its weight and bias are vectors of the modulation, rows of an adaLN linear of
  the ``conditioner``; its readers are linear layers of the ``denoiser``. Where the conditioner adds
  1 to a scale, its bias b becomes (b + 1) / s - 1;
- attention's values: a weighted mean over tokens goes channel by channel from the linear layers
  that write v to those that read the result.

Scales of a weight, by groups or by output channels, follow its rows: a writer rounds as it did. A
palette does not: rows of unequal size share its values, so palettes are better off without.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, fx

from exporter.calibrate.codes import damped, plain_grid
from exporter.calibrate.layer_inputs import LayerInputs
from exporter.files.tensors import opened
from exporter.network import operators as _registers_operators  # noqa: F401
from exporter.program import aten
from exporter.program.program import Constant, Program, Stored
from exporter.quantize.formats import Format, fitting_format

ATEN = torch.ops.aten
ATTENTION = torch.ops.fourstep.attention.default
INT4 = Format("int4", group_size=64)
PORT = "modulation"  # of both graphs
MOST_OCTAVES = 6  # a factor is within 2^-6 and 2^6
STEPS = 16  # of a factor in an octave: finer than matters, coarser than how processors differ
ROUNDS, PACE = 12, 0.5  # of the fixed point, which settles within a step in six
SLAB_ROWS = 256  # of a weight, squared at a time
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Scaling:
    """What equalization does to a stored tensor.

    A weight (N, K) becomes ``value * rows[:, None] * columns``; a vector (N,) becomes
    ``(value + offset) * rows - offset``.

    Attributes:
        rows: (N,) float64, or None.
        columns: (K,) float64, or None.
        offset: (N,) float64, what the program adds to the vector, or None.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    offset: Tensor | None = None

    def apply(self, value: Tensor) -> Tensor:
        """The tensor in the new units: computed in float64, given in its own dtype."""
        scaled = value.double()
        if self.columns is not None:
            scaled = scaled * self.columns
        if self.rows is not None:
            scaled = scaled * self.rows.reshape(-1, *(1,) * (value.ndim - 1))
            if self.offset is not None:
                scaled = scaled + self.offset * (self.rows - 1)  # exact where rows are 1
        return scaled.to(value.dtype)

    def then(self, other: Scaling) -> Scaling:
        """Both scalings of one tensor; their offsets are the same."""
        return Scaling(
            _product(self.rows, other.rows), _product(self.columns, other.columns), self.offset
        )


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a * b


@dataclass(frozen=True)
class Linear:
    """A linear layer: its weight (N, K), and its bias (N,) if it has one."""

    weight: Stored
    bias: Stored | None = None


@dataclass(frozen=True, eq=False)
class Writer:
    """Output channels ``start``, ``start`` + 1, ... of a layer, which write a site's channels.

    ``offset``: (N,) float64, what the program adds to the layer's output channels, or None.
    """

    layer: Linear
    start: int = 0
    offset: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Site:
    """K channels whose units are free: all layers that write them, and all that read them."""

    writers: tuple[Writer, ...]
    readers: tuple[Linear, ...]


def find_sites(programs: Mapping[str, Program]) -> tuple[Site, ...]:
    """The sites of the unquantized ``denoiser`` and ``conditioner``, in the order of operators."""
    denoiser = programs["denoiser"]
    vectors = _vectors(denoiser, programs["conditioner"])
    found = []
    for node in denoiser.nodes():
        writers: tuple[Writer, ...] = ()
        if node.target == ATEN.layer_norm.default and set(node.args[2:4]) <= set(vectors):
            writers = tuple(vectors[vector] for vector in _nodes(node.args[2:4]))
        elif node.target == ATTENTION:
            writers = _value_writers(denoiser, node)
        readers = _readers(denoiser, node) if writers else ()
        if readers:
            found.append(Site(writers, readers))
    return tuple(found)


def _vectors(denoiser: Program, conditioner: Program) -> dict[fx.Node, Writer]:
    """What writes each vector that the denoiser splits off its modulation and uses once."""
    (row,) = (n for n, p in zip(denoiser.feeds(), denoiser.inputs, strict=True) if p.name == PORT)
    outputs = zip(conditioner.results(), conditioner.outputs, strict=True)
    (rows,) = (n for n, p in outputs if p.name == PORT)
    flat = _only_user(row, ATEN.reshape.default)
    split = flat and _only_user(flat, ATEN.split.Tensor)
    if split is None or aten.shape(row)[0] != 1:
        return {}
    ends = [0, *itertools.accumulate(aten.split_sizes(split)[1])]
    vectors = {n: cast(int, n.args[1]) for n in split.users}
    taken = Counter(vectors.values())
    columns = _columns(conditioner, rows)
    found = {}
    for vector, index in vectors.items():
        for begin, writer in columns.items():
            first, last = ends[index] - begin, ends[index + 1] - begin
            if first >= 0 and last <= writer.layer.weight.shape[0]:
                found[vector] = replace(writer, start=first)
    return {v: writer for v, writer in found.items() if _uses(v) == taken[vectors[v]] == 1}


def _columns(program: Program, rows: fx.Node) -> dict[int, Writer]:
    """The linear layers with a bias that are side by side in ``rows`` (S, M), by first column."""
    rows = _whole(program, rows)
    added = torch.zeros(aten.shape(rows)[1], dtype=torch.float64)
    if rows.target == ATEN.add.Tensor and len(rows.args) == 2 and not rows.kwargs:
        left, right = rows.args
        constant = program.tensors.get(str(right))
        if isinstance(constant, Constant) and constant.value.shape == (1, len(added)):
            added, rows = torch.from_numpy(constant.value[0]).double(), _node(left)
    found, begin = {}, 0
    for part in _joined(rows, along_last=True):
        layer, end = _written_by(program, part), begin + aten.shape(part)[1]
        if layer is not None and layer.bias is not None:
            found[begin] = Writer(layer, 0, added[begin:end])
        begin = end
    return found


def _whole(program: Program, rows: fx.Node) -> fx.Node:
    """What ``rows`` is cut out of, where that gives nothing but results of the same kind: rows for
    the prompt and for a negative one, which the same graph reads."""
    source = rows.args[0] if rows.target == ATEN.slice.Tensor and rows.args[1] == 0 else rows
    assert isinstance(source, fx.Node)
    slices = {n for n in program.results() if n.target == ATEN.slice.Tensor and n.args[1] == 0}
    return source if source is not rows and set(source.users) <= slices else rows


def _value_writers(program: Program, attention: fx.Node) -> tuple[Writer, ...]:
    """The linear layers that write attention's values; none if anything else does."""
    parts = _joined(_node(attention.args[2]), along_last=False)
    layers = [_written_by(program, part) for part in parts]
    found = tuple(Writer(layer) for layer in layers if layer is not None)
    return found if len(found) == len(parts) else ()


def _readers(program: Program, node: fx.Node) -> tuple[Linear, ...]:
    """The linear layers that read ``node`` or slices of its tokens; none if anything else does."""
    found: list[Linear] = []
    for user in node.users:
        layer = _linear(program, user)
        if layer is not None and user.args[0] is node:
            found.append(layer)
            continue
        tokens = user.target == ATEN.slice.Tensor and not _is_last(user, aten.argument(user, 1))
        further = _readers(program, user) if tokens else ()
        if not further:
            return ()
        found.extend(further)
    return tuple(found)


def _joined(node: fx.Node, along_last: bool) -> list[fx.Node]:
    """The values that are concatenated into ``node``, along the last axis or along others."""
    joins = node.target == ATEN.cat.default and _uses(node) == 1
    if not joins or _is_last(node, aten.argument(node, 1, 0)) != along_last:
        return [node]
    return [n for part in _nodes(node.args[0]) for n in _joined(part, along_last)]


def _written_by(program: Program, node: fx.Node) -> Linear | None:
    """The linear layer whose output is ``node``, if that is used once."""
    return _linear(program, node) if _uses(node) == 1 else None


def _linear(program: Program, node: fx.Node) -> Linear | None:
    """``node`` as a linear layer, if its tensors are stored and used nowhere else."""
    if node.target != ATEN.linear.default:
        return None
    places = _nodes(node.args[1:])
    sources = [program.tensors.get(place.name) for place in places if _uses(place) == 1]
    stored = [source for source in sources if isinstance(source, Stored)]
    return Linear(*stored) if len(stored) == len(places) else None


def _is_last(node: fx.Node, axis: int) -> bool:
    return axis in (-1, len(aten.shape(node)) - 1)


def _only_user(node: fx.Node, target: object) -> fx.Node | None:
    users = list(node.users)
    return users[0] if _uses(node) == 1 and users[0].target == target else None


def _uses(node: fx.Node) -> int:
    """How many arguments of operators are ``node``."""
    return sum(_nodes((user.args, user.kwargs)).count(node) for user in node.users)


def _nodes(arguments: Any) -> list[fx.Node]:
    """The nodes among arguments, in order, as often as they are there."""
    found: list[fx.Node] = []
    fx.map_arg(arguments, found.append)
    return found


def _node(argument: object) -> fx.Node:
    assert isinstance(argument, fx.Node)
    return argument


def fold(sites: Iterable[tuple[Site, Tensor]]) -> dict[Stored, Scaling]:
    """Scalings of all tensors that sites touch.

    Args:
        sites: each with its factors s (K,) float64, by which its channels are divided.
    """
    found: dict[Stored, Scaling] = {}

    def scale(source: Stored | None, scaling: Scaling) -> None:
        if source is not None:
            found[source] = found[source].then(scaling) if source in found else scaling

    for site, factor in sites:
        for writer in site.writers:
            rows = torch.ones(writer.layer.weight.shape[0], dtype=torch.float64)
            rows[writer.start : writer.start + len(factor)] = 1 / factor
            scale(writer.layer.weight, Scaling(rows))
            scale(writer.layer.bias, Scaling(rows, offset=writer.offset))
        for reader in site.readers:
            scale(reader.weight, Scaling(columns=factor))
    return found


def equalize(
    programs: Mapping[str, Program],
    read: Callable[[object], Tensor],
    layer: Callable[[Stored], LayerInputs | None],
    form: Format = INT4,
) -> dict[Stored, Scaling]:
    """Scalings with which the readers of all sites lose less by rounding to ``form``.

    Takes the memory of one site's weights at a time.

    Args:
        programs: the unquantized ``denoiser`` and ``conditioner``.
        read: gives a stored tensor's value.
        layer: what is known of the inputs of the linear layer that has a weight. A site is left as
            it is when nothing is known of a reader's.
        form: ``int8``, ``int4`` or ``int2``; a width that its groups do not divide is fitted.
    """
    chosen = []
    for site in find_sites(programs):
        inputs = [layer(reader.weight) for reader in site.readers]
        known = [found for found in inputs if found is not None]
        if len(known) == len(inputs):
            weights = [read(reader.weight) for reader in site.readers]
            chosen.append((site, best_factors(weights, known, form)))
    return fold(chosen)


def best_factors(weights: Sequence[Tensor], inputs: Sequence[LayerInputs], form: Format) -> Tensor:
    """Factors s (K,) float64 for the columns of weights (N, K) that read the same channels.

    A group's step is in proportion to its largest |w_k s_k|, and an error of that size in column k
    counts c_k / s_k^2, where c_k is what is left of the channel's variance when all others are
    known: error feedback makes good the rest (``calibrate.codes``). With t = s^2, a soft maximum M
    (the 4-norm) and one term for each weight, relative to its output, a group's error is

        sum of [sum over rows of M(w_k^2 t_k)] * [sum over k of c_k / t_k],

    convex in log t, and least where t_k^2 = (sum of A c_k) / (sum of B a_k), with A and B the two
    brackets and a_k the first one's derivative by t_k. That is iterated. With c and w of one size
    each it is s_k = sqrt(deviation of channel k / size of column k), SmoothQuant's factor of
    strength 1/2. Groups that lose more by rounding to nearest in these units keep their own.
    """
    fitted = fitting_format(form, weights[0].shape)
    groups = weights[0].shape[1] // fitted.group_size if fitted.group_size else 1
    terms = [_term(w.double(), i, groups) for w, i in zip(weights, inputs, strict=True)]
    log_t = torch.zeros_like(terms[0].importance)
    for _ in range(ROUNDS):
        t = log_t.exp()
        above, below = torch.zeros_like(t), torch.zeros_like(t)
        for term in terms:
            steps, slopes = term.steps(t)
            above += steps * term.importance
            below += (term.importance / t).sum(1, keepdim=True) * slopes
        used = (above > 0) & (below > 0)
        goal = torch.where(used, above / below.clamp(min=TINY), 1.0).log() / 2
        log_t += PACE * (goal - log_t)
        log_t -= log_t.mean(1, keepdim=True)
    octaves = (log_t / (2 * math.log(2)) * STEPS).round() / STEPS
    factors = octaves.clamp(-MOST_OCTAVES, MOST_OCTAVES).exp2()
    ones = torch.ones_like(factors)
    gains = torch.stack([t.loss(ones, fitted) - t.loss(factors, fitted) for t in terms]).sum(0)
    return torch.where(gains > 0, factors, ones).flatten()


@dataclass(frozen=True, eq=False)
class Term:
    """A weight that reads channels in G groups of g.

    Attributes:
        weight: (N, G, g) float64.
        importance: (G, g): variance of each channel given the others, over that of the output.
    """

    weight: Tensor
    importance: Tensor

    def steps(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Soft maxima of w^2 t, t (G, g), summed over rows, (G, 1), and their derivatives by t."""
        total, slopes = torch.zeros_like(t[:, :1]), torch.zeros_like(t)
        for slab in torch.split(self.weight, SLAB_ROWS):
            squares = slab.square()
            sizes = squares * t
            largest = sizes.amax(2, keepdim=True).clamp(min=TINY)
            sizes /= largest
            norm = sizes.square().square_().sum(2, keepdim=True).sqrt_().sqrt_().clamp(min=TINY)
            total += (norm * largest).sum(0)
            slopes += (sizes / norm).pow(3).mul_(squares).sum(0)
        return total, slopes

    def loss(self, factors: Tensor, form: Format) -> Tensor:
        """Error (G, 1) of rounding weight * factors, (G, g), to nearest."""
        scaled = self.weight * factors
        grid = plain_grid(scaled, form)
        error = grid.values(grid.codes(scaled, slice(None)), slice(None)).sub_(scaled)
        counts = self.importance / factors.square()
        loss: Tensor = (error.square_().sum(0) * counts).sum(1, keepdim=True)
        return loss


def _term(weight: Tensor, inputs: LayerInputs, groups: int) -> Term:
    covariance = damped(inputs.covariance.double())
    split = weight.reshape(len(weight), *covariance.shape[:2])
    output = torch.einsum("nbi,bij,nbj->", split, covariance, split)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    left = 1 / torch.diagonal(inverse, dim1=1, dim2=2)
    importance = (left / output.clamp(min=TINY)).reshape(groups, -1)
    return Term(weight.reshape(len(weight), groups, -1), importance)


def save_scalings(scalings: Mapping[Stored, Scaling], file: Path) -> None:
    """Write scalings into a safetensors file, as ``<component>/<tensor>/<part>``."""
    tensors = {
        f"{source.component}/{source.name}/{part}": value.clone()
        for source, scaling in scalings.items()
        for part, value in vars(scaling).items()
        if value is not None
    }
    file.write_bytes(save(tensors))


def load_scalings(file: Path) -> dict[tuple[str, str], Scaling]:
    """The scalings in a file, by component and tensor; raises InputError."""
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    with opened(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            component, name, part = key.split("/")
            parts.setdefault((component, name), {})[part] = tensors.get_tensor(key)
        return {place: Scaling(**found) for place, found in parts.items()}
