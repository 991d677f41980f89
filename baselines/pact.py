"""PACT: Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018.

Activations: y = (|x| - |x - a| + a) / 2 = clamp(x, 0, a) with a learned bound a for each point (Eq. 1),
y_q = round(y (2^k - 1) / a) a / (2^k - 1) (Eq. 2). The rounding is straight through, so dy_q/da is 1 where x is clipped
and 0 elsewhere (Eq. 3). Unlike in PAMS and LSQ, rounding errors do not act on the bound. Weights: DoReFa's, as in the
paper's experiments.

Departures: the paper's activations follow a ReLU. SR features are signed at the input of a block, and clipping at zero
would remove half of them. Where calibration saw negative values, y = clamp(x, -a, a) on 2^k - 1 levels symmetric about
zero (padding is zero), and dy_q/da is -1 where x is clipped from below. a starts at a share of the calibrated maximum
(`RANGE_SHARE`). The loss has no L2 penalty on a, which in the paper reduces a large start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cadyq.quantizers import PatchContext, QuantizerOutput, TanhWeight, constant_bits, signed_levels, straight_through
from cadyq.quantizers.ranges import LearnedRange, SignAware
from cadyq.schemes import FixedBitScheme


class PACTActivation(SignAware, LearnedRange):
    """Eqs. 1 to 3, with a learned bound a for each point."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.alpha = nn.Parameter(torch.ones(1))

    def largest(self) -> Tensor:
        return self.alpha.detach()

    def set_largest(self, value: Tensor) -> None:
        self.alpha.data.copy_(value)

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        y = torch.clamp(x, -self.alpha * self.signed, self.alpha)
        steps = signed_levels(self.bits) if self.signed else 2**self.bits - 1
        alpha = self.alpha.detach()
        on_grid = (y.detach() * (steps / alpha)).round_().mul_(alpha / steps)
        return QuantizerOutput(straight_through(y, on_grid), constant_bits(x, self.bits))


@dataclass(frozen=True)
class PACT(FixedBitScheme):
    """A learned clipping bound for each point, DoReFa's weights."""

    name = "pact"

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> PACTActivation:
        return PACTActivation(self.act_bits)

    def weight_quantizer(self) -> TanhWeight:
        return TanhWeight(self.weight_bits)
