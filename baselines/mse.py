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

from torch import Tensor

from cadyq.quantizers import AffineRange, PointStatistics, WeightQuantizer
from cadyq.quantizers.base import SEARCHED_SHARES, TINY
from cadyq.quantizers.functional import quantize_symmetric, signed_levels, straight_through
from cadyq.schemes import FixedBitScheme

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

    lows, highs = SEARCHED_SHARES.to(x) * low.clamp_max(0), SEARCHED_SHARES.to(x) * high.clamp_min(0)
    low, high = lows[-1], highs[-1]
    for _ in range(ROUNDS):
        high = highs[errors_of_ranges(x, count, low, highs, bits).argmin()]
        low = lows[errors_of_ranges(x, count, lows, high, bits).argmin()]
    return low, high


def errors_of_ranges(x: Tensor, count: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Squared error of `fake_quantize_affine` over a histogram, for many ranges at once.

    Args:
        x: middles of the bins (N,).
        count: weight of each bin (N,).
        low: ends of the ranges (K,), or a scalar, at most 0.
        high: the other ends (K,), or a scalar, at least 0.
        bits: bits of the grid, 2 to 8.

    Returns:
        The weighted sum of squared errors of each range (K,).
    """
    steps = 2**bits - 1
    step = ((high - low) / steps).clamp_min(1e-12)[:, None]
    zero_point = (-low[..., None] / step).round_().clamp_(0, steps)
    codes = (x * (1 / step)).round_().add_(zero_point).clamp_(0, steps)
    errors: Tensor = codes.sub_(zero_point).mul_(step).sub_(x).square_().mul_(count).sum(1)
    return errors


def least_error_bound(weight: Tensor, bits: int) -> Tensor:
    """The bound of the symmetric grid, a scalar > 0, that minimizes ||w - Q(w)||^2 among shares of max |w|."""
    w = weight.detach().flatten()
    bounds = SEARCHED_SHARES.to(w) * w.abs().amax().clamp_min(TINY)
    on_grid = quantize_symmetric(w[None], bounds[:, None], signed_levels(bits))
    return bounds.take((on_grid - w).square_().sum(1).argmin())  # as an index, a GPU would have to tell it first


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
