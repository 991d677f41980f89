"""AdaRound: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020.

w_q = s clip(floor(w / s) + h(V), -2^(b-1), 2^(b-1) - 1), h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1) (Eqs. 22 and 23).
Layer by layer, V minimizes ||W x - W_q x_q||_F^2 + 0.01 sum(1 - |2 h(V) - 1|^beta) (Eqs. 21, 24 and 25): x_q is what
the quantized network before the layer gives, x what the FP32 network gives. beta falls from 20 to 2, and in the first
fifth of the steps the second term rests. In the end h >= 1/2 rounds up. V starts where h is the fraction of w / s: as
rounding to nearest would, before it is driven to 0 or 1.

s and the ranges of activations have the least squared error, as under `mse`. Departures: 500 steps a layer (paper:
10,000); the activation function behind a layer is left out of its output; errors are in the layer's own units, so the
second term is weighed by the mean square of its output. `channelwise` gives each output channel its own s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.mse import SHARES, MSEActivation
from cadyq.quantizers import ActivationQuantizer, WeightQuantizer, straight_through
from cadyq.schemes import FixedBitScheme, Stage, Step, cosine

ZETA, GAMMA = 1.1, -0.1
WARM_UP, BETAS = 0.2, (20.0, 2.0)
STEPS, BATCH, RATE = 500, 8, 1e-1
ROUNDING_WEIGHT = 0.01


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V), from 0 to 1, both of which it reaches."""
    return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """V of h in [0, 1]."""
    return -((ZETA - GAMMA) / (h - GAMMA) - 1).log()


def pack_bits(up: Tensor) -> Tensor:
    """Booleans of any shape to uint8, eight a byte."""
    padded = nn.functional.pad(up.flatten().to(torch.uint8), (0, -up.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, device=up.device)).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack_bits`, as 0 and 1 in int64."""
    bits = (packed.long()[:, None] >> torch.arange(8, device=packed.device)) & 1
    return bits.flatten()[: shape.numel()].view(shape)


class RoundedWeight(WeightQuantizer):
    """A weight of which each value is rounded up or down as was found best together.

    Attributes:
        step: s, a scalar, or (Cout, 1, 1, 1).
        up: which values are rounded up, eight a byte.
        rounding: V (Cout, Cin / groups, k, k) while it is tuned, else None.
    """

    def __init__(self, bits: int, channelwise: bool = False) -> None:
        super().__init__(bits)
        self.granularity = "channel" if channelwise else "tensor"
        self.register_buffer("step", torch.tensor(1.0))
        self.register_buffer("up", torch.zeros(0, dtype=torch.uint8))
        self.step: Tensor
        self.up: Tensor
        self.rounding: nn.Parameter | None = None

    def prepare(self, weight: Tensor) -> None:
        self.step = torch.ones((len(weight), 1, 1, 1) if self.granularity == "channel" else (), device=weight.device)
        self.up = torch.zeros(-(-weight.numel() // 8), dtype=torch.uint8, device=weight.device)

    def _codes(self, weight: Tensor, step: Tensor, up: Tensor) -> Tensor:
        half = 2 ** (self.bits - 1)
        return ((weight / step).floor() + up).clamp(-half, half - 1)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """The step of least squared error under rounding to nearest, which is kept at first."""
        dims = (1, 2, 3) if self.granularity == "channel" else (0, 1, 2, 3)
        largest = weight.abs().amax(dims, keepdim=True).clamp_min(1e-8) / 2 ** (self.bits - 1)
        steps = [share * largest for share in SHARES.to(weight)]
        nearest = [self._codes(weight, s, ((weight / s) % 1 >= 0.5).to(weight)) * s for s in steps]
        errors = torch.stack([(near - weight).square().sum(dims, keepdim=True) for near in nearest])
        best = torch.stack(steps).gather(0, errors.argmin(0, keepdim=True))[0]
        self.step.copy_(best.view(self.step.shape))
        self.up.copy_(pack_bits((weight / self.step) % 1 >= 0.5))

    def start_tuning(self, weight: Tensor) -> None:
        self.rounding = nn.Parameter(inverse_rectified_sigmoid((weight / self.step) % 1))

    def finish_tuning(self) -> None:
        if self.rounding is not None:
            self.up.copy_(pack_bits(rectified_sigmoid(self.rounding.detach()) >= 0.5))
        self.rounding = None

    def penalty(self, beta: float) -> Tensor:
        """sum(1 - |2 h(V) - 1|^beta)."""
        assert self.rounding is not None
        return (1 - (2 * rectified_sigmoid(self.rounding) - 1).abs().pow(beta)).sum()

    def forward(self, weight: Tensor) -> Tensor:
        if self.rounding is not None:
            return self.step * self._codes(weight.detach(), self.step, rectified_sigmoid(self.rounding))
        up = unpack_bits(self.up, weight.shape).to(weight)
        return straight_through(weight, self._codes(weight.detach(), self.step, up) * self.step)


def beta_of(done: float) -> float:
    """Falls linearly behind the warm-up."""
    first, last = BETAS
    return first + (last - first) * max(0.0, (done - WARM_UP) / (1 - WARM_UP))


def reconstruction(step: Step) -> Tensor:
    """Squared error of the output, in units of its mean square, and the term that drives h to 0 or 1."""
    error = (step.output - step.target).square().mean() / step.target.square().mean().clamp_min(1e-12)
    if step.done < WARM_UP:
        return error
    weights = [part for part in step.module.modules() if isinstance(part, RoundedWeight)]
    count = sum(part.rounding.numel() for part in weights if part.rounding is not None)
    return error + ROUNDING_WEIGHT * sum(part.penalty(beta_of(step.done)) for part in weights) / max(count, 1)


@dataclass(frozen=True)
class AdaRound(FixedBitScheme):
    """Rounding of weights found layer by layer.

    Attributes:
        channelwise: a step for each output channel.
    """

    name = "adaround"
    tuned = True

    channelwise: bool = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return MSEActivation(self.act_bits)

    def weight_quantizer(self) -> RoundedWeight:
        return RoundedWeight(self.weight_bits, self.channelwise)

    def stages(self) -> Sequence[Stage]:
        return (Stage("rounding of", {"weight": RATE}, reconstruction, STEPS, BATCH, over="layer", decay=cosine),)
