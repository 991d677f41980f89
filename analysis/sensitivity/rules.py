"""Rules that choose the bits of each layer by thresholds on one feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.sensitivity.features import FEATURES, Feature, of_kind
from analysis.sensitivity.patches import PatchSet
from analysis.sensitivity.points import BATCH
from baselines.assignment.search import bisect, rounded_error
from cadyq.models.network import SRNetwork
from cadyq.models.restartable import PointFunction, TracedForward
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.ranges import CandidateActivation

# a setting, such as the price of a bit or the mean bits, to FAB (N,) and squared error (N,) of the test patches
Contestant = Callable[[float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rules:
    """The rules of all features on one network with P points that have K candidates.

    Attributes:
        network: network whose weights and ranges the rules use.
        candidates: candidate bit-widths (K), ascending.
        points: names of the points.
        seen: feature name -> values on training patches (N, P). A feature of the patch has equal columns.
        choices: indices of the oracle's candidates on the first M training patches (M, P).
    """

    network: SRNetwork
    candidates: tuple[int, ...]
    points: list[str]
    seen: dict[str, Tensor]
    choices: Tensor

    def shares(self, mean_bits: float) -> Tensor:
        """Share of patches of each candidate at each point (P, K), with the wanted mean bits.

        They are the oracle's shares times exp(tilt * bits), normalized, with one tilt for all points.
        """
        bits = torch.tensor(self.candidates, dtype=torch.float64)
        counts = torch.stack([(self.choices == k).sum(0) for k in range(len(bits))], 1).double() + 0.5

        def tilted(tilt: float) -> Tensor:
            return (counts.log() + tilt * bits).softmax(1)

        return tilted(bisect(lambda tilt: float((tilted(tilt) * bits).sum(1).mean()), mean_bits, -20, 20, steps=60))

    def direction(self, name: str) -> Tensor:
        """Sign of the rank correlation of a feature with the oracle's bits at each point (P,), 1 or -1."""
        values = self.seen[name][: len(self.choices)]
        ranks = (values.argsort(0).argsort(0).double(), self.choices.double())  # indices of candidates rank like bits
        centred = [r - r.mean(0) for r in ranks]
        return torch.where((centred[0] * centred[1]).sum(0) < 0, -1.0, 1.0)

    def act(self, entry: Feature, lr: Tensor, mean_bits: float, spent: list[Tensor]) -> PointFunction:
        """The points of a forward under the rule. Bits (B,) of each point with candidates are appended to `spent`."""
        context = PatchContext(lr)
        shares, signs = self.shares(mean_bits), self.direction(entry.name)

        def quantize(point: QuantizationPoint, x: Tensor) -> Tensor:
            quantizer = point.quantizer
            if not isinstance(quantizer, CandidateActivation):
                return x if quantizer is None else quantizer(x, context).value
            p = self.points.index(point.name)
            value = entry.function(x) if entry.kind == "layer" else context.feature(entry.function, 0)
            cuts = thresholds(self.seen[entry.name][:, p] * signs[p], shares[p].cumsum(0)[:-1])
            choice = torch.bucketize(value * signs[p], cuts, right=True)
            spent.append(quantizer.candidates[choice])
            return quantizer.quantize(x, choice)

        return quantize

    def contestant(self, name: str, patches: PatchSet) -> Contestant:
        """The rule of a feature on test patches; its setting is the wanted mean bits."""
        forward = TracedForward(self.network)

        def contest(mean_bits: float) -> tuple[Tensor, Tensor]:
            fabs, errors = [], []
            for _, lr, hr in patches.batches(BATCH):
                spent: list[Tensor] = []
                sr = forward.run(lr, self.act(FEATURES[name], lr, mean_bits, spent))
                fabs.append(torch.stack(spent).float().mean(0))
                errors.append(rounded_error(sr, hr))
            return torch.cat(fabs), torch.cat(errors)

        return contest


def thresholds(seen: Tensor, below: Tensor) -> Tensor:
    """The quantiles (K - 1,) of the values `seen` (N,) with the shares `below` (K - 1,) under them.

    A quantile is infinite if less than half a value lies on one side of it.
    """
    half = 0.5 / len(seen)
    cuts = seen.quantile(below.clamp(0, 1).to(seen.dtype))
    return cuts.masked_fill(below > 1 - half, float("inf")).masked_fill(below < half, -float("inf"))


@torch.no_grad()
def observe(network: SRNetwork, patches: PatchSet, points: Sequence[str]) -> dict[str, Tensor]:
    """Feature name -> values of all patches at all points (N, P), with the network at the bits that it chooses."""
    seen: dict[str, list[Tensor]] = {name: [] for name in FEATURES}
    forward = TracedForward(network)
    for _, lr, _ in patches.batches(BATCH):
        context = PatchContext(lr)
        columns: dict[str, list[Tensor]] = {entry.name: [] for entry in of_kind("layer")}

        def act(
            point: QuantizationPoint,
            x: Tensor,
            context: PatchContext = context,
            columns: dict[str, list[Tensor]] = columns,
        ) -> Tensor:
            if point.name in points:
                for name, column in columns.items():
                    column.append(FEATURES[name].function(x))
            return x if point.quantizer is None else point.quantizer(x, context).value

        forward.run(lr, act)
        for entry in FEATURES.values():
            each = columns[entry.name] if entry.kind == "layer" else [entry.function(lr)] * len(points)
            seen[entry.name].append(torch.stack(each, 1))
    return {name: torch.cat(parts) for name, parts in seen.items()}
