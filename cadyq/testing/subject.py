"""The subject of the checks: a scheme at certain bits on a small calibrated backbone, with random selectors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cadyq.models.network import BACKBONES, SRNetwork
from cadyq.quantizers.base import ActivationQuantizer, PointStatistics, QuantizerOutput
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.running import running
from cadyq.quantizers.trace import Trace
from cadyq.schemes.base import SCHEMES, Scheme, with_scheme
from cadyq.schemes.calibration import initialize, observe
from cadyq.schemes.factory import ModelConfig, backbone_option_names, build, list_backbones
from cadyq.schemes.specs import parse_scheme
from cadyq.utils.errors import UserError
from cadyq.utils.seeds import repeatable

BIT_OPTIONS = ("weight_bits", "act_bits")
BITS_TO_TRY = (2, 4, 8)
SCALE = 4
SAMPLES = 4
SIDES = (16, 14)
MOST_FEATURES, MOST_BLOCKS = 16, 2


def patches(count: int, sides: tuple[int, int] = SIDES, contrast: float = 60, seed: int = 0) -> Tensor:
    """LR patches (N, 3, H, W) from flat to detailed, each around a colour of its own; the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(count, 3, 1, 1, generator=generator) * 255
    detail = torch.randn(count, 3, *sides, generator=generator)
    return (colour + detail * torch.linspace(1, contrast, count).view(-1, 1, 1, 1)).clamp(0, 255)


def small_sizes(backbone: str) -> dict[str, int]:
    """Options that make a backbone small: its numbers of features (`n_feats`) and of repeated parts (`n_...`)."""
    parameters = inspect.signature(BACKBONES.get(backbone)).parameters
    sizes = {}
    for name in backbone_option_names(backbone):
        default = parameters[name].default
        if name.startswith("n_") and isinstance(default, int):
            sizes[name] = min(default, MOST_FEATURES if "feat" in name else MOST_BLOCKS)
    try:
        BACKBONES.get(backbone)(scale=SCALE, **sizes)
    except (ValueError, RuntimeError, IndexError):  # sizes that depend on each other
        return {}
    return sizes


@lru_cache
def _plain(cls: type[SRNetwork], backbone: str, scale: int = SCALE) -> SRNetwork:
    # by class as well as by name: a plugin's class may take the place of another in one process
    with repeatable(3):
        return build(ModelConfig(backbone, "fp32", scale, small_sizes(backbone))).eval()


@lru_cache
def _statistics(cls: type[SRNetwork], backbone: str, scale: int) -> dict[str, PointStatistics]:
    return observe(_plain(cls, backbone, scale), patches(16))


@lru_cache
def _dead(cls: type[SRNetwork], backbone: str, scale: int) -> tuple[SRNetwork, dict[str, PointStatistics]]:
    """The small backbone with zeros for all quantized weights and their biases, and its statistics."""
    network = copy.deepcopy(_plain(cls, backbone, scale))
    for point in network.points.values():
        for layer in point.layers:
            for parameter in layer.parameters():
                parameter.data.zero_()
    return network, observe(network, patches(16))


def backbones_to_check() -> list[str]:
    """The registered backbones that have quantization points."""
    return [name for name in list_backbones() if _plain(BACKBONES.get(name), name).points]


class Case(NamedTuple):
    """A scheme and the options it is checked with."""

    scheme: str
    options: dict[str, Any]

    def __str__(self) -> str:
        if set(self.options) == set(BIT_OPTIONS):
            return f"{self.scheme}:w{self.options['weight_bits']}a{self.options['act_bits']}"
        written = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.scheme} ({written})" if written else self.scheme


def cases(spec: str, bits: Sequence[int] = BITS_TO_TRY) -> list[Case]:
    """The scheme at each of `bits` where it has options for bits and takes these, else at its defaults.

    Raises:
        UserError: unknown scheme, a tag, or none of the bits is taken.
    """
    name, options, tag = parse_scheme(spec)
    if tag:
        raise UserError(f"scheme {spec!r}: the tag {tag!r} names trained weights; write {name!r} or {name}:wXaY")
    takes = [option for option in BIT_OPTIONS if option in SCHEMES.get(name).option_names()]
    if options or not takes:
        return [Case(name, options)]
    accepted, refusal = [], ""
    for width in bits:
        case = Case(name, dict.fromkeys(takes, width))
        try:
            SCHEMES.get(name)(**case.options)
        except UserError as error:  # a scheme may refuse a bit-width, as long as it says so
            refusal = str(error)
        else:
            accepted.append(case)
    if not accepted:
        raise UserError(
            f"scheme {name!r} accepts none of {', '.join(map(str, bits))} bits ({refusal}); give others as --bits"
        )
    return accepted


@dataclass(frozen=True)
class Seen:
    """The record of one point in one forward.

    Attributes:
        x: the feature map as it entered the point.
        value, bits: what left it.
        changed: whether the quantizer wrote into its input.
        again: the quantizer applied to `value`, where that was asked for.
    """

    point: QuantizationPoint
    x: Tensor
    value: Tensor
    bits: Tensor
    changed: bool
    again: QuantizerOutput | None

    @property
    def quantizer(self) -> ActivationQuantizer:
        """The quantizer of the point."""
        assert self.point.quantizer is not None
        return self.point.quantizer


def watch(
    network: SRNetwork, lr: Tensor, inputs: Mapping[str, Tensor] | None = None, again: bool = False
) -> tuple[Tensor, dict[str, Seen]]:
    """Run `network`; return the SR images and what each point did that has a quantizer, in network order.

    `inputs` puts other feature maps in place of those that reach the points. Quantizers run inside a forward only,
    because a scheme may choose bits for a forward as a whole.
    """
    trace = Trace(network, lr)
    entered: dict[str, tuple[Tensor, Tensor]] = {}
    seen: dict[str, Seen] = {}

    def watched() -> bool:
        """False in forwards that a scheme runs to prepare this one."""
        forward = running()
        return forward is not None and forward.listener is not None

    def before(point: QuantizationPoint, args: tuple[Tensor]) -> tuple[Tensor]:
        if not watched():
            return args
        x = inputs[point.name].clone() if inputs is not None and point.name in inputs else args[0]
        entered[point.name] = x, x.detach().clone()
        return (x,)

    def after(point: QuantizationPoint, args: tuple[Tensor], value: Tensor) -> None:
        if point.quantizer is None or not watched():
            return
        x, copy = entered[point.name]
        changed = not torch.equal(x.detach().nan_to_num(), copy.nan_to_num())
        kept = value.detach().clone()
        repeated = point.quantizer(kept.clone(), trace.context) if again else None
        seen[point.name] = Seen(point, copy, kept, trace.records[point.name].bits, changed, repeated)

    handles = []
    for point in network.points.values():
        handles += [point.register_forward_pre_hook(before), point.register_forward_hook(after)]
    try:
        return network.run(trace.context, trace.record), seen
    finally:
        for handle in handles:
            handle.remove()


class Subject:
    """A scheme at certain bits on one backbone, ready to run.

    Attributes:
        network: in eval mode. A check that changes it takes a copy.
        lr: LR patches that differ in content.
    """

    def __init__(self, case: Case, backbone: str, scale: int = SCALE) -> None:
        self.case, self.backbone, self.scale = case, backbone, scale
        self.network = self._build()
        self.lr = patches(SAMPLES, seed=1)

    @property
    def scheme(self) -> Scheme:
        """The scheme of the network."""
        assert isinstance(self.network.scheme, Scheme)
        return self.network.scheme

    def _build(self) -> SRNetwork:
        cls = BACKBONES.get(self.backbone)
        network = self._calibrated(_plain(cls, self.backbone, self.scale), _statistics(cls, self.backbone, self.scale))
        generator = torch.Generator().manual_seed(5)
        for point in network.points.values():
            for name, value in point.quantizer.named_parameters() if point.quantizer else ():
                if point.quantizer is not None and point.quantizer.learning_role(name) == "selector":
                    value.data.copy_(torch.randn(value.shape, generator=generator) * 0.3)
        return network.eval()

    def _calibrated(self, parent: SRNetwork, statistics: dict[str, PointStatistics]) -> SRNetwork:
        network = with_scheme(parent, SCHEMES.get(self.case.scheme)(**self.case.options))
        initialize(network, statistics)
        return network.eval()

    def dead(self) -> SRNetwork:
        """The scheme on the backbone with zeros for all quantized weights, so that many points see zeros alone."""
        return self._calibrated(*_dead(BACKBONES.get(self.backbone), self.backbone, self.scale))

    @cached_property
    def run(self) -> tuple[Tensor, dict[str, Seen]]:
        """One forward of `lr` without gradients, each quantizer also applied to its own output."""
        with torch.no_grad():
            return watch(self.network, self.lr, again=True)

    @property
    def seen(self) -> dict[str, Seen]:
        """The record of each point in `run`."""
        return self.run[1]
