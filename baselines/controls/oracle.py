"""Control: bits from a joint search over the true error of each patch. An upper bound, not deployable.

Weights and ranges are those of a trained CADyQ network. The search reads the HR patch (`reads_hr`), so it shows how
much a better choice of bits could gain. It minimizes f(error) + price x mean bits by coordinate descent. The error is
the mean squared error of luma. With f the identity ("mse") bits go where most error is left, to texture. With f = 10
log10 ("db") they go where they change PSNR most, to flat patches. `fit` finds the price of the wanted mean. Without HR
the target is the output of the network itself at its highest candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines.assignment.scheme import AssignedScheme, assign
from baselines.assignment.search import descend, luma_error, price_for, search_patches
from cadyq.models.network import SRNetwork
from cadyq.quantizers import PatchContext
from cadyq.schemes.base import transplant
from cadyq.utils.errors import UserError

OBJECTIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda error: error,
    "db": lambda error: 10 * error.clamp_min(1e-3).log10(),
}
PRICES = {"mse": (1e-4, 1e2), "db": (1e-4, 1e1)}  # where to look for the price of a bit


@dataclass(frozen=True)
class Oracle(AssignedScheme):
    """Bits from the true error.

    Attributes:
        objective: "mse" or "db".
        price: of one more bit at every point, in units of the objective; 0 or more.
        sweeps: how often the search visits every point, 1 or more. Each visit takes K - 1 forwards.
    """

    name = "oracle"
    control = True
    reads_hr = True

    objective: str = "mse"
    price: float = 0.1
    sweeps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise UserError(f"objective={self.objective!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
        if not 0 <= self.price < math.inf:
            raise UserError(f"price={self.price!r} is out of range: give a number of 0 or more")
        if type(self.sweeps) is not int or self.sweeps < 1:
            raise UserError(f"sweeps={self.sweeps!r}: give a whole number of 1 or more")

    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> Oracle:
        network, context = transplant(parent, self), search_patches(lr, hr)
        bits = torch.tensor(self.search_space, dtype=torch.float64)

        def solve(price: float) -> float:
            return float(bits[replace(self, price=price, sweeps=1).choices(network, context)].mean())

        return replace(self, price=price_for(mean_bits, solve, *PRICES[self.objective]))

    @torch.no_grad()
    def choices(self, network: SRNetwork, context: PatchContext) -> Tensor:
        lr = context.lr
        start = self.everywhere(network, context).expand(len(lr), -1)
        if context.hr is None:
            assign(network, self.everywhere(network, context, len(self.search_space) - 1))
            context = PatchContext(lr, network.run_with_set_bits(context).clamp(0, 255).round())
        bits = torch.tensor(self.search_space, dtype=torch.float64, device=lr.device)

        def cost(choices: Tensor) -> Tensor:
            assign(network, choices)
            error = luma_error(network, context).double()
            return OBJECTIVES[self.objective](error) + self.price * bits[choices].mean(1)

        return descend(cost, start, len(bits), self.sweeps)
