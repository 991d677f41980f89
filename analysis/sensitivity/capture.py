"""How much of the oracle's gain do single features and a trained selector capture, at equal mean bits?

All contestants share weights and ranges of one trained network with candidate bit-widths; only the choice of bits
differs. The mean bits to hold are those that the trained selector spends on the test patches (which takes no HR).

- Controls of the registry are derived on training patches; for the oracle, which is told HR anyway, the price of a bit
  is found on the test patches.
- Rule of a feature: thresholds for each layer, set on training patches. A layer gives each candidate to as many patches
  as the oracle does on training patches, in the order of the feature; whether more of the feature means more bits is
  the sign of its rank correlation with the oracle's bits there.

Where a contestant misses the mean, it is measured at two settings, one on each side; tables mix the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.sensitivity.features import FEATURES
from analysis.sensitivity.patches import PatchSet
from analysis.sensitivity.points import BATCH
from analysis.sensitivity.rules import Contestant, Rules, observe
from baselines.assignment.search import rounded_error
from cadyq.models.network import SRNetwork
from cadyq.quantizers.ranges import CandidateActivation
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import SCHEMES
from cadyq.training.derive import derive, derived_scheme, transplant

CLOSE = 0.035  # bits; a mean that near counts as equal: half a step of one of 30 points between candidates 2 apart
APART = 0.4  # bits; settings on both sides of the target that near one another are mixed
TRIES, LONG = 6, 2.0  # a line is followed at most that many times the way between the two tries
FIRST_PRICE = 10.0  # of a bit at every point, squared grey levels; the search goes on from there
STEEP = 3.0  # logarithm of the price for a bit less


@torch.no_grad()
def run(network: SRNetwork, patches: PatchSet) -> tuple[Tensor, Tensor, Tensor]:
    """FAB (N,), error (N,) and bits at the points that count (N, P) of a network; HR only for those that read it."""
    reads_hr = network.scheme is not None and network.scheme.reads_hr
    fabs, errors, bits = [], [], []
    for _, lr, hr in patches.batches(BATCH):
        sr, trace = trace_forward(network, lr, hr if reads_hr else None)
        fabs.append(trace.fab())
        errors.append(rounded_error(sr, hr))
        bits.append(torch.stack([r.bits for r in trace.records.values() if r.point.counts_for_fab], 1))
    return torch.cat(fabs), torch.cat(errors), torch.cat(bits)


def meet(contestant: Contestant, target: float, first: float, second: Callable[[float], float]) -> pd.DataFrame:
    """Try settings until the mean bits are met, or lie on both sides of the target and not far apart.

    Args:
        first: setting to begin with.
        second: the mean bits that gave to the next setting; from there on, straight lines through what was tried.

    Returns:
        A row a (patch, try): setting, fab_bits, error_luma_sq.
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
    """The setting at which a line through two tries meets the target: one on each side, else the two nearest."""
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
    """Table `capture`: contestant, kind, patch, setting, fab_bits, error_luma_sq; and `target`, the bits to hold.

    Args:
        parent: trained, with a selector.
        train: patches of training photographs; joint searches see the first `searched` of them.
        test: patches to measure on.
        controls: schemes derived from the parent's; one of them reads HR.
    """
    scheme = parent.scheme
    assert scheme is not None
    fab, error, _ = run(parent, test)
    target = float(fab.mean())
    parts = [_table(fab, error, target).assign(contestant=scheme.label(), kind="selector")]
    few, choices = train.head(searched), None
    for name in sorted(controls, key=lambda other: not SCHEMES.get(other).reads_hr):
        print(f"capture: {name}", flush=True)
        if SCHEMES.get(name).reads_hr:
            found = meet(_priced(parent, name, test), target, math.log(FIRST_PRICE), _second_price(target))
            log_price = _nearest(found, target)
            choices = run(_with_price(parent, name, math.exp(log_price)), few)[2]
        else:
            found = meet(_derived(parent, name, train, test), target, target, lambda m: 2 * target - m)
        kind = "oracle" if SCHEMES.get(name).reads_hr else "control"
        parts.append(found.assign(contestant=name, kind=kind))
    if choices is not None:
        points = [name for name, point in parent.points.items() if isinstance(point.quantizer, CandidateActivation)]
        candidates = tuple(int(b) for b in next(q.candidates for q in _candidates(parent)))
        indices = torch.bucketize(choices, torch.tensor(candidates))
        rules = Rules(parent, candidates, points, observe(parent, train, points), indices)
        for name in FEATURES:
            found = meet(rules.contestant(name, test), target, target, lambda m: 2 * target - m)
            parts.append(found.assign(contestant=f"rule: {name}", kind="rule"))
    return {"capture": pd.concat(parts, ignore_index=True).assign(target_bits=target)}


def _candidates(network: SRNetwork) -> list[CandidateActivation]:
    return [p.quantizer for p in network.points.values() if isinstance(p.quantizer, CandidateActivation)]


def _nearest(found: pd.DataFrame, target: float) -> float:
    means = found.groupby("setting")["fab_bits"].mean()
    return float(means.index.to_numpy(dtype=np.float64)[int((means - target).abs().to_numpy().argmin())])


def _with_price(parent: SRNetwork, name: str, price: float) -> SRNetwork:
    """The control that reads HR, at a price of a bit, without the search for it that `derive` would make."""
    return transplant(parent, derived_scheme(parent, name, price=price))


def _second_price(target: float) -> Callable[[float], float]:
    return lambda mean: math.log(FIRST_PRICE) + STEEP * (mean - target)


def _priced(parent: SRNetwork, name: str, test: PatchSet) -> Contestant:
    return lambda log_price: run(_with_price(parent, name, math.exp(log_price)), test)[:2]


def _derived(parent: SRNetwork, name: str, train: PatchSet, test: PatchSet) -> Contestant:
    return lambda mean_bits: run(derive(parent, name, train.lr, train.hr, mean_bits), test)[:2]
