"""Joint search over bits by true error: what `static` and `oracle` are made with.

Error is not additive over points (several points lowered together cost more, or less, than the sum of each alone), so
every trial runs the network with all bits in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.quantizers import PatchContext
from cadyq.quantizers.context import luma
from cadyq.utils.errors import UserError

SEARCH_PATCHES, SEARCH_SIDE = 16, 24


def search_patches(lr: Tensor, hr: Tensor) -> PatchContext:
    """A share of the training patches that a search of some thousand forwards can afford, cropped from the corner."""
    scale = hr.shape[-1] // lr.shape[-1]
    side = min(SEARCH_SIDE, *lr.shape[-2:])
    few = slice(SEARCH_PATCHES)
    return PatchContext(lr[few, :, :side, :side], hr[few, :, : side * scale, : side * scale])


def rounded_error(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared error of luma of each patch (B,), SR clamped and rounded to 0..255, in squared grey levels."""
    return luma(sr.clamp(0, 255).round() - hr).square().mean((1, 2, 3))


@torch.no_grad()
def luma_error(network: SRNetwork, context: PatchContext) -> Tensor:
    """`rounded_error` of each patch (B,) against `context.hr`.

    Runs the network's figure with the bits that are set, without `Scheme.before_forward`.
    """
    if context.hr is None:
        raise UserError(f"{network.name}: the true error needs HR patches; pass them to trace_forward")
    return rounded_error(network.run(context, prepare=False), context.hr)


def descend(cost: Callable[[Tensor], Tensor], choices: Tensor, candidates: int, sweeps: int) -> Tensor:
    """Coordinate descent: at each point in turn, every other candidate is tried, and kept where it costs less.

    Args:
        cost: choices (G, P) to the cost of each of G groups (G,); groups do not influence one another.
        choices: where to start, index of the candidate of each group at each point, int64 (G, P).
        candidates: K.
        sweeps: how often all points are visited.

    Returns:
        The choices (G, P), no group's cost above its start; sweeps x P x (K - 1) + 1 calls of `cost`.
    """
    choices = choices.clone()
    least = cost(choices)
    for _ in range(sweeps):
        before = choices.clone()
        for point in range(choices.shape[1]):
            start = choices[:, point].clone()
            for step in range(1, candidates):
                trial = choices.clone()
                trial[:, point] = (start + step) % candidates
                now = cost(trial)
                better = now < least
                least = torch.where(better, now, least)
                choices[better, point] = trial[better, point]
        if torch.equal(before, choices):
            break
    return choices


def bisect(rising: Callable[[float], float], wanted: float, low: float, high: float, steps: int) -> float:
    """Where between `low` and `high` a rising function comes to the wanted value, after that many halvings."""
    middle = low
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return middle


def price_for(mean_bits: float, solve: Callable[[float], float], low: float, high: float, steps: int = 8) -> float:
    """The price of a bit at which the mean of the bits chosen is the wanted one, by bisection of its logarithm.

    Args:
        mean_bits: wanted mean.
        solve: price to the mean of the bits chosen at it, which falls as the price rises.
        low: the lowest price to try.
        high: the highest.
        steps: calls of `solve`.

    Returns:
        The price tried whose mean came closest.
    """
    tried: list[tuple[float, float]] = []
    for _ in range(steps):
        price = (low * high) ** 0.5
        mean = solve(price)
        tried.append((abs(mean - mean_bits), price))
        low, high = (price, high) if mean > mean_bits else (low, price)
    return min(tried)[1]


def settle(error: Callable[[Tensor], Tensor], choices: Tensor, bits: Tensor, mean_bits: float) -> Tensor:
    """Step single points up or down, the least error first, as long as it brings the mean nearer to the wanted one.

    A price reaches only some means; this closes the rest.

    Args:
        error: choices (1, P) to their error (1,).
        choices: where to start (1, P).
        bits: of the K candidates, ascending.
        mean_bits: wanted mean.
    """
    while True:
        missing = mean_bits - float(bits[choices].mean())
        trials = []
        for point in range(choices.shape[1]):
            trial = choices.clone()
            trial[0, point] += 1 if missing > 0 else -1
            inside = 0 <= int(trial[0, point]) < len(bits)
            if inside and abs(mean_bits - float(bits[trial].mean())) < abs(missing):
                trials.append((float(error(trial)), trial))
        if not trials:
            return choices
        choices = min(trials, key=lambda scored: scored[0])[1]
