"""Min-max post-training quantization (Jacob et al., CVPR 2018, Sec. 3): ranges from calibration, no training.

Activations: affine, [min, max] seen in calibration, stretched to hold zero exactly (padding is zero). Weights:
symmetric by their largest magnitude, per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from cadyq.quantizers import MinMaxRange
from cadyq.schemes import FixedBitScheme


@dataclass(frozen=True)
class MinMax(FixedBitScheme):
    """Calibrated ranges, no training."""

    name = "minmax"
    trained = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> MinMaxRange:
        return MinMaxRange(self.act_bits)
