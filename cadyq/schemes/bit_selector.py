"""CADyQ's bit selector: one linear layer from content features to the logits of the candidate bit-widths.

Hong et al., CADyQ: Content-Aware Dynamic Quantization for Image Super-Resolution, ECCV 2022, Sec. 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.context import PatchContext
from cadyq.utils.errors import UserError

INPUTS = ("paper", "normalized")
LOG_FLOOR = 1e-6


def channel_std(x: Tensor) -> Tensor:
    """Unbiased standard deviation over H and W of each channel, (B, C), detached; 0 for a map of one pixel."""
    # torch.std reads one value at a time. Passes over whole maps are several times faster. They are as exact if the
    # mean is subtracted first and its rounding error corrected after (corrected two-pass algorithm, Chan et al. 1983).
    x, count = x.detach(), x.shape[2] * x.shape[3]
    centered = x - x.mean((2, 3), keepdim=True)
    rest = centered.sum((2, 3)).square_() / count
    return ((centered.square_().sum((2, 3)) - rest) / max(count - 1, 1)).clamp_min_(0).sqrt_()


def subsample(x: Tensor, stride: int) -> Tensor:
    """Every `stride`-th row and column of `x` (B, C, H, W), but at least two of each if there are two."""
    rows, columns = (max(1, min(stride, side // 2)) for side in x.shape[2:])
    return x[:, :, ::rows, ::columns]


class BitSelector(nn.Module):
    """Logits of K candidates from the patch's gradients (2 values) and the channel deviations of the layer's input (C).

    Args:
        channels: C of the layer input.
        candidates: K, the number of candidate bit-widths.
        inputs: "paper" reads `gradient * gradient_scale` and the deviations; weights start at 1, the last bias at 1.
            "normalized" reads logarithms, standardized by calibration statistics; weights start at 0. Every patch then
            starts with the middle candidate.
        gradient_scale: factor on the gradients, for "paper" only (1000; the published CARN code uses 1).
        stride: deviations are computed on every `stride`-th row and column. The paper uses all of them (1).

    Raises:
        UserError: unknown `inputs`.
    """

    def __init__(self, channels: int, candidates: int, inputs: str, gradient_scale: float, stride: int = 1) -> None:
        super().__init__()
        if inputs not in INPUTS:
            raise UserError(f"selector_inputs={inputs!r} is unknown: choose one of {', '.join(INPUTS)}")
        self.inputs = inputs
        self.gradient_scale = gradient_scale
        self.stride = stride
        self.linear = nn.Linear(channels + 2, candidates)
        self.register_buffer("center", torch.zeros(channels + 2))
        self.register_buffer("spread", torch.ones(channels + 2))
        self.center: Tensor
        self.spread: Tensor
        paper = inputs == "paper"
        nn.init.constant_(self.linear.weight, 1.0 if paper else 0.0)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.bias[candidates - 1 if paper else candidates // 2] = 1.0 if paper else 0.5

    def initialize(self, statistics: PointStatistics) -> None:
        """Set mean and spread of the logarithms from calibration."""
        self.center.copy_(torch.cat([statistics.log_gradient_mean, statistics.log_std_mean]))
        spread = torch.cat([statistics.log_gradient_spread, statistics.log_std_spread])
        self.spread.copy_(spread.clamp_min(0.1))  # a channel that hardly varies must not be amplified

    def forward(self, x: Tensor, context: PatchContext) -> Tensor:
        """Logits (B, K) for the layer input `x` (B, C, H, W)."""
        deviations = channel_std(subsample(x, self.stride))
        if self.inputs == "paper":
            features = torch.cat([context.gradient * self.gradient_scale, deviations], 1)
        else:
            raw = torch.cat([context.gradient, deviations], 1)
            features = (raw.clamp_min(LOG_FLOOR).log() - self.center) / self.spread
        return self.linear(features)  # type: ignore[no-any-return]

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds for a layer input of that size: sums and squares of the values read, and the linear layer."""
        read = subsample(torch.empty(1, self.linear.in_features - 2, height, width, device="meta"), self.stride)
        return 2 * read.numel() + self.linear.weight.numel()
