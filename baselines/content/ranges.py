"""Affine ranges of K candidate bit-widths, fitted to training patches.

A candidate rounds to 2^b levels between s l_k and s h_k. Zero is one of them (padding is zero). l_k and h_k have the
least squared error on training patches at that point and bit-width. `FittedRange` has one s for each point, the same
for all samples. `SampleRange` has s = (mean x^4)^(1/4) over every fourth row and column of the sample. At the same
bits, a flat patch then gets a fine step and a textured one a coarse step. The fourth power gives weight to the largest
values. Unlike the maximum, it does not grow with the size of the patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.assignment.scheme import AssignedActivation
from baselines.mse import least_error_range
from cadyq.models.network import SRNetwork
from cadyq.models.restartable import TracedForward
from cadyq.quantizers import PatchContext, PointStatistics, QuantizerOutput
from cadyq.quantizers.functional import fake_quantize_bounds
from cadyq.quantizers.layers import frozen_weights
from cadyq.schemes.bit_selector import subsample

STRIDE = 4
LEAST_FOURTH_POWER = 1e-24  # mean fourth power of a map
REACH = 16.0  # in units of s: where histograms end
BINS = 4096
BATCH = 8


class FittedRange(AssignedActivation):
    """An affine range for each candidate, the same for all samples. The unit is 1 / 8 of the parent's largest bound."""

    def __init__(self, candidates: tuple[int, ...], channels: int) -> None:
        super().__init__(candidates)
        self.channels = channels
        bounds = self.bounds.detach()
        del self.bounds  # fitted, not learned
        self.register_buffer("bounds", bounds)
        self.register_buffer("lows", torch.full((len(candidates),), -1.0))
        self.register_buffer("highs", torch.ones(len(candidates)))
        self.lows: Tensor
        self.highs: Tensor

    def scale(self, x: Tensor) -> Tensor:
        """The unit s of the ranges, (B, 1, 1, 1) or a scalar."""
        return self.bounds[-1] / 8  # so that the histogram resolves the parent's finest step

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        choice = self.choose(x, context)
        return QuantizerOutput(self.quantize(x, choice), self.candidates[choice])

    def quantize(self, x: Tensor, choice: Tensor) -> Tensor:
        per_sample, scale = (-1, 1, 1, 1), self.scale(x)
        low, high = (scale * ends[choice].view(per_sample) for ends in (self.lows, self.highs))
        return fake_quantize_bounds(x, low, high, self.candidates[choice].view(per_sample))

    def initialize(self, statistics: PointStatistics) -> None:
        super().initialize(statistics)
        unit = self.typical_scale(statistics)
        ends = (statistics.minimum / unit, statistics.maximum / unit)
        self._fit(statistics.bin_centers / unit, statistics.histogram, *ends)

    def typical_scale(self, statistics: PointStatistics) -> Tensor:
        """The unit s of what calibration saw, a scalar."""
        return self.scale(statistics.bin_centers)

    def fit_ranges(self, histogram: Tensor) -> None:
        """Set the ranges of least squared error.

        Args:
            histogram: counts (`BINS`,) of the values in units of `scale`, from -`REACH` to `REACH`, each weighted with
                the square of its unit.
        """
        x = bin_centers().to(histogram)
        seen = x[histogram > 0]
        self._fit(x, histogram, seen.min(), seen.max())

    def _fit(self, x: Tensor, count: Tensor, low: Tensor, high: Tensor) -> None:
        for k, bits in enumerate(self.candidates.tolist()):
            self.lows[k], self.highs[k] = least_error_range(x, count, low, high, bits)


class SampleRange(FittedRange):
    """Affine ranges in units of the fourth-power mean of each sample."""

    idempotent = False

    def scale(self, x: Tensor) -> Tensor:
        seen = subsample(x.detach(), STRIDE)
        return seen.square().square_().mean((1, 2, 3), keepdim=True).clamp_min(LEAST_FOURTH_POWER).sqrt_().sqrt_()

    def typical_scale(self, statistics: PointStatistics) -> Tensor:
        share = statistics.histogram / statistics.histogram.sum()
        return (share * statistics.bin_centers**4).sum().clamp_min(LEAST_FOURTH_POWER) ** 0.25

    def overhead_macs(self, height: int, width: int) -> int:
        """Two squares and one sum for each value of the subsampled map."""
        return 3 * subsample(torch.empty(1, self.channels, height, width, device="meta"), STRIDE).numel()


def bin_centers() -> Tensor:
    """The middles of the histogram's bins (`BINS`,)."""
    return (torch.arange(BINS) + 0.5) * (2 * REACH / BINS) - REACH


@torch.no_grad()
def calibrate_ranges(network: SRNetwork, lr: Tensor) -> None:
    """Fit the ranges of all points to the FP32 feature maps of patches (N, 3, h, w) in 0..255, in place."""
    quantizers = {n: p.quantizer for n, p in network.points.items() if isinstance(p.quantizer, FittedRange)}
    histograms = {name: torch.zeros(BINS) for name in quantizers}
    plain = network.without_scheme().eval()
    with frozen_weights(plain):
        forward = TracedForward(plain)
        for batch in torch.split(lr, BATCH):
            for stop in forward.stops(batch):
                quantizer = quantizers.get(stop.point.name)
                if quantizer is not None:
                    scale = quantizer.scale(stop.x).expand(len(stop.x), 1, 1, 1)
                    histograms[stop.point.name] += _histogram(stop.x / scale, scale.flatten())
    for name, quantizer in quantizers.items():
        quantizer.fit_ranges(histograms[name])


def _histogram(x: Tensor, scale: Tensor) -> Tensor:
    """Counts (`BINS`,) of the values of all samples, each sample weighted with the square of its unit (B,)."""
    each = torch.stack([torch.histc(sample.clamp(-REACH, REACH), BINS, -REACH, REACH) for sample in x])
    return (each * scale.square()[:, None]).sum(0)
