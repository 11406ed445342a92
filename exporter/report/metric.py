"""A measure of the user's own, from a Python file.

The file defines one function; each number that it returns becomes a column:

    def measure(prompts: list[str], pictures: list[np.ndarray], references: list[np.ndarray]
                ) -> dict[str, float]

``pictures`` and ``references`` are (H, W, 3) uint8, one per prompt: a package's, and the
yardstick's. It is called once per package, and once with the yardstick's pictures as both.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.errors import InputError
from exporter.files.read import read_text

SIGNATURE = "measure(prompts, pictures, references)"
Measure = Callable[[list[str], list[np.ndarray], list[np.ndarray]], object]


@dataclass(frozen=True)
class Metric:
    """The function ``measure`` of a user's file."""

    file: Path
    measure: Measure

    def __call__(
        self,
        prompts: Sequence[str],
        pictures: Sequence[np.ndarray],
        references: Sequence[np.ndarray],
    ) -> dict[str, float]:
        """Names and numbers; raises InputError naming the file and the line of a mistake in it."""
        try:
            found = self.measure(list(prompts), list(pictures), list(references))
        except Exception as error:  # whatever the user's code raises
            raise _mistake(self.file, error) from error
        if not isinstance(found, Mapping):
            kind = type(found).__name__
            raise InputError(f"{self.file}: measure returned {kind}, not a dict of numbers")
        return {str(name): self._number(str(name), value) for name, value in found.items()}

    def _number(self, name: str, value: object) -> float:
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise InputError(
                f"{self.file}: measure returned {name!r} = {value!r}, not a number"
            ) from None


def read_metric(file: Path) -> Metric:
    """Run a user's file and take its ``measure``; raises InputError naming file and line."""
    if not file.exists():
        raise InputError("no such file", field="metric", given=file)
    text = read_text(file)
    names: dict[str, object] = {"__name__": "fourstep_metric", "__file__": str(file)}
    try:
        exec(compile(text, str(file), "exec"), names)
    except Exception as error:  # whatever the user's code raises
        raise _mistake(file, error) from error
    measure = names.get("measure")
    if not callable(measure):
        raise InputError(f"defines no function {SIGNATURE}", field="metric", given=file)
    return Metric(file, measure)


def _mistake(file: Path, error: Exception) -> InputError:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) and not lines else lines[-1]
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    first = said.splitlines()[0] if said else "no message"
    return InputError(
        f"{type(error).__name__}: {first}", field="metric", given=f"{file}, line {line}"
    )
