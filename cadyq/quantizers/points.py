"""Quantization points and the convolutions that read them: the seams at which a scheme enters a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadyq.quantizers.interface import FULL_PRECISION, ActivationQuantizer, Quantized, WeightQuantizer, fixed_bits

if TYPE_CHECKING:
    from cadyq.quantizers.trace import Trace


def _channels_last(weight: Tensor) -> Tensor:
    """The layout in which CPUs convolve faster; feature maps then take it on too.

    Layout decides the order of sums, and so to which level a value on a tie rounds. In this one single patches agree
    with the published code to the last bit; in the plain one IDN's outputs differ by up to 125 grey levels.
    """
    return weight.contiguous(memory_format=torch.channels_last)


class QuantConv2d(nn.Conv2d):
    """A convolution whose weight a scheme may quantize. Without a weight quantizer it is plain nn.Conv2d.

    Attributes:
        arithmetic: dtype of the multiplications, such as float16 for training on a GPU; what a scheme quantizes stays
            float32. None for the dtype of the input.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, bias: bool = True
    ) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, groups=groups, bias=bias)
        self.weight_quantizer: WeightQuantizer | None = None
        self.arithmetic: torch.dtype | None = None
        self._cache: tuple[Any, Tensor] | None = None

    @property
    def weight_bits(self) -> int:
        return FULL_PRECISION if self.weight_quantizer is None else self.weight_quantizer.bits

    def quantized_weight(self) -> Tensor:
        """The weight on its grid. In eval mode without gradients it is computed once and kept.

        The key of the kept tensor is the identity and version of everything it was made from, so an in-place
        change of a weight (an optimizer step, load_state_dict) is seen. The key holds the quantizer itself: a freed
        one's place in memory could be the next one's.
        """
        if self.weight_quantizer is None:
            return self.weight
        sources = [self.weight, *self.weight_quantizer.parameters(), *self.weight_quantizer.buffers()]
        untracked = any(tensor.is_inference() for tensor in sources)  # made in inference mode: no version to see
        if self.training or torch.is_grad_enabled() or untracked:
            return self.weight_quantizer(self.weight)  # type: ignore[no-any-return]
        # the quantizer itself, not its id: one that was freed may leave its id to the next
        key = (self.weight_quantizer, [(t.data_ptr(), t._version) for t in sources])
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, _channels_last(self.weight_quantizer(self.weight)))
        return self._cache[1]

    def forward(self, x: Tensor) -> Tensor:
        weight = _channels_last(self.quantized_weight())
        if self.arithmetic is None:
            return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        with torch.autocast(x.device.type, self.arithmetic):
            y = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return y.to(x.dtype)


class QuantizationPoint(nn.Module):
    """A place where a feature map enters a convolution (or a shortcut) that a scheme may quantize.

    Args:
        channels: C of the feature map.
        feeds: the convolutions that read this point.
        dynamic: whether a scheme may choose the bits here by content. These are the points that count for FAB.
        bypassed_by: the convolutions that read the feature map as it entered, yet have their weights quantized.
    """

    def __init__(
        self,
        channels: int,
        feeds: Sequence[QuantConv2d] = (),
        dynamic: bool = True,
        bypassed_by: Sequence[QuantConv2d] = (),
    ) -> None:
        super().__init__()
        self.channels = channels
        self.dynamic = dynamic
        # tuples, so that the convolutions are not registered a second time as submodules
        self.feeds = tuple(feeds)
        self.bypassed_by = tuple(bypassed_by)
        self.name = ""
        self.quantizer: ActivationQuantizer | None = None

    @property
    def convolutions(self) -> tuple[QuantConv2d, ...]:
        """Those whose weights a scheme quantizes here."""
        return self.feeds + self.bypassed_by

    def forward(self, x: Tensor, trace: Trace) -> Tensor:
        if self.quantizer is None:
            quantized = Quantized(x, fixed_bits(x, FULL_PRECISION))
        else:
            quantized = self.quantizer(x, trace.content)
        trace.record(self, x, quantized)
        return quantized.value
