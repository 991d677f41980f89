"""Small modules of several backbones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cadyq.quantizers.layers import QuantConv2d
from cadyq.utils.errors import UserError

# mean RGB of DIV2K in 0..1, as in the EDSR and CARN code
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class MeanShift(nn.Module):
    """Subtracts or adds the DIV2K mean colour, in units of `pixel_range` (255 or 1)."""

    def __init__(self, pixel_range: float) -> None:
        super().__init__()
        mean = torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1) * pixel_range
        self.register_buffer("mean", mean, persistent=False)
        self.mean: Tensor

    def subtract(self, x: Tensor) -> Tensor:
        """`x` minus the mean colour."""
        return x - self.mean

    def add(self, x: Tensor) -> Tensor:
        """`x` plus the mean colour."""
        return x + self.mean


def check_scale(scale: int) -> None:
    """Raise UserError unless the scale is 2, 3 or 4."""
    if scale not in (2, 3, 4):
        raise UserError(f"scale={scale!r} is not supported: choose 2, 3 or 4")


def shuffle_factors(scale: int) -> list[int]:
    """The factors of sub-pixel upsampling in steps: one for x2 and x3, 2 and 2 for x4.

    Raises:
        UserError: the scale is not 2, 3 or 4.
    """
    check_scale(scale)
    return [2, 2] if scale == 4 else [scale]


def upsampler(channels: int, scale: int, groups: int = 1, activation: bool = False) -> nn.Sequential:
    """Sub-pixel upsampling (Shi et al. 2016): one convolution and shuffle for x2 and x3, two of x2 for x4.

    Raises:
        UserError: the scale is not 2, 3 or 4.
    """
    layers: list[nn.Module] = []
    for step in shuffle_factors(scale):
        layers.append(QuantConv2d(channels, channels * step**2, 3, groups=groups))
        if activation:
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.PixelShuffle(step))
    return nn.Sequential(*layers)


def one_step_upsampler(channels: int, scale: int) -> nn.Sequential:
    """Sub-pixel upsampling at the end of a network: one convolution to RGB and one shuffle, for any scale.

    Raises:
        UserError: the scale is not 2, 3 or 4.
    """
    check_scale(scale)
    return nn.Sequential(QuantConv2d(channels, 3 * scale**2, 3), nn.PixelShuffle(scale))
