"""What a quantization scheme is: activation quantizers for the points, weight quantizers for the layers.

A new fixed-bit scheme is one file with one `ActivationQuantizer`, one `WeightQuantizer` (or one of
`cadyq.quantizers.base`) and one frozen dataclass derived from `FixedBitScheme`. See CONTRIBUTING.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import (
    FULL_PRECISION,
    ActivationQuantizer,
    ChannelWeight,
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
        outer_bits: of weights and activations in the layers that no point of the network stands before: head,
            upsampler and tail, which papers leave in FP32 (32, the default). With 8 bits or fewer they are quantized
            the same way under every scheme: weights symmetric for each output channel, activations by the range that
            calibration saw.
        trained: False where the scheme runs from calibration alone.
        tuned: True where `python -m cadyq.calibrate` makes its networks, from an FP32 network and LR images.
        parent: the scheme whose trained network a network of this one starts from.
        reads_hr: True for an oracle, which is told the HR patches it is measured against. No other scheme is.
        dynamic: True where bits depend on the input. Tables then compare the scheme with fixed bits of equal cost.
        draws_in_training: True where a forward in training mode draws at random. In eval mode none does.
        control: True for a simpler way to choose bits or ranges, which dynamic schemes are compared with at equal FAB.
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
        """The quantizer of one point with that many channels; None leaves it in FP32.

        `counts_for_fab` is False at points that do not count for FAB (a residual branch before its addition), where a
        scheme with input-dependent bits uses fixed ones.
        """

    @abstractmethod
    def weight_quantizer(self) -> WeightQuantizer | None:
        """The weight quantizer of one layer that reads a point; None leaves it in FP32."""

    def allocate(self, network: SRNetwork, statistics: Mapping[str, PointStatistics]) -> None:
        """Set what depends on several points at once, such as which layers get more bits.

        Called after `ActivationQuantizer.initialize` of every point, with the same statistics. By default nothing.
        """

    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> Scheme:
        """This scheme with its options chosen on training patches, for schemes that are derived, not trained.

        Args:
            parent: the trained network of scheme `parent`, in eval mode, whose weights and ranges are taken over.
            lr: patches (N, 3, h, w) in 0..255 of training photographs.
            hr: what they should become, (N, 3, h scale, w scale).
            mean_bits: FAB to aim for.
        """
        raise UserError(f"{self.name} is not derived from a trained network: train it with python -m cadyq.train")

    def fit_ranges(self, network: SRNetwork, lr: Tensor) -> None:
        """Set the ranges of a derived network that are not taken over from its parent. By default nothing.

        Args:
            network: under this scheme, with weights and ranges of the parent; changed in place.
            lr: patches (N, 3, h, w) in 0..255 of training photographs.
        """

    def stages(self) -> Sequence[Stage]:
        """What is tuned against the FP32 network after calibration, in this order. By default nothing.

        `python -m cadyq.calibrate` runs them.
        """
        return ()

    def with_chosen_bits(self, parent: SRNetwork, lr: Tensor) -> Scheme:
        """This scheme with bits chosen on LR patches, before calibration. By default as it is.

        Args:
            parent: the FP32 network, in eval mode.
            lr: patches (N, 3, h, w) in 0..255.
        """
        return self

    def assign_bits(self, network: SRNetwork) -> None:
        """Set the bits of single points and layers, once their quantizers are in place. By default all stay alike."""

    def before_forward(self, network: SRNetwork, context: PatchContext) -> None:
        """Prepare the quantizers for the patches of one forward, all points at once. By default nothing."""

    def combine_gradients(self, loss: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> list[Tensor]:
        """The gradients that training goes by, where quantizers return an `auxiliary_loss`. By default the sum.

        Args:
            loss: of the recipe's loss, a tensor for each parameter.
            auxiliary: of the auxiliary loss, summed over points and averaged over patches, for the same parameters.
        """
        return [own + other for own, other in zip(loss, auxiliary, strict=True)]

    @classmethod
    def option_names(cls) -> list[str]:
        return [entry.name for entry in fields(cls)]

    def options(self) -> dict[str, Any]:
        """The options as JSON-ready values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in self.option_names())
        }

    def label(self) -> str:
        """As written in a command, with the options that are not at their defaults: "cadyq", "cadyq,stats_stride=8"."""
        return self.name + self._written_options()

    def _written_options(self, but: Sequence[str] = ()) -> str:
        """ ",option=value" for each option that is not at its default, `but` for some."""
        values = {name: getattr(self, name) for name in self.option_names() if name not in but}
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(self)}
        return "".join(f",{name}={written(value)}" for name, value in values.items() if value != defaults[name])


@dataclass(frozen=True)
class FixedBitScheme(Scheme):
    """A scheme with one bit-width for all weights and one for all activations."""

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
"""Class decorator: makes a subclass of `Scheme` known under a name."""


def apply_scheme(network: SRNetwork, scheme: Scheme) -> None:
    """Fill the points and the layers that belong to them with the scheme's quantizers, in place."""
    if scheme.outer_bits != FULL_PRECISION:
        check_bits("outer_bits", scheme.outer_bits)
        network.add_outer_points()
    network.scheme = scheme
    left_out = {layer for name in network.excluded for layer in network.points[name].layers}
    outer = {layer for point in network.points.values() if point.outer for layer in point.layers}
    for point in network.points.values():
        point.quantizer = None if point.name in network.excluded else _activation_quantizer(scheme, point)
    for layer in network.layer_names:
        layer.weight_quantizer = None if layer in left_out else _weight_quantizer(scheme, layer in outer)
        if layer.weight_quantizer is not None:
            layer.weight_quantizer.prepare(layer.rows(layer.weight))
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
    """A copy of `parent` with its weights under another scheme, whose quantizers are not initialized yet."""
    network = parent.without_scheme()
    apply_scheme(network, scheme)
    return network
