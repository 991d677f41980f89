"""What is known of the content of each LR patch, computed at most once a forward and only if asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-R BT.601 without offset. PSNR and SSIM are reported on other lumas, each as its published code has it: see
# `analysis/metrics.py`.
LUMA = (0.299, 0.587, 0.114)
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
# grayscale 3, two 3x3 filters 18: multiply-adds a pixel
GRADIENT_MACS_PER_PIXEL = 21
ENTROPY_CENTRES, ENTROPY_WIDTH = 32, 0.0255  # kernels of the density of grayscale pixels in 0..1
# grayscale 3; for each kernel a difference, a square and a sum
ENTROPY_MACS_PER_PIXEL = 3 + 3 * ENTROPY_CENTRES
LEAST_DENSITY = 1e-30


def constants(values: Sequence[Any], like: Tensor) -> Tensor:
    """`values` as a tensor of the dtype and on the device of `like`. A GPU is not waited for, as `new_tensor` does."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def luma(rgb: Tensor) -> Tensor:
    """Grayscale (B, 1, H, W) of RGB (B, 3, H, W), in the same unit."""
    return (rgb * constants(LUMA, rgb).view(1, 3, 1, 1)).sum(1, keepdim=True)


def filtered(gray: Tensor, kernels: Tensor) -> Tensor:
    """(B, 1, H, W) under each of K 3x3 kernels (K, 3, 3), with a replicated border: (B, K, H, W)."""
    return F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), kernels.unsqueeze(1))


def image_gradient(lr: Tensor) -> Tensor:
    """Mean |horizontal| and mean |vertical| Sobel gradient of each patch (CADyQ, Sec. 3.2).

    Args:
        lr: RGB (B, 3, H, W) in 0..255.

    Returns:
        (B, 2), on grayscale pixels in 0..1; Sobel normalized by 1/8, replicated border.
    """
    kernel = constants(SOBEL, lr) / 8
    return filtered(luma(lr) / 255, torch.stack([kernel, kernel.T])).abs().mean((2, 3))


def patch_entropy(lr: Tensor) -> Tensor:
    """Entropy of each patch's grayscale pixels in nats (Granular-DQ).

    Density by Gaussian kernels, p_j ~ mean_x exp(-((x - c_j) / sigma)^2 / 2) with 32 centres c_j evenly from 0 to 1.

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
    """The LR patches of one forward, (B, 3, H, W) in 0..255, and features of them.

    Attributes:
        decision: what a point decided for all that follow it in this forward, a tensor of its scheme; None before.
        hr: what the patches should become, (B, 3, H scale, W scale), where it is known. No scheme that could be
            deployed reads it; the oracle does.
    """

    def __init__(self, lr: Tensor, hr: Tensor | None = None) -> None:
        self.lr = lr
        self.hr = hr
        self.decision: Tensor | None = None
        self._features: dict[Callable[[Tensor], Tensor], tuple[Tensor, int]] = {}

    def feature(self, function: Callable[[Tensor], Tensor], macs_per_pixel: int) -> Tensor:
        """`function` of the patches, detached, computed once a forward however many points ask.

        Args:
            function: LR patches (B, 3, H, W) in 0..255 to a value or more of each patch (B, ...).
            macs_per_pixel: multiply-adds it spends on a pixel; they count as the scheme's overhead.
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
        """Multiply-adds a patch spent on the features that were asked for."""
        pixels = self.lr.shape[-2] * self.lr.shape[-1]
        return pixels * sum(macs for _, macs in self._features.values())
