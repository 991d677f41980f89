"""What a quantization scheme is: activation quantizers for the points, weight quantizers for the convolutions.

A new fixed-bit scheme is one file with one `ActivationQuantizer`, one `WeightQuantizer` (or one from here) and
one frozen dataclass derived from `Scheme`. See CONTRIBUTING.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cadyq.errors import UserError
from cadyq.quantizers.functional import (
    fake_quantize_weight,
    quantize_unit,
    straight_through,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cadyq.models.network import SRNetwork
    from cadyq.quantizers.content import Content

Granularity = Literal["tensor", "channel"]

FULL_PRECISION = 32
MIN_BITS, MAX_BITS = 2, 8

# Share of the largest calibrated value where a trained clipping bound starts, by bit-width: fewer levels pay for
# a tighter range. Measured on CARN-M before any training; training moves the bounds from there.
RANGE_SHARE = {8: 1.0, 7: 0.9, 6: 0.75, 5: 0.65, 4: 0.5, 3: 0.4, 2: 0.3}


class Quantized(NamedTuple):
    """What a quantizer did.

    Attributes:
        value: fake-quantized feature map (B, C, H, W).
        bits: bits used for each sample, int64 (B,).
        bit_penalty: differentiable bit cost of each sample (B,), None for a scheme that chooses no bits.
    """

    value: Tensor
    bits: Tensor
    bit_penalty: Tensor | None = None


@dataclass(frozen=True)
class PointStatistics:
    """What calibration saw at one point of the FP32 network.

    Attributes:
        minimum, maximum: over all calibration patches, scalars.
        minimum_spread, maximum_spread: standard deviation over patches of each patch's extremes, scalars.
        histogram: how many values fell into each of equal bins between minimum and maximum, float32 (N,).
        log_std_mean, log_std_spread: mean and standard deviation over patches of log(std of a channel), (C,).
        log_gradient_mean, log_gradient_spread: the same of the log image gradients of the patches, (2,).
        gradient_quantiles: of the patches' image gradient (mean of the two directions), at equal steps from its
            smallest to its largest, (Q,).
    """

    minimum: Tensor
    maximum: Tensor
    minimum_spread: Tensor
    maximum_spread: Tensor
    histogram: Tensor
    log_std_mean: Tensor
    log_std_spread: Tensor
    log_gradient_mean: Tensor
    log_gradient_spread: Tensor
    gradient_quantiles: Tensor

    @property
    def max_abs(self) -> Tensor:
        return self.minimum.abs().maximum(self.maximum.abs())

    @property
    def bin_centers(self) -> Tensor:
        """The middle of each bin of the histogram (N,)."""
        share = (torch.arange(len(self.histogram), device=self.histogram.device) + 0.5) / len(self.histogram)
        return self.minimum + share * (self.maximum - self.minimum)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of all values seen, from the histogram, a scalar."""
        share = self.histogram.double() / self.histogram.double().sum()
        centers = self.bin_centers.double()
        mean = (share * centers).sum()
        return (share * (centers - mean).square()).sum().sqrt().to(self.minimum.dtype)

    def percentile(self, percent: float) -> Tensor:
        """The value that `percent` of 100 values stay below, a scalar; values lie evenly within their bin."""
        cumulative = self.histogram.double().cumsum(0)
        wanted = cumulative[-1] * percent / 100
        k = int(torch.searchsorted(cumulative, wanted).clamp_max(len(cumulative) - 1))
        within = (wanted - cumulative[k] + self.histogram[k]) / self.histogram[k].clamp_min(1)
        share = ((k + within) / len(cumulative)).to(self.minimum.dtype)
        return self.minimum + share * (self.maximum - self.minimum)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}


class ActivationQuantizer(nn.Module, ABC):
    """Fake-quantizes a feature map at one quantization point.

    Attributes:
        granularity: what shares one grid of 2^bits levels: a sample's whole feature map, or one channel of it.
        idempotent: False where the grid is made from the very values it quantizes, so that it moves with them.
    """

    granularity: ClassVar[Granularity] = "tensor"
    idempotent: ClassVar[bool] = True

    @abstractmethod
    def forward(self, x: Tensor, content: Content) -> Quantized:
        """Quantize `x` (B, C, H, W); `content` knows the LR patches that `x` came from."""

    def initialize(self, statistics: PointStatistics) -> None:
        """Set ranges from calibration. A quantizer without ranges needs nothing."""

    def inherit(self, parent: ActivationQuantizer) -> None:
        """Take over what the trained quantizer of the same point learned. By default only from the same kind."""
        if type(parent) is type(self) and _shapes(parent) == _shapes(self):
            self.load_state_dict(parent.state_dict())

    def overhead_macs(self, height: int, width: int) -> int:
        """FP32 multiply-adds spent on choosing bits or ranges for one sample of this size. Fixed ones cost nothing."""
        return 0

    def used_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that a forward reads: what is learned and must be stored. By default all."""
        return self.parameters()

    def learning_role(self, parameter: str) -> str:
        """Which learning rate a parameter takes: "range" or "selector"."""
        return "range"


class WeightQuantizer(nn.Module, ABC):
    """Fake-quantizes the weight of one convolution.

    Attributes:
        granularity: what shares one grid of 2^bits levels: the whole weight, or one output channel of it.
    """

    granularity: Granularity = "tensor"

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight (Cout, Cin/groups, k, k) on its grid of at most 2^bits values."""

    def initialize(self, weight: Tensor) -> None:
        """Set learned steps from the weight to be quantized. A quantizer that learns none needs nothing."""


class SymmetricWeight(WeightQuantizer):
    """max|w| / (2^(b-1) - 1) as step, per tensor: what PAMS and CADyQ use for weights."""

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize_weight(weight, self.bits)


class TanhWeight(WeightQuantizer):
    """DoReFa's weights (Zhou et al. 2016, Eq. 9), at their own scale: per tensor, what DoReFa and PACT use.

    2 quantize_k(tanh(w) / (2 max|tanh w|) + 1/2) - 1, times max|tanh w|.
    """

    def forward(self, weight: Tensor) -> Tensor:
        squashed = weight.tanh()
        largest = squashed.abs().amax()
        unit = squashed / (2 * largest) + 0.5
        return (2 * straight_through(unit, quantize_unit(unit, self.bits)) - 1) * largest


class PackedWeight(WeightQuantizer):
    """A weight that was stored on its grid already, so there is nothing left to do. Cannot be trained."""

    def __init__(self, bits: int, granularity: Granularity) -> None:
        super().__init__(bits)
        self.granularity = granularity

    def forward(self, weight: Tensor) -> Tensor:
        if self.training and weight.requires_grad:
            raise UserError(
                f"packed {self.bits}-bit weights cannot be trained: start from a full-precision checkpoint, "
                "or call model.eval()"
            )
        return weight


def fixed_bits(x: Tensor, bits: int) -> Tensor:
    """The bits of each sample (B,) of a quantizer that always uses `bits`."""
    return torch.full((len(x),), bits, dtype=torch.int64, device=x.device)


@dataclass(frozen=True)
class Scheme(ABC):
    """A quantization scheme and its options. Subclasses are frozen dataclasses whose fields are the options.

    Attributes:
        trained: False where the scheme runs from calibration alone.
        parent: the scheme whose trained network a network of this one starts from.
        reads_hr: True for an oracle, which is told the HR patches it is measured against. No other scheme is.
    """

    name: ClassVar[str]
    trained: ClassVar[bool] = True
    parent: ClassVar[str] = "fp32"
    reads_hr: ClassVar[bool] = False

    @abstractmethod
    def activation_quantizer(self, channels: int, dynamic: bool) -> ActivationQuantizer | None:
        """The quantizer of one point with that many channels; None leaves it in FP32.

        `dynamic` is False at points that do not count for FAB (a residual branch before its addition), where a
        scheme with input-dependent bits uses fixed ones.
        """

    @abstractmethod
    def weight_quantizer(self) -> WeightQuantizer | None:
        """The weight quantizer of one convolution that reads a point; None leaves it in FP32."""

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

    def before_forward(self, network: SRNetwork, content: Content) -> None:
        """Prepare the quantizers for the patches of one forward, all points at once. By default nothing."""

    @classmethod
    def option_names(cls) -> list[str]:
        return [field.name for field in fields(cls)]

    def options(self) -> dict[str, Any]:
        """The options as JSON-ready values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in self.option_names())
        }

    def label(self) -> str:
        """As written in a command: "pams:w8a8", "cadyq"."""
        return self.name


def check_bits(option: str, bits: int) -> None:
    """Raise UserError unless 2 <= bits <= 8."""
    if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise UserError(f"{option}={bits!r} is out of range: give a whole number from {MIN_BITS} to {MAX_BITS}")


@dataclass(frozen=True)
class FixedBitScheme(Scheme):
    """A scheme with one bit-width for all weights and one for all activations."""

    weight_bits: int = 8
    act_bits: int = 8

    def __post_init__(self) -> None:
        check_bits("weight_bits", self.weight_bits)
        check_bits("act_bits", self.act_bits)

    def label(self) -> str:
        return f"{self.name}:w{self.weight_bits}a{self.act_bits}"

    def weight_quantizer(self) -> WeightQuantizer | None:
        return SymmetricWeight(self.weight_bits)
