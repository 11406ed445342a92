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


def unpainted_work(
    job: PreparedPackage, shared: TracedRecipe, calibration: Calibration | None
) -> SchemeWork:
    """The work of a job's scheme without pictures: all that emitting a graph takes."""
    model = shared.models[shared.recipe.sizes[0]]
    measured, scheme = _identity(job, calibration)
    weights = shared.once(
        "weights",
        measured,
        lambda: Weights(model.checkpoint, keep_bytes=shared.keep_bytes, calibration=calibration),
    )
    rounded = shared.once(
        "rounded", (measured, scheme), lambda: _rounded(job, shared.models, weights)
    )
    none = dict.fromkeys(shared.recipe.sizes, golden.Pictures((), ()))
    return SchemeWork(model, weights, calibration, rounded, none, {size: {} for size in none})


def work_of(
    job: PreparedPackage, shared: TracedRecipe, calibration: Calibration | None, progress: Progress
) -> SchemeWork:
    """The work of a job's scheme, with its pictures drawn."""
    unpainted = unpainted_work(job, shared, calibration)
    if not shared.recipe.prompts:
        return unpainted
    measured, scheme = _identity(job, calibration)
    painters = _painters(shared.models, unpainted.weights)
    plain = shared.once("plain", measured, lambda: _plain(shared.models, painters, progress))
    return shared.once(
        "work", (measured, scheme), lambda: _painted(job, unpainted, painters, plain, progress)
    )


def _identity(job: PreparedPackage, calibration: Calibration | None) -> tuple[str, str]:
    """What decides the work of a scheme of a recipe: statistics, and formats."""
    return calibration.sha256 if calibration else "", digest_of(asdict(job.scheme))


def _rounded(
    job: PreparedPackage, models: Models, weights: Weights
) -> dict[PictureSize, Callable[[str], QuantizedProgram]]:
    """Of each size that is drawn, what gives a graph's program with its rounded inputs."""
    # What layers read is rounded in the program too, in ranges chosen on the trajectories, which
    # are of one size: the ranges serve all.
    recipe = next(iter(models.values())).recipe
    at = recipe.calibrated_size
    ranges = ranges_of(job.sized[at], weights.read, models[at].calls_as(job.sized[at], weights))
    return {size: rounded_by(job.sized[size], ranges) for size in recipe.sizes}


Painters = Mapping[PictureSize, golden.Painter]
Plain = Mapping[PictureSize, Sequence[golden.Drawing]]


def _plain(models: Models, painters: Painters, progress: Progress) -> Plain:
    """The golden pictures of the unquantized program."""
    progress("golden pictures, unquantized, in torch")
    return {size: p.draw(models[size].unrounded) for size, p in painters.items()}


def _painted(
    job: PreparedPackage, work: SchemeWork, painters: Painters, plain: Plain, progress: Progress
) -> SchemeWork:
    progress(f"{job.scheme.name}: golden pictures in torch")
    pictures, allowed = {}, {}
    for size, painter in painters.items():
        programs = {name: work.rounded[size](name) for name in job.programs}
        drawings = painter.draw(programs)
        pictures[size] = golden.Pictures(drawings, plain[size])
        guidance = painter.schedule.guidance
        allowed[size] = golden.allowances(programs, work.weights, drawings[0], guidance)
    return replace(work, pictures=pictures, allowed=allowed)


def _painters(models: Models, weights: Weights) -> Painters:
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
