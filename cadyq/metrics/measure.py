"""Measures one network on one image, image-wise and patch-wise. docs/protocol.md defines what is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cadyq.data.datasets import ImagePair
from cadyq.inference.tiled import TiledForward, run_tiles
from cadyq.inference.tiles import Tile, tile_grid, whole_image
from cadyq.metrics.registry import all_metrics
from cadyq.metrics.standard import PSNR, SSIM  # noqa: F401  (importing registers them)
from cadyq.metrics.storage import parameter_count, storage_mb
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import image_gradient

# Part of every cell's key: raise it when a change alters what is measured, and all cells are measured again.
MEASUREMENT_VERSION = 1
MODES = ("image", "patch")
HD_PIXELS = 1280 * 720  # output size at which papers count operations


def measure_image(
    network: SRNetwork,
    pair: ImagePair,
    modes: Sequence[str],
    identity: dict[str, Any],
    device: torch.device,
    show: Callable[[Tensor], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """Rows of one image, one for each mode. Modes with the same tiles run once.

    Args:
        network: in eval mode, on `device`.
        pair: the image.
        modes: "image" (one choice of bits for the whole image), "patch" (tiles of 96 LR pixels, step 90), or both.
        identity: columns that name the cell, without the mode, and the hash of the weights.
        device: device to run on.
        show: called with the SR of the first mode, uint8 (3, H, W).

    Raises:
        UserError: see `run_tiles`.
    """
    height, width = pair.lr.shape[-2:]
    grids = {"image": whole_image(height, width), "patch": tile_grid(height, width)}
    done: dict[tuple[Tile, ...], dict[str, Any]] = {}
    rows = {}
    for mode in modes:
        tiles = tuple(grids[mode])
        if tiles not in done:
            ran = run_tiles(network, pair.lr, tiles, device, pair.hr)
            if show is not None and not done:
                show(ran.sr)
            done[tiles] = _quality_and_cost(network, pair, ran)
        rows[mode] = identity | {"mode": mode, "image": pair.name} | done[tiles]
    return rows


def _quality_and_cost(network: SRNetwork, pair: ImagePair, ran: TiledForward) -> dict[str, Any]:
    sr, hr = ran.sr[None], pair.hr[None]
    return {
        **{metric.name: metric(sr, hr, network.scale) for metric in all_metrics()},
        "fab": ran.fab,
        "bitops_g": ran.bitops / 1e9,
        "bitops_quantized_g": ran.quantized / 1e9,
        "bitops_fp32_g": ran.fp32 / 1e9,
        "bitops_selector_g": ran.selector / 1e9,
        "bitops_720p_g": ran.bitops / 1e9 * HD_PIXELS / (pair.hr.shape[-2] * pair.hr.shape[-1]),
        "fp32_equivalent_g": ran.bitops / 1e9 / 1024,
        "macs_g": ran.macs / 1e9,
        "overlap_share": ran.overlap,
        "storage_mb": storage_mb(network),
        "params": parameter_count(network),
        "counted_points": sum(point.counts_for_fab for point in network.points.values()),
        "patches": ran.patches,
        "hr_height": pair.hr.shape[-2],
        "hr_width": pair.hr.shape[-1],
        "gradient": float(image_gradient(pair.lr[None].float()).mean()),
        "image_sha256": pair.sha256,
    }
