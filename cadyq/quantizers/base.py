"""The interfaces of activation and weight quantizers, and the statistics of calibration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import fake_quantize_weight, quantize_unit, straight_through
from cadyq.utils.errors import UserError

Granularity = Literal["tensor", "channel"]

FULL_PRECISION = 32
MIN_BITS, MAX_BITS = 2, 8
TINY = 1e-8  # smallest range of a feature map or weight; those that are zero everywhere get it

# Start of a trained clipping bound as a share of the largest calibrated value, by bit-width. A tighter range suits
# fewer levels. The shares were measured on CARN-M before any training.
RANGE_SHARE = {8: 1.0, 7: 0.9, 6: 0.75, 5: 0.65, 4: 0.5, 3: 0.4, 2: 0.3}

# Ranges that a search of the least squared error tries, as shares of the largest value.
SEARCHED_SHARES = torch.linspace(0.02, 1, 50)


class QuantizerOutput(NamedTuple):
    """The result of an activation quantizer.

    Attributes:
        value: fake-quantized feature map (B, C, H, W).
        bits: bits of each sample, int64 (B,), 1 to 32.
        bit_penalty: differentiable bit cost of each sample (B,); None if the scheme chooses no bits.
        auxiliary_loss: an additional loss of each sample (B,) at this point; None if the scheme has none.
            `Scheme.combine_gradients` combines its gradient with that of the recipe's loss.
    """

    value: Tensor
    bits: Tensor
    bit_penalty: Tensor | None = None
    auxiliary_loss: Tensor | None = None


@dataclass(frozen=True)
class PointStatistics:
    """Statistics of the feature maps at one point of the FP32 network.

    Attributes:
        minimum, maximum: over all calibration patches, scalars.
        minimum_spread, maximum_spread: standard deviation over patches of each patch's extremes, scalars.
        histogram: counts of the values in equal bins between minimum and maximum, float32 (N,).
        log_std_mean, log_std_spread: mean and standard deviation over patches of log(std of a channel), (C,).
        log_gradient_mean, log_gradient_spread: the same of the log image gradients of the patches, (2,).
        gradient_quantiles: quantiles of the patches' image gradient (mean of both directions) at equal steps from 0 to
            1, (Q,).
        entropy_quantiles: the same of the patches' entropy (`patch_entropy`); None in files of earlier versions.
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
    entropy_quantiles: Tensor | None = None

    @property
    def max_abs(self) -> Tensor:
        """The largest magnitude that calibration saw, a scalar; at least `TINY`, so that no range is empty."""
        return self.minimum.abs().maximum(self.maximum.abs()).clamp_min(TINY)

    @property
    def bin_centers(self) -> Tensor:
        """The middle of each bin of the histogram (N,)."""
        share = (torch.arange(len(self.histogram), device=self.histogram.device) + 0.5) / len(self.histogram)
        return self.minimum + share * (self.maximum - self.minimum)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of all values, from the histogram, a scalar."""
        share = self.histogram.double() / self.histogram.double().sum()
        centers = self.bin_centers.double()
        mean = (share * centers).sum()
        return (share * (centers - mean).square()).sum().sqrt().to(self.minimum.dtype)

    def percentile(self, percent: float) -> Tensor:
        """The value below which `percent` (0 to 100) of the values lie, a scalar. Values are uniform within a bin."""
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
        granularity: what shares one grid of 2^bits levels: "tensor" (the feature map of a sample) or "channel" (one
            channel of it).
        idempotent: False if the grid depends on the values that it quantizes.
        flags: names of buffers of one Boolean. They stay on the CPU, where a forward reads them without waiting for a
            GPU.
        calibrated: whether the range is set, by calibration, a parent or trained weights. `state_dict` holds it in
            its metadata. A state without it, such as that of a file, is of a calibrated quantizer.
    """

    granularity: ClassVar[Granularity] = "tensor"
    idempotent: ClassVar[bool] = True
    flags: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        # a quantizer without `initialize` has no range to calibrate
        self.calibrated = type(self).initialize is ActivationQuantizer.initialize

    @abstractmethod
    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        """Quantize `x` (B, C, H, W). `context` holds the LR patches that `x` was computed from."""

    def initialize(self, statistics: PointStatistics) -> None:
        """Set the range from calibration. A quantizer without a range does nothing."""

    def inherit(self, parent: ActivationQuantizer) -> None:
        """Take over what the trained quantizer of the same point learned. By default only from the same class."""
        if type(parent) is type(self) and _shapes(parent) == _shapes(self):
            self.load_state_dict(parent.state_dict())

    def overhead_macs(self, height: int, width: int) -> int:
        """FP32 multiply-adds that choosing bits or ranges takes for one sample of that size. By default 0."""
        return 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As in torch (`to`, `cuda`, ...), but `flags` stay where they are."""
        flags = {name: self.get_buffer(name) for name in self.flags}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, flag in flags.items():
            setattr(self, name, flag)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # as in torch
            destination._metadata[prefix[:-1]]["calibrated"] = self.calibrated

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if all(prefix + key in state_dict for key in self.state_dict()):
            self.calibrated = local_metadata.get("calibrated", True)

    def used_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that a forward reads. They are trained and stored. By default all."""
        return self.parameters()

    def learning_role(self, parameter: str) -> str:
        """The learning rate of a parameter: "range" or "selector"."""
        return "range"

    def learning_unit(self, parameter: str) -> float:
        """The unit of a parameter's learning rate: by default its mean magnitude at the start.

        Training uses it for ranges, tuning for selectors too.

        A parameter that starts at 0 needs another unit, or it would never change.
        """
        return float(self.get_parameter(parameter).detach().abs().mean())


class WeightQuantizer(nn.Module, ABC):
    """Fake-quantizes the weight of one layer.

    Attributes:
        granularity: what shares one grid of 2^bits levels: "tensor" (the whole weight) or "channel" (one output
            channel).
    """

    granularity: Granularity = "tensor"

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight (Cout, Cin/groups, k, k) on its grid of at most 2^bits values."""

    def prepare(self, weight: Tensor) -> None:
        """Allocate buffers for each weight or channel before any state is loaded. By default nothing."""

    def initialize(self, weight: Tensor) -> None:
        """Set learned steps from the weight. A quantizer without learned steps does nothing."""

    def inherit(self, parent: WeightQuantizer) -> None:
        """Take over what the trained quantizer of this layer learned. By default only from the same class and bits."""
        if type(parent) is type(self) and parent.bits == self.bits and _shapes(parent) == _shapes(self):
            self.load_state_dict(parent.state_dict())

    def learning_unit(self, parameter: str) -> float:
        """The unit of a parameter's learning rate: its mean magnitude at the start."""
        return float(self.get_parameter(parameter).detach().abs().mean())

    def start_tuning(self, weight: Tensor) -> None:
        """Create the parameters that exist only while a stage tunes them. By default there are none."""

    def finish_tuning(self) -> None:
        """Store the tuned values and remove those parameters. By default nothing."""


class SymmetricWeight(WeightQuantizer):
    """Symmetric, per tensor, with the step max|w| / (2^(b-1) - 1): the weights of PAMS and CADyQ."""

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize_weight(weight, self.bits)


class ChannelWeight(WeightQuantizer):
    """Symmetric, with the step max|w| / (2^(b-1) - 1) of each output channel."""

    granularity: Granularity = "channel"

    def forward(self, weight: Tensor) -> Tensor:
        levels = 2 ** (self.bits - 1) - 1
        largest = weight.detach().abs().amax((1, 2, 3), keepdim=True)
        step = (largest / levels).clamp_min(1e-12)
        return straight_through(weight, (weight.detach() / step).round() * step)


class TanhWeight(WeightQuantizer):
    """DoReFa's weights (Zhou et al. 2016, Eq. 9), per tensor, at their own scale. DoReFa and PACT use them.

    2 quantize_k(tanh(w) / (2 max|tanh w|) + 1/2) - 1, times max|tanh w|.
    """

    def forward(self, weight: Tensor) -> Tensor:
        squashed = weight.tanh()
        largest = squashed.abs().amax().clamp_min(TINY)
        unit = squashed / (2 * largest) + 0.5
        return (2 * straight_through(unit, quantize_unit(unit, self.bits)) - 1) * largest


class PackedWeight(WeightQuantizer):
    """A weight that is stored on its grid. It cannot be trained."""

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


def constant_bits(x: Tensor, bits: int) -> Tensor:
    """The bits of each sample, int64 (B,), of a quantizer with fixed bits."""
    return same_for_all(x, bits)


def same_for_all(x: Tensor, value: int) -> Tensor:
    """One number for all samples of `x` (B, ...), such as the index of a candidate, int64 (B,)."""
    return torch.full((len(x),), value, dtype=torch.int64, device=x.device)


def check_bits(option: str, bits: int) -> None:
    """Raise UserError unless 2 <= bits <= 8."""
    if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise UserError(f"{option}={bits!r} is out of range: give a whole number from {MIN_BITS} to {MAX_BITS}")
