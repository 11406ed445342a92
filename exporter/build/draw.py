"""What the packages of a scheme share: rounded programs, and golden pictures drawn in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from exporter.build import golden
from exporter.build.asked import SIZED_PICTURES, PreparedPackage
from exporter.build.keys import digest_of
from exporter.build.model import Model
from exporter.build.shared import Models, TracedRecipe
from exporter.calibrate.activations import ranges_of, rounded_by
from exporter.calibrate.store import Calibration
from exporter.calibrate.weights import Weights
from exporter.package.sizes import PictureSize
from exporter.progress import Progress
from exporter.quantize.program import QuantizedProgram


@dataclass(frozen=True)
class SchemeWork:
    """What the packages of a scheme share.

    Attributes:
        rounded: of each size, gives a graph's program with its rounded inputs.
        pictures: the golden pictures of each size; none where the recipe has no prompts.
        allowed: of each size, what graphs may differ by besides what the backend says.
    """

    model: Model
    weights: Weights
    calibration: Calibration | None
    rounded: Mapping[PictureSize, Callable[[str], QuantizedProgram]]
    pictures: Mapping[PictureSize, golden.Pictures]
    allowed: Mapping[PictureSize, Mapping[str, golden.Allowance]]


def work_of(
    job: PreparedPackage, shared: TracedRecipe, calibration: Calibration | None, progress: Progress
) -> SchemeWork:
    """The work of a job's scheme, with its pictures drawn."""
    measured = calibration.sha256 if calibration else ""
    scheme = digest_of(asdict(job.scheme))
    canvas = shared.once("canvas", measured, lambda: _canvas(shared, calibration, progress))
    return shared.once(
        "work", (measured, scheme), lambda: _drawn(job, shared.models, canvas, progress)
    )


@dataclass(frozen=True)
class _Canvas:
    """What draws the golden pictures, and those of the unquantized program, of each size."""

    calibration: Calibration | None
    weights: Weights
    painters: Mapping[PictureSize, golden.Painter]
    plain: Mapping[PictureSize, Sequence[golden.Drawing]]


def _canvas(shared: TracedRecipe, calibration: Calibration | None, progress: Progress) -> _Canvas:
    models = shared.models
    model = models[shared.recipe.sizes[0]]
    weights = Weights(model.checkpoint, keep_bytes=shared.keep_bytes, calibration=calibration)
    painters = _painters(models, weights)
    if shared.recipe.prompts:
        progress("golden pictures, unquantized, in torch")
    plain = {size: p.draw(models[size].unrounded) for size, p in painters.items()}
    return _Canvas(calibration, weights, painters, plain)


def _drawn(job: PreparedPackage, models: Models, canvas: _Canvas, progress: Progress) -> SchemeWork:
    model = next(iter(models.values()))
    weights, painters, calibration = canvas.weights, canvas.painters, canvas.calibration
    # What layers read is rounded in the program too, in ranges chosen on the trajectories, which
    # are of one size: the ranges serve all.
    at = model.recipe.calibrated_size
    ranges = ranges_of(job.sized[at], weights.read, models[at].calls_as(job.sized[at], weights))
    rounded = {size: rounded_by(job.sized[size], ranges) for size in painters}
    if not model.recipe.prompts:
        none = dict.fromkeys(painters, golden.Pictures((), ()))
        return SchemeWork(
            model, weights, calibration, rounded, none, {size: {} for size in painters}
        )
    progress(f"{job.scheme.name}: golden pictures in torch")
    pictures, allowed = {}, {}
    for size, painter in painters.items():
        programs = {name: rounded[size](name) for name in job.programs}
        drawings = painter.draw(programs)
        pictures[size] = golden.Pictures(drawings, canvas.plain[size])
        allowed[size] = golden.allowances(programs, weights, drawings[0], painter.schedule.guidance)
    return SchemeWork(model, weights, calibration, rounded, pictures, allowed)


def _painters(models: Models, weights: Weights) -> dict[PictureSize, golden.Painter]:
    """What draws the golden pictures of each size: of a further one, the first prompt alone."""
    model = next(iter(models.values()))
    recipe = model.recipe
    first, *others = recipe.sizes
    fewer = replace(recipe, prompts=recipe.prompts[:SIZED_PICTURES])
    return {
        size: golden.Painter(
            weights, model.schedule, model.tokenizers, recipe if size == first else fewer
        )
        for size in (first, *others)
    }
