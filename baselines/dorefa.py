"""DoReFa-Net: Zhou et al., Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients, 2016.

quantize_k(r) = round(r (2^k - 1)) / (2^k - 1) for r in [0, 1] (Eq. 5). Gradients pass straight through the rounding.

Weights (Eq. 9): 2 quantize_k(tanh(w) / (2 max|tanh w|) + 1/2) - 1, multiplied by max|tanh w|. The paper leaves out this
factor, since batch normalization follows. Most SR networks have none, and the gain of every layer would change.

Activations (Eq. 11): quantize_k(x), with x bounded to [0, 1]. This suits classifiers with bounded activations. SR
features are unbounded, and signed at the input of a block. So each point maps its own fixed range to [0, 1] and back
after rounding: x / r after a ReLU, x / (2 r) + 1/2 where calibration saw negative values. r is a share of the
calibrated maximum (`RANGE_SHARE`). DoReFa learns no range, so r stays fixed. On the signed map zero lies between two
levels, as it does for the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cadyq.quantizers import CalibratedRange, PatchContext, PointStatistics, QuantizerOutput, TanhWeight
from cadyq.quantizers.base import RANGE_SHARE, constant_bits
from cadyq.quantizers.functional import quantize_unit, straight_through
from cadyq.schemes import FixedBitScheme


class DoReFaActivation(CalibratedRange):
    """Eq. 11 on a fixed calibrated range, mapped to [0, 1] and back."""

    def initialize(self, statistics: PointStatistics) -> None:
        bound = RANGE_SHARE[self.bits] * statistics.max_abs
        self.high.copy_(bound)
        self.low.copy_(torch.where(statistics.minimum < 0, -bound, torch.zeros_like(bound)))

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        width = self.high - self.low
        unit = ((x - self.low) / width).clamp(0, 1)
        value = straight_through(unit, quantize_unit(unit, self.bits)) * width + self.low
        return QuantizerOutput(value, constant_bits(x, self.bits))


@dataclass(frozen=True)
class DoReFa(FixedBitScheme):
    """DoReFa with a calibrated range for each point."""

    name = "dorefa"

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> DoReFaActivation:
        return DoReFaActivation(self.act_bits)

    def weight_quantizer(self) -> TanhWeight:
        return TanhWeight(self.weight_bits)
