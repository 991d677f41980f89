"""Labels of marks: each near its mark and clear of the others. A label farther away gets a thin leader line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

_RADII = (5, 9, 14, 20, 28, 37, 47, 58, 70, 85)  # points (1/72 in) from the mark
_DIRECTIONS = 16
_NEAR = 10  # points; a label nearer than this needs no leader line
_MARK = 3.5  # points: half the side of a mark
_LINE = 0.5  # points: half the width of a line
_GAP = 1.0  # points kept free around a label
_SWEEPS = 8  # passes over all labels; each moves a label only to a cheaper place
_LEADER_START = 0.15  # share of a leader line, from the mark, that may cover what stands there

# Costs of a place, in points of distance to its mark: inside the frame first, then clear of text, marks and lines.
_OUTSIDE = 1e6
_ON_TEXT, _ON_MARK, _ON_LINE = 1000, 150, 40  # the text covers another, a mark, or a line of the plot
_CROSSING, _THROUGH_TEXT, _THROUGH_MARK = 150, 150, 25  # the leader line crosses another, a text, or a mark

_Array = NDArray[np.float64]


class Label(NamedTuple):
    """A text for the mark at `x` and `y`, in units of the data."""

    x: float
    y: float
    text: str
    colour: str


class _Candidates(NamedTuple):
    """The places around one mark, in points.

    Attributes:
        boxes: of the text (n, 4): left, bottom, right, top.
        leaders: lines from the mark to the text (n, 4): x, y, x, y.
    """

    boxes: _Array
    leaders: _Array


def place(
    axis: Axes,
    labels: Sequence[Label],
    marks: Sequence[tuple[float, float]],
    lines: Sequence[tuple[float, float]],
    size: float = 6.5,
) -> None:
    """Write the labels into an axis whose limits and layout are final.

    In several sweeps, each label takes its cheapest place given the others. Places outside the frame cost most. Then
    come places over another text of the axis or a mark, and crossing leader lines. Distance to the mark costs least.

    Args:
        axis: axis to write into.
        labels: labels of marks.
        marks: all marks, with or without a label, in units of the data.
        lines: points along the lines of the plot, in units of the data.
        size: size of the font in points.
    """
    canvas = axis.get_figure(root=True)
    assert canvas is not None
    unit = canvas.dpi / 72
    frame = np.array(axis.bbox.extents) / unit
    squares, points = (
        np.hstack([at - half, at + half])
        for at, half in ((_points(axis, marks, unit), _MARK), (_points(axis, lines, unit), _LINE))
    )
    written = np.array([text.get_window_extent().extents for text in axis.texts]).reshape(-1, 4) / unit
    around = [_around(axis, label, size, unit) for label in labels]
    fixed = [_fixed_cost(one, squares, points, written, frame) for one in around]
    chosen = [int(cost.argmin()) for cost in fixed]
    for _ in range(_SWEEPS):
        before = list(chosen)
        for i, one in enumerate(around):
            others = [j for j in range(len(labels)) if j != i]
            boxes = np.array([around[j].boxes[chosen[j]] for j in others]).reshape(-1, 4)
            leaders = np.array([around[j].leaders[chosen[j]] for j in others]).reshape(-1, 4)
            chosen[i] = int((fixed[i] + _cost_beside(one, boxes, leaders)).argmin())
        if chosen == before:
            break
    for label, best in zip(labels, chosen, strict=True):
        dx, dy, align = _CANDIDATES[best]
        line = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
        axis.annotate(
            label.text, (label.x, label.y), (dx, dy), textcoords="offset points", fontsize=size, color=label.colour,
            ha=align, va="center", arrowprops=line if math.hypot(dx, dy) > _NEAR else None, annotation_clip=False,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )  # fmt: skip


def _points(axis: Axes, places: Sequence[tuple[float, float]], unit: float) -> _Array:
    """Places in units of the data as points (n, 2)."""
    return np.asarray(axis.transData.transform(np.reshape(places, (-1, 2))) / unit)


def _around(axis: Axes, label: Label, size: float, unit: float) -> _Candidates:
    """The candidate places of a label. A leader line that is not drawn has length 0."""
    probe = axis.text(0, 0, label.text, fontsize=size)
    extent = probe.get_window_extent()
    probe.remove()
    width, height = extent.width / unit, extent.height / unit
    mark = axis.transData.transform((label.x, label.y)) / unit
    shares = {"left": 0.0, "center": 0.5, "right": 1.0}
    ends = mark + np.array([(dx, dy) for dx, dy, _ in _CANDIDATES])
    left = ends[:, 0] - width * np.array([shares[align] for _, _, align in _CANDIDATES])
    bottom = ends[:, 1] - height / 2
    boxes = np.column_stack([left - _GAP, bottom, left + width + _GAP, bottom + height])
    far = np.array([math.hypot(dx, dy) > _NEAR for dx, dy, _ in _CANDIDATES])
    starts = np.broadcast_to(mark, ends.shape)
    return _Candidates(boxes, np.hstack([starts, np.where(far[:, None], ends, starts)]))


def _fixed_cost(one: _Candidates, marks: _Array, lines: _Array, texts: _Array, frame: _Array) -> _Array:
    """The part of the cost of each place that does not depend on other labels (n,)."""
    outside = (one.boxes[:, :2] < frame[:2]).any(axis=1) | (one.boxes[:, 2:] > frame[2:]).any(axis=1)
    on_mark = _cover(one.boxes, marks).sum(axis=1)
    on_line = _cover(one.boxes, lines).any(axis=1)
    through = _lies_in(one.leaders, marks).sum(axis=1)
    distance = np.array([math.hypot(dx, dy) for dx, dy, _ in _CANDIDATES])
    own = _OUTSIDE * outside + _ON_MARK * on_mark + _ON_LINE * on_line + _THROUGH_MARK * through + distance
    return np.asarray(own + _cost_beside(one, texts, np.empty((0, 4))))


def _cost_beside(one: _Candidates, boxes: _Array, leaders: _Array) -> _Array:
    """The part of the cost of each place from other labels and leader lines (n,)."""
    on_text = _cover(one.boxes, boxes).sum(axis=1)
    through_text = _lies_in(one.leaders, boxes).sum(axis=1) + _lies_in(leaders, one.boxes).sum(axis=0)
    crossing = _cross(one.leaders, leaders).sum(axis=1)
    return np.asarray(_ON_TEXT * on_text + _THROUGH_TEXT * through_text + _CROSSING * crossing)


def _cover(boxes: _Array, others: _Array) -> NDArray[np.bool_]:
    """Whether each box covers a part of each other box (n, m)."""
    left, bottom, right, top = boxes.T[:, :, None]
    others_left, others_bottom, others_right, others_top = others.T[:, None]
    beside = (left < others_right) & (others_left < right)
    return np.asarray(beside & (bottom < others_top) & (others_bottom < top))


def _lies_in(lines: _Array, boxes: _Array) -> NDArray[np.bool_]:
    """Whether each line passes through each box (n, m), its start at the mark left out. Lines of length 0 do not."""
    start, step = lines.T[:2, :, None], (lines[:, 2:] - lines[:, :2]).T[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):  # a line without a step in x or y gives infinite shares
        low, high = (boxes.T[:2, None] - start) / step, (boxes.T[2:, None] - start) / step
    enters = np.maximum(*np.fmin(low, high))
    leaves = np.minimum(*np.fmax(low, high))
    drawn = (step != 0).any(axis=0)
    return np.asarray(drawn & (np.fmax(enters, _LEADER_START) < np.fmin(leaves, 1.0)))


def _cross(lines: _Array, others: _Array) -> NDArray[np.bool_]:
    """Whether each line crosses each other line (n, m)."""

    def side(a: _Array, b: _Array, point: _Array) -> _Array:
        along, to = b - a, point - a
        return np.asarray(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])

    a, b, c, d = lines[:, None, :2], lines[:, None, 2:], others[None, :, :2], others[None, :, 2:]
    return np.asarray((side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0))


def _candidates() -> Iterator[tuple[float, float, str]]:
    """Offsets in points and the alignment of the text: near offsets first, and right before left."""
    turns = sorted(range(_DIRECTIONS), key=lambda i: min(i, _DIRECTIONS - i))
    for radius in _RADII:
        for turn in turns:
            angle = 2 * math.pi * turn / _DIRECTIONS
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            yield dx, dy, "center" if abs(dx) < 0.1 * radius else "left" if dx > 0 else "right"


_CANDIDATES = tuple(_candidates())
