"""Activation quantizers whose range is calibrated, learned, or learned for each candidate."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadyq.quantizers.base import (
    RANGE_SHARE,
    ActivationQuantizer,
    PointStatistics,
    QuantizerOutput,
    constant_bits,
    same_for_all,
)
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import (
    fake_quantize_affine,
    fake_quantize_bounds,
    fake_quantize_symmetric,
    mixed_symmetric,
    quantize_symmetric,
    signed_levels,
)
from cadyq.utils.copies import copied

INITIAL_BOUND = 10.0  # replaced by calibration or a file; a quantizer that was not calibrated raises
Network = TypeVar("Network", bound=Any)  # with points and a scheme


class CalibratedRange(ActivationQuantizer):
    """Base of fixed-bit quantizers with a range [low, high] from calibration, which is not learned."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("low", torch.tensor(-1.0))
        self.register_buffer("high", torch.tensor(1.0))
        self.low: Tensor
        self.high: Tensor


class AffineRange(CalibratedRange):
    """Rounds to 2^b levels between low and high, one of which is exactly zero (padding is zero)."""

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        return QuantizerOutput(fake_quantize_affine(x, self.low, self.high, self.bits), constant_bits(x, self.bits))


class MinMaxRange(AffineRange):
    """The [min, max] that calibration saw, extended so that zero is a level."""

    def initialize(self, statistics: PointStatistics) -> None:
        self.low.copy_(statistics.minimum.clamp_max(0))
        self.high.copy_(statistics.maximum.clamp_min(0))


class SignAware(ActivationQuantizer):
    """Base of fixed-bit quantizers with an unsigned grid at points where calibration saw no negative value."""

    flags = ("signed",)

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("signed", torch.tensor(True))
        self.signed: Tensor

    def initialize(self, statistics: PointStatistics) -> None:
        self.signed.copy_(statistics.minimum < 0)
        super().initialize(statistics)


class LearnedRange(ActivationQuantizer):
    """Base of fixed-bit quantizers with a learned range. It sets the start of the range."""

    bits: int

    @abstractmethod
    def largest(self) -> Tensor:
        """The largest magnitude that is not clipped, a scalar or (1,), detached."""

    @abstractmethod
    def set_largest(self, value: Tensor) -> None:
        """Set the largest magnitude that is not clipped."""

    def initialize(self, statistics: PointStatistics) -> None:
        self.set_largest(RANGE_SHARE[self.bits] * statistics.max_abs)

    def inherit(self, parent: ActivationQuantizer) -> None:
        """The range of another class or of other bits is taken in proportion to `RANGE_SHARE`."""
        if type(parent) is type(self) and parent.bits == self.bits:
            super().inherit(parent)
        elif isinstance(parent, LearnedRange):
            self.set_largest(parent.largest() * RANGE_SHARE[self.bits] / RANGE_SHARE[parent.bits])
            self.calibrated = True


class LearnedBoundActivation(LearnedRange):
    """Symmetric quantization with a learned clipping bound, PAMS (Li et al., ECCV 2020), Eqs. 2 and 5."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.bound = nn.Parameter(torch.tensor([INITIAL_BOUND]))

    def largest(self) -> Tensor:
        return self.bound.detach()

    def set_largest(self, value: Tensor) -> None:
        self.bound.data.copy_(value)

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        if torch.is_grad_enabled():
            value = fake_quantize_symmetric(x, self.bound, self.bits)
        else:
            value = quantize_symmetric(x, self.bound, signed_levels(self.bits))
        return QuantizerOutput(value, constant_bits(x, self.bits))


class LearnedBounds(LearnedRange):
    """A learned lower and a learned upper bound; zero is a level between them.

    If calibration saw no negative value, the lower bound starts at 0. It stays there if its learning rate is relative
    to its size, which is the default. With `range_rate_relative = false`, as in the recipe `paper`, it moves, and
    nothing keeps it below 0.

    Attributes:
        low: lower bound (1,), in the units of the feature map; at the start low <= 0 <= high.
        high: upper bound (1,), in the same units.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = nn.Parameter(torch.tensor([-1.0])), nn.Parameter(torch.tensor([1.0]))

    def initialize(self, statistics: PointStatistics) -> None:
        self.low.data.fill_(statistics.minimum.clamp_max(0))
        self.high.data.fill_(statistics.maximum.clamp_min(0))
        super().initialize(statistics)

    def largest(self) -> Tensor:
        return self.high.detach().maximum(-self.low.detach())

    def set_largest(self, value: Tensor) -> None:
        """Scale both bounds by the same factor."""
        factor = value / self.largest().clamp_min(1e-12)
        self.low.data.mul_(factor)
        self.high.data.mul_(factor)

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bound, scalars or one value per sample (B, 1, 1, 1)."""
        return self.low, self.high

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        return QuantizerOutput(fake_quantize_bounds(x, *self.bounds(x), self.bits), constant_bits(x, self.bits))


class CandidateActivation(ActivationQuantizer):
    """K candidate bit-widths, each with its own learned bound. Subclasses choose one for each sample."""

    def __init__(self, candidates: tuple[int, ...]) -> None:
        super().__init__()
        self.bounds = nn.Parameter(torch.full((len(candidates),), INITIAL_BOUND))
        self.register_buffer("candidates", torch.tensor(candidates), persistent=False)
        levels = torch.tensor([float(signed_levels(bits)) for bits in candidates])
        self.register_buffer("levels", levels, persistent=False)
        self.candidates: Tensor
        self.levels: Tensor

    @abstractmethod
    def choose(self, x: Tensor, context: PatchContext) -> Tensor:
        """Index of the candidate of each sample, int64 (B,), for the feature map `x` (B, C, H, W)."""

    def _shares(self) -> Tensor:
        return self.bounds.new_tensor([RANGE_SHARE[int(bits)] for bits in self.candidates])

    def initialize(self, statistics: PointStatistics) -> None:
        self.bounds.data.copy_(self._shares() * statistics.max_abs)

    def inherit(self, parent: ActivationQuantizer) -> None:
        """Take over a parent's bounds, and from a parent that chooses alike all that it learned.

        From a fixed-bit parent, every candidate starts at its bound in proportion to `RANGE_SHARE`. From a parent with
        candidates, it starts at the bound of the nearest candidate, in the same proportion. CADyQ's paper starts all
        candidates at the 8-bit bound, but few steps are not enough to shrink a 4-bit range from there.
        """
        if isinstance(parent, LearnedRange):
            self.bounds.data.copy_(parent.largest() * self._shares() / RANGE_SHARE[parent.bits])
            self.calibrated = True
        elif self.chooses_like(parent):
            super().inherit(parent)
        elif isinstance(parent, CandidateActivation):
            nearest = (parent.candidates[None] - self.candidates[:, None]).abs().argmin(1)
            self.bounds.data.copy_(parent.bounds.data[nearest] * (self._shares() / parent._shares()[nearest]))
            self.calibrated = True

    def chooses_like(self, parent: ActivationQuantizer) -> bool:
        """Whether all that `parent` learned serves here: it is of this class and has the same candidates."""
        return type(parent) is type(self) and parent.candidates.tolist() == self.candidates.tolist()

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        choice = self.choose(x, context)
        if torch.is_grad_enabled():
            certain = F.one_hot(choice, len(self.candidates)).to(x.dtype)
            value = mixed_symmetric(x, self.bounds, certain, choice, self.levels)
        else:
            value = self.quantize(x, choice)
        return QuantizerOutput(value, self.candidates[choice])

    def one_bound_a_candidate(self) -> bool:
        """Whether the grid of a candidate is given by its bound alone. False if a subclass quantizes in its own way."""
        return type(self).quantize is CandidateActivation.quantize

    def quantize(self, x: Tensor, choice: Tensor) -> Tensor:
        """`x` with each sample on the grid of its candidate, without gradients."""
        per_sample = (-1, 1, 1, 1)
        return quantize_symmetric(x, self.bounds[choice].view(per_sample), self.levels[choice].view(per_sample))


class ConstantCandidate(ActivationQuantizer):
    """One candidate of another quantizer for every sample.

    Args:
        chooser: quantizer whose ranges are used.
        candidate: index of the candidate.
    """

    def __init__(self, chooser: CandidateActivation, candidate: int) -> None:
        super().__init__()
        self.chooser = chooser
        self.candidate = candidate

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        choice = same_for_all(x, self.candidate)
        return QuantizerOutput(self.chooser.quantize(x, choice), self.chooser.candidates[choice])


def with_constant_candidate(network: Network, candidate: int) -> Network:
    """A copy of a network with one candidate at all points: 0 for the fewest bits, -1 for the most.

    Args:
        network: in eval mode. Points without candidates are unchanged.
        candidate: index into the candidates of each point.
    """
    constant = copied(network)
    constant.scheme = None  # no scheme chooses bits
    for point in constant.points.values():
        if isinstance(point.quantizer, CandidateActivation):
            point.quantizer = ConstantCandidate(point.quantizer, candidate % len(point.quantizer.candidates))
    return constant
