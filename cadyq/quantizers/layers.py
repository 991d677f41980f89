"""Layers whose weights a scheme may quantize. Without a weight quantizer each is the layer of `torch.nn`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadyq.quantizers.base import FULL_PRECISION, WeightQuantizer
from cadyq.utils.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self  # in `typing` from Python 3.11


def _channels_last(weight: Tensor) -> Tensor:
    """The weight in the layout in which CPUs convolve faster. Feature maps then have it as well.

    The layout changes the order of sums, and so how ties are rounded. In this layout single patches agree exactly with
    the published code. In the default one IDN's outputs differ by up to 125 grey levels.
    """
    return weight.contiguous(memory_format=torch.channels_last)


Layer = TypeVar("Layer", bound="QuantizedLayer")
QUANTIZABLE = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)  # the layers of which there are quantized ones


class QuantizedLayer(nn.Module, ABC):
    """The base of the layers below: a weight quantizer, and optionally a point of its own.

    Attributes:
        weight_quantizer: the scheme's quantizer, or None.
        point: a quantization point that only this layer reads, if the network has none in front of it.
        arithmetic: dtype of the multiplications, such as float16 for training on a GPU. Quantized values stay float32.
            None for the dtype of the input.
    """

    weight: Tensor
    bias: Tensor | None

    def prepare(self) -> None:
        """Set the attributes that the plain layer's constructor does not set. Called once, at its end."""
        self.weight_quantizer: WeightQuantizer | None = None
        self.point: nn.Module | None = None
        self.arithmetic: torch.dtype | None = None
        self._frozen: Tensor | None = None

    @property
    @abstractmethod
    def inputs(self) -> tuple[int, int]:
        """Channels of the layer's input, and the dimension of the channels."""

    @property
    def weight_bits(self) -> int:
        """Bits of the weight; 32 without a weight quantizer."""
        return FULL_PRECISION if self.weight_quantizer is None else self.weight_quantizer.bits

    def rows(self, weight: Tensor) -> Tensor:
        """A weight of this layer in the shape for quantizers: (Cout, Cin / groups, k, k)."""
        return weight

    def from_rows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows

    def quantized_weight(self) -> Tensor:
        """The quantized weight in the shape of the layer; the FP32 weight without a quantizer."""
        if self._frozen is not None:
            return self._frozen
        if self.weight_quantizer is None:
            return self.weight
        return self.from_rows(self.weight_quantizer(self.rows(self.weight)))

    def freeze(self) -> None:
        """Quantize the weight now and keep it, see `frozen_weights`."""
        self._frozen = None
        self._frozen = self.quantized_weight().detach()

    def unfreeze(self) -> None:
        """Discard the weight that `freeze` kept."""
        self._frozen = None

    @abstractmethod
    def apply_to(self, x: Tensor, weight: Tensor) -> Tensor:
        """The plain layer's function with another weight."""

    def forward(self, input: Tensor) -> Tensor:  # the name of torch's layers, for calls by keyword
        x = input if self.point is None else self.point(input)
        if self.arithmetic is None:
            return self.apply_to(x, self.quantized_weight())
        with torch.autocast(x.device.type, self.arithmetic):
            y = self.apply_to(x, self.quantized_weight())
        return y.to(x.dtype)


class QuantizedConvolution(QuantizedLayer):
    """The base of the convolutions.

    Attributes:
        option_names: options of the plain layer, apart from channels, kernel size and bias.
    """

    option_names: ClassVar[tuple[str, ...]]
    in_channels: int

    @classmethod
    def like(cls, conv: nn.Conv2d | nn.ConvTranspose2d) -> Self:
        """The same convolution, with the same parameters."""
        options = {name: getattr(conv, name) for name in cls.option_names}
        made = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, bias=conv.bias is not None, device="meta", **options
        )
        return _with_parameters(made, conv)

    @property
    def inputs(self) -> tuple[int, int]:
        return self.in_channels, 1


class QuantConv2d(QuantizedConvolution, nn.Conv2d):
    """`nn.Conv2d`, by default with "same" padding for odd kernels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of both sides, or of each.
        **options: stride, padding, dilation, groups, bias, padding_mode, device, dtype, as for `nn.Conv2d`.
    """

    option_names = ("stride", "padding", "dilation", "groups", "padding_mode")

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], **options: Any) -> None:
        same = kernel_size // 2 if isinstance(kernel_size, int) else tuple(side // 2 for side in kernel_size)
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, **({"padding": same} | options))  # type: ignore[arg-type]
        self.prepare()

    def freeze(self) -> None:
        super().freeze()
        self._frozen = _channels_last(self.quantized_weight())

    def apply_to(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, _channels_last(weight), self.bias)  # type: ignore[no-any-return]


class QuantConvTranspose2d(QuantizedConvolution, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, whose weight is (Cin, Cout / groups, k, k).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of both sides, or of each.
        **options: stride, padding, output_padding, groups, bias, dilation, device, dtype, as there.
    """

    option_names = ("stride", "padding", "output_padding", "groups", "dilation")

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], **options: Any) -> None:
        nn.ConvTranspose2d.__init__(self, in_channels, out_channels, kernel_size, **options)  # type: ignore[arg-type]
        self.prepare()

    def rows(self, weight: Tensor) -> Tensor:
        inputs, outputs, *kernel = weight.shape
        grouped = weight.reshape(self.groups, inputs // self.groups, outputs, *kernel)
        return grouped.transpose(1, 2).reshape(self.groups * outputs, inputs // self.groups, *kernel)

    def from_rows(self, rows: Tensor) -> Tensor:
        outputs, inputs, *kernel = rows.shape
        grouped = rows.reshape(self.groups, outputs // self.groups, inputs, *kernel)
        return grouped.transpose(1, 2).reshape(self.groups * inputs, outputs // self.groups, *kernel)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            raise UserError("a transposed convolution with output_size cannot be quantized; exclude it: exclude=[...]")
        return super().forward(input)

    def apply_to(self, x: Tensor, weight: Tensor) -> Tensor:
        where = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return F.conv_transpose2d(x, weight, self.bias, *where)  # type: ignore[arg-type]


class ContiguousConv2d(QuantConv2d):
    """`QuantConv2d` whose maps are in the default layout, for networks that run in no other."""

    def freeze(self) -> None:
        QuantizedLayer.freeze(self)

    def apply_to(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x.contiguous(), weight.contiguous(), self.bias)  # type: ignore[no-any-return]


class ContiguousConvTranspose2d(QuantConvTranspose2d):
    """`QuantConvTranspose2d` whose maps are in the default layout, for networks that run in no other."""

    def apply_to(self, x: Tensor, weight: Tensor) -> Tensor:
        return super().apply_to(x.contiguous(), weight.contiguous())


class QuantLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """`nn.Linear`, whose weight is (Cout, Cin).

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        **options: bias, device, dtype, as there.
    """

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        nn.Linear.__init__(self, in_features, out_features, **options)
        self.prepare()

    @classmethod
    def like(cls, linear: nn.Linear) -> QuantLinear:
        """The same layer, with the same parameters."""
        bias = linear.bias is not None
        return _with_parameters(cls(linear.in_features, linear.out_features, bias=bias, device="meta"), linear)

    @property
    def inputs(self) -> tuple[int, int]:
        return self.in_features, -1

    def rows(self, weight: Tensor) -> Tensor:
        return weight[:, :, None, None]

    def from_rows(self, rows: Tensor) -> Tensor:
        return rows[:, :, 0, 0]

    def apply_to(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


def _with_parameters(made: Layer, plain: nn.Module) -> Layer:
    made.weight, made.bias = plain.weight, plain.bias  # type: ignore[assignment]
    return made.train(plain.training)


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module of that dotted name below `root` by `module`."""
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)


@contextmanager
def frozen_weights(network: nn.Module) -> Iterator[None]:
    """Within the block, each weight is quantized once instead of in every forward. Weights must not change."""
    layers = [module for module in network.modules() if isinstance(module, QuantizedLayer)]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.freeze()
        yield
    finally:
        for layer in layers:
            layer.unfreeze()
