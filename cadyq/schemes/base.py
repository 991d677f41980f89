"""The interface of a quantization scheme: activation quantizers for the points, weight quantizers for the layers.

A new fixed-bit scheme is one file: an `ActivationQuantizer`, a `WeightQuantizer` (or one of `cadyq.quantizers.base`)
and a frozen dataclass derived from `FixedBitScheme`. See CONTRIBUTING.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal

from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import (
    FULL_PRECISION,
    ActivationQuantizer,
    ChannelWeight,
    PackedWeight,
    PointStatistics,
    SymmetricWeight,
    WeightQuantizer,
    check_bits,
)
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.ranges import MinMaxRange
from cadyq.schemes.tuning import Stage
from cadyq.utils.errors import UserError
from cadyq.utils.options import written
from cadyq.utils.registry import Registry


@dataclass(frozen=True)
class Scheme(ABC):
    """A quantization scheme and its options. Subclasses are frozen dataclasses whose fields are the options.

    Attributes:
        outer_bits: bits of weights and activations in the layers that read no point of the network: head, upsampler and
            tail. Papers leave them in FP32 (32, the default). From 2 to 8 bits they are quantized in the same way under
            every scheme: weights symmetric for each output channel, activations by the range that calibration saw.
        trained: False if the scheme runs from calibration alone.
        tuned: True if `python -m cadyq.calibrate` makes its networks, from an FP32 network and LR images.
        parent: the scheme of the trained network that a network of this scheme starts from.
        reads_hr: True for an oracle, which gets the HR patches that it is measured against. No other scheme gets them.
        dynamic: True if bits depend on the input. Tables then compare the scheme with fixed bits of equal cost.
        draws_in_training: True if a forward in training mode draws random numbers. In eval mode no scheme does.
        control: True for a simpler way to choose bits or ranges. Dynamic schemes are compared with it at equal FAB.
    """

    outer_bits: int = field(default=FULL_PRECISION, kw_only=True)

    name: ClassVar[str]
    trained: ClassVar[bool] = True
    tuned: ClassVar[bool] = False
    parent: ClassVar[str] = "fp32"
    reads_hr: ClassVar[bool] = False
    dynamic: ClassVar[bool] = False
    draws_in_training: ClassVar[bool] = False
    control: ClassVar[bool] = False

    @abstractmethod
    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer | None:
        """The quantizer of one point, for maps of that many channels. None leaves the point in FP32.

        `counts_for_fab` is False at points that do not count for FAB, such as a residual branch before its addition.
        There a scheme with input-dependent bits uses fixed bits.
        """

    @abstractmethod
    def weight_quantizer(self) -> WeightQuantizer | None:
        """The weight quantizer of one layer that reads a point; None leaves it in FP32."""

    def allocate(self, network: SRNetwork, statistics: Mapping[str, PointStatistics]) -> None:
        """Set what depends on several points at once, such as which layers get more bits. By default nothing.

        It is called after `ActivationQuantizer.initialize` of every point, with the same statistics.
        """

    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> Scheme:
        """This scheme with options chosen on training patches, for schemes that are derived and not trained.

        Args:
            parent: trained network of the scheme `parent`, in eval mode. Its weights and ranges are taken over.
            lr: patches (N, 3, h, w) in 0..255 of training photographs.
            hr: their HR patches (N, 3, h scale, w scale) in 0..255.
            mean_bits: FAB to aim for.

        Raises:
            UserError: the scheme is not derived.
        """
        raise UserError(f"{self.name} is not derived from a trained network: train it with python -m cadyq.train")

    def fit_ranges(self, network: SRNetwork, lr: Tensor) -> None:
        """Set the ranges of a derived network that it does not take over from its parent. By default there are none.

        Args:
            network: under this scheme, with weights and ranges of the parent; changed in place.
            lr: patches (N, 3, h, w) in 0..255 of training photographs.
        """

    def stages(self) -> Sequence[Stage]:
        """The stages that tune quantizers against the FP32 network after calibration, in order. By default none.

        `python -m cadyq.calibrate` runs them.
        """
        return ()

    def with_chosen_bits(self, parent: SRNetwork, lr: Tensor) -> Scheme:
        """This scheme with bits chosen on LR patches, before calibration. By default unchanged.

        Args:
            parent: the FP32 network, in eval mode.
            lr: patches (N, 3, h, w) in 0..255.
        """
        return self

    def assign_bits(self, network: SRNetwork) -> None:
        """Set the bits of single points and layers after their quantizers are in place. By default nothing."""

    def before_forward(self, network: SRNetwork, context: PatchContext) -> None:
        """Prepare all quantizers for the patches of one forward. By default nothing."""

    def combine_gradients(self, loss: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of training when quantizers return an `auxiliary_loss`. By default their sum.

        Args:
            loss: gradients of the recipe's loss, a tensor for each parameter.
            auxiliary: gradients of the auxiliary loss for the same parameters. That loss is summed over points and
                averaged over patches.
        """
        return [own + other for own, other in zip(loss, auxiliary, strict=True)]

    @classmethod
    def made_by(cls) -> Literal["train", "derive", "calibrate"]:
        """The command of `cadyq` that makes its networks."""
        if cls.tuned:
            return "calibrate"
        return "train" if cls.parent == "fp32" else "derive"

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of the fields of the scheme."""
        return [entry.name for entry in fields(cls)]

    def options(self) -> dict[str, Any]:
        """The options as JSON-ready values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in self.option_names())
        }

    def label(self) -> str:
        """As written in a command, with the options that differ from their defaults: "cadyq,stats_stride=8"."""
        return self.name + self._written_options()

    def _written_options(self, but: Sequence[str] = ()) -> str:
        """ ",option=value" for each option that is not at its default, `but` for some."""
        values = {name: getattr(self, name) for name in self.option_names() if name not in but}
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(self)}
        return "".join(f",{name}={written(value)}" for name, value in values.items() if value != defaults[name])


@dataclass(frozen=True)
class FixedBitScheme(Scheme):
    """A scheme with one bit-width for all weights and one for all activations.

    Attributes:
        weight_bits: bits of weights, 2 to 8.
        act_bits: bits of activations, 2 to 8.
    """

    weight_bits: int = 8
    act_bits: int = 8

    def __post_init__(self) -> None:
        check_bits("weight_bits", self.weight_bits)
        check_bits("act_bits", self.act_bits)

    def label(self) -> str:
        """As written in a command: "pams:w8a8", and further options as `Scheme.label` does."""
        return f"{self.name}:w{self.weight_bits}a{self.act_bits}{self._written_options(('weight_bits', 'act_bits'))}"

    def weight_quantizer(self) -> WeightQuantizer | None:
        return SymmetricWeight(self.weight_bits)


SCHEMES: Registry[Scheme] = Registry("scheme", "cadyq.schemes")
register_scheme = SCHEMES.register
"""Class decorator that registers a subclass of `Scheme` under a name."""


def apply_scheme(network: SRNetwork, scheme: Scheme) -> None:
    """Put the scheme's quantizers into the points and their layers, in place.

    Raises:
        UserError: `outer_bits` is out of range.
    """
    if scheme.outer_bits != FULL_PRECISION:
        check_bits("outer_bits", scheme.outer_bits)
        network.add_outer_points()
    device = next((parameter.device for parameter in network.parameters()), None)
    network.scheme = scheme
    left_out = {layer for name in network.excluded for layer in network.points[name].layers}
    outer = network.outer_layers
    for point in network.points.values():
        point.quantizer = None if point.name in network.excluded else _activation_quantizer(scheme, point)
    for layer in network.layer_names:
        layer.weight_quantizer = None if layer in left_out else _weight_quantizer(scheme, layer in outer)
        if layer.weight_quantizer is not None:
            layer.weight_quantizer.prepare(layer.rows(layer.weight))
    network.to(device)  # new quantizers are made on the CPU
    scheme.assign_bits(network)


def _activation_quantizer(scheme: Scheme, point: QuantizationPoint) -> ActivationQuantizer | None:
    if point.outer:
        return None if scheme.outer_bits == FULL_PRECISION else MinMaxRange(scheme.outer_bits)
    return scheme.activation_quantizer(point.channels, point.counts_for_fab)


def _weight_quantizer(scheme: Scheme, outer: bool) -> WeightQuantizer | None:
    if outer:
        return None if scheme.outer_bits == FULL_PRECISION else ChannelWeight(scheme.outer_bits)
    return scheme.weight_quantizer()


def with_scheme(parent: SRNetwork, scheme: Scheme) -> SRNetwork:
    """A copy of `parent` with its weights under another scheme. Its quantizers are not initialized."""
    network = parent.without_scheme()
    apply_scheme(network, scheme)
    return network


def initialize_weights(network: SRNetwork) -> None:
    """Start what the weight quantizers learn, such as steps, from the weights of the network, in place."""
    for layer in network.layer_names:
        if layer.weight_quantizer is not None:
            layer.weight_quantizer.initialize(layer.rows(layer.weight.detach()))


def transplant(parent: SRNetwork, scheme: Scheme) -> SRNetwork:
    """A copy of `parent` with its weights and its ranges under another scheme, in eval mode."""
    network = with_scheme(parent, scheme)
    initialize_weights(network)
    network.inherit_ranges(parent)
    for layer, source in zip(network.layer_names, parent.layer_names, strict=True):
        if isinstance(source.weight_quantizer, PackedWeight):
            layer.weight_quantizer = source.weight_quantizer
    return network.eval()
