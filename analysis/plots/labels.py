"""Labels beside marks: each at the nearest free place, with a thin line to its mark where that is not next to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

_RADII = (5, 9, 14, 20, 28, 37, 47, 58, 70, 85)  # points (1/72 in) from the mark
_DIRECTIONS = 16
_NEAR = 10  # points; a label nearer than this needs no line
_MARK = 3.5  # points: half the side of a mark


class Label(NamedTuple):
    """A text for a mark; `x` and `y` in the data's units."""

    x: float
    y: float
    text: str
    colour: str


def place(axis: Axes, labels: Sequence[Label], taken: Sequence[tuple[float, float]], size: float = 6.5) -> None:
    """Write the labels into an axis whose limits and layout are final; in order, so the first get the best places.

    Args:
        taken: places that no label may cover: marks, and points along lines (data's units).
        size: of the font, points.
    """
    canvas = axis.get_figure(root=True)
    assert canvas is not None
    unit = canvas.dpi / 72
    places = np.array(axis.transData.transform([*taken, *((label.x, label.y) for label in labels)]))
    obstacles = np.hstack([places - _MARK * unit, places + _MARK * unit])
    for label in labels:
        probe = axis.text(0, 0, label.text, fontsize=size)
        extent = probe.get_window_extent()
        probe.remove()
        boxes = _boxes(axis.transData.transform((label.x, label.y)), extent.width, extent.height, unit)
        best = _best(boxes, obstacles, np.array(axis.bbox.extents))
        obstacles = np.vstack([obstacles, boxes[best]])
        dx, dy, align = _CANDIDATES[best]
        along = np.linspace(0.3, 0.9, 5)[:, None] * np.array([dx, dy]) * unit
        line_at = axis.transData.transform((label.x, label.y)) + along
        obstacles = np.vstack([obstacles, np.hstack([line_at - unit, line_at + unit])])
        line = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
        axis.annotate(
            label.text, (label.x, label.y), (dx, dy), textcoords="offset points", fontsize=size, color=label.colour,
            ha=align, va="center", arrowprops=line if math.hypot(dx, dy) > _NEAR else None, annotation_clip=False,
        )  # fmt: skip


def _boxes(mark: NDArray[np.float64], width: float, height: float, unit: float) -> NDArray[np.float64]:
    """The box of a text (left, bottom, right, top; pixels) at each candidate place around its mark."""
    shares = {"left": 0.0, "center": 0.5, "right": 1.0}
    left = [mark[0] + dx * unit - width * shares[align] for dx, _, align in _CANDIDATES]
    bottom = [mark[1] + dy * unit - height / 2 for _, dy, _ in _CANDIDATES]
    return np.column_stack([left, bottom, np.add(left, width), np.add(bottom, height)])


def _best(boxes: NDArray[np.float64], obstacles: NDArray[np.float64], frame: NDArray[np.float64]) -> int:
    """The first box inside the frame that covers nothing, or the one that covers least."""
    low = np.maximum(boxes[:, None, :2], obstacles[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], obstacles[None, :, 2:])
    covered = np.prod(np.clip(high - low, 0, None), axis=2).sum(axis=1)
    outside = (boxes[:, :2] < frame[:2]).any(axis=1) | (boxes[:, 2:] > frame[2:]).any(axis=1)
    return int(np.lexsort((covered, outside))[0])  # stable: nearer places come first


def _candidates() -> Iterator[tuple[float, float, str]]:
    """Offsets in points, near ones first, to the right before to the left; and how the text is aligned there."""
    turns = sorted(range(_DIRECTIONS), key=lambda i: min(i, _DIRECTIONS - i))
    for radius in _RADII:
        for turn in turns:
            angle = 2 * math.pi * turn / _DIRECTIONS
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            yield dx, dy, "center" if abs(dx) < 0.1 * radius else "left" if dx > 0 else "right"


_CANDIDATES = tuple(_candidates())
