"""Tiles of patch-wise evaluation: cover, sizes, reassembly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cadyq.inference.tiles import Tile, group_by_size, image_size, overlap_share, place, split, tile_grid
from cadyq.utils.errors import UserError

SIDES = st.integers(1, 300)


def placed(parts: list[torch.Tensor], tiles: list[Tile], scale: int) -> torch.Tensor:
    """The image that SR tiles make."""
    height, width = image_size(tiles)
    out = parts[0].new_empty(3, height * scale, width * scale)
    for part, tile in zip(parts, tiles, strict=True):
        place(out, part, tile, scale)
    return out


@given(SIDES, SIDES, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_any_image_reassembles(height: int, width: int, scale: int) -> None:
    lr = torch.arange(height * width, dtype=torch.int32).expand(3, -1).reshape(3, height, width)
    tiles = tile_grid(height, width)
    large = [t.repeat_interleave(scale, 1).repeat_interleave(scale, 2) for t in split(lr, tiles)]
    whole = lr.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    assert torch.equal(placed(large, tiles, scale), whole)


@given(SIDES, SIDES, st.integers(16, 120), st.data())
@settings(max_examples=60, deadline=None)
def test_each_pixel_is_kept_once_and_by_a_tile_that_saw_it(
    height: int, width: int, patch: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(max(8, patch // 4), patch))
    tiles = tile_grid(height, width, patch, step)
    kept = torch.zeros(height, width, dtype=torch.int32)
    for t in tiles:
        assert t.top <= t.keep_top
        assert t.left <= t.keep_left
        assert t.keep_top + t.keep_height <= t.top + t.height <= height
        assert t.keep_left + t.keep_width <= t.left + t.width <= width
        kept[t.keep_top : t.keep_top + t.keep_height, t.keep_left : t.keep_left + t.keep_width] += 1
    assert (kept == 1).all()


@given(SIDES)
def test_lengths_are_those_of_the_paper(length: int) -> None:
    tiles = tile_grid(1, length)
    assert [t.left for t in tiles] == list(range(0, max(length - 96, 0) + 1, 90))
    assert all(t.width == 96 for t in tiles[:-1])
    assert 1 <= tiles[-1].width <= 185
    assert tiles[-1].left + tiles[-1].width == length


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, [1]), (95, [95]), (96, [96]), (185, [185]), (186, [96, 96]), (275, [96, 185]), (276, [96, 96, 96])],
)
def test_lengths_at_the_turning_points(length: int, expected: list[int]) -> None:
    assert [t.height for t in tile_grid(length, 1)] == expected


def test_the_overlap_is_split_in_its_middle() -> None:
    first, second = tile_grid(96, 186)
    assert (first.keep_left, first.keep_width) == (0, 93)
    assert (second.keep_left, second.keep_width) == (93, 93)
    sr = placed([torch.zeros(3, 384, 384), torch.ones(3, 384, 384)], [first, second], 4)
    assert sr.shape == (3, 384, 744)
    assert sr[0, 0].sum() == 93 * 4
    assert (sr[..., 372:] == 1).all()


def test_order_is_row_by_row() -> None:
    assert [(t.top, t.left) for t in tile_grid(186, 276)] == [(y, x) for y in (0, 90) for x in (0, 90, 180)]


def test_groups_hold_tiles_of_one_size_in_order() -> None:
    tiles = tile_grid(200, 290)
    groups = group_by_size(tiles)
    assert groups == [[0, 1], [2], [3, 4], [5]]
    assert sorted(i for group in groups for i in group) == list(range(len(tiles)))
    assert all(len({(tiles[i].height, tiles[i].width) for i in group}) == 1 for group in groups)


def test_overlap_share() -> None:
    assert overlap_share(tile_grid(96, 96)) == 0
    assert overlap_share(tile_grid(96, 186)) == pytest.approx(6 / 186)
    assert overlap_share(tile_grid(90, 180, 90, 90)) == 0


@pytest.mark.parametrize(
    ("height", "width", "patch", "step", "message"),
    [
        (9, 9, 0, 1, "patch 0"),
        (9, 9, 96, 0, "step 0"),
        (9, 9, 96, 97, "step 97"),
        (0, 9, 96, 90, "0x9"),
    ],
)
def test_bad_grids(height: int, width: int, patch: int, step: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tile_grid(height, width, patch, step)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not \(20, 20\)"):
        placed([torch.zeros(3, 10, 10)], tile_grid(10, 10), 2)
    with pytest.raises(ValueError, match="no tiles"):
        image_size([])
