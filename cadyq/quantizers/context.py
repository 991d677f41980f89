"""The LR patches of a forward and their content features, each computed at most once and only on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-R BT.601 without offset. PSNR and SSIM have other lumas, as in their published code: see
# `cadyq/metrics/quality.py`.
LUMA = (0.299, 0.587, 0.114)
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
# grayscale 3, two 3x3 filters 18: multiply-adds per pixel
GRADIENT_MACS_PER_PIXEL = 21
ENTROPY_CENTRES, ENTROPY_WIDTH = 32, 0.0255  # kernels of the density of grayscale pixels in 0..1
# grayscale 3; for each kernel a difference, a square and a sum
ENTROPY_MACS_PER_PIXEL = 3 + 3 * ENTROPY_CENTRES
LEAST_DENSITY = 1e-30


def constants(values: Sequence[Any], like: Tensor) -> Tensor:
    """`values` as a tensor with the dtype and device of `like`. Unlike `new_tensor`, it does not wait for a GPU."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def luma(rgb: Tensor) -> Tensor:
    """Grayscale (B, 1, H, W) of RGB (B, 3, H, W), in the same range."""
    return (rgb * constants(LUMA, rgb).view(1, 3, 1, 1)).sum(1, keepdim=True)


def filtered(gray: Tensor, kernels: Tensor) -> Tensor:
    """Filter (B, 1, H, W) with K 3x3 kernels (K, 3, 3) and a replicated border: (B, K, H, W)."""
    return F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), kernels.unsqueeze(1))


def image_gradient(lr: Tensor) -> Tensor:
    """Mean |horizontal| and mean |vertical| Sobel gradient of each patch (CADyQ, Sec. 3.2).

    Args:
        lr: RGB (B, 3, H, W) in 0..255.

    Returns:
        (B, 2), on grayscale pixels in 0..1. Sobel kernels are divided by 8; the border is replicated.
    """
    kernel = constants(SOBEL, lr) / 8
    return filtered(luma(lr) / 255, torch.stack([kernel, kernel.T])).abs().mean((2, 3))


def patch_entropy(lr: Tensor) -> Tensor:
    """Entropy of each patch's grayscale pixels in nats (Granular-DQ).

    The density is estimated by Gaussian kernels: p_j ~ mean_x exp(-((x - c_j) / sigma)^2 / 2), with 32 equally spaced
    centres c_j from 0 to 1.

    Args:
        lr: RGB (B, 3, H, W) in 0..255.

    Returns:
        (B,), from 0 to log 32.
    """
    gray = luma(lr).flatten(1) / 255
    centres = torch.linspace(0, 1, ENTROPY_CENTRES, device=lr.device, dtype=lr.dtype)
    kernels = [torch.exp(-((gray - centre) / ENTROPY_WIDTH).square() / 2).mean(1) for centre in centres]
    density = torch.stack(kernels, 1)
    share = (density / density.sum(1, keepdim=True)).clamp_min(LEAST_DENSITY)
    return -(share * share.log()).sum(1)


class PatchContext:
    """The LR patches of one forward, (B, 3, H, W) in 0..255, and their features.

    Attributes:
        decision: a tensor that one point of a scheme sets for all points after it in this forward; None before.
        hr: the HR patches (B, 3, H scale, W scale), if they are known. Only the oracle reads them; a deployable scheme
            cannot.
    """

    def __init__(self, lr: Tensor, hr: Tensor | None = None) -> None:
        self.lr = lr
        self.hr = hr
        self.decision: Tensor | None = None
        self._features: dict[Callable[[Tensor], Tensor], tuple[Tensor, int]] = {}

    def feature(self, function: Callable[[Tensor], Tensor], macs_per_pixel: int) -> Tensor:
        """`function` of the patches, detached. It is computed once per forward, for any number of points.

        Args:
            function: LR patches (B, 3, H, W) in 0..255 to one or more values of each patch (B, ...).
            macs_per_pixel: its multiply-adds for each pixel. They count as the scheme's overhead.
        """
        if function not in self._features:
            with torch.no_grad():
                self._features[function] = (function(self.lr), macs_per_pixel)
        return self._features[function][0]

    @property
    def gradient(self) -> Tensor:
        """`image_gradient` of the patches (B, 2), detached."""
        return self.feature(image_gradient, GRADIENT_MACS_PER_PIXEL)

    def macs(self) -> int:
        """Multiply-adds per patch for the features that were computed."""
        pixels = self.lr.shape[-2] * self.lr.shape[-1]
        return pixels * sum(macs for _, macs in self._features.values())
