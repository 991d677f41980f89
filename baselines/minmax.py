"""Min-max post-training quantization (Jacob et al., CVPR 2018, Sec. 3). No training.

Activations: affine, over the [min, max] that calibration saw, extended so that zero is a level (padding is zero).
Weights: symmetric, per tensor, bounded by their largest magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass

from cadyq.quantizers import MinMaxRange
from cadyq.schemes import FixedBitScheme


@dataclass(frozen=True)
class MinMax(FixedBitScheme):
    """Ranges from calibration, no training."""

    name = "minmax"
    trained = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> MinMaxRange:
        return MinMaxRange(self.act_bits)
