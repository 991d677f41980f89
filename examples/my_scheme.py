"""A scheme of your own, outside the package: every step is a power of two, so that rescaling is a shift.

s = 2^round(log2(r / n)) for n steps that should span r. Activations: r is a share of what calibration saw at the point
(less at few bits, `RANGE_SHARE`); zero is a level, and after a ReLU none is spent below it. Weights: r = max|w|.

    python -m cadyq.testing examples/my_scheme.py
    python -m analysis.run_all --plugin examples/my_scheme.py --schemes fp32 minmax:w8a8 my_scheme:w8a8
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import cadyq
from cadyq.quantizers import CalibratedRange, PatchContext, PointStatistics, QuantizerOutput, WeightQuantizer
from cadyq.quantizers.base import RANGE_SHARE, constant_bits
from cadyq.quantizers.functional import fake_quantize_affine, signed_levels, straight_through
from cadyq.schemes import FixedBitScheme


def power_of_two(step: Tensor) -> Tensor:
    return step.clamp_min(1e-8).log2().round().exp2()


class ShiftActivation(CalibratedRange):
    def initialize(self, statistics: PointStatistics) -> None:
        steps = 2**self.bits - 1
        signed = statistics.minimum < 0
        width = statistics.max_abs * RANGE_SHARE[self.bits] * (1 + signed)
        step = power_of_two(width / steps)
        self.low.copy_(torch.where(signed, -(2 ** (self.bits - 1)) * step, 0))
        self.high.copy_(self.low + steps * step)

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        value = fake_quantize_affine(x, self.low, self.high, self.bits)
        return QuantizerOutput(value, constant_bits(x, self.bits))


class ShiftWeight(WeightQuantizer):
    def forward(self, weight: Tensor) -> Tensor:
        levels = signed_levels(self.bits)
        step = power_of_two(weight.detach().abs().amax() / levels)
        return straight_through(weight, (weight.detach() / step).round().clamp(-levels, levels) * step)


@cadyq.register_scheme("my_scheme")
@dataclass(frozen=True)
class MyScheme(FixedBitScheme):
    trained = False  # runs from calibration alone

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ShiftActivation:
        return ShiftActivation(self.act_bits)

    def weight_quantizer(self) -> ShiftWeight:
        return ShiftWeight(self.weight_bits)
