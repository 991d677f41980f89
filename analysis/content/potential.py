"""The possible gain of content-dependent bits: the best bits by patch against those by layer, at equal mean bits.

All contestants share the weights and ranges of one network. Only the bits differ. Errors come from an error model of
the patches (`baselines.assignment.error_model`), so the searches need no forward. Contestants:

- `uniform`: one bit-width for all points and patches, if the mean is a candidate.
- `by layer`: one allocation for all patches. It changes the output least on these patches.
- `own`: the choice of the network for each patch, at its own mean bits.
- `oracle, HR`: the best bits of each patch against HR. They also fit the noise in HR.
- `oracle, output`: for each patch, the bits that change its output least from that at the highest bits, without HR.
- `oracle, sizes`: as `oracle, output`, but it knows only the size of each single change. It does not know how changes
  of different points cancel. A rule that predicts the size of changes from content cannot know more.
- `predicted sizes`: the same with sizes predicted from three features of the patch (`analysis.content.predicted`). A
  choice that can be made at run time.
- `oracle, other half`: the best bits against HR on one half of the pixels of each patch, evaluated on the other half.
  The halves are the two colours of a chessboard with squares of 8 x 8 pixels.

PSNR is of unrounded luma. The patches of a photograph are pooled before the logarithm, as for an image cut into tiles.
To first order, the loss of PSNR is proportional to sum_n e_n / E(n). Here e_n is the change of the squared error of
patch n, and E(n) the squared error of its photograph at the highest bits. All searches weigh patch n by 1 / E(n).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.content.predicted import predicted_sizes
from analysis.sensitivity.patches import PatchSet
from analysis.sensitivity.points import candidate_quantizers
from analysis.tables.intervals import paired_bootstrap
from baselines.assignment.error_model import ErrorModel, measure_changes
from baselines.content.allocation import by_patch, fit_profiles
from cadyq.models.network import SRNetwork
from cadyq.quantizers.trace import trace_forward

SQUARE = 8  # HR pixels, side of a square of the chessboard
BATCH = 4
BY_LAYER = "by layer"


@dataclass(frozen=True)
class Errors:
    """Error models of the same N patches against HR.

    Attributes:
        whole: error model on all pixels.
        halves: error models on each half of the pixels.
        predicted: the sizes of single changes, predicted from the content of each patch.
        bits: bits of the candidates (K,), ascending, float64.
    """

    whole: ErrorModel
    halves: tuple[ErrorModel, ErrorModel]
    predicted: ErrorModel
    bits: Tensor


def halves(side: int) -> Tensor:
    """Masks of all pixels and of the two colours of a chessboard, float (3, side, side); `side` in HR pixels."""
    squares = torch.arange(side) // SQUARE
    black = ((squares[:, None] + squares) % 2).float()
    return torch.stack([torch.ones_like(black), black, 1 - black])


def measure(network: SRNetwork, patches: PatchSet) -> Errors:
    """The error models of patches under a network with candidate bits."""
    ((whole, *parts),) = measure_changes(network, patches.lr, [patches.hr], halves(patches.hr.shape[-1]), BATCH)
    predicted = predicted_sizes(whole, patches.lr, patches.table["image"].to_numpy())
    return Errors(whole, (parts[0], parts[1]), predicted, _candidates(network).double())


def _candidates(network: SRNetwork) -> Tensor:
    """Bits of the candidates (K,), ascending; the same at all points."""
    return next(iter(candidate_quantizers(network).values())).candidates


@torch.no_grad()
def own_choices(network: SRNetwork, patches: PatchSet) -> Tensor:
    """Indices of the candidates that a network chooses for each patch and point, int64 (N, P)."""
    names = candidate_quantizers(network)
    found = []
    for _, lr, _ in patches.batches(BATCH):
        bits = trace_forward(network, lr)[1].bits
        found.append(torch.stack([bits[name] for name in names], 1))
    return torch.bucketize(torch.cat(found), _candidates(network))


def photograph_weights(base: Tensor, photographs: NDArray[np.generic]) -> Tensor:
    """The inverse of the squared error of the photograph of each patch (N,).

    Args:
        base: squared errors of the patches (N,).
        photographs: photograph of each patch (N,).
    """
    pooled = pd.Series(base.numpy()).groupby(photographs).transform("mean")
    return 1 / torch.from_numpy(pooled.to_numpy(copy=True))


def contestants(
    errors: Errors, weights: Tensor, own: Tensor, mean_bits: float
) -> Iterator[tuple[str, list[Tensor], list[ErrorModel]]]:
    """Name, choices and error models of each contestant at some mean bits, without `own`.

    Each choice (N, P) is evaluated on the error model at its position, and the losses are averaged.
    """
    model, bits = errors.whole, errors.bits
    if mean_bits in bits.tolist():
        yield "uniform", [torch.full_like(own, bits.tolist().index(mean_bits))], [model]
    scores = torch.zeros(len(own), dtype=torch.float64)  # a single profile needs none
    layers = fit_profiles(model, weights, scores, scores, bits, mean_bits, 1).table
    yield BY_LAYER, [layers.expand_as(own)], [model]
    yield "oracle, HR", [by_patch(model, weights, bits, mean_bits)], [model]
    yield "oracle, output", [by_patch(model.changes_only(), weights, bits, mean_bits)], [model]
    yield "oracle, sizes", [by_patch(model.sizes_only(), weights, bits, mean_bits)], [model]
    yield "predicted sizes", [by_patch(errors.predicted, weights, bits, mean_bits)], [model]
    first, second = errors.halves
    crossed = [by_patch(half, weights, bits, mean_bits) for half in (second, first)]
    yield "oracle, other half", crossed, [first, second]


def table(errors: Errors, own: Tensor, means: list[float], photographs: NDArray[np.generic]) -> pd.DataFrame:
    """A row for each mean and contestant: its loss against the highest bits and its gain over bits by layer, in dB.

    Args:
        errors: error models of N patches.
        own: the network's own choices (N, P).
        means: mean bits to compare at, besides those of `own`.
        photographs: photograph of each patch (N,). Intervals are bootstrapped over photographs.

    Returns:
        Columns mean_bits, contestant, fab_bits, loss_db, gain_db, gain_low_db and gain_high_db.
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
    """PSNR at the highest bits minus PSNR at the choices for each photograph (G,), in dB, averaged over the models."""
    losses = []
    for chosen, model in zip(choices, models, strict=True):
        errors = pd.DataFrame({"now": model.errors(chosen).numpy(), "base": model.base.numpy()})
        pooled = errors.groupby(photographs).mean()
        losses.append(10 * np.log10(pooled["now"] / pooled["base"]))
    return np.mean(losses, axis=0)  # type: ignore[no-any-return]
