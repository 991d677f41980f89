"""Properties that hold whatever the image, the scale, the tiles, the batch, the scheme and its bits.

CI draws the same few examples each time; `CADYQ_FUZZ=100 pytest tests/test_fuzz.py` draws 100 new ones for each.
That grids of tiles cover an image is in `cadyq/test_tiles.py`, what single quantizers owe in `cadyq.testing`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import cadyq
from cadyq.data.bicubic import downscale
from cadyq.data.datasets import ImagePair
from cadyq.inference import tiled
from cadyq.inference.tiled import TiledForward, run_tiles
from cadyq.inference.tiles import Tile, tile_grid, whole_image
from cadyq.metrics.measure import MODES, measure_image
from cadyq.metrics.quality import smallest_side
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import FULL_PRECISION, MAX_BITS, MIN_BITS
from cadyq.schemes.base import SCHEMES
from cadyq.testing.subject import BIT_OPTIONS, Case, Subject

CPU = torch.device("cpu")
BACKBONE = "edsr"
EXAMPLES = os.environ.get("CADYQ_FUZZ")
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]
fuzz = partial(settings, deadline=None, derandomize=EXAMPLES is None, suppress_health_check=CHECKS)
SEARCHED = "oracle"  # searches over hundreds of forwards, so its images are small
# whose ranges and bits are set once for all images: each output pixel depends on what lies around it and on no more
FIXED = ["fp32", "minmax", "percentile", "mse", "dorefa", "pact", "lsq", "pams"]


def examples(few: int) -> Callable[..., Any]:
    return fuzz(max_examples=int(EXAMPLES or few))


@lru_cache(maxsize=200)
def network(scheme: str, scale: int, bits: tuple[int, ...]) -> SRNetwork:
    """A small network with random weights, calibrated, its selectors moved off their start."""
    takes = [option for option in BIT_OPTIONS if option in SCHEMES.get(scheme).option_names()]
    return Subject(Case(scheme, dict(zip(takes, bits, strict=False))), BACKBONE, scale).network


def image(kind: str, height: int, width: int, seed: int) -> Tensor:
    """uint8 (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    if kind == "mixed":  # so that a scheme that looks at content has something to choose by
        contrast = torch.linspace(0, 1, width).view(1, 1, -1)
        return (noise * contrast + 128 * (1 - contrast)).byte()
    if kind == "smooth":
        rows, columns = torch.arange(height).view(-1, 1) * 5, torch.arange(width) * 3
        return (torch.stack([rows + columns, rows - columns, columns + 0 * rows]) + seed).remainder(256).byte()
    return {"noise": noise, "black": noise * 0, "white": noise * 0 + 255, "sparse": noise // 255 * 255}[kind]


@contextmanager
def batch_pixels(count: int) -> Iterator[None]:
    with patch.object(tiled, "BATCH_PIXELS", count):
        yield


def run(net: SRNetwork, lr: Tensor, tiles: list[Tile]) -> TiledForward:
    """`run_tiles`, with an eye on what comes before rounding to 8 bits, where NaN would look like black."""

    def look(module: SRNetwork, args: tuple[Any, ...], sr: Tensor) -> None:
        assert bool(sr.isfinite().all())

    height, width = lr.shape[-2] * net.scale, lr.shape[-1] * net.scale
    handle = net.register_forward_hook(look)
    try:
        return run_tiles(net, lr, tiles, CPU, image("noise", height, width, 9))
    finally:
        handle.remove()


SCALES = st.sampled_from([2, 3, 4])
BITS = st.tuples(*[st.integers(MIN_BITS, MAX_BITS)] * 2)
KINDS = st.sampled_from(["mixed", "noise", "smooth", "black", "white", "sparse"])


SIDES = st.integers(1, 300)


def tiling(height: int, width: int, size: int, step: int) -> list[Tile]:
    """Tiles near that size and step, but not so many that one example takes a minute."""
    size = max(4, size, int((height * width / 60) ** 0.5))
    return tile_grid(height, width, size, min(size, max(step, (size + 1) // 2)))


def bounds(net: SRNetwork, bits: tuple[int, ...]) -> tuple[int, int]:
    """The bits that a network may give to a patch in the mean."""
    assert net.scheme is not None
    chosen = [getattr(point.quantizer, "candidates", None) for point in net.points.values()]
    candidates = {int(bits) for found in chosen if found is not None for bits in found}
    if not candidates and "act_bits" not in net.scheme.option_names():
        candidates = {FULL_PRECISION}
    around = (net.scheme.act_bits - 1, net.scheme.act_bits + 1) if net.scheme.name == "adabm" else None
    low, high = min(candidates or around or bits[1:]), max(candidates or around or bits[1:])
    return low, high


@pytest.mark.parametrize("scheme", cadyq.list_schemes())
def test_any_tiles_of_any_image(scheme: str) -> None:
    """Finite, FAB between the candidates, the same bytes twice, and the same whatever runs as one batch."""

    @examples(3)
    @given(SCALES, BITS, SIDES, SIDES, SIDES, SIDES, st.integers(2, 100_000), KINDS, st.integers(0, 99))
    @example(4, (8, 8), 60, 120, 20, 18, 5_000, "mixed", 3)  # tiles of one batch that get different bits
    def check(
        scale: int,
        bits: tuple[int, int],
        height: int,
        width: int,
        size: int,
        step: int,
        batch: int,
        kind: str,
        seed: int,
    ) -> None:
        if scheme == SEARCHED:
            height, width = min(height, 16), min(width, 16)
        net, lr, tiles = (
            network(scheme, scale, bits),
            image(kind, height, width, seed),
            tiling(height, width, size, step),
        )
        with batch_pixels(batch):
            first, second = run(net, lr, tiles), run(net, lr, tiles)
        assert first.sr.shape == (3, height * scale, width * scale)
        assert torch.equal(first.sr, second.sr) and torch.equal(first.tile_fab, second.tile_fab)
        low, high = bounds(net, bits)
        assert bool((first.tile_fab >= low).all()) and bool((first.tile_fab <= high).all())
        costs = torch.tensor([first.quantized, first.fp32, first.selector, first.macs, first.fab, first.overlap])
        assert bool(costs.isfinite().all()) and bool((costs >= 0).all())
        with batch_pixels(1):
            alone = run(net, lr, tiles)
        assert torch.equal(first.tile_fab, alone.tile_fab)
        close(first.sr, alone.sr)

    check()


def close(a: Tensor, b: Tensor) -> None:
    """Equal but for sums in another order: a half rounds to either side, and a value on a tie takes the next level."""
    apart = (a.int() - b.int()).abs()
    assert float((apart > 1).float().mean()) <= 0.01, (int(apart.max()), float((apart > 1).float().mean()))


@lru_cache
def reach(scale: int) -> int:
    """How many LR pixels away an output pixel still sees, found by where NaN in a single LR pixel comes out."""
    lr = torch.full((1, 3, 81, 81), 90.0)
    lr[..., 40, 40] = float("nan")
    with torch.no_grad():
        seen = network("fp32", scale, ())(lr)[0].isnan().any(0).nonzero() // scale
    return int((seen - 40).abs().max())


@pytest.mark.parametrize("scheme", FIXED)
def test_tiles_that_overlap_enough_give_the_whole_image(scheme: str) -> None:
    """With ranges and bits fixed, and each kept pixel as far from a cut as the network sees."""

    @examples(2)
    @given(st.data(), SCALES, BITS, st.integers(1, 200), st.integers(1, 200), KINDS, st.integers(0, 99))
    def check(
        data: st.DataObject, scale: int, bits: tuple[int, int], height: int, width: int, kind: str, seed: int
    ) -> None:
        overlap = 2 * reach(scale) + 1
        size = data.draw(st.integers(overlap + 12, 160))
        step = data.draw(st.integers(8, size - overlap))
        net, lr = network(scheme, scale, bits), image(kind, height, width, seed)
        close(run(net, lr, tile_grid(height, width, size, step)).sr, run(net, lr, whole_image(height, width)).sr)

    check()


@examples(8)
@given(SCALES, st.integers(0, 70), st.integers(0, 70), st.sampled_from(["cadyq", "minmax"]), KINDS)
def test_whatever_is_measured_is_a_number(scale: int, higher: int, wider: int, scheme: str, kind: str) -> None:
    """Of images down to the smallest that run_all takes."""
    least = -(-smallest_side(scale) // scale) * scale
    hr = image(kind, least + higher // scale * scale, least + wider // scale * scale, 3)
    pair = ImagePair("fuzz", "a", hr, downscale(hr, scale), None, "")
    for row in measure_image(network(scheme, scale, (4, 4)), pair, MODES, {}, CPU).values():
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        assert len(numbers) > 15 and all(value == value for value in numbers.values()), numbers
        assert MIN_BITS <= row["fab"] <= FULL_PRECISION and -1 <= row["ssim"] <= 1
