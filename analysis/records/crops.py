"""The choice of a textured crop of a photograph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def textured(hr: NDArray[np.uint8], unit: int, limit: int = 128, share: int = 3) -> tuple[int, int, int]:
    """Top, left and side, HR pixels, of the square of `hr` (H, W, 3) with the strongest mean gradient.

    All three are multiples of `unit`. The side is at most `limit` and at most the shorter side of the image divided by
    `share`, but at least `unit`. In an image smaller than `unit` it is the shorter side.
    """
    gray = hr.astype(np.float64).mean(axis=2)
    strength = np.abs(np.gradient(gray, axis=0)) + np.abs(np.gradient(gray, axis=1))
    shorter = min(gray.shape)
    side = min(shorter, max(unit, min(limit, shorter // share) // unit * unit))
    total = np.pad(strength.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    sums = sums[::unit, ::unit]
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(row) * unit, int(column) * unit, side
