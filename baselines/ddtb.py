"""DDTB: Zhong et al., Dynamic Dual Trainable Bounds for Ultra-low Precision SR Networks, ECCV 2022.

Activations: x_q = s round(clamp(x, l, u) / s), s = (u - l) / (2^b - 1), with learned bounds l <= 0 <= u for each point.
Their gradients pass through the clamp and, as in the authors' code, through s (`fake_quantize_bounds`).

Gate: a gated point uses the bounds g_l l and g_u u, with (g_u, g_l) = 2 sigmoid(W2 relu(W1 average(x))) for each
sample. Points with the largest dynamic intensity, Var(max x) + Var(min x) over patches, have a gate.

Weights: clamped to their 1st and 99th percentile, with 2^b levels between, per tensor. Clipped weights get no gradient.

Departures: the gate has no batch normalization and is not quantized to 2 bits, since a sample must not depend on its
batch. W2 = 0 at the start, so the gate starts at 1; the paper penalizes the gate in the first epochs instead. Bounds
start at a share of the calibrated extremes (`RANGE_SHARE`; paper: 1st and 99th percentile). Above the paper's 4 bits no
weight is clipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cadyq.models.network import SRNetwork
from cadyq.quantizers import PointStatistics, WeightQuantizer, fake_quantize_bounds
from cadyq.quantizers.ranges import LearnedBounds
from cadyq.schemes import FixedBitScheme

HIDDEN, GATE_SHARE = 32, 0.3  # hidden features of a gate; share of the points that have one (the paper: 0.1 to 0.5)


class DDTBActivation(LearnedBounds):
    """Affine, with learned bounds [l, u]. Where `gated`, a gate scales them for each sample."""

    flags = ("gated",)

    idempotent = False  # the gate moves the bounds with the values

    def __init__(self, bits: int, channels: int) -> None:
        super().__init__(bits)
        self.gate1 = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(HIDDEN, channels)))
        self.gate2 = nn.Parameter(torch.zeros(2, HIDDEN))
        self.register_buffer("gated", torch.tensor(False))
        self.gated: Tensor

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.gated:
            return self.low, self.high
        # sums, not matrix products: those differ with the size of the batch
        hidden = (self.gate1 * x.detach().mean((2, 3)).unsqueeze(1)).sum(2).relu()
        g_u, g_l = 2 * (self.gate2.unsqueeze(1) * hidden).sum(2).sigmoid().view(2, -1, 1, 1, 1)
        return g_l * self.low, g_u * self.high

    def used_parameters(self) -> Iterator[nn.Parameter]:
        return iter([self.low, self.high] + [self.gate1, self.gate2] * int(self.gated))

    def overhead_macs(self, height: int, width: int) -> int:
        return int(self.gated) * (self.gate1.shape[1] * height * width + self.gate1.numel() + self.gate2.numel())

    def learning_role(self, parameter: str) -> str:
        return "selector" if parameter.startswith("gate") else "range"


class DDTBWeight(WeightQuantizer):
    """Affine: from the 1st to the 99th percentile up to 4 bits, else between the extremes."""

    def forward(self, weight: Tensor) -> Tensor:
        values, cut = weight.detach().flatten().sort().values, weight.numel() // 100 if self.bits <= 4 else 0
        return fake_quantize_bounds(weight, values[cut], values[-1 - cut], self.bits)


@dataclass(frozen=True)
class DDTB(FixedBitScheme):
    """Two learned bounds for each point. Where the extremes vary most, a gate scales them for each sample."""

    name = "ddtb"

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> DDTBActivation:
        return DDTBActivation(self.act_bits, channels)

    def weight_quantizer(self) -> DDTBWeight:
        return DDTBWeight(self.weight_bits)

    def allocate(self, network: SRNetwork, statistics: Mapping[str, PointStatistics]) -> None:
        quantizers = {name: point.quantizer for name, point in network.points.items()}
        gates = {name: own for name, own in quantizers.items() if isinstance(own, DDTBActivation)}

        def intensity(name: str) -> float:
            return float(statistics[name].maximum_spread ** 2 + statistics[name].minimum_spread ** 2)

        for rank, name in enumerate(sorted(gates, key=intensity, reverse=True)):
            gates[name].gated.fill_(rank < int(GATE_SHARE * len(gates)))
