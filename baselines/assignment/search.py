"""Joint search over bits by true error, for `static` and `oracle`.

Errors of points do not add up exactly: together they cost more or less than the sum of each alone. So every trial runs
the network with all bits set.
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
    """The first training patches, cropped from the corner: few enough for some thousand forwards."""
    scale = hr.shape[-1] // lr.shape[-1]
    side = min(SEARCH_SIDE, *lr.shape[-2:])
    few = slice(SEARCH_PATCHES)
    return PatchContext(lr[few, :, :side, :side], hr[few, :, : side * scale, : side * scale])


def rounded_error(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared error of luma of each patch (B,) in squared grey levels. SR is clamped to 0..255 and rounded."""
    return luma(sr.clamp(0, 255).round() - hr).square().mean((1, 2, 3))


@torch.no_grad()
def luma_error(network: SRNetwork, context: PatchContext) -> Tensor:
    """`rounded_error` of each patch (B,) against `context.hr`.

    The network runs with the bits that are set. `Scheme.before_forward` is not called.

    Raises:
        UserError: the context holds no HR patches.
    """
    if context.hr is None:
        raise UserError(f"{network.name}: the true error needs HR patches; pass them to trace_forward")
    return rounded_error(network.run_with_set_bits(context), context.hr)


def descend(cost: Callable[[Tensor], Tensor], choices: Tensor, candidates: int, sweeps: int) -> Tensor:
    """Coordinate descent. At each point in turn, every other candidate is tried, and kept where it costs less.

    Args:
        cost: choices (G, P) to the cost of each of G groups (G,). Groups must not influence one another.
        choices: the start: index of the candidate of each group at each point, int64 (G, P).
        candidates: K.
        sweeps: how often all points are visited at most.

    Returns:
        The choices (G, P). No group costs more than at its start. `cost` is called at most sweeps x P x (K - 1) + 1
            times.
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
    """Where an increasing function reaches `wanted` between `low` and `high`, after `steps` halvings."""
    middle = low
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return middle


def price_for(mean_bits: float, solve: Callable[[float], float], low: float, high: float, steps: int = 8) -> float:
    """The price of a bit that gives the wanted mean bits, by bisection of its logarithm.

    Args:
        mean_bits: wanted mean.
        solve: price to the mean of the bits chosen at it. The mean must fall as the price rises.
        low: the lowest price to try.
        high: the highest price to try.
        steps: calls of `solve`.

    Returns:
        The tried price whose mean is closest.
    """
    tried: list[tuple[float, float]] = []
    for _ in range(steps):
        price = (low * high) ** 0.5
        mean = solve(price)
        tried.append((abs(mean - mean_bits), price))
        low, high = (price, high) if mean > mean_bits else (low, price)
    return min(tried)[1]


def settle(error: Callable[[Tensor], Tensor], choices: Tensor, bits: Tensor, mean_bits: float) -> Tensor:
    """Step single points up or down while the mean comes nearer to the wanted one. The step of least error comes first.

    A price reaches only some means; this closes the gap.

    Args:
        error: choices (1, P) to their error (1,).
        choices: the start (1, P).
        bits: bits of the K candidates, ascending.
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
