"""2DQuant: Liu et al., 2DQuant: Low-bit Post-Training Quantization for Image Super-Resolution, NeurIPS 2024.

q(v) = s round((clip(v, l, u) - l) / s) + l, s = (u - l) / (2^b - 1), per tensor, for activations and for weights.

DOBI searches the bounds. For i = 0 ... K - 1 with K = 100 and D = (max - min) / 2K, it tries u_i = max - i D, with
l_i = min + i D, or l = min if no value is negative. It keeps the pair with the least ||v - q(v)||_2.

DQC then tunes all bounds against the FP32 network with

    L = |O - O_q|_1 / CHW + 5 sum_i || F_i / ||F_i|| - F_qi / ||F_qi|| ||_2 / C_i H_i W_i,

by Adam at 1e-2, in 3000 steps of 32 LR patches.

Published code: 4000 steps of 16 patches at a constant learning rate. Its feature loss is the mean square, with norms as
constants. Tensors of attention are quantized too; convolutions stay in FP32.

Departures: DOBI sees activations as a histogram of 2048 bins. Learning rates are in units of the distance of
two bounds (activations) or of a bound's size (weights); absolute rates suit features near 1 only. Adam's second moment
decays by 0.999. Patches are not flipped. Divided by C_i H_i W_i, the feature term is about 1e-5 of the first term. It
is kept as printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cadyq.quantizers import BoundedActivation, BoundedWeight, PointStatistics
from cadyq.quantizers.functional import fake_quantize_offset
from cadyq.schemes import FixedBitScheme, Stage, Step, cosine, normalized_distance

K = 100
STEPS, BATCH, RATE = 3000, 32, 1e-2
FEATURE_WEIGHT = 5.0
WHITE = 255


@torch.no_grad()
def dobi(values: Tensor, counts: Tensor | float, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The bounds (low, high), scalars, of least squared error.

    Args:
        values: v (N,).
        counts: how often each value occurs, (N,), or one number for all.
        low: the smallest value, a scalar.
        high: the largest value, a scalar.
        bits: b.
    """
    distance = (high - low) / (2 * K)
    step = torch.zeros_like(distance) if low >= 0 else distance
    pairs = [(low + i * step, high - i * distance) for i in range(K)]
    errors = [(counts * (fake_quantize_offset(values, *pair, bits) - values).square()).sum() for pair in pairs]
    return pairs[int(torch.stack(errors).argmin())]


def dqc_loss(step: Step) -> Tensor:
    """The loss L of the paper, a scalar, for images in 0..1."""
    features = sum(normalized_distance(found, target) / target[0].numel() for found, target in step.features)
    return (step.output - step.target).abs().mean() / WHITE + FEATURE_WEIGHT * features


class DOBIActivation(BoundedActivation):
    """Affine, between the bounds of least squared error on the values that calibration saw (DOBI)."""

    def clipping_bounds(self, statistics: PointStatistics) -> tuple[Tensor, Tensor]:
        low, high = statistics.minimum, statistics.maximum
        return dobi(statistics.bin_centers, statistics.histogram, low, high, self.bits)


class DOBIWeight(BoundedWeight):
    """Affine, between the bounds of least squared error on the weights (DOBI)."""

    def clipping_bounds(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return dobi(weight.flatten(), 1.0, weight.amin(), weight.amax(), self.bits)


@dataclass(frozen=True)
class TwoDQuant(FixedBitScheme):
    """Bounds from a search (DOBI), then from distillation (DQC)."""

    name = "twodquant"
    tuned = True

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> DOBIActivation:
        return DOBIActivation(self.act_bits)

    def weight_quantizer(self) -> DOBIWeight:
        return DOBIWeight(self.weight_bits)

    def stages(self) -> Sequence[Stage]:
        return (Stage("bounds", {"activation": RATE, "weight": RATE}, dqc_loss, STEPS, BATCH, decay=cosine),)
