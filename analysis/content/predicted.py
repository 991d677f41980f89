"""The squared change of each point and candidate, predicted from the content of a patch.

The best that a selector of the usual form can know: a log-linear regression for each point and candidate on three
features of the patch, which `profiles` reads too. It is cross-fitted. The regression of a patch has seen no patch of
its photograph.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from baselines.assignment.error_model import ErrorModel
from baselines.content.features import content_features

FOLDS = 3
LEAST_SIZE = 1e-9  # squared grey levels


def predicted_sizes(model: ErrorModel, lr: Tensor, photographs: NDArray[np.generic]) -> ErrorModel:
    """An error model whose squared changes are predicted; changes of different points are uncorrelated in it.

    Args:
        model: measured error model of N patches.
        lr: these patches (N, 3, h, w) in 0..255.
        photographs: photograph of each patch (N,).
    """
    features = content_features(lr).double()
    features = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    points, candidates = model.linear.shape[1:]
    sizes = torch.einsum("npkpk->npk", model.gram)[:, :, :-1].flatten(1).double()
    found = torch.empty_like(sizes)
    for fold in folds(photographs):
        found[fold] = _predict(features[~fold], sizes[~fold], features[fold])
    diagonal = F.pad(found.view(-1, points, candidates - 1), (0, 1)).flatten(1)
    gram = torch.diag_embed(diagonal).view(-1, points, candidates, points, candidates)
    return ErrorModel(model.base, torch.zeros_like(model.linear), gram.to(model.gram))


def folds(photographs: NDArray[np.generic]) -> list[Tensor]:
    """Masks (N,) of the patches of each fold. A photograph is in one fold only."""
    number = np.unique(photographs, return_inverse=True)[1] % FOLDS
    return [torch.from_numpy(number == fold) for fold in range(FOLDS)]


def _predict(features: Tensor, sizes: Tensor, others: Tensor) -> Tensor:
    """Sizes (M, X) at features (M, F), by a regression of log sizes (N, X) on features (N, F).

    The exponential of a predicted logarithm is below the mean. Its ratio to the mean is found on the same patches.
    """
    logs = sizes.clamp_min(LEAST_SIZE).log()
    slopes = torch.linalg.lstsq(features, logs).solution
    smearing = (logs - features @ slopes).exp().mean(0)
    found: Tensor = (others @ slopes).exp() * smearing
    return found
