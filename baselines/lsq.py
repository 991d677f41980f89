"""LSQ: Esser et al., Learned Step Size Quantization, ICLR 2020.

v_q = round(clamp(v / s, -Q_N, Q_P)), v^ = v_q s with a learned step s (Eqs. 1 and 2). The rounding is straight through:
dv^/ds = v_q - v / s inside the range, -Q_N or Q_P outside (Eq. 3); dv^/dv = 1 inside, 0 outside (Eq. 5).

Signed values have Q_N = 2^(b-1) and Q_P = 2^(b-1) - 1; unsigned ones Q_N = 0 and Q_P = 2^b - 1. The gradient of s is
multiplied by g = 1 / sqrt(N Q_P) (Sec. 2.2), where N is the number of weights of a layer or of features of one sample.
Each point and each weight has one step. The step of a weight starts at 2 <|w|> / sqrt(Q_P) (Sec. 2.1).

Departures: at a point, Q_P s starts at a share of the calibrated maximum (`RANGE_SHARE`). The paper uses the rule of
weights on the first batch, which clips the long tails of SR features. A point is unsigned if calibration saw no
negative value there. Adam cancels any constant factor of a gradient, g included. The trainer therefore learns a step in
units of its own size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cadyq.quantizers import PatchContext, QuantizerOutput, WeightQuantizer, constant_bits, straight_through
from cadyq.quantizers.base import TINY
from cadyq.quantizers.ranges import LearnedRange, SignAware
from cadyq.schemes import FixedBitScheme


def straight_round(ratio: Tensor) -> Tensor:
    """Rounds to the nearest integer; the slope is 1."""
    return straight_through(ratio, ratio.detach().round())


def quantize_lsq(
    v: Tensor, step: Tensor, q_n: int, q_p: int, count: int, rounding: Callable[[Tensor], Tensor] = straight_round
) -> Tensor:
    """Eqs. 1 to 5. `count` is the N of g; `rounding` gives integers and sets their gradient."""
    if not torch.is_grad_enabled():
        return torch.div(v, step).clamp_(-q_n, q_p).round_().mul_(step)
    step = straight_through(step / (count * q_p) ** 0.5, step.detach())
    return rounding((v / step).clamp(-q_n, q_p)) * step


class LSQActivation(SignAware, LearnedRange):
    """Eqs. 1 to 5 for feature maps, with one learned step for each point."""

    rounding = staticmethod(straight_round)

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.step = nn.Parameter(torch.ones(1))

    def levels(self) -> tuple[int, int]:
        """Q_N and Q_P."""
        half = 2 ** (self.bits - 1)
        return (half, half - 1) if self.signed else (0, 2 * half - 1)

    def largest(self) -> Tensor:
        return self.step.detach() * self.levels()[1]

    def set_largest(self, value: Tensor) -> None:
        self.step.data.copy_(value / self.levels()[1])

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        value = quantize_lsq(x, self.step, *self.levels(), x[0].numel(), self.rounding)
        return QuantizerOutput(value, constant_bits(x, self.bits))


class LSQWeight(WeightQuantizer):
    """Eqs. 1 to 5 for weights, with one learned step for each weight."""

    rounding = staticmethod(straight_round)

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.step = nn.Parameter(torch.ones(1))

    def initialize(self, weight: Tensor) -> None:
        magnitude = weight.abs().mean().clamp_min(TINY)
        self.step.data.fill_(2 * magnitude / (2 ** (self.bits - 1) - 1) ** 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        half = 2 ** (self.bits - 1)
        return quantize_lsq(weight, self.step, half, half - 1, weight.numel(), self.rounding)


@dataclass(frozen=True)
class LSQ(FixedBitScheme):
    """Learned steps of activations and weights."""

    name = "lsq"

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> LSQActivation:
        return LSQActivation(self.act_bits)

    def weight_quantizer(self) -> LSQWeight:
        return LSQWeight(self.weight_bits)
