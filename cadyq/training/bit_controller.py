"""The weight of the bit penalty: controlled to a target FAB, or growing with the epochs as published."""

from __future__ import annotations

import logging

from torch import Tensor

from cadyq.quantizers.trace import Trace
from cadyq.training.recipes import Recipe
from cadyq.utils.errors import UserError

log = logging.getLogger(__name__)

BATCH_DECAY = 0.9  # decay of the running mean of the batches' FAB
REACHED = 0.2  # a difference up to this many bits counts as reached
PROPORTIONAL = 40.0  # gain of the proportional part, in steps of the integral part


class BitController:
    """Adjusts the weight of the bit penalty until held-out photographs reach the target FAB (a PI controller).

    Deviations are larger over a whole photograph than over a training patch, so the selector gives a photograph more
    bits. Each validation measures this difference. Between validations it is added to the FAB of the batches.

    Args:
        target: FAB to reach; 0 for no control.
        speed: change of the weight for each step and bit of difference.
    """

    def __init__(self, target: float, speed: float) -> None:
        self.target = target
        self.speed = speed
        self.integral = 0.0
        self.offset = 0.0
        self.batches = 0.0

    def update(self, fab: float) -> float:
        """The weight of the penalty after a batch with that FAB. It is negative if more bits are wanted."""
        if not self.target:
            return 0.0
        self.batches = fab if not self.batches else BATCH_DECAY * self.batches + (1 - BATCH_DECAY) * fab
        excess = fab + self.offset - self.target
        self.integral += self.speed * excess
        return self.integral + PROPORTIONAL * self.speed * excess

    def validated(self, fab: float) -> None:
        """Take the FAB of the held-out photographs into account."""
        self.offset = fab - self.batches

    def warn_if_missed(self, fab: float) -> None:
        """Log a warning if the FAB of the held-out photographs is not near the target."""
        if self.target and abs(fab - self.target) > REACHED:
            log.warning("held-out FAB ended at %.2f, not %.2f: raise --steps or the recipe's `steer`", fab, self.target)

    def state(self) -> dict[str, float]:
        """The state for a checkpoint."""
        return {"integral": self.integral, "offset": self.offset, "batches": self.batches}

    def load(self, state: dict[str, float]) -> None:
        """Restore what `state` returned."""
        self.integral, self.offset, self.batches = state["integral"], state["offset"], state["batches"]


def growing_weight(recipe: Recipe, step: int) -> float:
    """w_bit of the paper, which grows by the same amount every epoch."""
    return recipe.bit_weight + recipe.bit_weight_growth * (step // recipe.epoch_steps)


def bit_loss(trace: Trace, weight: float, recipe: Recipe) -> Tensor | float:
    """The bit penalty in the loss, a mean over the patches of the trace, so that processes may average it.

    A controlled weight multiplies the mean over selectors and patches, the published weight their sum.

    Raises:
        UserError: there is a target FAB, but the scheme has fixed bits.
    """
    selectors = sum(record.bit_penalty is not None for record in trace.records.values())
    if not selectors and recipe.target_fab:
        raise UserError(
            f"target_fab={recipe.target_fab} cannot be reached: scheme {recipe.scheme!r} has fixed bits; "
            "use a recipe for fixed bits, or --target-fab 0"
        )
    if not selectors or not weight:
        return 0.0
    penalty = weight * trace.bit_penalty().mean()
    return penalty / selectors if recipe.target_fab else penalty * recipe.batch
