"""Measure a network on a dataset in memory: `cadyq.evaluate`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cadyq.data.datasets import Dataset, load
from cadyq.inference.threads import one_thread
from cadyq.metrics.measure import MODES, measure_image
from cadyq.metrics.quality import smallest_side
from cadyq.models.network import SRNetwork
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs
from cadyq.utils.modes import in_eval

if TYPE_CHECKING:
    import pandas as pd


def evaluate(
    network: SRNetwork,
    dataset: str | Dataset,
    data_root: str | Path | None = None,
    modes: Sequence[str] = ("image", "patch"),
) -> pd.DataFrame:
    """Measure PSNR, SSIM, FAB and BitOPs of a network on every image of a dataset.

    The numbers equal those of a run's records. The network runs on one CPU thread, so they do not depend on the number
    of cores.

    Args:
        network: result of `create_model`, `load_model` or `quantize`.
        dataset: "Set5" or another benchmark set, "skimage" for the photographs inside scikit-image, or a `Dataset`.
        data_root: folder that holds `benchmark/`; not needed for "skimage".
        modes: "image" (whole images), "patch" (LR tiles of 96 pixels, step 90), or both.

    Returns:
        One row per image and mode; columns as in `analysis.records.load`.

    Raises:
        UserError: pandas is not installed, the network is not one of this project or has frozen bits, a mode is
            unknown, the dataset is missing, of another scale or no dataset, or an image is unreadable or too small.
    """
    with needs("analysis", "cadyq.evaluate"):
        import pandas as pd
    if not isinstance(network, SRNetwork):
        kind = type(network).__name__
        raise UserError(
            f"cadyq.evaluate: {kind} has no points; call cadyq.quantize(network, 'fp32', calibration) first"
        )
    network.require_scheme("cadyq.evaluate")
    modes = [modes] if isinstance(modes, str) else modes
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise UserError(f"cadyq.evaluate: unknown mode {unknown[0]!r}; choose from {', '.join(MODES)}")
    if not isinstance(dataset, str | Dataset):
        raise UserError(f"cadyq.evaluate: a {type(dataset).__name__} is no dataset; give one name, or a Dataset")
    root = None if data_root is None else Path(data_root)
    images = load(dataset, network.scale, root) if isinstance(dataset, str) else dataset
    if images.scale != network.scale:
        raise UserError(
            f"cadyq.evaluate: dataset {images.name!r} is of scale {images.scale}, {network.name} of scale "
            f"{network.scale}; open the dataset with scale {network.scale}"
        )
    images.require_sides(smallest_side(images.scale))
    device = next(network.parameters(), torch.zeros(())).device
    identity = {
        "backbone": network.name,
        "scheme": network.scheme_label,
        "scale": network.scale,
        "dataset": images.name,
        "weights_sha256": state_sha256(network),
    }
    with in_eval(network), one_thread():
        rows = [row for pair in images for row in measure_image(network, pair, modes, identity, device).values()]
    return pd.DataFrame(rows)


def state_sha256(network: SRNetwork) -> str:
    """SHA-256 of all tensors of a network and of its scheme, as hex digits."""
    digest = hashlib.sha256(repr(network.scheme).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
