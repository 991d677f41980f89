"""Degradations of LR patches, in steps from none to strong: noise, blur, JPEG.

Patches are RGB (N, 3, h, w) in 0..255, before and after, with whole values.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Degradation = Callable[[Tensor, float], Tensor]


def noise(lr: Tensor, sigma: float) -> Tensor:
    """Gaussian noise of `sigma` grey levels, seed 0."""
    return (lr + sigma * torch.randn(lr.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255).round()


def blur(lr: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `sigma` LR pixels, the border replicated."""
    if sigma == 0:
        return lr
    reach = min(int(np.ceil(3 * sigma)), min(lr.shape[-2:]) - 1)
    taps = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    taps = (taps / taps.sum()).expand(3, 1, -1)
    padded = F.pad(lr, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps[..., None, :], groups=3), taps[..., None], groups=3).round()


def jpeg(lr: Tensor, strength: float) -> Tensor:
    """JPEG of quality 100 - `strength`; 0 leaves the patch as it is."""
    if strength == 0:
        return lr
    patches = []
    for patch in lr.permute(0, 2, 3, 1).round().to(torch.uint8):
        buffer = io.BytesIO()
        Image.fromarray(patch.numpy()).save(buffer, format="JPEG", quality=int(100 - strength))
        patches.append(torch.from_numpy(np.array(Image.open(buffer))))
    return torch.stack(patches).permute(0, 3, 1, 2).float()


# name -> (function, strengths)
DEGRADATIONS: dict[str, tuple[Degradation, tuple[float, ...]]] = {
    "noise, sigma (grey levels)": (noise, (0, 5, 10, 20, 40)),
    "blur, sigma (LR pixels)": (blur, (0, 0.5, 1, 2, 4)),
    "JPEG, 100 - quality": (jpeg, (0, 10, 30, 60, 90)),
}
