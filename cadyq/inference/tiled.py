"""Runs a network over an image tile by tile, for the harness and for `cadyq.upscale`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cadyq.inference.tiles import Tile, group_by_size, image_size, overlap_share, place, split
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.quantizers.cost import bitops_at
from cadyq.quantizers.layers import frozen_weights
from cadyq.quantizers.trace import Trace, trace_forward
from cadyq.utils.errors import UserError

BATCH_PIXELS = 96 * 96 * 8  # LR pixels per forward: a batch of tiles fits any machine
REFERENCE_BITS = 8  # bits of weights and activations that a dynamic choice is compared with


@dataclass(frozen=True)
class TiledForward:
    """The result of one image.

    Attributes:
        sr: uint8 (3, H, W).
        tile_fab: mean activation bits of each tile over the points that count, float (T,), in the order of the tiles.
        quantized, fp32, selector: BitOPs, summed over the tiles.
        macs: multiply-adds, summed over the tiles.
        seconds: wall-clock time.
        network, tiles: the network that ran, and its tiles.
    """

    sr: Tensor
    tile_fab: Tensor
    quantized: float
    fp32: float
    selector: float
    macs: float
    seconds: float
    network: SRNetwork = field(repr=False)
    tiles: Sequence[Tile] = field(repr=False)

    @property
    def patches(self) -> int:
        """Number of tiles."""
        return len(self.tile_fab)

    @property
    def fab(self) -> float:
        """Mean activation bits over tiles and points that count (FAB)."""
        return float(self.tile_fab.double().mean())

    @property
    def bitops(self) -> float:
        """BitOPs of the image: quantized, FP32 and selector."""
        return self.quantized + self.fp32 + self.selector

    @property
    def eight_bit(self) -> float:
        """BitOPs of the same tiles with `REFERENCE_BITS` bits at every point, and without a selector."""
        return reference_bitops(self.network, self.tiles)

    @property
    def overlap(self) -> float:
        """Share of pixels that the tiles hold in addition to the image: 0.13 means 13 % more."""
        return overlap_share(self.tiles)


def reference_bitops(network: SRNetwork, tiles: Sequence[Tile]) -> float:
    """BitOPs of tiles with `REFERENCE_BITS` bits at every point, and without a selector."""
    sizes = [(len(group), tiles[group[0]]) for group in group_by_size(tiles)]
    return sum(n * bitops_at(network, tile.height, tile.width, REFERENCE_BITS, REFERENCE_BITS) for n, tile in sizes)


def run_tiles(
    network: SRNetwork,
    lr: Tensor,
    tiles: Sequence[Tile],
    device: torch.device,
    hr: Tensor | None = None,
    on_tiles: Callable[[int], object] | None = None,
) -> TiledForward:
    """Super-resolve `lr` tile by tile. Tiles of one size run as batches. Each SR tile is rounded first.

    The SR of a batch is written into the 8-bit result at once. Memory holds one batch besides the result.

    Args:
        network: in eval mode, on `device`.
        lr: uint8 (3, h, w).
        tiles: a grid over `lr`.
        device: device to run on.
        hr: uint8 (3, h scale, w scale), for a scheme that reads HR (an oracle). Other schemes do not get it.
        on_tiles: called with the number of tiles after each batch.

    Raises:
        UserError: SR has a wrong shape or is not finite, or the bits are out of range.
    """
    started = time.perf_counter()
    height, width = image_size(tiles)
    out = torch.empty(3, height * network.scale, width * network.scale, dtype=torch.uint8)
    tile_fab = torch.zeros(len(tiles))
    costs = torch.zeros(4, dtype=torch.float64)
    parts, answers = split(lr, tiles), _hr_tiles(network, hr, tiles)
    with frozen_weights(network):
        for batch in forward_batches(network, parts, tiles, device, answers):
            for i, image in zip(batch.indices, batch.sr, strict=True):
                place(out, image, tiles[i], network.scale)
            tile_fab[batch.indices] = batch.fab
            costs += batch.costs.sum(0)
            if on_tiles is not None:
                on_tiles(len(batch.indices))
    seconds = time.perf_counter() - started
    quantized, fp32, selector, macs = costs.tolist()
    return TiledForward(out, tile_fab, quantized, fp32, selector, macs, seconds, network, tiles)


@dataclass(frozen=True)
class Batch:
    """The result of one forward.

    Attributes:
        indices: indices of its tiles.
        sr: uint8 (B, 3, h scale, w scale), on the CPU.
        fab: mean activation bits over the points that count (B,).
        costs: quantized, FP32 and selector BitOPs and MACs of each tile, float64 (B, 4).
    """

    indices: list[int]
    sr: Tensor
    fab: Tensor
    costs: Tensor


@torch.no_grad()
def forward_batches(
    network: SRNetwork,
    parts: Sequence[Tensor],
    tiles: Sequence[Tile],
    device: torch.device,
    answers: Sequence[Tensor] = (),
) -> Iterator[Batch]:
    """Run the tiles of one or several images. Tiles of one size run together. Call it inside `frozen_weights`.

    Args:
        network: in eval mode, on `device`.
        parts: LR pixels of each tile, uint8 (3, h, w).
        tiles: position of each tile in its image.
        device: device to run on.
        answers: HR pixels of each tile for a scheme that reads HR, else empty.

    Raises:
        UserError: SR has a wrong shape or is not finite, or the bits are out of range.
    """
    for indices in batches(tiles):
        answer = _batch([answers[i] for i in indices], device) if answers else None
        lr = _batch([parts[i] for i in indices], device).contiguous(memory_format=torch.channels_last)
        sr, trace = trace_forward(network, lr, answer)
        _check(network, sr, [tiles[i] for i in indices])
        fab = _checked_fab(network, trace.fab().cpu())
        yield Batch(indices, sr.clamp(0, 255).round().to("cpu", torch.uint8), fab, _costs(trace))


def _named(network: SRNetwork) -> str:
    return f"{network.name} {network.scheme_label}"


def _check(network: SRNetwork, sr: Any, tiles: Sequence[Tile]) -> None:
    """Check SR before it is clamped to 8 bits, where NaN would become a grey level."""
    expected = (len(tiles), 3, tiles[0].height * network.scale, tiles[0].width * network.scale)
    found = tuple(sr.shape) if isinstance(sr, Tensor) else type(sr).__name__
    if found != expected:
        remedy = "fix its forward, or give multiple_of to cadyq.quantize if both sides of LR must be multiples"
        raise UserError(f"{_named(network)}: SR of {len(tiles)} tiles is {found}, not {expected}; {remedy}")
    finite = torch.isfinite(sr).flatten(1).all(1)
    if not bool(finite.all()):
        tile = tiles[int((~finite).long().argmax())]
        where = f"the tile of {tile.height}x{tile.width} LR pixels at row {tile.top}, column {tile.left}"
        remedy = "check its quantizers, or calibrate or train it again"
        raise UserError(f"{_named(network)}: SR of {where} holds NaN or infinity; {remedy}")


def _checked_fab(network: SRNetwork, fab: Tensor) -> Tensor:
    """FAB of each tile (B,), which must lie in 1..32."""
    wrong = ~((fab >= 1) & (fab <= FULL_PRECISION))
    if bool(wrong.any()):
        raise UserError(f"{_named(network)}: its quantizers report {float(fab[wrong][0])} bits; give 1 to 32")
    return fab


def _batch(images: list[Tensor], device: torch.device) -> Tensor:
    """Images of one size as float32 (B, 3, h, w) on the device, copied as bytes (to a GPU from pinned memory)."""
    batch = torch.stack(images)
    if device.type == "cuda":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True).float()


def _costs(trace: Trace) -> Tensor:
    """Quantized, FP32 and selector BitOPs and MACs of each tile, float64 (B, 4)."""
    parts = list(trace.bitops_split())
    return torch.stack([*parts, torch.full_like(parts[0], float(trace.macs.total))], 1)


def _hr_tiles(network: SRNetwork, hr: Tensor | None, tiles: Sequence[Tile]) -> list[Tensor]:
    """The HR image cut as the LR image is, for a scheme that reads HR; empty for all others."""
    if hr is None or network.scheme is None or not network.scheme.reads_hr:
        return []
    return split(hr, [tile.scaled(network.scale) for tile in tiles])


def batches(tiles: Sequence[Tile]) -> Iterator[list[int]]:
    """Indices of tiles of one size, at most `BATCH_PIXELS` (or one tile) at a time."""
    for indices in group_by_size(tiles):
        tile = tiles[indices[0]]
        size = max(1, BATCH_PIXELS // (tile.height * tile.width))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]
