"""DAQ: Hong et al., DAQ: Channel-Wise Distribution-Aware Quantization for Deep Image SR Networks, WACV 2022.

Each channel of each sample is standardized by its own mean m and standard deviation d: x^ = (x - m) / d. x^ is rounded
to 2^n levels at (k + 1/2) s:

    Q(x^) = (round(clamp(x^) / s + 1/2) - 1/2) s,  x^ clamped to +-(2^(n-1) - 1/2) s,  x_q = Q(x^) d + m.

So the levels are l, l + s d, l + 2 s d, ... with l = m - (2^(n-1) - 1/2) s d. After a ReLU l is at least 0. Weights:
the same with the mean 0 and the deviation of the whole tensor. Gradients pass straight through.

s(n) is the step of the uniform n-bit quantizer of least squared error on a standard normal (Max 1960). Weights use
s(n). Activations use s(n - 1), as the authors' code does, because features have heavier tails than a normal: on EDSR at
8 bits, s(n) loses 0.17 dB on Set5 and s(n - 1) 0.01 dB.

Departures: a point follows a ReLU if calibration saw no negative value there; the authors' code looks at the batch.
There the lowest level is exactly l, so zero stays zero, as in the authors' code. That code has no upper end there; this
one has. The deviation divides by H W, so one pixel is enough. m and d stay in FP32; the paper quantizes d to 8 bits.
A weight far from mean 0 for its deviation (`LEAST_SPREAD`), such as a box blur, has levels up to its largest value; the
authors' code clips all of it. The scheme needs no training (`trained = False`), but can be trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cadyq.quantizers import PatchContext, QuantizerOutput, WeightQuantizer, constant_bits, straight_through
from cadyq.quantizers.base import TINY
from cadyq.quantizers.ranges import SignAware
from cadyq.schemes import FixedBitScheme

STEP = {1: 1.5958, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}
LEAST_SPREAD = 0.1  # deviation over root mean square


class DAQActivation(SignAware):
    """Q(x^) d + m, with the mean m and the deviation d of each channel of each sample."""

    granularity = "channel"
    idempotent = False

    def __init__(self, bits: int, channels: int) -> None:
        super().__init__(bits)
        self.channels = channels

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        with torch.no_grad():
            mean = x.mean((2, 3), keepdim=True)
            centered = x - mean
            deviation = torch.linalg.vector_norm(centered, dim=(2, 3), keepdim=True) / math.sqrt(x[0, 0].numel())
            step = (STEP[self.bits - 1] * deviation).clamp_min(TINY)
            low = mean - (2 ** (self.bits - 1) - 0.5) * step
            low = low if self.signed else low.clamp_min(0)
            codes = torch.addcmul((mean - low) / step, centered, 1 / step).round_().clamp_(0, 2**self.bits - 1)
            on_grid = torch.addcmul(low, codes, step)
        return QuantizerOutput(straight_through(x, on_grid), constant_bits(x, self.bits))

    def overhead_macs(self, height: int, width: int) -> int:
        """The sum and the sum of squares of all values."""
        return 2 * self.channels * height * width


class DAQWeight(WeightQuantizer):
    """Q(w / d) d, with the deviation d of the whole tensor."""

    def forward(self, weight: Tensor) -> Tensor:
        w = weight.detach()
        highest = 2 ** (self.bits - 1) - 0.5
        deviation, size = w.std(correction=0), w.square().mean().sqrt()
        far = deviation < LEAST_SPREAD * size
        step = torch.where(far, w.abs().amax() / highest, STEP[self.bits] * deviation).clamp_min(TINY)
        codes = torch.round(w / step + 0.5) - 0.5
        return straight_through(weight, codes.clamp_(-highest, highest) * step)


@dataclass(frozen=True)
class DAQ(FixedBitScheme):
    """A grid of its own for each channel of each sample."""

    name = "daq"
    trained = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> DAQActivation:
        return DAQActivation(self.act_bits, channels)

    def weight_quantizer(self) -> DAQWeight:
        return DAQWeight(self.weight_bits)
