"""AdaBM: Hong and Lee, AdaBM: On-the-Fly Adaptive Bit Mapping for Image Super-Resolution, CVPR 2024.

The bits of a layer are a base plus two steps of -1, 0 or +1. Both are known before the layer runs:

- by image: -1 if the mean image gradient g is below the threshold l, +1 if it is above u. Thresholds are the 10th and
  90th percentile of g over the calibration patches.
- by layer: -1 if the standard deviation of the layer's input is below the 30th percentile over layers, +1 if it is
  above the 70th.

Activations: affine. The range is a share of the extremes of calibration, with the least squared error at the layer's
bits ("bit-aware clipping"). Weights: symmetric, per tensor, with the bound of least squared error.

Without tuning the scheme runs from calibration alone. `python -m cadyq.calibrate` tunes it against the FP32 network in
ten epochs of 50 steps of 2 LR patches. Epochs alternate between bounds of weights, bounds of activations and bits. The
loss is

    L = |O - O_q|_1 + 10 / N sum_i || F_i / ||F_i|| - F_qi / ||F_qi|| ||_2

and for bits also 50 max(0, mean bits - base). In the backward pass, the step m of a layer is replaced by tanh(m), and
the step of an image by tanh(2 (g - (l + u) / 2) / (u - l)). The learning rate is 1e-2, and 1e-4 for l and u. (The
published code has 1e-1 for l and u; its gradients are 1000 times larger.) From one epoch of a kind to its next, the
rate falls by a factor of 0.9.

Departures: percentiles are those of training patches. Ranges are taken over all patches at once instead of a moving
average over batches. Features are compared by norms over a sample; the published code takes them over a batch. Zero is
a level of every grid, and the grid of weights has 2^b - 1 levels. Bits stay within 2 to 8, so a base of 8 can only go
down. Learning rates of bounds are in units of their distance (activations) or size (weights). Points that do not count
for FAB keep their calibrated range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from baselines.mse import MSEActivation, least_error_bound
from cadyq.models.network import SRNetwork
from cadyq.quantizers import (
    ActivationQuantizer,
    PatchContext,
    PointStatistics,
    QuantizerOutput,
    WeightQuantizer,
    straight_through,
)
from cadyq.quantizers.base import MAX_BITS, MIN_BITS
from cadyq.quantizers.functional import fake_quantize_bounds, fake_quantize_symmetric
from cadyq.schemes import FixedBitScheme, Loss, Role, Stage, Step, normalized_distance
from cadyq.utils.errors import UserError

IMAGE_PERCENTILES = (0.10, 0.90)
LAYER_PERCENTILES = (0.30, 0.70)
SHARES = torch.linspace(1, 0.01, 100)
EPOCHS, STEPS, BATCH, RATE, DECAY = 10, 50, 2, 1e-2, 0.9
THRESHOLD_RATE = 1e-4  # of l and u
FEATURE_WEIGHT, BITS_WEIGHT = 10.0, 50.0


class AdaBMActivation(ActivationQuantizer):
    """Base bits, a step for the layer, and a step for each image from two thresholds on its gradient."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.tensor(1.0))
        self.layer_step = nn.Parameter(torch.tensor(0.0))
        self.thresholds = nn.Parameter(torch.tensor([0.0, 1e6]))

    def learning_role(self, parameter: str) -> str:
        return "range" if parameter in ("low", "high") else "selector"

    def learning_unit(self, parameter: str) -> float:
        if parameter == "layer_step":
            return 1.0
        return THRESHOLD_RATE / RATE if parameter == "thresholds" else float(self.high.detach() - self.low.detach())

    def initialize(self, statistics: PointStatistics) -> None:
        quantiles = statistics.gradient_quantiles
        self.thresholds.data.copy_(torch.quantile(quantiles, quantiles.new_tensor(IMAGE_PERCENTILES)))

    @torch.no_grad()
    def map_layer(self, step: int, statistics: PointStatistics) -> None:
        """Set the step of the layer, -1, 0 or +1, and search its range at the bits that follow."""
        self.layer_step.fill_(step)
        x, count = statistics.bin_centers, statistics.histogram
        low, high = statistics.minimum.clamp_max(0), statistics.maximum.clamp_min(0)
        bits = min(max(self.bits + step, MIN_BITS), MAX_BITS)

        def error(share: Tensor) -> float:
            return float((count * (fake_quantize_bounds(x, share * low, share * high, bits) - x).square()).sum())

        best = min(SHARES.to(x), key=error)
        self.low.copy_(best * low)
        self.high.copy_(best * high)

    def choose(self, gradient: Tensor) -> Tensor:
        """Bits (B,) of images with mean gradients g (B,): whole numbers forward, a sum of tanh backward."""
        low, high = self.thresholds
        hard = self.bits + self.layer_step.detach().clamp(-1, 1).round()
        hard = hard + (gradient > high.detach()).float() - (gradient < low.detach()).float()
        soft = self.layer_step.tanh() + (2 * (gradient - (low + high) / 2) / (high - low).clamp_min(1e-6)).tanh()
        return straight_through(soft, hard.clamp(MIN_BITS, MAX_BITS))

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        bits = self.choose(context.gradient.mean(1))
        value = fake_quantize_bounds(x, self.low, self.high, bits.view(-1, 1, 1, 1))
        return QuantizerOutput(value, bits.detach().long(), bits)


class AdaBMWeight(WeightQuantizer):
    """Symmetric, with a bound that starts at the least squared error and can be tuned."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.bound = nn.Parameter(torch.ones(1))

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        self.bound.copy_(least_error_bound(weight, self.bits))

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize_symmetric(weight, self.bound, self.bits)


def tuning_loss(step: Step) -> Tensor:
    """The loss L without the term of the bits, a scalar."""
    if not step.features:
        raise UserError(f"{AdaBM.name}: no block of the network gives a feature map to compare; use another scheme")
    features = torch.stack([normalized_distance(found, target) for found, target in step.features])
    return (step.output - step.target).abs().mean() + FEATURE_WEIGHT * features.mean()


def tuning_loss_with_bits(step: Step, base: int) -> Tensor:
    """L with the term of the bits. Mean bits are over the points that count and over the batch."""
    assert step.trace is not None
    choosing = sum(record.bit_penalty is not None for record in step.trace.records.values())
    excess = step.trace.bit_penalty().mean() / choosing - base
    return tuning_loss(step) + BITS_WEIGHT * excess.clamp_min(0)


@dataclass(frozen=True)
class AdaBM(FixedBitScheme):
    """Adaptive bit mapping from calibration. `act_bits` is the base; points that do not count use it too."""

    name = "adabm"
    trained = False
    dynamic = True

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return AdaBMActivation(self.act_bits) if counts_for_fab else MSEActivation(self.act_bits)

    def weight_quantizer(self) -> AdaBMWeight:
        return AdaBMWeight(self.weight_bits)

    def allocate(self, network: SRNetwork, statistics: Mapping[str, PointStatistics]) -> None:
        """One step up for the layers whose inputs deviate most, one step down for those that deviate least."""
        layers = {
            name: point.quantizer
            for name, point in network.points.items()
            if isinstance(point.quantizer, AdaBMActivation)
        }
        if not layers:  # all points are excluded
            return
        deviations = torch.stack([statistics[name].deviation for name in layers])
        low, high = torch.quantile(deviations, deviations.new_tensor(LAYER_PERCENTILES))
        for (name, quantizer), deviation in zip(layers.items(), deviations, strict=True):
            quantizer.map_layer(int(deviation > high) - int(deviation < low), statistics[name])

    def stages(self) -> Sequence[Stage]:
        kinds: tuple[tuple[str, Role, Loss], ...] = (
            ("weight bounds", "weight", tuning_loss),
            ("activation bounds", "activation", tuning_loss),
            ("bits", "selector", partial(tuning_loss_with_bits, base=self.act_bits)),
        )
        stages = []
        for epoch in range(EPOCHS):
            name, role, loss = kinds[epoch % len(kinds)]
            stages.append(Stage(name, {role: RATE * DECAY ** (epoch // len(kinds))}, loss, STEPS, BATCH))
        return stages
