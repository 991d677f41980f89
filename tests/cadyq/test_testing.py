"""The conformance suite finds each kind of fault in a scheme that was broken on purpose, and says what it is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cadyq
from cadyq.quantizers.base import PointStatistics, QuantizerOutput, SymmetricWeight, WeightQuantizer, constant_bits
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import quantize_symmetric, signed_levels, straight_through
from cadyq.quantizers.ranges import CalibratedRange
from cadyq.schemes.base import SCHEMES, FixedBitScheme
from cadyq.testing import SchemeCheckError, check_scheme
from cadyq.testing.__main__ import main
from cadyq.testing.subject import backbones_to_check

pytestmark = pytest.mark.usefixtures("registries")


def on_grid(x: Tensor, bound: Tensor, bits: int) -> Tensor:
    return straight_through(x, quantize_symmetric(x.detach(), bound.detach(), signed_levels(bits)))


class Sound(CalibratedRange):
    """Symmetric, up to the calibrated maximum: the scheme that each of the others breaks in one way."""

    def initialize(self, statistics: PointStatistics) -> None:
        self.high.copy_(statistics.max_abs)

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        return QuantizerOutput(self.quantize(x, context), self.bits_of(x, context))

    def bits_of(self, x: Tensor, context: PatchContext) -> Tensor:
        return constant_bits(x, self.bits)

    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x, self.high, self.bits)


class MoreLevels(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x, self.high, 8)


class NoisyStraightThrough(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return x + (on_grid(x, 0.1 * self.high, self.bits) - x).detach()


class SilentChannels(Sound):
    idempotent = False

    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x, x.abs().amax((2, 3), keepdim=True).clamp_min(1e-8), self.bits)


class HonestChannels(SilentChannels):
    granularity = "channel"


class HalfOfItsBits(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x, self.high, 4)


class OtherBits(Sound):
    def bits_of(self, x: Tensor, context: PatchContext) -> Tensor:
        return constant_bits(x, 6)


class FloatBits(Sound):
    def bits_of(self, x: Tensor, context: PatchContext) -> Tensor:
        return torch.full((len(x),), 4.0)


class BareTensor(Sound):
    def forward(self, x: Tensor, context: PatchContext) -> Any:
        return self.quantize(x, context)


class BatchRange(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x, x.abs().amax().clamp_min(1e-8), self.bits)


class RankedBits(Sound):
    def bits_of(self, x: Tensor, context: PatchContext) -> Tensor:
        energy = x.abs().mean((1, 2, 3))
        return torch.where(energy >= energy.max(), 8, 4)


class Dither(Sound):
    idempotent = False

    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x + torch.rand_like(x) * self.high * 0.1, self.high, self.bits)


class RunningRange(Sound):
    idempotent = False

    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        self.high.mul_(0.9)
        return super().quantize(x, context)


class OtherWithGradients(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x, self.high * (0.5 if torch.is_grad_enabled() else 1), self.bits)


class InPlace(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x.clamp_(max=0.5 * float(self.high)) if not x.requires_grad else x, self.high, self.bits)


class InPlaceImage(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        context.lr.mul_(0.99)
        return super().quantize(x, context)


class ShrinkingRange(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        bound = 0.8 * x.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-8)
        return on_grid(x, bound, self.bits)


class Forgetful(Sound):
    def initialize(self, statistics: PointStatistics) -> None:
        self.range = statistics.max_abs.clone()  # no buffer

    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x, getattr(self, "range", torch.tensor(1.0)), self.bits)


class EvenSizes(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        x.unflatten(2, (x.shape[2] // 2, 2))
        return super().quantize(x, context)


class ByGradient(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        share = context.gradient.mean(1).view(-1, 1, 1, 1)
        return on_grid(x, self.high * share / share, self.bits)


class ByMaximum(Sound):
    idempotent = False

    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x, x.abs().amax((1, 2, 3), keepdim=True), self.bits)


class NoSlope(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return (x / self.high * 7).clamp(-7, 7).round() / 7 * self.high


class Steep(Sound):
    idempotent = False

    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        unit = (x.abs() / self.high).clamp(max=1).sqrt()
        return straight_through(unit, (unit * 7).round() / 7) * self.high


class CutOff(Sound):
    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.bound = nn.Parameter(torch.tensor(10.0))

    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return on_grid(x, self.bound.detach(), self.bits)


class IdleInPlaces(CutOff):
    """Its parameter takes part only where the bound is large."""

    def initialize(self, statistics: PointStatistics) -> None:
        super().initialize(statistics)
        self.bound.data.copy_(statistics.max_abs)

    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        scale = self.bound / self.bound.detach() if self.bound > 50 else 1.0
        return super().quantize(x, context) * scale


class HiddenSelector(CutOff):
    def bits_of(self, x: Tensor, context: PatchContext) -> Tensor:
        return torch.where(x.abs().mean((1, 2, 3)) * self.bound > 0, self.bits, 8)

    def learning_role(self, parameter: str) -> str:
        return "selector"


class Unbuildable(Sound):
    def initialize(self, statistics: PointStatistics) -> None:
        raise KeyError("histogram")


class RoundedWeight(WeightQuantizer):
    def forward(self, weight: Tensor) -> Tensor:
        bound = weight.abs().amax()
        return (weight / bound * 7).round() / 7 * bound


class FineWeight(WeightQuantizer):
    def forward(self, weight: Tensor) -> Tensor:
        return on_grid(weight, weight.abs().amax(), 8)


class NotANumber(WeightQuantizer):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.nan


class NotANumberActivation(Sound):
    def quantize(self, x: Tensor, context: PatchContext) -> Tensor:
        return x * torch.nan


class OtherWeightBits(SymmetricWeight):
    def __init__(self, bits: int) -> None:
        super().__init__(8)


def register(
    activation: type[Sound] = Sound, weight: type[WeightQuantizer] = SymmetricWeight, is_trained: bool = False
) -> None:
    @cadyq.register_scheme("broken")
    @dataclass(frozen=True)
    class Broken(FixedBitScheme):
        trained = is_trained

        def activation_quantizer(self, channels: int, counts_for_fab: bool) -> Sound:
            return activation(self.act_bits)

        def weight_quantizer(self) -> WeightQuantizer:
            return weight(self.weight_bits)


def complaint(spec: str = "broken:w4a4", backbone: str = "edsr") -> str:
    with pytest.raises(SchemeCheckError) as caught:
        check_scheme(spec, [backbone])
    return str(caught.value)


LEVELS, REPORTED, BATCH = (
    "at most 2^bits levels",
    "uses the bits that it reports",
    "treats a sample alone as in a batch",
)
TWICE, RUNS, ITSELF = "gives the same twice", "runs, with a value and bits", "quantizes what is quantized to itself"
GRADIENT, ALONE, SAVED = "a gradient to all that is trained", "leaves its input alone", "comes back as it was saved"


@pytest.mark.parametrize(
    ("activation", "trained", "words"),
    [
        (MoreLevels, False, [LEVELS, "levels in a tensor, where 4 bits allow 16", "sample 0, 4 bits"]),
        (NoisyStraightThrough, False, [LEVELS, "rounding errors only", "straight_through"]),
        (SilentChannels, False, [LEVELS, "set `granularity`"]),
        (OtherBits, False, [REPORTED, "reports 6 bits at every point where act_bits=4"]),
        (NotANumberActivation, False, [RUNS, "not finite of finite ones", "blocks.0.input"]),
        (FloatBits, False, [RUNS, "its bits is torch.float32, not whole numbers"]),
        (BareTensor, False, [RUNS, "BareTensor at point", "returns a Tensor, no QuantizerOutput"]),
        (BatchRange, False, [BATCH, "differ between the batch and the sample alone", "never over dim 0"]),
        (RankedBits, False, [BATCH, "4 bits in a batch but 8 alone"]),
        (Dither, False, [TWICE, "two runs on the same images differ", "nothing is drawn at random"]),
        (RunningRange, False, [TWICE, "no state is updated"]),
        (OtherWithGradients, False, ["same with gradients as without", "torch.is_grad_enabled()"]),
        (InPlace, False, [ALONE, "its input was changed in place", "x.clamp(...), not x.clamp_(...)"]),
        (InPlaceImage, False, [ALONE, "the LR image was changed in place"]),
        (ShrinkingRange, False, [ITSELF, "quantized again it moves by", "idempotent = False"]),
        (Forgetful, False, [SAVED, "saved and loaded (full), it gives other values", "register_buffer"]),
        (EvenSizes, False, ["takes images of any size", "an LR image of 7 x 3 raises RuntimeError"]),
        (ByGradient, False, ["black and saturated", "a black image gives values that are not finite", "clamp_min"]),
        (ByMaximum, False, ["unusual feature maps", "a feature map of zeros gives values that are not finite"]),
        (NoSlope, True, [GRADIENT, "no gradient passes to the layers before it", "straight_through"]),
        (Steep, True, [GRADIENT, "a feature map of zeros gives a gradient that is not finite"]),
        (CutOff, True, [GRADIENT, "parameter bound", "it is learned but gets no gradient", "detach()"]),
        (IdleInPlaces, True, [GRADIENT, "parameter bound", "takes no part in the output", "used_parameters()"]),
        (HiddenSelector, True, [GRADIENT, "parameter bound", "for a selector in bit_penalty"]),
        (Unbuildable, False, ["is built and calibrated", "KeyError: 'histogram'", "test_testing.py, line"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_activation_is_found(activation: type[Sound], trained: bool, words: list[str]) -> None:
    register(activation, is_trained=trained)
    message = complaint()
    line = next((line for line in message.splitlines() if all(word in line for word in words)), None)
    assert line is not None, message
    assert "broken:w4a4 on edsr" in line


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (FineWeight, [LEVELS, "weight of blocks.0.conv1", "where 4 bits allow 16"]),
        (OtherWeightBits, [REPORTED, "reports 8 bits where weight_bits=4"]),
        (NotANumber, [RUNS, "values that are not finite", "weight of blocks.0.conv1"]),
        (RoundedWeight, [GRADIENT, "its weight gets no gradient", "weight of blocks.0.conv1"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_weight_is_found(weight: type[WeightQuantizer], words: list[str]) -> None:
    register(weight=weight, is_trained=True)
    message = complaint()
    assert any(all(word in line for word in words) for line in message.splitlines()), message


@pytest.mark.parametrize("backbone", backbones_to_check())
def test_bits_that_are_not_used_are_found(backbone: str) -> None:
    register(HalfOfItsBits)
    message = complaint("broken:w8a8", backbone)
    assert re.search(r"activations of HalfOfItsBits report 8 bits but never take more than \d+ levels; 4 bits", message)
    check_scheme("broken:w4a4", [backbone])


def test_a_weight_whose_bits_are_not_used_is_found() -> None:
    register(weight=RoundedWeight)
    assert "weights report 8 bits but never take more than 15 levels" in complaint("broken:w8a8")


@pytest.mark.parametrize("left_out", ["activations", "weights"])
def test_what_stays_in_fp32_is_found(left_out: str) -> None:
    @cadyq.register_scheme("broken")
    @dataclass(frozen=True)
    class Broken(FixedBitScheme):
        trained = False

        def activation_quantizer(self, channels: int, counts_for_fab: bool) -> Sound | None:
            return None if left_out == "activations" else Sound(self.act_bits)

        def weight_quantizer(self) -> WeightQuantizer | None:
            return None if left_out == "weights" else SymmetricWeight(self.weight_bits)

    assert "stays in FP32" in complaint()


def test_a_label_without_its_bits_is_found() -> None:
    @cadyq.register_scheme("broken")
    @dataclass(frozen=True)
    class Broken(FixedBitScheme):
        def activation_quantizer(self, channels: int, counts_for_fab: bool) -> None:
            return None

        def label(self) -> str:
            return self.name

    assert "is written and read back the same: broken:w4a4 on edsr: label() is 'broken'" in complaint()


def test_the_error_is_an_assertion() -> None:
    assert issubclass(SchemeCheckError, AssertionError)


def test_a_scheme_that_keeps_the_rules_passes() -> None:
    register()
    check_scheme("broken")


def test_a_grid_for_each_channel_passes_where_it_says_so() -> None:
    register(HonestChannels)
    check_scheme("broken", ["edsr"])


def test_every_fault_is_listed_with_its_bits() -> None:
    register(MoreLevels)
    message = complaint("broken", "carn_m")
    assert "fails 1 checks" in message
    assert [line.split(" on ")[0] for line in message.splitlines()[1:]] == [
        f"- takes {LEVELS}: broken:w{bits}a{bits}" for bits in (2, 4)
    ]
    assert "(and " in message


def test_a_refused_bit_width_is_not_tried() -> None:
    @cadyq.register_scheme("coarse")
    @dataclass(frozen=True)
    class Coarse(FixedBitScheme):
        trained = False

        def __post_init__(self) -> None:
            if self.act_bits < 4:
                raise cadyq.UserError(f"act_bits={self.act_bits} is below 4")

        def activation_quantizer(self, channels: int, counts_for_fab: bool) -> Sound:
            return Sound(self.act_bits)

    check_scheme("coarse", ["edsr"])


def test_bits_that_no_scheme_takes_are_bad_usage() -> None:
    with pytest.raises(cadyq.UserError, match="2 to 8"):
        check_scheme("pams", ["edsr"], [9])


def test_bad_usage() -> None:
    with pytest.raises(cadyq.UserError, match="unknown scheme 'pasm'"):
        check_scheme("pasm")
    with pytest.raises(cadyq.UserError, match="bicubic has no quantization points"):
        check_scheme("pams", ["bicubic"])
    with pytest.raises(cadyq.UserError, match="unknown backbone"):
        check_scheme("pams", ["ersd"])
    with pytest.raises(cadyq.UserError, match="tag"):
        check_scheme("cadyq:fab5")


def _searches(scheme: str) -> bool:
    """Whether each of its forwards is a search of hundreds."""
    return bool(SCHEMES.get(scheme).reads_hr)


def _sees_the_network(scheme: str) -> bool:
    """Whether its class does more than choose a quantizer for each point and each weight."""
    return bool({"allocate", "assign_bits", "before_forward"} & vars(SCHEMES.get(scheme)).keys())


def _backbones_of_schemes() -> Iterator[tuple[str, str]]:
    """Each scheme on EDSR and on one more backbone.

    The next backbone takes the next scheme, fixed ones before tuned ones before dynamic ones, so that each backbone
    has schemes of several kinds. What depends on the network as a whole runs on all of them, and so do minmax and
    CADyQ. A search runs on SRResNet, where it is short.
    """
    others = [backbone for backbone in backbones_to_check() if backbone != "edsr"]
    kinds = {scheme: (SCHEMES.get(scheme).dynamic, SCHEMES.get(scheme).tuned) for scheme in cadyq.list_schemes()}
    for scheme, turn in zip(sorted(kinds, key=lambda scheme: kinds[scheme]), itertools.cycle(others), strict=False):
        if _searches(scheme):
            more = ["srresnet"]
        elif _sees_the_network(scheme) or scheme in ("cadyq", "minmax"):
            more = others
        else:
            more = [turn]
        yield from ((scheme, backbone) for backbone in ["edsr", *more])


@pytest.mark.parametrize(("scheme", "backbone"), list(_backbones_of_schemes()))
def test_all_schemes_of_the_project_pass(scheme: str, backbone: str) -> None:
    """At 4 bits on each backbone; quantizers do not depend on the backbone, so EDSR alone has 2 and 8."""
    check_scheme(scheme, [backbone], bits=[2, 4, 8] if backbone == "edsr" and not _searches(scheme) else [4])


FIXED = [scheme for scheme in cadyq.list_schemes() if issubclass(SCHEMES.get(scheme), FixedBitScheme)]


@pytest.mark.parametrize(("scheme", "widths"), list(zip(FIXED, itertools.cycle([(3, 6), (5, 7)]), strict=False)))
def test_they_pass_at_other_bits(scheme: str, widths: tuple[int, int]) -> None:
    """Two of 3, 5, 6 and 7 each: every scheme at an odd width, and every width in half of the schemes."""
    for bits in widths:
        check_scheme(f"{scheme}:w{bits}a{bits}", ["edsr"])


def test_the_command_prints_a_line_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["minmax:w4a4", "--backbones", "edsr"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert all(line.startswith("pass  minmax:w4a4  edsr  ") for line in printed[:-1])
    assert printed[-1] == f"{len(printed) - 1} of {len(printed) - 1} checks passed"


def test_the_command_fails_with_1_and_bad_usage_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    register(InPlace)
    assert main(["broken:w4a4", "--backbones", "edsr"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  broken:w4a4  edsr  leaves its input alone\n      broken:w4a4 on edsr: blocks.0.input" in printed
    for words in (["pasm"], [str(tmp_path / "none.py")]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("error: ")
