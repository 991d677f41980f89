"""The tiles of patch-wise evaluation, cut and joined as in the paper's code.

Along an axis a tile starts every ``step`` pixels and is ``patch`` long. The last one reaches to the border.
Neighbours overlap by ``patch - step`` pixels. The overlap is split in the middle, so each pixel comes from one tile.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from torch import Tensor

from cadyq.utils.errors import UserError


@dataclass(frozen=True)
class Tile:
    """One tile, in LR pixels of the whole image.

    ``top``, ``left``, ``height``, ``width``: the input of the network. ``keep_*``: the part of its output that is
    copied into the image. The kept parts of a grid cover the image, each pixel once.
    """

    top: int
    left: int
    height: int
    width: int
    keep_top: int
    keep_left: int
    keep_height: int
    keep_width: int

    def scaled(self, scale: int) -> "Tile":
        """The same tile in pixels of an image ``scale`` times as large."""
        return Tile(*(scale * value for value in astuple(self)))


@dataclass(frozen=True)
class _Span:
    """A tile along one axis: first pixel and length, seen and kept."""

    start: int
    length: int
    keep_start: int
    keep_length: int


def _spans(length: int, patch: int, step: int) -> list[_Span]:
    """Cut an axis of ``length`` pixels."""
    starts = list(range(0, max(length - patch, 0) + 1, step))
    ends = [start + patch for start in starts[:-1]] + [length]
    cuts = [0] + [start + (patch - step) // 2 for start in starts[1:]] + [length]
    return [
        _Span(start, end - start, low, high - low)
        for start, end, low, high in zip(starts, ends, cuts[:-1], cuts[1:], strict=True)
    ]


def tile_grid(height: int, width: int, patch: int = 96, step: int = 90) -> list[Tile]:
    """Cut an LR image of ``height`` x ``width`` pixels into tiles, row by row.

    Raises:
        UserError: an empty image, ``patch`` below 1, or ``step`` not in 1..``patch``.
    """
    if height < 1 or width < 1:
        raise UserError(f"an image of {height}x{width} pixels has no tiles; give at least one pixel")
    if patch < 1:
        raise UserError(f"patch {patch} is out of range; use a positive number of LR pixels, such as 96")
    if not 0 < step <= patch:
        raise UserError(f"step {step} is out of range; use 1 to {patch} LR pixels (the patch)")
    columns = _spans(width, patch, step)
    return [
        Tile(
            row.start,
            column.start,
            row.length,
            column.length,
            row.keep_start,
            column.keep_start,
            row.keep_length,
            column.keep_length,
        )
        for row in _spans(height, patch, step)
        for column in columns
    ]


def split(lr: Tensor, tiles: Sequence[Tile]) -> list[Tensor]:
    """Cut ``lr`` (3, H, W) into views (3, h, w), one per tile, in order."""
    return [lr[..., t.top : t.top + t.height, t.left : t.left + t.width] for t in tiles]


def group_by_size(tiles: Sequence[Tile]) -> list[list[int]]:
    """Return the indices of tiles of equal size, in order: each group can run as one batch."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, tile in enumerate(tiles):
        groups[tile.height, tile.width].append(index)
    return list(groups.values())


def whole_image(height: int, width: int) -> list[Tile]:
    """The LR image as its only tile."""
    return [Tile(0, 0, height, width, 0, 0, height, width)]


def image_size(tiles: Sequence[Tile]) -> tuple[int, int]:
    """Height and width of the LR image that the tiles cover."""
    if not tiles:
        raise ValueError("there are no tiles")
    return max(t.top + t.height for t in tiles), max(t.left + t.width for t in tiles)


def kept(tile: Tile, scale: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of the kept part of ``tile``, in the SR image and in the SR tile."""
    target = _slices(tile.keep_top, tile.keep_left, tile, scale)
    return target, _slices(tile.keep_top - tile.top, tile.keep_left - tile.left, tile, scale)


def _slices(top: int, left: int, tile: Tile, scale: int) -> tuple[slice, slice]:
    rows = slice(top * scale, (top + tile.keep_height) * scale)
    return rows, slice(left * scale, (left + tile.keep_width) * scale)


def place(out: Tensor, sr: Tensor, tile: Tile, scale: int) -> None:
    """Copy the kept part of a tile's SR (3, h * scale, w * scale) into the image ``out`` (3, H * scale, W * scale).

    Nothing is clamped or rounded. The tiles of a grid fill the image, each pixel once.

    Raises:
        ValueError: the size of ``sr`` does not fit ``tile`` and ``scale``.
    """
    if tuple(sr.shape[-2:]) != (tile.height * scale, tile.width * scale):
        raise ValueError(f"SR tile is {tuple(sr.shape[-2:])}, not {(tile.height * scale, tile.width * scale)}")
    (rows, columns), (from_rows, from_columns) = kept(tile, scale)
    out[..., rows, columns] = sr[..., from_rows, from_columns]


def overlap_share(tiles: Sequence[Tile]) -> float:
    """Share of pixels that the tiles hold in addition to the image: 0.13 means that 13 % are computed twice.

    Raises:
        ValueError: there are no tiles.
    """
    height, width = image_size(tiles)
    return sum(t.height * t.width for t in tiles) / (height * width) - 1
