"""Control: bits by layer, the same for every patch. This is CADyQ without content.

Weights and ranges are those of a trained CADyQ network. The bits come from a joint search over the mean error on
training patches: coordinate descent, with a price of a bit that gives the wanted mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines.assignment.scheme import AssignedScheme, assign, rows_of
from baselines.assignment.search import descend, luma_error, price_for, search_patches, settle
from cadyq.models.network import SRNetwork
from cadyq.quantizers import PatchContext
from cadyq.schemes.base import transplant


@dataclass(frozen=True)
class Static(AssignedScheme):
    """Mixed precision by layer.

    Attributes:
        by_point: a digit for each point that counts: the index of its candidate in the search space. Without them every
            point uses the middle candidate.
    """

    name = "static"
    dynamic = False
    control = True

    by_point: str = ""

    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> Static:
        network, context = transplant(parent, self), search_patches(lr, hr)
        bits = torch.tensor(self.search_space, dtype=torch.float64)
        found: dict[float, Tensor] = {}
        start = self.everywhere(network, context)

        def error(choices: Tensor) -> Tensor:
            assign(network, choices)
            return luma_error(network, context).mean()[None].double()

        def solve(price: float) -> float:
            # the nearest price tried before has nearly the same answer
            near = min(found, key=lambda other: abs(other - price), default=None)
            before = start if near is None else found[near]
            found[price] = descend(lambda c: error(c) + price * bits[c].mean(1), before, len(bits), sweeps=1)
            return float(bits[found[price]].mean())

        best = found[price_for(mean_bits, solve, low=1e-4, high=1e2)]
        best = settle(error, best, bits, mean_bits)
        return replace(self, by_point=rows_of(best)[0])

    def choices(self, network: SRNetwork, context: PatchContext) -> Tensor:
        if not self.by_point:
            return self.everywhere(network, context)
        return self.fitted([self.by_point], network, context)
