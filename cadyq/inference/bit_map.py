"""Bit maps: a photograph with each tile in the colour of its mean activation bits."""

from __future__ import annotations

import io
import warnings
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
from torch.nn.functional import avg_pool2d

from cadyq.inference.tiles import Tile
from cadyq.quantizers.context import luma
from cadyq.utils.files import write_atomic

COLOURS = "viridis"
ERRORS = "inferno"
_OPACITY = 0.55
_LEAST_SPAN = 0.5  # smallest range of the colours, in bits
_LABELLED = 80  # with more tiles their numbers have no room
_LONGEST_IN, _LONGEST_PIXELS = 8.0, 1600


def draw(
    axis: Axes,
    photo: NDArray[np.uint8],
    bits: ArrayLike,
    rows: ArrayLike,
    columns: ArrayLike,
    limits: tuple[float, float],
) -> QuadMesh:
    """Draw tiles over a photograph in grey; return the artist for a colour bar.

    Args:
        axis: axis to draw on; its ticks and grid are removed.
        photo: (H, W, 3).
        bits: mean activation bits (R, C) of each tile.
        rows: edges of the tiles in pixels of `photo`, (R + 1,). They may lie outside the photograph.
        columns: the same for the columns, (C + 1,).
        limits: bits at both ends of the colours.
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
    path: Path,
    lr: Tensor,
    tiles: Sequence[Tile],
    tile_bits: Tensor,
    title: str,
    avoided: NDArray[np.float64] | None = None,
) -> None:
    """Write a PNG of a photograph with the bits of its tiles and a legend in bits.

    Args:
        path: path of the PNG.
        lr: uint8 (3, h, w).
        tiles: a grid over `lr`.
        tile_bits: mean activation bits of each tile (T,).
        title: title of the picture.
        avoided: `avoided_error` of the photograph, drawn beside the bits; None to leave it out.
    """
    tops, lefts = sorted({tile.keep_top for tile in tiles}), sorted({tile.keep_left for tile in tiles})
    height, width = lr.shape[-2:]
    scale = max(1, -(-max(height, width) // _LONGEST_PIXELS))  # large photographs are subsampled
    photo = lr[:, ::scale, ::scale].permute(1, 2, 0).numpy()
    panels, longest = 1 if avoided is None else 2, max(height, width)
    with mpl.rc_context({"font.size": 9, "text.parse_math": False}):  # a file's name may hold a dollar sign
        made = Figure(
            figsize=(
                panels * (max(2.5, _LONGEST_IN * width / longest) + 1.2),
                max(1.8, _LONGEST_IN * height / longest) + 0.4,
            ),
            layout="constrained",
        )
        FigureCanvasAgg(made)
        axes = made.subplots(1, panels, squeeze=False)[0]
        grid = tile_bits.view(len(tops), len(lefts)).numpy()
        edges = (np.array([*tops, height]) / scale, np.array([*lefts, width]) / scale)
        drawn = draw(axes[0], photo, grid, *edges, fitted_limits(grid))
        axes[0].set_title(title)
        if len(tiles) <= _LABELLED:
            _label(axes[0], grid, *edges)
        made.colorbar(drawn, ax=axes[0], label="mean activation bits of the tile").solids.set_alpha(1)  # type: ignore[union-attr]
        if avoided is not None:
            _draw_avoided(made, axes[1], avoided, photo.shape[:2])
        sink = io.BytesIO()
        with warnings.catch_warnings():  # names may have letters that the font lacks
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            made.savefig(sink, format="png", dpi=200, metadata={"Software": None})
    write_atomic(path, sink.getvalue())


def fitted_limits(bits: ArrayLike) -> tuple[float, float]:
    """Limits of the colours: the range of the tiles, but at least `_LEAST_SPAN` bits, so that noise has one colour."""
    low, high = float(np.min(bits)), float(np.max(bits))
    missing = max(0.0, _LEAST_SPAN - (high - low)) / 2
    return low - missing, high + missing


def avoided_error(sr: Tensor, lowest: Tensor, scale: int) -> NDArray[np.float64]:
    """The error that the chosen bits avoid: the change of luma if every point had its fewest bits, in grey levels (h,
    w).

    Args:
        sr: uint8 (3, h scale, w scale), at the chosen bits.
        lowest: the same with every point at its lowest candidate.
        scale: SR pixels for each LR pixel, per side. A value is the root mean square over that many rows and columns.
    """
    difference = luma((sr.float() - lowest.float())[None])
    return avg_pool2d(difference.square(), scale)[0, 0].sqrt().double().numpy()


def _draw_avoided(made: Figure, axis: Axes, avoided: NDArray[np.float64], size: tuple[int, ...]) -> None:
    """The error map at the size of the photograph. Colours end at its 99th percentile."""
    step = max(1, avoided.shape[0] // size[0])
    most = max(float(np.percentile(avoided, 99)), 1.0)
    drawn = axis.imshow(avoided[::step, ::step], cmap=ERRORS, vmin=0, vmax=most, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.set_title("error avoided: change at the fewest bits")
    made.colorbar(drawn, ax=axis, label="grey levels of luma")


def _label(axis: Axes, grid: NDArray[np.float32], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> None:
    """Write each tile's bits in its middle, since the colours of neighbours often look the same."""
    halo = [Stroke(linewidth=2, foreground="black"), Normal()]
    for (row, column), bits in np.ndenumerate(grid):
        x, y = (columns[column] + columns[column + 1]) / 2, (rows[row] + rows[row + 1]) / 2
        axis.text(x, y, f"{bits:.1f}", color="white", ha="center", va="center", fontsize=8, path_effects=halo)
