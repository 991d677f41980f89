"""PTQ4SR: Tu et al., Toward Accurate Post-Training Quantization for Image Super Resolution, CVPR 2023.

Density-based dual clipping: a feature map has a histogram of 2048 bins. Bins are dropped one by one, each time from the
end with fewer values, until a share of 1e-4 of all values is dropped (1e-5 at 8 bits). The rest spans [l, u], and

    q(v) = s round((clip(v, l, u) - l) / s) + l,  s = (u - l) / (2^b - 1),

per tensor, for activations and for weights. Then l and u of the activations are tuned, and after them those of the
weights, against the FP32 network with

    L = |O - O_q|_1 + 5 sum_i || F_i / ||F_i|| - F_qi / ||F_qi|| ||_2,  F_i the output of block i.

Published code: its hooks detach the features, so the feature loss has no gradient. Here it has one.

Departures: one histogram of all calibration patches instead of a running mean of bounds over batches. Weights start at
their extremes. L1 is the mean in grey levels. Features are compared by norms over a whole sample. Learning rates are
1e-2 with a cosine, in units of the distance of two bounds (activations) or of a bound's size (weights). Each stage has
500 steps of 8 patches. Patches are not flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cadyq.quantizers import BoundedActivation, BoundedWeight, PointStatistics
from cadyq.schemes import FixedBitScheme, Stage, Step, cosine, normalized_distance

DROPPED_SHARE, DROPPED_SHARE_AT_8_BITS = 1e-4, 1e-5
STEPS, BATCH, RATE = 500, 8, 1e-2
FEATURE_WEIGHT = 5.0


def density_bounds(counts: Tensor, share: float) -> tuple[int, int]:
    """First and last bin left when at most `share` of all counts (N,) is dropped from the sparser end."""
    values, left = counts.double().tolist(), float(counts.double().sum()) * share
    first, last = 0, len(values) - 1
    while first < last:
        sparser = first if values[first] < values[last] else last
        left -= values[sparser]
        if left < 0:
            break
        first, last = (first + 1, last) if sparser == first else (first, last - 1)
    return first, last


def output_and_features(step: Step) -> Tensor:
    """The loss L of the paper, a scalar."""
    features = sum(normalized_distance(found, target) for found, target in step.features)
    return (step.output - step.target).abs().mean() + FEATURE_WEIGHT * features


class DensityActivation(BoundedActivation):
    """Density-based dual clipping to [l, u]."""

    def clipping_bounds(self, statistics: PointStatistics) -> tuple[Tensor, Tensor]:
        share = DROPPED_SHARE_AT_8_BITS if self.bits == 8 else DROPPED_SHARE
        first, last = density_bounds(statistics.histogram, share)
        bins = len(statistics.histogram)
        width = (statistics.maximum - statistics.minimum) / bins
        return statistics.minimum + first * width, statistics.maximum - (bins - 1 - last) * width


@dataclass(frozen=True)
class PTQ4SR(FixedBitScheme):
    """Density-based clipping, then tuning of activation bounds and of weight bounds."""

    name = "ptq4sr"
    tuned = True

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> DensityActivation:
        return DensityActivation(self.act_bits)

    def weight_quantizer(self) -> BoundedWeight:
        return BoundedWeight(self.weight_bits)

    def stages(self) -> Sequence[Stage]:
        return (
            Stage("activation bounds", {"activation": RATE}, output_and_features, STEPS, BATCH, decay=cosine),
            Stage("weight bounds", {"weight": RATE}, output_and_features, STEPS, BATCH, decay=cosine),
        )
