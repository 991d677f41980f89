"""CADyQ: weights at fixed bits, activations at bits chosen for every patch and every layer.

Hong et al., CADyQ: Content-Aware Dynamic Quantization for Image Super-Resolution, ECCV 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import (
    ActivationQuantizer,
    PointStatistics,
    QuantizerOutput,
)
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import mixed_symmetric
from cadyq.quantizers.ranges import CandidateActivation, LearnedRange
from cadyq.schemes.base import register_scheme
from cadyq.schemes.bit_selector import BitSelector
from cadyq.schemes.candidates import CandidateScheme
from cadyq.utils.errors import UserError
from cadyq.utils.options import written

RANGE_STARTS = ("share", "parent")


class DynamicActivation(CandidateActivation):
    """A trained `BitSelector` chooses the candidate of each sample."""

    def __init__(
        self,
        channels: int,
        candidates: tuple[int, ...],
        inputs: str,
        gradient_scale: float,
        range_start: str = "share",
        stats_stride: int = 1,
    ) -> None:
        super().__init__(candidates)
        self.range_start = range_start
        self.selector = BitSelector(channels, len(candidates), inputs, gradient_scale, stats_stride)

    def initialize(self, statistics: PointStatistics) -> None:
        super().initialize(statistics)
        self.selector.initialize(statistics)

    def choose(self, x: Tensor, context: PatchContext) -> Tensor:
        return self.selector(x, context).argmax(1)  # type: ignore[no-any-return]

    def inherit(self, parent: ActivationQuantizer) -> None:
        """As `CandidateActivation`, or every candidate at a fixed-bit parent's bound (`CADyQ.range_start`)."""
        if isinstance(parent, LearnedRange) and self.range_start == "parent":
            self.bounds.data.copy_(parent.largest().expand_as(self.bounds))
            self.calibrated = True
        else:
            super().inherit(parent)

    def chooses_like(self, parent: ActivationQuantizer) -> bool:
        """As `CandidateActivation`. Selectors that read other inputs learned something else."""
        same_inputs = isinstance(parent, DynamicActivation) and parent.selector.inputs == self.selector.inputs
        return same_inputs and super().chooses_like(parent)

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        if not torch.is_grad_enabled():
            return super().forward(x, context)
        logits = self.selector(x, context)
        choice, mixture = logits.argmax(1), logits.softmax(1)
        bits = self.candidates[choice]
        value = mixed_symmetric(x, self.bounds, mixture, choice, self.levels)
        return QuantizerOutput(value, bits, self._penalty(mixture, bits))

    def _penalty(self, mixture: Tensor, bits: Tensor) -> Tensor:
        """bits_ste / sum_k(p_k b_k).detach(): the chosen bits forward, the soft bits backward (Sec. 3.4)."""
        soft = (mixture * self.candidates).sum(1)
        return (bits - soft.detach() + soft) / soft.detach()

    def overhead_macs(self, height: int, width: int) -> int:
        return self.selector.macs(height, width)

    def learning_role(self, parameter: str) -> str:
        return "selector" if parameter.startswith("selector.") else "range"


@register_scheme("cadyq")
@dataclass(frozen=True)
class CADyQ(CandidateScheme):
    """Content-aware dynamic quantization.

    Attributes:
        selector_inputs: "normalized" or "paper", see `BitSelector`.
        gradient_scale: see `BitSelector`.
        range_start: start of the candidates' bounds when a fixed-bit parent has one. "share" is a share of it that
            shrinks with the bit-width, since few steps are not enough to shrink a 4-bit range. "parent" is the bound
            itself, as in the paper.
        stats_stride: the selectors compute deviations on every `stats_stride`-th row and column. 1 is the paper's. The
            cost of the selectors falls with the square of it.
    """

    name = "cadyq"
    dynamic = True

    selector_inputs: str = "normalized"
    gradient_scale: float = 1000.0
    range_start: str = "share"
    stats_stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.range_start not in RANGE_STARTS:
            raise UserError(f"range_start={self.range_start!r} is unknown: choose one of {', '.join(RANGE_STARTS)}")
        if type(self.stats_stride) is not int or self.stats_stride < 1:
            raise UserError(f"stats_stride={self.stats_stride!r}: give a whole number of 1 or more")

    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> CADyQ:
        """Unchanged: the parent's selectors under other options (`stats_stride`). `mean_bits` is not used.

        Raises:
            UserError: the parent's selectors choose among other candidates, or read other inputs.
        """
        assert isinstance(parent.scheme, CADyQ)
        for option in ("search_space", "selector_inputs"):
            own, theirs = getattr(self, option), getattr(parent.scheme, option)
            if own != theirs:
                raise UserError(
                    f"{option}={written(own)}: the parent's selectors learned {option}={written(theirs)}; leave the "
                    f"option out, or train them anew: python -m cadyq.train --scheme {self.label()}"
                )
        return self

    def candidate_quantizer(self, channels: int) -> DynamicActivation:
        options = (self.selector_inputs, self.gradient_scale, self.range_start, self.stats_stride)
        return DynamicActivation(channels, self.search_space, *options)
