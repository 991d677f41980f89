"""MSE calibration (Nagel et al., A White Paper on Neural Network Quantization, 2021, Sec. 3.1). No training.

Activations: affine, with the range [l, h] that minimizes sum_i n_i (x_i - Q(x_i; l, h))^2 over the histogram of
calibration, where x_i is the middle of bin i and n_i its count. Weights: symmetric, per tensor, with the bound that
minimizes ||w - Q(w)||^2.

The search tries shares of the extremes from 0.02 to 1. Of activations it searches h and l in turns, h first.

Departures: the paper searches both ends jointly on a grid. On heavy-tailed features the two hardly depend on each
other. Weights have one scale per tensor, as in the other baselines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cadyq.quantizers import AffineRange, PointStatistics, WeightQuantizer
from cadyq.quantizers.functional import fake_quantize_affine, quantize_symmetric, signed_levels, straight_through
from cadyq.schemes import FixedBitScheme

SHARES = torch.linspace(0.02, 1, 50)
ROUNDS = 2


def least_error_range(x: Tensor, count: Tensor, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The affine range (low, high), scalars, of least squared error over a histogram.

    Args:
        x: middles of the bins (N,).
        count: weight of each bin (N,).
        low: the smallest value seen, a scalar.
        high: the largest value seen, a scalar.
        bits: bits of the grid, 2 to 8.
    """

    def error(low: Tensor, high: Tensor) -> float:
        return float((count * (fake_quantize_affine(x, low, high, bits) - x).square()).sum())

    lows, highs = SHARES.to(x) * low.clamp_max(0), SHARES.to(x) * high.clamp_min(0)
    low, high = lows[-1], highs[-1]
    for _ in range(ROUNDS):
        high = min(highs, key=lambda end: error(low, end))
        low = min(lows, key=lambda end: error(end, high))
    return low, high


def least_error_bound(weight: Tensor, bits: int) -> Tensor:
    """The bound of the symmetric grid, a scalar > 0, that minimizes ||w - Q(w)||^2 among shares of max |w|."""
    w = weight.detach().flatten()
    bounds = SHARES.to(w) * w.abs().amax().clamp_min(1e-8)
    on_grid = quantize_symmetric(w[None], bounds[:, None], signed_levels(bits))
    return bounds[(on_grid - w).square_().sum(1).argmin()]


class MSEActivation(AffineRange):
    """The affine range [l, h] of least squared error over the histogram of calibration."""

    def initialize(self, statistics: PointStatistics) -> None:
        seen = (statistics.bin_centers, statistics.histogram, statistics.minimum, statistics.maximum)
        low, high = least_error_range(*seen, self.bits)
        self.low.copy_(low)
        self.high.copy_(high)


class MSEWeight(WeightQuantizer):
    """The symmetric bound that minimizes ||w - Q(w)||^2."""

    def forward(self, weight: Tensor) -> Tensor:
        bound = least_error_bound(weight, self.bits)
        return straight_through(weight, quantize_symmetric(weight.detach(), bound, signed_levels(self.bits)))


@dataclass(frozen=True)
class MSE(FixedBitScheme):
    """Ranges of least squared quantization error, no training."""

    name = "mse"
    trained = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> MSEActivation:
        return MSEActivation(self.act_bits)

    def weight_quantizer(self) -> MSEWeight:
        return MSEWeight(self.weight_bits)
