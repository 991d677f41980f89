"""Weights with learned rounding, for AdaRound and BRECQ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cadyq.quantizers.base import SEARCHED_SHARES, TINY, WeightQuantizer
from cadyq.quantizers.functional import straight_through

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V), from 0 to 1, both ends included."""
    return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """V of h in [0, 1]."""
    return -((ZETA - GAMMA) / (h - GAMMA) - 1).log()


def pack_bits(up: Tensor) -> Tensor:
    """Booleans of any shape to uint8, eight values per byte."""
    padded = nn.functional.pad(up.flatten().to(torch.uint8), (0, -up.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, device=up.device)).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack_bits`, as 0 and 1 in int64."""
    bits = (packed.long()[:, None] >> torch.arange(8, device=packed.device)) & 1
    return bits.flatten()[: shape.numel()].view(shape)


class RoundedWeight(WeightQuantizer):
    """A weight with learned rounding: each value is rounded up or down.

    Attributes:
        step: s, a scalar, or (Cout, 1, 1, 1).
        up: which values are rounded up, eight values per byte.
        rounding: V (Cout, Cin / groups, k, k) during tuning, else None.
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
        """Set the step of least squared error under rounding to nearest, and start with that rounding."""
        dims = (1, 2, 3) if self.granularity == "channel" else (0, 1, 2, 3)
        largest = weight.abs().amax(dims, keepdim=True).clamp_min(TINY) / 2 ** (self.bits - 1)
        steps = [share * largest for share in SEARCHED_SHARES.to(weight)]
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
