"""Which part of a photograph is worth a closer look."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def textured(hr: NDArray[np.uint8], unit: int, limit: int = 128, share: int = 3) -> tuple[int, int, int]:
    """Top, left and side, HR pixels, of the square of `hr` (H, W, 3) with the strongest mean gradient.

    Top and left are multiples of `unit`. So is the side, which is at most `limit` and a `share`-th of the shorter
    side of the image, but at least `unit` where that fits into the image (else the whole shorter side).
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
