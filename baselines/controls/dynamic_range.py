"""Control: the range of each sample at fixed bits. It follows content without choosing bits and without training.

Activations: PAMS's grid, round(clamp(x, -r, r) / r * q) / q * r with q = 2^(b-1) - 1. The bound is not learned: r is a
share of max|x| over the feature map of the sample. Weights: symmetric, per tensor, bounded by their largest magnitude.

No paper is followed. At 8 bits this is the "dynamic quantization" of inference libraries. A scheme that chooses bits by
content must gain more than this control does. The share shrinks with the bits, since a tighter range suits fewer
levels. It was chosen on training photographs, not on a benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cadyq.quantizers import ActivationQuantizer, PatchContext, QuantizerOutput, constant_bits
from cadyq.quantizers.functional import quantize_symmetric, signed_levels, straight_through
from cadyq.schemes import FixedBitScheme

SHARE = {8: 1.0, 7: 0.9, 6: 0.8, 5: 0.75, 4: 0.7, 3: 0.6, 2: 0.5}
LEAST_BOUND = 1e-12


class DynamicRangeActivation(ActivationQuantizer):
    """PAMS's grid, bounded by a share of max|x| of each sample."""

    idempotent = False

    def __init__(self, bits: int, channels: int) -> None:
        super().__init__()
        self.bits, self.channels = bits, channels

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        with torch.no_grad():
            largest = torch.maximum(x.amax((1, 2, 3), keepdim=True), -x.amin((1, 2, 3), keepdim=True))
            bound = (SHARE[self.bits] * largest).clamp_min(LEAST_BOUND)
            on_grid = quantize_symmetric(x, bound, signed_levels(self.bits))
        return QuantizerOutput(straight_through(x, on_grid), constant_bits(x, self.bits))

    def overhead_macs(self, height: int, width: int) -> int:
        """One comparison for each value."""
        return self.channels * height * width


@dataclass(frozen=True)
class DynamicRange(FixedBitScheme):
    """The range of each sample, at fixed bits."""

    name = "dynamic_range"
    trained = False
    control = True

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> DynamicRangeActivation:
        return DynamicRangeActivation(self.act_bits, channels)
