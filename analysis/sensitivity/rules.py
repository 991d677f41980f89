"""Choosing bits by thresholds on a single feature, layer by layer."""

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
from cadyq.models.replay import Act, Replay
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.ranges import CandidateActivation

# setting (its meaning is the contestant's) to bits (N,) and error (N,) of each test patch
Contestant = Callable[[float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rules:
    """Thresholds on single features.

    Attributes:
        seen: feature name -> its values on training patches (N, P); equal columns for a feature of the patch.
        choices: the oracle's choice of candidates on its training patches (M, P), M <= N, the first ones.
    """

    network: SRNetwork
    candidates: tuple[int, ...]
    points: list[str]
    seen: dict[str, Tensor]
    choices: Tensor

    def shares(self, mean_bits: float) -> Tensor:
        """Share of each candidate at each point (P, K): the oracle's, tilted alike everywhere to the wanted mean."""
        bits = torch.tensor(self.candidates, dtype=torch.float64)
        counts = torch.stack([(self.choices == k).sum(0) for k in range(len(bits))], 1).double() + 0.5

        def tilted(tilt: float) -> Tensor:
            return (counts.log() + tilt * bits).softmax(1)

        return tilted(bisect(lambda tilt: float((tilted(tilt) * bits).sum(1).mean()), mean_bits, -20, 20, steps=60))

    def direction(self, name: str) -> Tensor:
        """1 where more of the feature means more bits, else -1, (P,)."""
        values = self.seen[name][: len(self.choices)]
        ranks = (values.argsort(0).argsort(0).double(), self.choices.double())  # few candidates: their index will do
        centred = [r - r.mean(0) for r in ranks]
        return torch.where((centred[0] * centred[1]).sum(0) < 0, -1.0, 1.0)

    def act(self, entry: Feature, lr: Tensor, mean_bits: float, spent: list[Tensor]) -> Act:
        """Quantize by the rule; the bits of each point that counts (B,) are appended to `spent`."""
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
        replay = Replay(self.network)

        def contest(mean_bits: float) -> tuple[Tensor, Tensor]:
            fabs, errors = [], []
            for _, lr, hr in patches.batches(BATCH):
                spent: list[Tensor] = []
                sr = replay.run(lr, self.act(FEATURES[name], lr, mean_bits, spent))
                fabs.append(torch.stack(spent).float().mean(0))
                errors.append(rounded_error(sr, hr))
            return torch.cat(fabs), torch.cat(errors)

        return contest


def thresholds(seen: Tensor, below: Tensor) -> Tensor:
    """Where the shares `below` (K - 1,) of the values `seen` (N,) lie under; infinite for less than half a value."""
    half = 0.5 / len(seen)
    cuts = seen.quantile(below.clamp(0, 1).to(seen.dtype))
    return cuts.masked_fill(below > 1 - half, float("inf")).masked_fill(below < half, -float("inf"))


@torch.no_grad()
def observe(network: SRNetwork, patches: PatchSet, points: Sequence[str]) -> dict[str, Tensor]:
    """Every feature of every patch at every point (N, P), the network running at the bits it chooses."""
    seen: dict[str, list[Tensor]] = {name: [] for name in FEATURES}
    replay = Replay(network)
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

        replay.run(lr, act)
        for entry in FEATURES.values():
            each = columns[entry.name] if entry.kind == "layer" else [entry.function(lr)] * len(points)
            seen[entry.name].append(torch.stack(each, 1))
    return {name: torch.cat(parts) for name, parts in seen.items()}
