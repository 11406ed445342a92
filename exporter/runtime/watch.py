"""Open graphs whose files stay what they were when their digests were taken."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from exporter.drawing.loop import Ports, Session
from exporter.package.check import Identity, changed

BINARY = getattr(os, "O_BINARY", 0)


class Watched:
    """A session that raises CheckFailed in place of results of files that were changed.

    Engines map weights: what is written over them is computed with. The files are held open, so
    that a package may be replaced by another while it is drawn with: the session goes on with its
    own, which stay on the disk until it is let go of.
    """

    def __init__(self, session: Session, read: Sequence[tuple[Path, Identity]]) -> None:
        """Raise CheckFailed if a path stands for another file than the one that was read."""
        self._session = session
        self._held: list[tuple[int, Path, Identity]] = []
        for file, identity in read:
            try:
                self._held.append((os.open(file, os.O_RDONLY | BINARY), file, identity))
            except OSError:
                raise changed(file) from None
        self._refuse_changed()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Ports:
        outputs = self._session(inputs)
        self._refuse_changed()
        return outputs

    def __del__(self) -> None:
        for handle, _, _ in self._held:
            os.close(handle)

    def _refuse_changed(self) -> None:
        for handle, file, identity in self._held:
            if Identity.of(os.fstat(handle)) != identity:
                raise changed(file)
