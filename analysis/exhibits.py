"""Exhibits: one image with SR, FP32 SR and a fine map of the bits that each small tile was given.

The maps use tiles far smaller than the 96 pixels of patch-wise evaluation, so that one can see where bits go; the
numbers of tables come from records only.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.metrics import psnr
from analysis.records import write_atomic
from cadyq.data.datasets import ImagePair
from cadyq.models.network import SRNetwork, trace_forward

TILE = 12  # LR pixels
CONTEXT = 6  # LR pixels around a tile that the network sees as well


@torch.no_grad()
def bit_map(network: SRNetwork, lr: Tensor, device: torch.device) -> tuple[Tensor, float, float]:
    """Mean activation bits over the counted points of each `TILE` x `TILE` tile of `lr` (3, H, W), (rows, columns);
    and the fewest and most bits that any point used.

    Every tile is seen with `CONTEXT` pixels around it; LR is extended by reflection at its borders.
    """
    height, width = lr.shape[-2:]
    rows, columns = -(-height // TILE), -(-width // TILE)
    bottom, right = rows * TILE - height + CONTEXT, columns * TILE - width + CONTEXT
    padded = torch.nn.functional.pad(lr[None].float(), (CONTEXT, right, CONTEXT, bottom), mode="reflect")[0]
    side = TILE + 2 * CONTEXT
    windows = padded.unfold(1, side, TILE).unfold(2, side, TILE).permute(1, 2, 0, 3, 4).reshape(-1, 3, side, side)
    traces = [trace_forward(network, batch.to(device))[1] for batch in torch.split(windows, 128)]
    chosen = torch.cat([torch.stack(list(trace.bits.values())).flatten() for trace in traces]).float()
    return (
        torch.cat([trace.fab().cpu() for trace in traces]).view(rows, columns),
        float(chosen.min()),
        float(chosen.max()),
    )


def write_exhibit(
    folder: Path, network: SRNetwork, reference: Tensor, sr: Tensor, pair: ImagePair, scheme: str, device: torch.device
) -> Path:
    """Write the exhibit of one image.

    Args:
        folder: where to.
        network: the dynamic network.
        reference, sr: SR of the FP32 network and of `network`, uint8 (3, H, W).
        pair: the image.
        scheme: as written in records.
        device: to run on.
    """
    bits, low, high = bit_map(network, pair.lr, device)
    values: dict[str, Any] = {
        "lr": _image(pair.lr),
        "sr": _image(sr),
        "hr": _image(pair.hr),
        "reference": _image(reference),
        "bits": bits.numpy().astype(np.float32),
        "tile": np.int64(TILE),
        "low": np.float64(low),
        "high": np.float64(high),
        "psnr_db": np.float64(psnr(sr[None], pair.hr[None], network.scale)),
        "reference_psnr_db": np.float64(psnr(reference[None], pair.hr[None], network.scale)),
        "fab": np.float64(bits.mean()),
        "backbone": np.str_(network.name),
        "scheme": np.str_(scheme),
        "dataset": np.str_(pair.dataset),
        "image": np.str_(pair.name),
    }
    sink = io.BytesIO()
    np.savez_compressed(sink, **values)
    stem = "__".join((network.name, scheme.replace(":", "-"), pair.dataset, pair.name))
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem)
    suffix = hashlib.sha256(stem.encode()).hexdigest()[:6] if safe != stem else ""
    return write_atomic(folder / f"{safe}{suffix}.npz", sink.getvalue())


def _image(image: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())
