"""Measuring one network on one image, image-wise and patch-wise. What is measured is defined in the README."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from analysis.cost import HD_PIXELS, parameter_count, storage_mb
from analysis.metrics import psnr, ssim
from cadyq.cost import count_macs
from cadyq.data.datasets import ImagePair
from cadyq.data.tiles import Tile, group_by_size, merge, overlap_share, split, tile_grid
from cadyq.models.network import SRNetwork, trace_forward
from cadyq.quantizers.content import image_gradient

# Part of every cell's key: raise it when a change alters what is measured, and all cells are measured again.
MEASUREMENT_VERSION = 1
MODES = ("image", "patch")
BATCH_PIXELS = 96 * 96 * 8  # LR pixels a forward, so that a batch of tiles fits any machine


@dataclass(frozen=True)
class Forward:
    """What running one image gave: SR uint8 (3, H, W); sums and means over its tiles; wall-clock seconds."""

    sr: Tensor
    fab: float
    quantized: float
    fp32: float
    selector: float
    macs: float
    patches: int
    overlap: float
    seconds: float


@torch.no_grad()
def run_tiles(network: SRNetwork, pair: ImagePair, tiles: Sequence[Tile], device: torch.device) -> Forward:
    """Super-resolve `pair.lr` tile by tile; tiles of one size run as batches; each SR tile is rounded first.

    The HR tiles are shown to an oracle, and to no other scheme.
    """
    started = time.perf_counter()
    parts = split(pair.lr, tiles)
    answers = hr_tiles(network, pair, tiles)
    sr_tiles: list[Tensor] = [pair.lr] * len(tiles)
    fab = quantized = fp32 = selector = macs = 0.0
    for same_size in group_by_size(tiles):
        for indices in _batches(same_size, tiles):
            batch = torch.stack([parts[i] for i in indices]).float()
            batch = batch.to(device, memory_format=torch.channels_last)
            answer = torch.stack([answers[i] for i in indices]).float().to(device) if answers else None
            sr, trace = trace_forward(network, batch, answer)
            for i, image in zip(indices, sr.clamp(0, 255).round().to("cpu", torch.uint8), strict=True):
                sr_tiles[i] = image
            bitops = trace.bitops_split()
            fab += float(trace.fab().sum())
            quantized += float(bitops.quantized.sum())
            fp32 += float(bitops.fp32.sum())
            selector += float(bitops.selector.sum())
            macs += len(indices) * count_macs(network, *batch.shape[-2:]).total
    sr_image = merge(sr_tiles, tiles, network.scale)
    seconds = time.perf_counter() - started
    count = len(tiles)
    return Forward(sr_image, fab / count, quantized, fp32, selector, macs, count, overlap_share(tiles), seconds)


def hr_tiles(network: SRNetwork, pair: ImagePair, tiles: Sequence[Tile]) -> list[Tensor]:
    """The HR image cut as the LR image is, for a scheme that reads HR; empty for all others."""
    if network.scheme is None or not network.scheme.reads_hr:
        return []
    return split(pair.hr, [tile.scaled(network.scale) for tile in tiles])


def _batches(indices: Sequence[int], tiles: Sequence[Tile]) -> list[Sequence[int]]:
    tile = tiles[indices[0]]
    size = max(1, BATCH_PIXELS // (tile.height * tile.width))
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def whole_image(height: int, width: int) -> list[Tile]:
    """The image as its only tile."""
    return [Tile(0, 0, height, width, 0, 0, height, width)]


def measure_image(
    network: SRNetwork, pair: ImagePair, modes: Sequence[str], identity: dict[str, Any], device: torch.device
) -> dict[str, dict[str, Any]]:
    """Rows of one image, by mode. Modes that come to the same tiles are run once.

    Args:
        network: in eval mode, on `device`.
        pair: the image.
        modes: of "image" (one choice of bits for the whole image) and "patch" (tiles of 96, step 90).
        identity: the columns that name the cell, without mode, and the hash of the weights.
        device: to run on.
    """
    height, width = pair.lr.shape[-2:]
    grids = {"image": whole_image(height, width), "patch": tile_grid(height, width)}
    done: dict[tuple[Tile, ...], dict[str, Any]] = {}
    rows = {}
    for mode in modes:
        tiles = tuple(grids[mode])
        if tiles not in done:
            done[tiles] = _quality_and_cost(network, pair, run_tiles(network, pair, tiles, device))
        rows[mode] = identity | {"mode": mode, "image": pair.name} | done[tiles]
    return rows


def _quality_and_cost(network: SRNetwork, pair: ImagePair, ran: Forward) -> dict[str, Any]:
    sr, hr = ran.sr[None], pair.hr[None]
    total = ran.quantized + ran.fp32 + ran.selector
    return {
        "psnr_db": float(psnr(sr, hr, network.scale)),
        "ssim": float(ssim(sr, hr, network.scale)),
        "psnr_cadyq_db": float(psnr(sr, hr, network.scale, "cadyq")),
        "ssim_cadyq": float(ssim(sr, hr, network.scale, "cadyq")),
        "fab": ran.fab,
        "bitops_g": total / 1e9,
        "bitops_quantized_g": ran.quantized / 1e9,
        "bitops_fp32_g": ran.fp32 / 1e9,
        "bitops_selector_g": ran.selector / 1e9,
        "bitops_720p_g": total / 1e9 * HD_PIXELS / (pair.hr.shape[-2] * pair.hr.shape[-1]),
        "fp32_equivalent_g": total / 1e9 / 1024,
        "macs_g": ran.macs / 1e9,
        "overlap_share": ran.overlap,
        "storage_mb": storage_mb(network),
        "params": parameter_count(network),
        "counted_points": sum(point.dynamic for point in network.points.values()),
        "patches": ran.patches,
        "hr_height": pair.hr.shape[-2],
        "hr_width": pair.hr.shape[-1],
        "gradient": float(image_gradient(pair.lr[None].float()).mean()),
        "seconds": ran.seconds,
        "image_sha256": pair.sha256,
    }
