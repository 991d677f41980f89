"""Symmetric quantizers with learned clipping bounds: one bound, or one for each of several candidate bit-widths."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadyq.quantizers.content import Content
from cadyq.quantizers.functional import fake_quantize_symmetric, mixed_symmetric, quantize_symmetric, signed_levels
from cadyq.quantizers.interface import RANGE_SHARE, ActivationQuantizer, PointStatistics, Quantized, fixed_bits

INITIAL_BOUND = 10.0


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


class CandidateActivation(ActivationQuantizer):
    """K candidate bit-widths, each with its own learned clipping bound; subclasses choose one for each sample."""

    def __init__(self, candidates: tuple[int, ...]) -> None:
        super().__init__()
        self.bounds = nn.Parameter(torch.full((len(candidates),), INITIAL_BOUND))
        self.register_buffer("candidates", torch.tensor(candidates), persistent=False)
        levels = torch.tensor([float(signed_levels(bits)) for bits in candidates])
        self.register_buffer("levels", levels, persistent=False)
        self.candidates: Tensor
        self.levels: Tensor

    @abstractmethod
    def choose(self, x: Tensor, content: Content) -> Tensor:
        """Index of the candidate of each sample, int64 (B,), for the feature map `x` (B, C, H, W)."""

    def _shares(self) -> Tensor:
        return self.bounds.new_tensor([RANGE_SHARE[int(bits)] for bits in self.candidates])

    def initialize(self, statistics: PointStatistics) -> None:
        self.bounds.data.copy_(self._shares() * statistics.max_abs)

    def inherit(self, parent: ActivationQuantizer) -> None:
        """From a fixed-bit network every candidate starts from its bound, in proportion to `RANGE_SHARE`; from
        another quantizer with the same candidates, at its bounds.

        CADyQ's paper starts all candidates at the 8-bit bound; few steps are not enough to shrink a 4-bit range from
        there.
        """
        if isinstance(parent, LearnedBoundActivation):
            self.bounds.data.copy_(parent.bound.data * self._shares() / RANGE_SHARE[parent.bits])
        elif type(parent) is type(self):
            super().inherit(parent)
        elif isinstance(parent, CandidateActivation) and torch.equal(parent.candidates, self.candidates):
            self.bounds.data.copy_(parent.bounds.data)

    def forward(self, x: Tensor, content: Content) -> Quantized:
        choice = self.choose(x, content)
        if torch.is_grad_enabled():
            certain = F.one_hot(choice, len(self.candidates)).to(x.dtype)
            value = mixed_symmetric(x, self.bounds, certain, choice, self.levels)
        else:
            value = self.quantize(x, choice)
        return Quantized(value, self.candidates[choice])

    def quantize(self, x: Tensor, choice: Tensor) -> Tensor:
        """`x` with each sample on the grid of its candidate, without gradients."""
        per_sample = (-1, 1, 1, 1)
        return quantize_symmetric(x, self.bounds[choice].view(per_sample), self.levels[choice].view(per_sample))
