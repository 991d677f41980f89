"""ODM: Hong and Lee, Overcoming Distribution Mismatch in Quantizing Image Super-Resolution Networks, ECCV 2024.

Activations: x_q = s round(clamp(x, l, u) / s), s = (u - l) / (2^b - 1), with learned bounds l <= 0 <= u for each point.
Bounds start at the 1st and 99th percentile. Weights: symmetric with the bound g P99(|w|). The percentile is taken anew
in every step. The factor g is learned and starts at 1; dw_q/dbound is (w_q - w) / bound inside, the sign of w outside.

There are two losses: L_R of the recipe, and the mismatch L_M = sum_i ||x_i - q(x_i)||_2 over points i. Their gradients
are combined by

    grad L_R + lambda (1 + cos(grad L_R, grad L_M)) / 2 grad L_M,    lambda = 1e-5.

The mismatch counts less where it opposes the reconstruction. The cosine is taken over all learned values together.
Inside the range the gradients of x and q(x) cancel. So L_M acts on clipped values, and on the bounds by their share of
clipping and rounding errors (`fake_quantize_bounds`).

Departures: percentiles are over all calibration patches at once (paper: mean over batches). Norms are taken for each
patch and averaged over a batch. Learning rates are those of the recipe (paper: 10 times the weights' rate for bounds).
Zero is a level of every grid. Above the paper's 4 bits nothing is clipped at the start: bounds start at the extremes,
and the bound of a weight is g max|w|. No code is published; this follows descriptions of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadyq.quantizers import PatchContext, PointStatistics, QuantizerOutput, WeightQuantizer
from cadyq.quantizers.base import TINY
from cadyq.quantizers.functional import fake_quantize_symmetric
from cadyq.quantizers.ranges import LearnedBounds
from cadyq.schemes import FixedBitScheme
from cadyq.utils.errors import UserError

MOST_CUT_BITS, TAIL = 4, 1.0  # up to 4 bits, 1 % of the values is clipped at each end


def tail(bits: int) -> float:
    """Percent of the values beyond each bound at the start."""
    return TAIL if bits <= MOST_CUT_BITS else 0.0


class ODMActivation(LearnedBounds):
    """Affine quantization with two learned bounds. Its mismatch is an auxiliary loss (B,)."""

    def initialize(self, statistics: PointStatistics) -> None:
        self.low.data.fill_(statistics.percentile(tail(self.bits)).clamp_max(0))
        self.high.data.fill_(statistics.percentile(100 - tail(self.bits)).clamp_min(0))

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        output = super().forward(x, context)
        if not torch.is_grad_enabled():
            return output
        return output._replace(auxiliary_loss=torch.linalg.vector_norm(x - output.value, dim=(1, 2, 3)))


class ODMWeight(WeightQuantizer):
    """Symmetric, with the bound g P99(|w|) and a learned factor g."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, weight: Tensor) -> Tensor:
        # quantiles of half precision are not implemented
        magnitudes = weight.detach().abs().flatten().to(torch.promote_types(weight.dtype, torch.float32))
        largest = torch.quantile(magnitudes, 1 - tail(self.bits) / 100).clamp_min(TINY)
        return fake_quantize_symmetric(weight, self.factor * largest, self.bits)


@dataclass(frozen=True)
class ODM(FixedBitScheme):
    """Learned bounds, and a mismatch loss that is weakened where it opposes the reconstruction.

    Attributes:
        mismatch_weight: lambda, 0 or more.
    """

    name = "odm"

    mismatch_weight: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mismatch_weight >= 0:
            raise UserError(f"mismatch_weight={self.mismatch_weight!r} is out of range: give a number of 0 or more")

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ODMActivation:
        return ODMActivation(self.act_bits)

    def weight_quantizer(self) -> ODMWeight:
        return ODMWeight(self.weight_bits)

    def combine_gradients(self, loss: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> list[Tensor]:
        own, other = (torch.cat([gradient.flatten() for gradient in part]) for part in (loss, auxiliary))
        agreement = (1 + F.cosine_similarity(own, other, dim=0)) / 2
        factor = self.mismatch_weight * agreement
        return [main + factor * extra for main, extra in zip(loss, auxiliary, strict=True)]
