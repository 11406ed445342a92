"""Opens a graph: with Core ML on a Mac, elsewhere with the evaluator."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from exporter.backends.contract import BASE, WEIGHTS, Session, SessionOptions
from exporter.errors import CheckFailed
from exporter.files.differences import applied
from exporter.files.read import read_bytes

ON_A_MAC = sys.platform == "darwin"
FUNCTION = "function"  # in a graph's settings: of a package that has several
EVALUATOR = "EVALUATOR"  # this project's interpreter of ML Programs
COMPUTE_UNITS: tuple[str, ...] = (
    ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE") if ON_A_MAC else ()
)


def open_graph(entry: Path, settings: Mapping[str, str], options: SessionOptions) -> Session:
    """Open a graph: with Core ML on a Mac, elsewhere with the evaluator.

    Args:
        settings: ``function``: of the package, in place of its default. ``weights``: the package
            beside the entry that holds the weights; the entry says then how the model differs from
            that package's, which ``base`` names.

    In ``float32`` it is always the evaluator, so that on a Mac ``verify`` reports both: the program
    by its own types, and what Core ML makes of it.

    Raises CheckFailed when the package cannot be read.
    """
    function = settings.get(FUNCTION)
    model, package = None, entry
    if BASE in settings:
        model = _model(entry, entry.parent / settings[BASE])
        package = entry.with_name(settings[WEIGHTS])
    if options.precision == "float32" or not ON_A_MAC or options.device == EVALUATOR:
        from exporter.backends.coreml.evaluator.program import open_program

        return open_program(package, function=function, model=model, name=entry)
    from exporter.backends.coreml.predictor import assembled, open_model

    units = options.device or COMPUTE_UNITS[0]
    if model is None:
        return open_model(entry, units, options.cache, function)
    with assembled(package, model) as whole:
        return open_model(whole, units, options.cache, function)


def _model(entry: Path, base: Path) -> bytes:
    """What an entry makes of the first size's model; raises CheckFailed."""
    try:
        return applied(read_bytes(entry, CheckFailed), read_bytes(base, CheckFailed))
    except ValueError as error:
        raise CheckFailed(f"{entry}: cannot be opened: {error}") from None
