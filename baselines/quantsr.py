"""QuantSR: Qin et al., QuantSR: Accurate Low-bit Quantization for Efficient Image Super-Resolution, NeurIPS 2023.

Activations: x' = x + t with a learned shift t of each channel, which starts at 0. Then LSQ's quantizer with a learned
step s for each point: x_q = s round(clamp(x' / s, -Q_N, Q_P)). Weights: the same without a shift, per tensor.

Rounding has the slope (1 - tanh^2(f - 1/2)) / (2 tanh(1/2)), where f = r - floor(r) is the fraction of r = x' / s. The
slope is 0.85 at integers, 1.08 half-way and 1 on average. So dx_q/ds = round(r) - slope r inside the range (LSQ's Eq. 3
has the slope 1), and dx_q/dx = dx_q/dt = slope. The shift is not subtracted from the quantized map.

Departures: there is no learned factor on the shortcut of a block (y = g x + branch(x)). It would change the network,
and all schemes here share the same backbones. The step of a point starts at a share of the calibrated maximum
(`RANGE_SHARE`; paper: 2 <|x|> / sqrt(Q_P) of the first batch). The step of a weight starts as in the paper. Learning
rates of shifts are in units of the point's step. The paper trains EDSR with 32 blocks and SwinIR at 2, 3 and 4 bits,
for 300,000 steps, from random weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.lsq import LSQActivation, LSQWeight
from cadyq.quantizers import PatchContext, QuantizerOutput, straight_through
from cadyq.schemes import FixedBitScheme


def tanh_round(ratio: Tensor) -> Tensor:
    """Rounds to the nearest integer; the slope between two integers is that of a hyperbolic tangent."""
    fraction = ratio - ratio.detach().floor()
    return straight_through(torch.tanh(fraction - 0.5) / (2 * math.tanh(0.5)), ratio.detach().round())


class UnshiftedActivation(LSQActivation):
    """LSQ's quantizer with QuantSR's rounding."""

    rounding = staticmethod(tanh_round)


class QuantSRActivation(UnshiftedActivation):
    """x' = x + t with a learned shift t of each channel, then LSQ's quantizer with QuantSR's rounding."""

    idempotent = False  # what is quantized is shifted again

    def __init__(self, bits: int, channels: int) -> None:
        super().__init__(bits)
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        return super().forward(x + self.shift.view(-1, 1, 1), context)

    def learning_unit(self, parameter: str) -> float:
        return super().learning_unit("step")


class QuantSRWeight(LSQWeight):
    """LSQ's quantizer of weights with QuantSR's rounding."""

    rounding = staticmethod(tanh_round)


@dataclass(frozen=True)
class QuantSR(FixedBitScheme):
    """Learned shifts and steps, and rounding with a smooth slope."""

    name = "quantsr"

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> QuantSRActivation:
        return QuantSRActivation(self.act_bits, channels)

    def weight_quantizer(self) -> QuantSRWeight:
        return QuantSRWeight(self.weight_bits)
