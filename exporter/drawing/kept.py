"""What the text encoders made of a prompt, kept for a prompt that is drawn again.

Another seed, strength or size then costs no text encoder, and neither does a prompt that is typed
back.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

MOST_BYTES = 64 << 20  # of a full-size model, about seven prompts

Values = dict[tuple[str, str], np.ndarray]  # what graphs gave, by graph and port


class KeptPrompts:
    """The values of prompts that were encoded or asked for last, up to so many bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._values: OrderedDict[str, Values] = OrderedDict()

    def get(self, prompt: str) -> Values | None:
        """What was kept of a prompt, or None."""
        with self._lock:
            if prompt in self._values:
                self._values.move_to_end(prompt)
            return self._values.get(prompt)

    def add(self, prompt: str, values: Values) -> None:
        """Keep a prompt's values, in place of those that nobody asked for longest."""
        if _bytes_of(values) > self._most_bytes:
            return
        with self._lock:
            self._values[prompt] = values
            self._values.move_to_end(prompt)
            while sum(map(_bytes_of, self._values.values())) > self._most_bytes:
                self._values.popitem(last=False)


def _bytes_of(values: Values) -> int:
    return sum(value.nbytes for value in values.values())
