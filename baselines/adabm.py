"""AdaBM: Hong and Lee, AdaBM: On-the-Fly Adaptive Bit Mapping for Image Super-Resolution, CVPR 2024.

Bits are a base plus two steps of -1, 0 or +1, both known before the layer runs:

- by image: -1 below the 10th percentile of the calibration patches' mean image gradient, +1 above the 90th;
- by layer: -1 for the layers below the 30th percentile of the standard deviation of their input, +1 above the 70th.

Activations: affine, the extremes of calibration times the share that leaves the least squared error at the layer's
bits ("bit-aware clipping"). Weights: symmetric, the bound of least squared error, per tensor.

Departures: calibration only; the paper then tunes bounds, thresholds and layer steps for some minutes against the FP32
output on 100 LR images. Percentiles are of training patches, ranges of all of them at once instead of a moving average
over batches. Zero is a level of every grid. Bits stay within 2 to 8, so a base of 8 can only go down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.mse import MSEActivation, MSEWeight
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import MAX_BITS, MIN_BITS, ActivationQuantizer, PointStatistics, QuantizerOutput
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import fake_quantize_bounds
from cadyq.quantizers.ranges import CalibratedRange
from cadyq.schemes.base import FixedBitScheme

IMAGE_PERCENTILES = (0.10, 0.90)
LAYER_PERCENTILES = (0.30, 0.70)
SHARES = torch.linspace(1, 0.01, 100)


class AdaBMActivation(CalibratedRange):
    """Base bits, a step for the layer, and a step for each image by two thresholds on its gradient."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.register_buffer("layer_step", torch.tensor(0))
        self.register_buffer("thresholds", torch.tensor([0.0, float("inf")]))
        self.layer_step: Tensor
        self.thresholds: Tensor

    def initialize(self, statistics: PointStatistics) -> None:
        quantiles = statistics.gradient_quantiles
        self.thresholds.copy_(torch.quantile(quantiles, quantiles.new_tensor(IMAGE_PERCENTILES)))

    def map_layer(self, step: int, statistics: PointStatistics) -> None:
        """Set the layer's step and clip for its bits."""
        self.layer_step.fill_(step)
        x, count = statistics.bin_centers, statistics.histogram
        low, high = statistics.minimum.clamp_max(0), statistics.maximum.clamp_min(0)
        bits = min(max(self.bits + step, MIN_BITS), MAX_BITS)

        def error(share: Tensor) -> float:
            return float((count * (fake_quantize_bounds(x, share * low, share * high, bits) - x).square()).sum())

        best = min(SHARES.to(x), key=error)
        self.low.copy_(best * low)
        self.high.copy_(best * high)

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        strength = context.gradient.mean(1)
        image_step = (strength > self.thresholds[1]).long() - (strength < self.thresholds[0]).long()
        bits = (self.bits + self.layer_step + image_step).clamp(MIN_BITS, MAX_BITS)
        return QuantizerOutput(fake_quantize_bounds(x, self.low, self.high, bits.view(-1, 1, 1, 1)), bits)


@dataclass(frozen=True)
class AdaBM(FixedBitScheme):
    """Adaptive bit mapping from calibration. `act_bits` is the base, which is also used at points that do not count."""

    name = "adabm"
    trained = False
    dynamic = True

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return AdaBMActivation(self.act_bits) if counts_for_fab else MSEActivation(self.act_bits)

    def weight_quantizer(self) -> MSEWeight:
        return MSEWeight(self.weight_bits)

    def allocate(self, network: SRNetwork, statistics: Mapping[str, PointStatistics]) -> None:
        """One step up for the layers that vary most, one down for those that vary least."""
        layers = {
            name: point.quantizer
            for name, point in network.points.items()
            if isinstance(point.quantizer, AdaBMActivation)
        }
        deviations = torch.stack([statistics[name].deviation for name in layers])
        low, high = torch.quantile(deviations, deviations.new_tensor(LAYER_PERCENTILES))
        for (name, quantizer), deviation in zip(layers.items(), deviations, strict=True):
            quantizer.map_layer(int(deviation > high) - int(deviation < low), statistics[name])
