"""How many threads torch computes with, wherever what it computes is written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

THREADS = 2


@contextmanager
def fixed_threads() -> Iterator[None]:
    """Compute with ``THREADS`` threads, whatever the machine has or the environment allows.

    torch cuts work between its threads, and where it is cut decides about last digits: a
    convolution adds in another order, the ends of a piece take another road through ``exp``. With
    a number that is always the same, so are the cuts, and the bytes of what is built, also where
    both threads share one processor. Two are what a build was measured with; more than there are
    processors cost time (four on two of them: 1.5 times the processor's).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
