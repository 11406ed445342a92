"""How fast a step of the unfolded graph could be in float32: its products at the machine's peak.

As a command it prints that peak.
"""

from __future__ import annotations

import time

WIDTH = 1536
BLOCKS = 24
DUAL_BLOCKS = 13  # with a second attention over the image's tokens
TEXT_TOKENS = 154  # of two encoders with 77 each, as peers run them without T5
SIZE = 4096
REPEATS = 5


def step_flop(px: int) -> float:
    """Operations of one step of the unfolded SD3.5 Medium at a square size, adaLN left out.

    Two for each multiplication of linear layers and of attention. The last block's text tokens
    have keys and values alone.
    """
    image, square = (px // 16) ** 2, WIDTH**2
    tokens = image + TEXT_TOKENS
    linear = BLOCKS * 24 * square * tokens - (2 + 2 + 16) * square * TEXT_TOKENS
    attention = BLOCKS * 4 * tokens**2 * WIDTH
    second = DUAL_BLOCKS * (8 * square * image + 4 * image**2 * WIDTH)
    return float(linear + attention + second)


def peak_flops() -> float:
    """The best of a few products of 4096 x 4096 in torch, float32, per second."""
    import torch

    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(seconds)


if __name__ == "__main__":
    print(peak_flops())
