"""Percentile calibration (Wu et al., Integer Quantization for Deep Learning Inference, 2020). No training.

Activations: affine, from the (100 - p)-th to the p-th percentile of the values that calibration saw, p = 99.99. The
range is extended so that zero is a level (padding is zero). Values outside are clipped. Weights: symmetric, per tensor,
bounded by their largest magnitude.

Departures: the paper takes the percentile of |x| for a symmetric range. SR features are signed at some points only, and
not symmetric there, so each end has its own percentile. The paper's weights have a scale for each channel. Percentiles
are read from a histogram; values are assumed to be uniform within a bin.
"""

from __future__ import annotations

from dataclasses import dataclass

from cadyq.quantizers import AffineRange, PointStatistics
from cadyq.schemes import FixedBitScheme

PERCENTILE = 99.99


class PercentileActivation(AffineRange):
    """The affine range between the (100 - p)-th and the p-th percentile of calibration."""

    def initialize(self, statistics: PointStatistics) -> None:
        self.low.copy_(statistics.percentile(100 - PERCENTILE).clamp_max(0))
        self.high.copy_(statistics.percentile(PERCENTILE).clamp_min(0))


@dataclass(frozen=True)
class Percentile(FixedBitScheme):
    """Ranges between two percentiles of calibration, no training."""

    name = "percentile"
    trained = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> PercentileActivation:
        return PercentileActivation(self.act_bits)
