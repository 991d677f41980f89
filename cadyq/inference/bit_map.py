"""Pictures of where bits go: each tile of a photograph in the colour of its mean activation bits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cadyq.inference.tiles import Tile
from cadyq.utils.files import write_atomic

COLOURS = "viridis"
_OPACITY = 0.55
_LABELLED = 80  # tiles, at most, that have room for their number
_LONGEST_IN, _LONGEST_PIXELS = 8.0, 1600


def draw(
    axis: Axes,
    photo: NDArray[np.uint8],
    bits: ArrayLike,
    rows: ArrayLike,
    columns: ArrayLike,
    limits: tuple[float, float],
) -> QuadMesh:
    """Draw tiles over a photograph in grey; returns what a colour bar is made from.

    Args:
        axis: to draw on; its ticks and grid are removed.
        photo: (H, W, 3).
        bits: mean activation bits (R, C) of each tile.
        rows: edges of the tiles in pixels of `photo`, (R + 1,). They may reach beyond it.
        columns: the same along the other side, (C + 1,).
        limits: bits at the two ends of the colours.
    """
    height, width = photo.shape[:2]
    axis.imshow(photo.mean(axis=2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    drawn = axis.pcolormesh(
        np.asarray(columns) - 0.5, np.asarray(rows) - 0.5, bits, cmap=COLOURS, vmin=limits[0], vmax=limits[1],
        alpha=_OPACITY, linewidth=0, rasterized=True,
    )  # fmt: skip
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axis.grid(False)
    return drawn


def write_bit_map(
    path: Path, lr: Tensor, tiles: Sequence[Tile], tile_bits: Tensor, limits: tuple[float, float], title: str
) -> None:
    """Write a PNG of a photograph `lr`, uint8 (3, h, w), under the bits (T,) of its tiles, with a legend in bits."""
    tops, lefts = (sorted({edge(tile) for tile in tiles}) for edge in (_top, _left))
    height, width = lr.shape[-2:]
    scale = max(1, -(-max(height, width) // _LONGEST_PIXELS))  # a picture to look at: large photographs are subsample
    photo = lr[:, ::scale, ::scale].permute(1, 2, 0).numpy()
    longest = max(height, width)
    with mpl.rc_context({"font.size": 9, "text.parse_math": False}):  # a file's name may hold a dollar sign
        made = Figure(
            figsize=(max(2.5, _LONGEST_IN * width / longest) + 1.2, max(1.8, _LONGEST_IN * height / longest) + 0.4),
            layout="constrained",
        )
        FigureCanvasAgg(made)
        axis = made.subplots()
        grid = tile_bits.view(len(tops), len(lefts)).numpy()
        edges = (np.array([*tops, height]) / scale, np.array([*lefts, width]) / scale)
        drawn = draw(axis, photo, grid, *edges, limits)
        axis.set_title(title)
        if len(tiles) <= _LABELLED:
            _label(axis, grid, *edges)
        made.colorbar(drawn, ax=axis, label="mean activation bits of the tile").solids.set_alpha(1)  # type: ignore[union-attr]
        sink = io.BytesIO()
        made.savefig(sink, format="png", dpi=200, metadata={"Software": None})
    write_atomic(path, sink.getvalue())


def _label(axis: Axes, grid: NDArray[np.float32], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> None:
    """Each tile's bits in its middle: neighbours often differ by less than the eye tells apart."""
    halo = [Stroke(linewidth=2, foreground="black"), Normal()]
    for (row, column), bits in np.ndenumerate(grid):
        x, y = (columns[column] + columns[column + 1]) / 2, (rows[row] + rows[row + 1]) / 2
        axis.text(x, y, f"{bits:.1f}", color="white", ha="center", va="center", fontsize=8, path_effects=halo)


def _top(tile: Tile) -> int:
    return tile.keep_top


def _left(tile: Tile) -> int:
    return tile.keep_left
