"""Three features of the content of a patch, which `profiles` chooses by."""

from __future__ import annotations

import torch
from torch import Tensor

from cadyq.quantizers.context import LAPLACIAN, SOBEL, constants, filtered, luma

FEATURES_MACS_PER_PIXEL = 3 + 9 + 18 + 2 + 6  # gray, three filters with their means, deviation
FLOOR = 0.05  # grey levels: less is a constant patch


def content_features(lr: Tensor) -> Tensor:
    """Logarithms (B, 3) of mean |Laplacian|, mean Sobel gradient and standard deviation of gray, pixels of 0..255."""
    gray = luma(lr)
    kernels = constants((LAPLACIAN, SOBEL), lr)
    kernels = torch.cat([kernels, kernels[1:].transpose(1, 2)]) / constants((1, 8, 8), lr).view(3, 1, 1)
    laplacian, *sobel = filtered(gray, kernels).abs().mean((2, 3)).unbind(1)
    deviation = gray.std((1, 2, 3), correction=0)
    return torch.stack([laplacian, (sobel[0] + sobel[1]) / 2, deviation], 1).clamp_min(FLOOR).log()
