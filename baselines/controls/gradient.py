"""Control: thresholds on the image gradient of the patch. All layers have the same bits.

This is CADyQ without its second input, the deviations of the layer, and without a choice for each layer. Weights and
ranges are those of a trained CADyQ network. The thresholds have the least squared error on training patches among all
thresholds that reach the wanted mean bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.assignment.scheme import AssignedScheme, assign, assigned
from baselines.assignment.search import luma_error
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import PatchContext, constants, image_gradient
from cadyq.schemes.base import transplant
from cadyq.schemes.calibration import BATCH
from cadyq.utils.errors import UserError


@dataclass(frozen=True)
class Gradient(AssignedScheme):
    """Bits from the image gradient.

    Attributes:
        thresholds: mean gradient at which the next candidate begins, K - 1 values in ascending order, for pixels in
            0..1 and the mean of both directions. Without thresholds every patch uses the middle candidate.
    """

    name = "gradient"
    control = True

    thresholds: tuple[float, ...] = ()

    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> Gradient:
        network = transplant(parent, self)
        errors = torch.stack([self._error(network, lr, hr, k) for k in range(len(self.search_space))])
        strength = image_gradient(lr).mean(1)
        order = strength.argsort()
        cuts = best_cuts(errors[:, order].double(), self.search_space, mean_bits)
        padded = torch.cat([strength[order], strength.max()[None] * 2])
        return replace(self, thresholds=tuple(float(padded[cut]) for cut in cuts))

    def _error(self, network: SRNetwork, lr: Tensor, hr: Tensor, candidate: int) -> Tensor:
        assign(network, self.everywhere(network, PatchContext(lr), candidate))
        batches = zip(torch.split(lr, BATCH), torch.split(hr, BATCH), strict=True)
        return torch.cat([luma_error(network, PatchContext(*batch)) for batch in batches])

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        if self.thresholds and len(self.thresholds) != len(self.search_space) - 1:
            raise UserError(
                f"gradient: {len(self.search_space)} candidates need {len(self.search_space) - 1} thresholds, "
                f"not {len(self.thresholds)}"
            )

    def choices(self, network: SRNetwork, context: PatchContext) -> Tensor:
        if not self.thresholds:
            return self.everywhere(network, context)
        strength = context.gradient.mean(1)
        choice = torch.bucketize(strength, constants(self.thresholds, strength), right=True)
        return choice[:, None].expand(-1, len(assigned(network)))


def best_cuts(errors: Tensor, candidates: tuple[int, ...], mean_bits: float) -> list[int]:
    """Where to cut N patches, sorted by gradient, into K runs of ascending candidates.

    Args:
        errors: squared error of each patch under each candidate (K, N).
        candidates: bits of the K candidates, ascending.
        mean_bits: wanted mean over the patches.

    Returns:
        K - 1 indices in 0..N, ascending: the cuts of least error whose mean bits differ from `mean_bits` by at most one
            step of one patch.
    """
    errors, n = errors.double().cpu(), errors.shape[1]
    least = errors.new_full((n + 1, candidates[-1] * n + 1), torch.inf)
    least[0, 0] = 0  # least error of the first i patches with s bits in all, (N + 1, S)
    taken = [_extend(least, own, bits) for own, bits in zip(errors, candidates, strict=True)]
    wanted = n * min(max(mean_bits, candidates[0]), candidates[-1])
    far = (torch.arange(least.shape[1]) - wanted).abs() > float(torch.tensor(candidates).diff().max())
    total, end = int(least[n].masked_fill(far, torch.inf).argmin()), n
    cuts = []
    for took, bits in zip(reversed(taken), reversed(candidates), strict=True):
        while took[end, total]:
            end, total = end - 1, total - bits
        cuts.append(end)
    return cuts[-2::-1]


def _extend(least: Tensor, errors: Tensor, bits: int) -> Tensor:
    """Let runs end with patches under one more candidate; return where that lowers the error, bool (N + 1, S)."""
    took = torch.zeros_like(least, dtype=torch.bool)
    for i, error in enumerate(errors, 1):
        longer = F.pad(least[i - 1, :-bits], (bits, 0), value=torch.inf) + error
        took[i] = longer < least[i]
        least[i] = torch.minimum(least[i], longer)
    return took
