"""Estimates the time and memory of a command from a few tiles, before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from cadyq.inference.tiled import BATCH_PIXELS, forward_batches
from cadyq.inference.tiles import Tile, group_by_size
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import frozen_weights

WORTH = 8 * BATCH_PIXELS  # LR pixels; less work ends before an estimate is useful
_READ_BYTES = 12  # of memory for each LR pixel: decoded, as an array and as a tensor


@dataclass(frozen=True)
class Estimate:
    """The expected time, memory and disk space.

    Attributes:
        tiles: number of all tiles.
        measured: number of tiles that were run for the estimate.
        seconds: for all tiles.
        memory_bytes: peak of the main memory of the process; None if the system does not report it.
        disk_bytes: peak of the temporary files beside the results.
    """

    tiles: int
    measured: int
    seconds: float
    memory_bytes: int | None
    disk_bytes: int

    def __str__(self) -> str:
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 1e9:.1f} GB of memory"
        disk = f", {self.disk_bytes / 1e9:.1f} GB of disk while it runs" if self.disk_bytes else ""
        return (
            f"estimate: {self.tiles:,} tiles, about {_time(self.seconds)}{memory}{disk}"
            f" (measured on {self.measured} tiles)"
        )


def estimate(
    network: SRNetwork, grids: Sequence[Sequence[Tile]], sizes: Sequence[tuple[int, int]], device: torch.device
) -> Estimate | None:
    """Run a few tiles of noise and scale their time to all tiles; None if there is little work.

    Args:
        network: in eval mode, on `device`.
        grids: the tiles to run, for each photograph.
        sizes: height and width of each photograph, LR pixels.
        device: to run on.
    """
    tiles = [tile for grid in grids for tile in grid]
    pixels = sum(tile.height * tile.width for tile in tiles)
    if pixels < WORTH or max(map(len, grids)) == 1:  # whole images have no smaller tile to measure
        return None
    common = tiles[max(group_by_size(tiles), key=len)[0]]
    side = common.height * common.width
    few = [common] * max(1, BATCH_PIXELS // side)
    _seconds(network, few[:1], device)  # the first forward also counts operations
    seconds = _seconds(network, few, device)
    area = max(height * width for height, width in sizes)
    held = _held_bytes()
    return Estimate(
        len(tiles),
        1 + len(few),
        seconds * pixels / (side * len(few)),
        None if held is None else held + _READ_BYTES * area,
        3 * network.scale**2 * area if area > BATCH_PIXELS else 0,
    )


def _seconds(network: SRNetwork, tiles: Sequence[Tile], device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    shape = 3, tiles[0].height, tiles[0].width
    parts = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in tiles]
    started = time.perf_counter()
    with frozen_weights(network):
        for _ in forward_batches(network, parts, tiles, device):
            pass
    return time.perf_counter() - started


def _held_bytes() -> int | None:
    """Peak of the memory of this process so far; None if the system does not report it."""
    with suppress(ImportError):
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return None


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
