"""CADyQ as a scheme: weights at fixed bits, activations at bits chosen for every patch and every layer.

Hong et al., CADyQ: Content-Aware Dynamic Quantization for Image Super-Resolution, ECCV 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cadyq.errors import UserError
from cadyq.models.network import register_scheme
from cadyq.quantizers.content import Content
from cadyq.quantizers.functional import fake_quantize_symmetric, mixed_symmetric, quantize_symmetric, signed_levels
from cadyq.quantizers.interface import (
    RANGE_SHARE,
    ActivationQuantizer,
    PointStatistics,
    Quantized,
    Scheme,
    SymmetricWeight,
    WeightQuantizer,
    check_bits,
    fixed_bits,
)
from cadyq.selector.bit_selector import BitSelector

INITIAL_BOUND = 10.0
RANGE_STARTS = ("share", "parent")


class LearnedBoundActivation(ActivationQuantizer):
    """Symmetric quantization with a learned clipping bound, PAMS (Li et al., ECCV 2020), Eqs. 2 and 5."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.bound = nn.Parameter(torch.tensor([INITIAL_BOUND]))

    def initialize(self, statistics: PointStatistics) -> None:
        self.bound.data.fill_(RANGE_SHARE[self.bits] * float(statistics.max_abs))

    def inherit(self, parent: ActivationQuantizer) -> None:
        """From other bits the bound is taken in proportion to `RANGE_SHARE`."""
        if isinstance(parent, LearnedBoundActivation):
            self.bound.data.copy_(parent.bound.data * RANGE_SHARE[self.bits] / RANGE_SHARE[parent.bits])

    def forward(self, x: Tensor, content: Content) -> Quantized:
        if torch.is_grad_enabled():
            value = fake_quantize_symmetric(x, self.bound, self.bits)
        else:
            value = quantize_symmetric(x, self.bound, signed_levels(self.bits))
        return Quantized(value, fixed_bits(x, self.bits))


class DynamicActivation(ActivationQuantizer):
    """Chooses one of K candidate bit-widths for each sample; each candidate has its own learned clipping bound."""

    def __init__(
        self,
        channels: int,
        candidates: tuple[int, ...],
        inputs: str,
        gradient_scale: float,
        range_start: str = "share",
    ) -> None:
        super().__init__()
        self.range_start = range_start
        self.selector = BitSelector(channels, len(candidates), inputs, gradient_scale)
        self.bounds = nn.Parameter(torch.full((len(candidates),), INITIAL_BOUND))
        self.register_buffer("candidates", torch.tensor(candidates), persistent=False)
        levels = torch.tensor([float(signed_levels(bits)) for bits in candidates])
        self.register_buffer("levels", levels, persistent=False)
        self.candidates: Tensor
        self.levels: Tensor

    def initialize(self, statistics: PointStatistics) -> None:
        shares = self.bounds.new_tensor([RANGE_SHARE[int(bits)] for bits in self.candidates])
        self.bounds.data.copy_(shares * statistics.max_abs)
        self.selector.initialize(statistics)

    def inherit(self, parent: ActivationQuantizer) -> None:
        """From a fixed-bit network: every candidate starts from its bound, see `CADyQ.range_start`."""
        if isinstance(parent, LearnedBoundActivation) and self.range_start == "parent":
            self.bounds.data.copy_(parent.bound.data.expand_as(self.bounds))
        elif isinstance(parent, LearnedBoundActivation):
            shares = self.bounds.new_tensor([RANGE_SHARE[int(bits)] for bits in self.candidates])
            self.bounds.data.copy_(parent.bound.data * shares / RANGE_SHARE[parent.bits])
        else:
            super().inherit(parent)

    def forward(self, x: Tensor, content: Content) -> Quantized:
        logits = self.selector(x, content)
        choice = logits.argmax(1)
        bits = self.candidates[choice]
        if not torch.is_grad_enabled():
            per_sample = (-1, 1, 1, 1)
            bound, levels = self.bounds[choice].view(per_sample), self.levels[choice].view(per_sample)
            return Quantized(quantize_symmetric(x, bound, levels), bits)
        mixture = logits.softmax(1)
        value = mixed_symmetric(x, self.bounds, mixture, choice, self.levels)
        return Quantized(value, bits, self._penalty(mixture, bits))

    def _penalty(self, mixture: Tensor, bits: Tensor) -> Tensor:
        """bits_ste / sum_k(p_k b_k).detach(): forward the hard bits, backward the soft ones (Sec. 3.4)."""
        soft = (mixture * self.candidates).sum(1)
        return (bits - soft.detach() + soft) / soft.detach()

    def overhead_macs(self, height: int, width: int) -> int:
        """Sum and sum of squares of every value for the deviations, and the linear layer."""
        channels = self.selector.linear.in_features - 2
        return 2 * channels * height * width + self.selector.linear.weight.numel()

    def learning_role(self, parameter: str) -> str:
        return "selector" if parameter.startswith("selector.") else "range"


@register_scheme("cadyq")
@dataclass(frozen=True)
class CADyQ(Scheme):
    """Content-aware dynamic quantization.

    Attributes:
        weight_bits: of all quantized weights, and of the activations at points that do not count.
        search_space: candidate activation bits, ascending.
        selector_inputs: "normalized" or "paper", see `BitSelector`.
        gradient_scale: see `BitSelector`.
        range_start: where candidates start that inherit the bound of a fixed-bit parent: at a "share" of it that
            shrinks with the bit-width, as few steps are not enough to shrink a 4-bit range, or at the "parent" bound
            itself, as in the paper.
    """

    name = "cadyq"

    weight_bits: int = 8
    search_space: tuple[int, ...] = (4, 6, 8)
    selector_inputs: str = "normalized"
    gradient_scale: float = 1000.0
    range_start: str = "share"

    def __post_init__(self) -> None:
        object.__setattr__(self, "search_space", tuple(self.search_space))
        check_bits("weight_bits", self.weight_bits)
        for bits in self.search_space:
            check_bits("search_space", bits)
        if list(self.search_space) != sorted(set(self.search_space)) or len(self.search_space) < 2:
            raise UserError(f"search_space={self.search_space} must hold two or more bit-widths in ascending order")
        if self.range_start not in RANGE_STARTS:
            raise UserError(f"range_start={self.range_start!r} is unknown: choose one of {', '.join(RANGE_STARTS)}")

    def activation_quantizer(self, channels: int, dynamic: bool) -> ActivationQuantizer:
        if not dynamic:
            return LearnedBoundActivation(self.weight_bits)
        inputs, scale = self.selector_inputs, self.gradient_scale
        return DynamicActivation(channels, self.search_space, inputs, scale, self.range_start)

    def weight_quantizer(self) -> WeightQuantizer:
        return SymmetricWeight(self.weight_bits)
