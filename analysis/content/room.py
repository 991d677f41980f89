"""The room for bits that follow content: the best bits by patch against the best bits by layer, at equal mean bits.

All contestants share weights and ranges of one network; only the bits differ. Errors come from an error model of the
patches (`baselines.assignment.error_model`), so that the searches need no forward. Contestants:

- `uniform`: one bit-width everywhere, where the mean is a candidate;
- `by layer`: one allocation for all patches, of the least loss on these patches;
- `own`: what the network itself chose for each patch; its mean bits are its own;
- `oracle, HR`: each patch knows its error against HR, and fits the noise in HR too;
- `oracle, output`: each patch knows how far its output moves from that at the highest bits, but not in which direction
  HR lies;
- `oracle, other half`: chosen against HR on one half of a patch's pixels (a chessboard of 8 x 8), judged on the other.

PSNR is of unrounded luma. The patches of a photograph are pooled before the logarithm, as in a table of images that
were cut into tiles. Everybody therefore minimizes sum_n error_n / E(n) at a price of a bit, with E(n) the squared error
of the photograph of patch n at the highest bits: the loss of PSNR to first order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.sensitivity.patches import PatchSet
from analysis.tables.intervals import paired_bootstrap
from baselines.assignment.error_model import ErrorModel, measure_changes
from baselines.content.allocation import by_patch, fit_profiles
from cadyq.models.network import SRNetwork
from cadyq.quantizers.ranges import CandidateActivation
from cadyq.quantizers.trace import trace_forward

SQUARE = 8  # HR pixels a side of the squares that the halves are made of
BATCH = 4
BY_LAYER = "by layer"


@dataclass(frozen=True)
class Errors:
    """Error models of the same patches against HR: on all pixels, and on each half of them; bits of the candidates."""

    whole: ErrorModel
    halves: tuple[ErrorModel, ErrorModel]
    bits: Tensor


def halves(side: int) -> Tensor:
    """All pixels, and the two colours of a chessboard, float (3, side, side)."""
    squares = torch.arange(side) // SQUARE
    black = ((squares[:, None] + squares) % 2).float()
    return torch.stack([torch.ones_like(black), black, 1 - black])


def measure(network: SRNetwork, patches: PatchSet) -> Errors:
    """The error models of a network's patches."""
    ((whole, *parts),) = measure_changes(network, patches.lr, [patches.hr], halves(patches.hr.shape[-1]), BATCH)
    candidates = next(q.candidates for q in _quantizers(network))
    return Errors(whole, (parts[0], parts[1]), candidates.double())


def _quantizers(network: SRNetwork) -> list[CandidateActivation]:
    return [p.quantizer for p in network.points.values() if isinstance(p.quantizer, CandidateActivation)]


@torch.no_grad()
def own_choices(network: SRNetwork, patches: PatchSet) -> Tensor:
    """The candidates (N, P) that a network chooses."""
    names = [name for name, point in network.points.items() if isinstance(point.quantizer, CandidateActivation)]
    found = []
    for _, lr, _ in patches.batches(BATCH):
        bits = trace_forward(network, lr)[1].bits
        found.append(torch.stack([bits[name] for name in names], 1))
    return torch.bucketize(torch.cat(found), _quantizers(network)[0].candidates)


def photograph_weights(base: Tensor, photographs: NDArray[np.generic]) -> Tensor:
    """One over the squared error of each patch's photograph (N,), from the squared errors of its patches (N,)."""
    pooled = pd.Series(base.numpy()).groupby(photographs).transform("mean")
    return 1 / torch.from_numpy(pooled.to_numpy(copy=True))


def contestants(
    errors: Errors, weights: Tensor, own: Tensor, mean_bits: float
) -> Iterator[tuple[str, list[Tensor], list[ErrorModel]]]:
    """Name, choices, and the models that they are judged on (their errors are averaged), at a mean."""
    model, bits = errors.whole, errors.bits
    if mean_bits in bits.tolist():
        yield "uniform", [torch.full_like(own, bits.tolist().index(mean_bits))], [model]
    anything = torch.zeros(len(own), dtype=torch.float64)
    layers = fit_profiles(model, weights, anything, anything, bits, mean_bits, 1).table
    yield BY_LAYER, [layers.expand_as(own)], [model]
    yield "oracle, HR", [by_patch(model, weights, bits, mean_bits)], [model]
    yield "oracle, output", [by_patch(model.changes_only(), weights, bits, mean_bits)], [model]
    first, second = errors.halves
    crossed = [by_patch(half, weights, bits, mean_bits) for half in (second, first)]
    yield "oracle, other half", crossed, [first, second]


def table(errors: Errors, own: Tensor, means: list[float], photographs: NDArray[np.generic]) -> pd.DataFrame:
    """A row a mean and contestant: what it loses against the highest bits, and gains over bits by layer, in dB.

    Args:
        errors: of N patches.
        own: the network's own choices (N, P), a contestant at its own mean.
        means: mean bits of the others.
        photographs: of each patch (N,); intervals are over them.
    """
    own_mean, weights = float(errors.bits[own].mean()), photograph_weights(errors.whole.base, photographs)
    rows = []
    for mean in [*means, own_mean]:
        found = list(contestants(errors, weights, own, mean))
        if mean == own_mean:
            found.append(("own", [own], [errors.whole]))
        layers = next(choices for name, choices, _ in found if name == BY_LAYER)
        for name, choices, models in found:
            loss = _loss(choices, models, photographs)
            floor = _loss(layers * len(models), models, photographs)
            bits = float(torch.cat([errors.bits[chosen].mean(1) for chosen in choices]).mean())
            rows.append([mean, name, bits, loss.mean(), *paired_bootstrap(floor, loss)])
    columns = ["mean_bits", "contestant", "fab_bits", "loss_db", "gain_db", "gain_low_db", "gain_high_db"]
    return pd.DataFrame(rows, columns=columns)


def _loss(choices: list[Tensor], models: list[ErrorModel], photographs: NDArray[np.generic]) -> NDArray[np.float64]:
    """PSNR at the highest candidates minus PSNR at the choices, of each photograph (G,), mean over the models."""
    losses = []
    for chosen, model in zip(choices, models, strict=True):
        errors = pd.DataFrame({"now": model.errors(chosen).numpy(), "base": model.base.numpy()})
        pooled = errors.groupby(photographs).mean()
        losses.append(10 * np.log10(pooled["now"] / pooled["base"]))
    return np.mean(losses, axis=0)  # type: ignore[no-any-return]
