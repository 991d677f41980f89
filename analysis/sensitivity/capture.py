"""The share of the oracle's gain that a trained selector and single features capture, at equal mean bits.

All contestants share the weights and ranges of one trained network with candidate bit-widths. Only the choice of bits
differs. The target is the mean bits of the trained selector on the test patches. It needs no HR.

- Controls of the registry are derived on training patches. The oracle is the exception: it reads HR in any case, so
  its price of a bit is found on the test patches.
- The rule of a feature has thresholds for each layer, set on training patches. In the order of the feature, a layer
  gives each candidate to the same share of patches as the oracle. The order ascends if the feature correlates
  positively with the oracle's bits (rank correlation), else it descends.

A contestant that misses the target is measured at two settings, one on each side of the target. Tables mix the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.sensitivity.features import FEATURES
from analysis.sensitivity.patches import PatchSet
from analysis.sensitivity.points import BATCH, candidate_quantizers
from analysis.sensitivity.rules import Contestant, Rules, observe
from baselines.assignment.search import rounded_error
from cadyq.models.network import SRNetwork
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import SCHEMES, transplant
from cadyq.training.derive import derive, derived_scheme

CLOSE = 0.035  # bits; a mean this near meets the target. One of 30 points, 2 bits up, raises the mean by 0.067
APART = 0.4  # bits; two settings on both sides of the target with means this near are mixed
TRIES = 6  # settings of a contestant, at most
LONG = 2.0  # largest extrapolation beyond two tries, as a multiple of their distance
FIRST_PRICE = 10.0  # squared grey levels for a bit at every point: the start of the search
STEEP = 3.0  # assumed rise of the logarithm of the price that lowers the mean by one bit


@torch.no_grad()
def evaluate(network: SRNetwork, patches: PatchSet) -> tuple[Tensor, Tensor, Tensor]:
    """FAB (N,), squared error of luma (N,), and bits at the points that count for FAB (N, P) of a network on patches.

    Only a scheme that reads HR gets the HR patches.
    """
    reads_hr = network.scheme is not None and network.scheme.reads_hr
    fabs, errors, bits = [], [], []
    for _, lr, hr in patches.batches(BATCH):
        sr, trace = trace_forward(network, lr, hr if reads_hr else None)
        fabs.append(trace.fab())
        errors.append(rounded_error(sr, hr))
        bits.append(torch.stack([r.bits for r in trace.records.values() if r.point.counts_for_fab], 1))
    return torch.cat(fabs), torch.cat(errors), torch.cat(bits)


def meet(contestant: Contestant, target: float, first: float, second: Callable[[float], float]) -> pd.DataFrame:
    """Try settings until the mean bits meet the target, or until two near settings enclose it.

    Args:
        contestant: setting to FAB and error of each test patch.
        target: wanted mean bits.
        first: first setting.
        second: mean bits of the first setting to the second setting. Later settings are on lines through two tries.

    Returns:
        A row for each (patch, try): setting, fab_bits, error_luma_sq (squared grey levels).
    """
    tried, rows = list[tuple[float, float]](), []
    setting = first
    for _ in range(TRIES):
        fab, error = contestant(setting)
        tried.append((float(fab.mean()), setting))
        rows.append(_table(fab, error, setting))
        print(f"  setting {setting:.3g}: {tried[-1][0]:.2f} of {target:.2f} bits", flush=True)
        above = min((m for m, _ in tried if m >= target), default=float("inf"))
        below = max((m for m, _ in tried if m <= target), default=-float("inf"))
        if abs(tried[-1][0] - target) < CLOSE or above - below < APART:
            break
        setting = second(tried[0][0]) if len(tried) == 1 else _line(tried, target)
    return pd.concat(rows, ignore_index=True)


def _line(tried: list[tuple[float, float]], target: float) -> float:
    """The setting at which a line through two tries meets the target: one try on each side, else the two nearest."""
    near = sorted(tried, key=lambda one: abs(one[0] - target))
    (mean_a, a), (mean_b, b) = next(
        ((near[0], other) for other in near[1:] if (other[0] - target) * (near[0][0] - target) < 0), near[:2]
    )
    share = (target - mean_a) / (mean_b - mean_a) if mean_a != mean_b else -1.0
    return a + (b - a) * min(max(share, -LONG), 1 + LONG)


def _table(fab: Tensor, error: Tensor, setting: float) -> pd.DataFrame:
    values = {"fab_bits": fab.numpy(), "error_luma_sq": error.numpy()}
    return pd.DataFrame({"patch": np.arange(len(fab)), "setting": setting} | values)


def measure_capture(
    parent: SRNetwork, train: PatchSet, searched: int, test: PatchSet, controls: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Table `capture`: contestant, kind, patch, setting, fab_bits, error_luma_sq and target_bits.

    Args:
        parent: trained network with a selector.
        train: patches of training photographs.
        searched: number of training patches on which the oracle chooses bits, the first ones.
        test: patches to measure on.
        controls: schemes derived from the parent's. Rules of features need one of them to read HR, the oracle.
    """
    scheme = parent.scheme
    assert scheme is not None
    fab, error, _ = evaluate(parent, test)
    target = float(fab.mean())
    parts = [_table(fab, error, target).assign(contestant=scheme.label(), kind="selector")]
    few, choices = train.head(searched), None
    for name in sorted(controls, key=lambda other: not SCHEMES.get(other).reads_hr):
        print(f"capture: {name}", flush=True)
        if SCHEMES.get(name).reads_hr:
            found = meet(_priced(parent, name, test), target, math.log(FIRST_PRICE), _second_price(target))
            log_price = _nearest(found, target)
            choices = evaluate(_with_price(parent, name, math.exp(log_price)), few)[2]
        else:
            found = meet(_derived(parent, name, train, test), target, target, lambda m: 2 * target - m)
        kind = "oracle" if SCHEMES.get(name).reads_hr else "control"
        parts.append(found.assign(contestant=name, kind=kind))
    if choices is not None:
        parts += _measure_rules(parent, train, choices, test, target)
    return {"capture": pd.concat(parts, ignore_index=True).assign(target_bits=target)}


def _measure_rules(
    parent: SRNetwork, train: PatchSet, choices: Tensor, test: PatchSet, target: float
) -> Iterator[pd.DataFrame]:
    """The rows of the rule of each feature; `choices` are the oracle's bits on the first training patches (M, P)."""
    quantizers = candidate_quantizers(parent)
    points, candidates = list(quantizers), next(iter(quantizers.values())).candidates
    indices = torch.bucketize(choices, candidates)
    rules = Rules(parent, tuple(candidates.tolist()), points, observe(parent, train, points), indices)
    for name in FEATURES:
        found = meet(rules.contestant(name, test), target, target, lambda m: 2 * target - m)
        yield found.assign(contestant=f"rule: {name}", kind="rule")


def _nearest(found: pd.DataFrame, target: float) -> float:
    """The setting whose mean bits are nearest to the target."""
    means = found.groupby("setting")["fab_bits"].mean()
    return float(means.index.to_numpy(dtype=np.float64)[int((means - target).abs().to_numpy().argmin())])


def _with_price(parent: SRNetwork, name: str, price: float) -> SRNetwork:
    """The control that reads HR at a given price of a bit. Unlike `derive`, this does not search for the price."""
    return transplant(parent, derived_scheme(parent, name, price=price))


def _second_price(target: float) -> Callable[[float], float]:
    return lambda mean: math.log(FIRST_PRICE) + STEEP * (mean - target)


def _priced(parent: SRNetwork, name: str, test: PatchSet) -> Contestant:
    return lambda log_price: evaluate(_with_price(parent, name, math.exp(log_price)), test)[:2]


def _derived(parent: SRNetwork, name: str, train: PatchSet, test: PatchSet) -> Contestant:
    return lambda mean_bits: evaluate(derive(parent, name, train.lr, train.hr, mean_bits), test)[:2]
