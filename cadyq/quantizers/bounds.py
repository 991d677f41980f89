"""Quantizers of activations and weights between two tuned bounds."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from cadyq.quantizers.base import ActivationQuantizer, PointStatistics, QuantizerOutput, WeightQuantizer, constant_bits
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import fake_quantize_offset


class BoundedActivation(ActivationQuantizer):
    """A grid between two bounds. Subclasses define where the bounds start.

    The learning rate of both bounds is in units of their distance, so that a bound that starts at 0 learns too.

    Attributes:
        fake_quantize: the quantization, a function of (x, low, high, bits).
    """

    fake_quantize = staticmethod(fake_quantize_offset)

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.tensor(1.0))

    @abstractmethod
    def clipping_bounds(self, statistics: PointStatistics) -> tuple[Tensor, Tensor]:
        """The lower and the upper bound at the start, two scalars."""

    def initialize(self, statistics: PointStatistics) -> None:
        low, high = self.clipping_bounds(statistics)
        self.low.data.copy_(low)
        self.high.data.copy_(high)

    def learning_unit(self, parameter: str) -> float:
        return float(self.high.detach() - self.low.detach())

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        return QuantizerOutput(self.fake_quantize(x, self.low, self.high, self.bits), constant_bits(x, self.bits))


class BoundedWeight(WeightQuantizer):
    """`fake_quantize_offset` of a whole weight between two bounds, which start at its extremes."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.low, self.high = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.tensor(1.0))

    def clipping_bounds(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The lower and the upper bound at the start, two scalars."""
        return weight.amin(), weight.amax()

    def initialize(self, weight: Tensor) -> None:
        low, high = self.clipping_bounds(weight)
        self.low.data.copy_(low)
        self.high.data.copy_(high)

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize_offset(weight, self.low, self.high, self.bits)
