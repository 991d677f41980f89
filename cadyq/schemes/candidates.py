"""The base of CADyQ and of the schemes derived from it: candidate bit-widths, each with its own range."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from cadyq.quantizers.base import ActivationQuantizer, SymmetricWeight, WeightQuantizer, check_bits
from cadyq.quantizers.ranges import CandidateActivation, LearnedBoundActivation
from cadyq.schemes.base import Scheme
from cadyq.utils.errors import UserError


@dataclass(frozen=True)
class CandidateScheme(Scheme):
    """A scheme with candidate activation bits, each with its own range, and weights at fixed bits.

    Attributes:
        weight_bits: bits of all quantized weights, and of the activations at points that do not count for FAB; 2 to 8.
        search_space: candidate activation bits, two or more from 2 to 8, ascending.
    """

    weight_bits: int = 8
    search_space: tuple[int, ...] = (4, 6, 8)

    def __post_init__(self) -> None:
        object.__setattr__(self, "search_space", tuple(self.search_space))
        check_bits("weight_bits", self.weight_bits)
        for bits in self.search_space:
            check_bits("search_space", bits)
        if list(self.search_space) != sorted(set(self.search_space)) or len(self.search_space) < 2:
            raise UserError(f"search_space={self.search_space} must hold two or more bit-widths in ascending order")

    @abstractmethod
    def candidate_quantizer(self, channels: int) -> CandidateActivation:
        """The quantizer of a point that counts for FAB, for maps of that many channels."""

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return self.candidate_quantizer(channels) if counts_for_fab else LearnedBoundActivation(self.weight_bits)

    def weight_quantizer(self) -> WeightQuantizer:
        return SymmetricWeight(self.weight_bits)
