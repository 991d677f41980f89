"""The base of every backbone: a plain FP32 network with named quantization points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from cadyq.quantizers.interface import Scheme
from cadyq.quantizers.points import QuantConv2d, QuantizationPoint
from cadyq.quantizers.trace import Trace
from cadyq.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping


class SRNetwork(nn.Module, ABC):
    """A super-resolution network. Subclasses build their layers, then call `finish(options)`.

    Attributes:
        scale: upscaling factor.
        options: the constructor's arguments besides scale, JSON-ready; with them the network can be rebuilt.
        conv_names: convolution -> its dotted name, for those whose weights a scheme quantizes.
        scheme: the scheme applied last, None for FP32.
        upsampling: dotted name of the module that reads the features before upsampling.
        branches: shell patterns ("blocks.*.branch") of the dotted names of the modules that return what the branches of
            blocks add. Attention transfer compares both places with a teacher's; without them there is none.
    """

    name: ClassVar[str]
    upsampling: ClassVar[str] = "upsample"
    branches: ClassVar[tuple[str, ...]] = ()

    def finish(self, scale: int, **options: Any) -> None:
        """Name the points after their place in the network. Call at the end of the constructor."""
        self.scale = scale
        self.options = options
        self.scheme: Scheme | None = None
        self.points: dict[str, QuantizationPoint] = {}
        names = {module: name for name, module in self.named_modules() if isinstance(module, QuantConv2d)}
        for name, module in self.named_modules():
            if isinstance(module, QuantizationPoint):
                module.name = name
                self.points[name] = module
        read = {conv for point in self.points.values() for conv in point.convolutions}
        self.conv_names = {conv: name for conv, name in names.items() if conv in read}

    def apply_scheme(self, scheme: Scheme) -> None:
        """Fill the points and the convolutions that belong to them with the scheme's quantizers."""
        self.scheme = scheme
        for point in self.points.values():
            point.quantizer = scheme.activation_quantizer(point.channels, point.dynamic)
        for conv in self.conv_names:
            conv.weight_quantizer = scheme.weight_quantizer()

    def inherit_ranges(self, parent: SRNetwork) -> None:
        """Take over what the quantizer of each point can use of the parent's, a network of the same backbone."""
        for name, point in self.points.items():
            source = parent.points[name].quantizer
            if point.quantizer is not None and source is not None:
                point.quantizer.inherit(source)

    def forward(self, lr: Tensor, trace: Trace | None = None) -> Tensor:
        """Super-resolve RGB patches (B, 3, H, W) in 0..255 to (B, 3, H scale, W scale), not clamped.

        Pass a `Trace` to learn what the points did (or call `cadyq.trace`).
        """
        trace = trace if trace is not None else Trace(self, lr)
        if self.scheme is not None:
            self.scheme.before_forward(self, trace.content)
        return self.super_resolve(lr, trace)

    @abstractmethod
    def super_resolve(self, lr: Tensor, trace: Trace) -> Tensor:
        """The network's figure."""

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Foreign parameter names (the authors' code) to ours. The default knows none."""
        return dict(state)


BACKBONES: Registry[SRNetwork] = Registry("backbone", "cadyq.backbones")
register_backbone = BACKBONES.register
"""Class decorator: makes a subclass of `SRNetwork` known under a name."""

SCHEMES: Registry[Scheme] = Registry("scheme", "cadyq.schemes")
register_scheme = SCHEMES.register
"""Class decorator: makes a subclass of `Scheme` known under a name."""


def trace_forward(network: SRNetwork, lr: Tensor, hr: Tensor | None = None) -> tuple[Tensor, Trace]:
    """Run `network` on `lr` (B, 3, H, W) in 0..255; return the SR images and the trace of that very forward.

    `hr` (B, 3, H scale, W scale) is for the schemes that ask what the best choice would have been.
    """
    trace = Trace(network, lr, hr)
    return network(lr, trace), trace
