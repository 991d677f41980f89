"""Min-max post-training quantization (Jacob et al., CVPR 2018, Sec. 3): ranges from calibration, no training.

Activations: affine, [min, max] seen in calibration, stretched to hold zero exactly (padding is zero). Weights:
symmetric by their largest magnitude, per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.ranges import AffineRange
from cadyq.schemes.base import FixedBitScheme


class MinMaxActivation(AffineRange):
    def initialize(self, statistics: PointStatistics) -> None:
        self.low.copy_(statistics.minimum.clamp_max(0))
        self.high.copy_(statistics.maximum.clamp_min(0))


@dataclass(frozen=True)
class MinMax(FixedBitScheme):
    """Calibrated ranges, no training."""

    name = "minmax"
    trained = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> MinMaxActivation:
        return MinMaxActivation(self.act_bits)
