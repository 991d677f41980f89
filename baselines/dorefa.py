"""DoReFa-Net: Zhou et al., Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients, 2016.

quantize_k(r) = round(r (2^k - 1)) / (2^k - 1) for r in [0, 1] (Eq. 5), straight through the rounding.

Weights (Eq. 9): 2 quantize_k(tanh(w) / (2 max|tanh w|) + 1/2) - 1, times max|tanh w|. The paper leaves out the last
factor, because batch normalization follows; SR networks have none, and without it every layer's gain would change.

Activations (Eq. 11): quantize_k(x) after x has been bounded to [0, 1]. That holds behind a bounded activation in a
classifier. SR features are unbounded, and signed at a block's input, so each point maps its own fixed range to [0, 1]:
x / r behind a ReLU, x / (2 r) + 1/2 where calibration saw negative values, and back after rounding. r is a share of
the calibrated maximum (`RANGE_SHARE`) and, DoReFa having no learned range, stays there. On the signed map zero lies
between two levels, as it does for DoReFa's weights.
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
