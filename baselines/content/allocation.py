"""Allocations of bits at a wanted mean, from an error model: one for each patch, or K that patches share.

PSNR is computed for each image. To first order, an image with squared error E loses

    10 / ln 10 * sum_n (change of the squared error of patch n) / E

over its patches n. All patches of an image have the same weight, 1 / E. The loss of a patch is therefore its squared
change times a weight that estimates 1 / E. Dividing by the patch's own error instead would favour flat patches: their
change is small, but their error is smaller still. A bisection over the price of a bit gives the wanted mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.assignment.error_model import ErrorModel
from baselines.assignment.search import bisect

ROUNDS = 6
LOG10_PRICES = (-8.0, 3.0)  # of a bit, in units of the weighted squared change
STEPS = 20

Found = TypeVar("Found")


def at_mean(mean_bits: float, solve: Callable[[float], tuple[float, Found]]) -> Found:
    """The result of `solve` at the price whose mean is nearest to the wanted one.

    Args:
        mean_bits: wanted mean.
        solve: price to a pair of the mean bits and a result.
    """
    tried: list[tuple[float, Found]] = []

    def minus_mean(log_price: float) -> float:
        mean, found = solve(10**log_price)
        tried.append((abs(mean - mean_bits), found))
        return -mean

    bisect(minus_mean, -mean_bits, *LOG10_PRICES, steps=STEPS)
    return min(tried, key=lambda one: one[0])[1]


def by_patch(model: ErrorModel, weights: Tensor, bits: Tensor, mean_bits: float) -> Tensor:
    """The candidates (N, P) that minimize weight * error + price * bits of each patch. The patch's true error is known.

    Args:
        model: error model of N patches.
        weights: weights of the squared errors (N,).
        bits: bits of the candidates (K,), ascending.
        mean_bits: wanted mean over the patches.
    """
    points = model.linear.shape[1]
    start = torch.full((1, points), len(bits) // 2)

    def solve(price: float) -> tuple[float, Tensor]:
        prices = (price / points * bits).expand(points, -1)
        choices = model.descend(start, prices, lambda error: weights[:, None] * error)
        return float(bits[choices].mean()), choices

    return at_mean(mean_bits, solve)


@dataclass(frozen=True)
class Fitted:
    """Profiles (K, P) of candidates, and the scores (K - 1,) that separate them."""

    table: Tensor
    edges: Tensor

    def mean_bits(self, score: Tensor, bits: Tensor) -> float:
        """Mean bits over patches with these scores (N,)."""
        return float(bits[self.table].mean(1)[torch.bucketize(score, self.edges, right=True)].mean())


def fit_profiles(
    model: ErrorModel, weights: Tensor, score: Tensor, typical: Tensor, bits: Tensor, mean_bits: float, count: int
) -> Fitted:
    """The profiles and cuts of least weighted squared change at a wanted mean.

    Args:
        model: error model of N patches.
        weights: weights of their squared changes (N,).
        score: scores of these patches (N,).
        typical: scores (M,) of patches of the size at run time. The mean is taken over them.
        bits: bits of the candidates (K,), ascending.
        mean_bits: wanted mean.
        count: number of profiles.
    """
    order = score.argsort()
    model, score, weights = model.changes_only()[order], score[order], weights[order]
    start = torch.full((1, model.linear.shape[1]), len(bits) // 2)

    def solve(price: float) -> tuple[float, Fitted]:
        fitted = _alternate(model, weights, score, bits, price, count, start)
        return fitted.mean_bits(typical, bits), fitted

    return at_mean(mean_bits, solve)


def _alternate(
    model: ErrorModel, weights: Tensor, score: Tensor, bits: Tensor, price: float, count: int, start: Tensor
) -> Fitted:
    """Profiles by coordinate descent and cuts by dynamic programming, in turns, on patches sorted by score."""
    cuts = [len(part) for part in torch.arange(len(score)).tensor_split(count)]
    table = start.repeat(count, 1)
    for _ in range(ROUNDS):
        before, parts = table.clone(), torch.split(torch.arange(len(score)), cuts)
        for k, part in enumerate(parts):
            if len(part):
                pooled = model[part].pooled(weights[part])
                dear = price * len(part) / float(weights[part].sum())
                prices = (dear / table.shape[1] * bits).expand(table.shape[1], -1)
                table[k] = pooled.descend(table[k : k + 1], prices, lambda error: error)[0]
        mean = bits[table].mean(1)
        costs = torch.stack([weights * model.errors(row[None]) + price * mean[k] for k, row in enumerate(table)])
        cuts = _best_lengths(costs)
        if torch.equal(before, table):
            break
    parts = torch.split(torch.arange(len(score)), cuts)
    used = [k for k, part in enumerate(parts) if len(part)]
    return Fitted(table[used], torch.stack([score[parts[k][0]] for k in used])[1:].double())


def _best_lengths(costs: Tensor) -> list[int]:
    """How many of N sorted patches each of K profiles takes, in consecutive runs of least total cost (K, N)."""
    sums = F.pad(costs.double().cumsum(1), (1, 0))
    least, back = sums[0], list[Tensor]()
    for row in sums[1:]:
        least, start = (least - row).cummin(0)
        least, back = least + row, [*back, start]
    lengths, end = list[int](), costs.shape[1]
    for start in reversed(back):
        lengths.append(end - int(start[end]))
        end = int(start[end])
    return [end, *reversed(lengths)]
