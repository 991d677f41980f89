"""Granular-DQ: Wang et al., Thinking in Granularity: Dynamic Quantization for Image Super-Resolution by Intriguing
Multi-Granularity Clues, AAAI 2025.

Bits are chosen once for each patch, for all points that count:

- A gate reads the first feature map. The map is averaged over squares of 1, 2 and 4 pixels. The global averages of the
  three (3 C values) go through one linear layer to logits of 4, 6 and 8 bits. The largest logit wins.
- Where the gate chooses 8, the entropy H of the patch's grayscale pixels (`patch_entropy`) decides: 4 bits if
  H <= T_1, 5 if H <= T_2, else 8. T_1 and T_2 are the 50th and 90th percentile over training patches.

Training: a hard Gumbel-softmax (straight through) replaces the largest logit, and x_q = sum_k p_k Q_k(x) with p
one-hot. The loss is that of the recipe, without a bit penalty. Quantizers: QuantSR's without its shift, with a step for
each point and candidate. Weights have 8 bits.

The published code differs from the paper. Its gate passes through argmax and a comparison, so it gets no gradient and
keeps its random start. Gumbel noise is also on at test. The channel shift is added after the quantizers and has no
effect. A weight's step starts at 2 max|w| / sqrt(Q_P). The global average of averages over squares is the global
average itself, except at the border. The gate therefore reads the same C numbers three times, here as well.

Departures: the gate learns. Its weights start at 0. Its inputs are divided by the deviation that calibration saw, since
features of pixels in 0..255 saturate it. Percentiles stay as calibrated; the code moves them in the first epoch. Steps
start as LSQ's do here. Points that do not count have fixed bits, as many as the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.lsq import quantize_lsq
from baselines.quantsr import QuantSRWeight, UnshiftedActivation, tanh_round
from cadyq.models.network import SRNetwork
from cadyq.quantizers import RANGE_SHARE, ActivationQuantizer, PatchContext, PointStatistics, QuantizerOutput
from cadyq.quantizers.base import check_bits
from cadyq.quantizers.context import ENTROPY_MACS_PER_PIXEL, patch_entropy
from cadyq.quantizers.functional import straight_through
from cadyq.quantizers.ranges import LearnedRange
from cadyq.schemes import Scheme
from cadyq.utils.errors import UserError

CANDIDATES = (4, 5, 6, 8)
SQUARES = (1, 2, 4)  # sides of what the gate averages over
ENTROPY_QUANTILES = (0.5, 0.9)


class GranularActivation(ActivationQuantizer):
    """A learned step for each candidate. The point that runs first decides for all points.

    Attributes:
        decides: whether this is the point that decides.
    """

    flags = ("signed", "decides")

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.ones(len(CANDIDATES)))
        self.gate = nn.Linear(len(SQUARES) * channels, 3)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        for name, start in (("signed", True), ("decides", False), ("spread", 1.0)):
            self.register_buffer(name, torch.tensor(start))
        self.register_buffer("thresholds", torch.zeros(len(ENTROPY_QUANTILES)))
        self.register_buffer("candidates", torch.tensor(CANDIDATES), persistent=False)
        self.signed: Tensor
        self.decides: Tensor
        self.spread: Tensor
        self.thresholds: Tensor
        self.candidates: Tensor

    def levels(self) -> tuple[Tensor, Tensor]:
        """Q_N and Q_P of each candidate (K,), as in LSQ."""
        half = (2.0 ** (self.candidates - 1)).to(self.steps.dtype)
        return (half, half - 1) if self.signed else (torch.zeros_like(half), 2 * half - 1)

    def _start(self, largest: Tensor) -> None:
        """Set each step: its candidate clips at a share of `largest`."""
        shares = self.steps.new_tensor([RANGE_SHARE[bits] for bits in CANDIDATES])
        self.steps.data.copy_(shares * largest / self.levels()[1])

    def initialize(self, statistics: PointStatistics) -> None:
        if statistics.entropy_quantiles is None:
            raise UserError("granular: these calibration statistics hold no entropies; calibrate anew")
        self.signed.copy_(statistics.minimum < 0)
        self.spread.copy_(statistics.deviation.clamp_min(1e-6))
        quantiles = statistics.entropy_quantiles
        self.thresholds.copy_(torch.quantile(quantiles, quantiles.new_tensor(ENTROPY_QUANTILES)))
        self._start(statistics.max_abs)

    def inherit(self, parent: ActivationQuantizer) -> None:
        if isinstance(parent, LearnedRange):
            self._start(parent.largest() / RANGE_SHARE[parent.bits])  # not calibrated: thresholds are missing
        else:
            super().inherit(parent)

    def decide(self, x: Tensor, context: PatchContext) -> Tensor:
        """Weights (B, K) of the candidates, one-hot, from the first feature map `x` (B, C, H, W)."""
        averages = [F.avg_pool2d(x, side, ceil_mode=True).mean((2, 3)) for side in SQUARES]
        logits = self.gate(torch.cat(averages, 1) / self.spread)
        soft = F.gumbel_softmax(logits) if self.training else logits.softmax(1)
        four, six, eight = straight_through(soft, F.one_hot(soft.argmax(1), 3).to(soft.dtype)).unbind(1)
        entropy = context.feature(patch_entropy, ENTROPY_MACS_PER_PIXEL)
        low, middle, high = F.one_hot(torch.bucketize(entropy, self.thresholds.to(entropy)), 3).to(soft.dtype).unbind(1)
        return torch.stack([four + eight * low, eight * middle, six, eight * high], 1)

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        if context.decision is None:
            if not self.decides:
                raise UserError("granular: a point runs before the one that decides; exclude it: exclude=[...]")
            context.decision = self.decide(x, context)
        choice = context.decision.argmax(1)
        q_n, q_p = self.levels()
        if torch.is_grad_enabled():
            weights = context.decision.T.reshape(len(CANDIDATES), -1, 1, 1, 1)
            levels = zip(q_n.int().tolist(), q_p.int().tolist(), strict=True)
            values = [
                quantize_lsq(x, step, *ends, x[0].numel(), tanh_round)
                for step, ends in zip(self.steps, levels, strict=True)
            ]
            value = (weights * torch.stack(values)).sum(0)
        else:
            step, low, high = (part[choice].view(-1, 1, 1, 1) for part in (self.steps, -q_n, q_p))
            value = torch.div(x, step).clamp_(low, high).round_().mul_(step)
        return QuantizerOutput(value, self.candidates[choice])

    def used_parameters(self) -> Iterator[nn.Parameter]:
        return iter([self.steps, *(self.gate.parameters() if self.decides else ())])

    def overhead_macs(self, height: int, width: int) -> int:
        pooled = self.gate.in_features * height * width
        return int(self.decides) * (pooled + self.gate.weight.numel())

    def learning_role(self, parameter: str) -> str:
        return "selector" if parameter.startswith("gate.") else "range"


@dataclass(frozen=True)
class GranularDQ(Scheme):
    """Bits of each patch from a gate on its first feature map and from its entropy.

    Attributes:
        weight_bits: bits of all quantized weights, and of the activations at points that do not count.
    """

    name = "granular"
    dynamic = True
    draws_in_training = True

    weight_bits: int = 8

    def __post_init__(self) -> None:
        check_bits("weight_bits", self.weight_bits)

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return GranularActivation(channels) if counts_for_fab else UnshiftedActivation(self.weight_bits)

    def weight_quantizer(self) -> QuantSRWeight:
        return QuantSRWeight(self.weight_bits)

    def allocate(self, network: SRNetwork, statistics: Mapping[str, PointStatistics]) -> None:
        """The first point that counts decides."""
        counted = [p.quantizer for p in network.points.values() if isinstance(p.quantizer, GranularActivation)]
        for place, quantizer in enumerate(counted):
            quantizer.decides.fill_(place == 0)

    def before_forward(self, network: SRNetwork, context: PatchContext) -> None:
        context.decision = None
