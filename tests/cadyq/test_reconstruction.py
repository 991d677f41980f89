"""The engine that tunes quantizers against the FP32 network: what it changes, what it leaves, and where it stops."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import cadyq
from baselines.adaround import reconstruction
from baselines.brecq import BRECQ
from baselines.ptq4sr import output_and_features
from cadyq.models.network import SRNetwork
from cadyq.quantizers import PatchContext, RoundedWeight
from cadyq.schemes import Scheme, Stage, Step, normalized_distance
from cadyq.schemes.calibration import calibrated_on
from cadyq.testing.models import calibrated_model
from cadyq.testing.subject import small_sizes
from cadyq.training.reconstruction import calibrate, planned_steps, shares, tune
from cadyq.training.units import Passage, blocks_of, in_run_order, quantized_layers, watched
from cadyq.utils.errors import UserError


class Foreign(nn.Module):
    """A network of nobody's: a head, two blocks in a list of lists, a tail."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.tail = nn.Sequential(nn.Conv2d(8, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        up = nn.functional.interpolate(x, scale_factor=4, mode="bicubic")
        return self.tail(y + self.body(y)) * 0.05 + up  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def lr() -> Tensor:
    smooth = nn.functional.interpolate(
        torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(0)), size=(12, 12), mode="bicubic"
    )
    return smooth.clamp(0, 1) * 255


@pytest.fixture(scope="module")
def plain() -> SRNetwork:
    torch.manual_seed(1)
    return cadyq.create_model("edsr", n_feats=8, n_resblocks=2).eval()


def run(plain: SRNetwork, lr: Tensor, spec: str, *stages: Stage, seconds: float = math.inf) -> tuple[SRNetwork, list]:
    network = calibrated_on(plain, spec, lr).eval()
    reports = tune(network, plain.without_scheme().eval(), lr, stages, seconds=seconds)
    return network, reports


def bounds_stage(steps: int = 40) -> Stage:
    return Stage("bounds", {"activation": 1e-2, "weight": 1e-2}, output_and_features, steps, 8)


def error(network: SRNetwork, plain: SRNetwork, lr: Tensor) -> float:
    with torch.no_grad():
        return float((network(lr) - plain(lr)).abs().mean())


def test_tuning_brings_the_output_nearer(plain: SRNetwork, lr: Tensor) -> None:
    start = calibrated_on(plain, "ptq4sr:w4a4", lr).eval()
    tuned, (report,) = run(plain, lr, "ptq4sr:w4a4", bounds_stage())
    assert error(tuned, plain, lr) < 0.9 * error(start, plain, lr)
    assert report.first_loss is not None and report.last_loss is not None
    assert report.steps == 40 and report.last_loss < report.first_loss


def test_the_networks_own_weights_stay(plain: SRNetwork, lr: Tensor) -> None:
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    tuned, _ = run(plain, lr, "ptq4sr:w4a4", bounds_stage(3))
    for name, value in before.items():
        assert torch.equal(plain.state_dict()[name], value) and torch.equal(tuned.state_dict()[name], value)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in tuned.parameters())
    assert all(torch.isfinite(value).all() for value in tuned.state_dict().values())


def test_a_role_without_a_rate_rests(plain: SRNetwork, lr: Tensor) -> None:
    start = calibrated_on(plain, "ptq4sr:w4a4", lr).eval().state_dict()
    tuned, _ = run(plain, lr, "ptq4sr:w4a4", replace(bounds_stage(3), rates={"activation": 1e-2}))
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, start[name])}
    assert moved and all(".weight_quantizer." not in name for name in moved)


def test_nothing_to_tune_is_said(plain: SRNetwork, lr: Tensor) -> None:
    with pytest.raises(UserError, match="has no parameter to tune"):
        run(plain, lr, "minmax:w4a4", bounds_stage(3))


def test_a_loss_that_is_not_finite_ends_it(plain: SRNetwork, lr: Tensor) -> None:
    broken = replace(bounds_stage(3), loss=lambda step: step.output.mean() * math.nan)
    with pytest.raises(UserError, match="is not finite"):
        run(plain, lr, "ptq4sr:w4a4", broken)


def test_the_same_seed_gives_the_same(plain: SRNetwork, lr: Tensor) -> None:
    first, second = (run(plain, lr, "ptq4sr:w4a4", bounds_stage(4))[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shares_by_steps_and_by_time() -> None:
    assert list(shares(4, math.inf)) == [0, 0.25, 0.5, 0.75]
    assert list(shares(4, 0)) == []
    seen = []
    for done in shares(1000, 0.05):
        seen.append(done)
        time.sleep(0.01)
    assert len(seen) < 10 and seen == sorted(seen) and seen[-1] > 4 / 1000


def test_a_time_limit_is_shared(plain: SRNetwork, lr: Tensor) -> None:
    start = time.monotonic()
    _, reports = run(plain, lr, "ptq4sr:w4a4", bounds_stage(10**6), bounds_stage(10**6), seconds=2)
    assert time.monotonic() - start < 20
    assert all(report.steps > 0 for report in reports)


def test_no_part_is_run_after_the_time_limit(plain: SRNetwork, lr: Tensor) -> None:
    """A large network has some hundred parts, and the inputs of each take two forward passes of all patches."""
    network, reference = calibrated_on(plain, "ptq4sr:w4a4", lr).eval(), plain.without_scheme().eval()
    passes = []
    reference.register_forward_pre_hook(lambda *_: passes.append(1))
    tune(network, reference, lr, [replace(bounds_stage(3), over="block")], seconds=0)
    assert not passes


def test_parts_that_a_time_limit_leaves_out_are_named(
    plain: SRNetwork, lr: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    stage = replace(bounds_stage(3), over="block")
    _, reports = run(plain, lr, "ptq4sr:w4a4", stage, seconds=0)
    assert [(report.steps, report.first_loss, report.untuned) for report in reports] == [(0, None, True)] * 2
    assert "2 of 2 parts stay as calibrated (bounds blocks.0; bounds blocks.1), as the time limit" in caplog.text
    caplog.clear()
    run(plain, lr, "minmax:w4a4", stage)  # nothing to tune
    run(plain, lr, "ptq4sr:w4a4", stage)
    assert not caplog.text


def test_blocks_and_layers(plain: SRNetwork, lr: Tensor) -> None:
    network = calibrated_on(plain, "brecq:w4a4", lr)
    assert blocks_of(network) == ["blocks.0", "blocks.1"]
    assert quantized_layers(network) == [f"blocks.{i}.conv{k}" for i in (0, 1) for k in (1, 2)]
    assert planned_steps(network, [replace(bounds_stage(5), over=over) for over in ("network", "block", "layer")]) == 35


class Backwards(nn.Module):
    """Its modules are defined in another order than they run, and one block has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Conv2d(8, 12, 3, padding=1)
        self.second, self.first, self.head = (nn.Conv2d(n, 8, 3, padding=1) for n in (8, 8, 3))
        self.steps = nn.ModuleList([self.first, self.second])

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for step in self.steps:
            y = step(y).relu()
        up = nn.functional.interpolate(x, scale_factor=2, mode="bicubic")
        return nn.functional.pixel_shuffle(self.tail(y), 2) * 0.05 + up


@pytest.mark.parametrize("scheme", ["brecq", "adaround"])
def test_parts_come_in_the_order_of_their_runs_and_once(scheme: str, lr: Tensor) -> None:
    plain = cadyq.quantize(Backwards().eval(), "fp32", lr, pixel_range=1)
    seen: list[int] = []
    _, reports = calibrate(plain, f"{scheme}:w4a4", lr, steps=1, on_step=lambda name, planned: seen.append(planned))
    assert [report.name.split()[-1] for report in reports] == ["network.first", "network.second"]
    assert seen == [2, 2]


class Scaled(nn.Module):
    """A block that gets its feature map by keyword, and gives it to its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return self.conv(input=x).relu() * factor  # type: ignore[no-any-return]


class ByKeyword(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([Scaled(), Scaled()])  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for block in self.body:
            y = block(factor=2.0, x=y)
        up = nn.functional.interpolate(x, scale_factor=4, mode="bicubic")
        return self.tail(y) * 0.05 + up  # type: ignore[no-any-return]


@pytest.mark.parametrize("scheme", ["brecq", "adaround"])
def test_parts_may_be_called_by_keyword(scheme: str, lr: Tensor) -> None:
    plain = cadyq.quantize(ByKeyword().eval(), "fp32", lr, pixel_range=1)
    _, reports = calibrate(plain, f"{scheme}:w4a4", lr, steps=1)
    assert [report.steps for report in reports] == [1, 1]
    with torch.no_grad():
        passage, block = Passage(plain, "network.body.1", lr), plain.get_submodule("network.body.1")
        rest, options = passage.arguments(torch.arange(len(lr)))
        torch.testing.assert_close(block(passage.read, *rest, **options), passage.gives)


@pytest.mark.parametrize("backbone", ["edsr", "idn", "imdn", "rlfn", "srresnet"])
def test_the_parts_of_backbones_run_in_the_order_of_their_modules(backbone: str, lr: Tensor) -> None:
    network = calibrated_model(backbone, "brecq:w4a4", **small_sizes(backbone)).eval()
    for names in (blocks_of(network), quantized_layers(network)):
        assert in_run_order(network, names, lr[:1]) == names


def test_progress_is_told_against_the_planned_steps(plain: SRNetwork, lr: Tensor) -> None:
    seen: list[tuple[str, int]] = []
    _, reports = calibrate(plain, "brecq:w4a4", lr, steps=2, on_step=lambda *step: seen.append(step))
    assert [name for name, _ in seen] == [report.name for report in reports for _ in range(report.steps)]
    assert {planned for _, planned in seen} == {len(seen)}


def test_passage_is_what_the_part_reads_and_gives(plain: SRNetwork, lr: Tensor) -> None:
    passage = Passage(plain, "blocks.1", lr)
    with torch.no_grad():
        shallow = plain.head(plain.mean_shift.subtract(lr))  # type: ignore[operator, union-attr]
        read = plain.blocks[0](shallow)  # type: ignore[index, operator]
        given = plain.blocks[1](read)  # type: ignore[index, operator]
    torch.testing.assert_close(passage.read, read)
    torch.testing.assert_close(passage.gives, given)


@pytest.mark.parametrize("over", ["block", "layer"])
def test_parts_are_reconstructed_in_turn(plain: SRNetwork, lr: Tensor, over: str) -> None:
    start = calibrated_on(plain, "brecq:w3a8", lr).eval()
    stage = Stage("of", {"weight": 1e-2}, reconstruction, 60, 8, over=over)  # type: ignore[arg-type]
    tuned, reports = run(plain, lr, "brecq:w3a8", stage)
    assert [report.name for report in reports] == [
        f"of {name}" for name in (blocks_of(tuned) if over == "block" else quantized_layers(tuned))
    ]
    assert error(tuned, plain, lr) < error(start, plain, lr)
    for layer in tuned.layer_names:
        assert isinstance(layer.weight_quantizer, RoundedWeight) and layer.weight_quantizer.rounding is None
        assert len(layer.quantized_weight().unique()) <= 8


def test_a_part_is_compared_with_fp32_and_reads_what_is_quantized(plain: SRNetwork, lr: Tensor) -> None:
    steps: list[Step] = []

    def loss(step: Step) -> Tensor:
        steps.append(step)
        return reconstruction(step)

    network = calibrated_on(plain, "brecq:w4a4", lr).eval()
    stage = Stage("of", {"weight": 1e-2}, loss, 1, len(lr), over="block")
    tune(network, plain, lr, [stage])
    assert [step.module for step in steps] == [network.get_submodule("blocks.0"), network.get_submodule("blocks.1")]
    expected = Passage(plain, "blocks.1", lr).gives.flatten(1)
    rows = steps[1].target.flatten(1)
    assert all(bool((expected - row).abs().amax(1).min() == 0) for row in rows)
    assert not steps[1].target.requires_grad and steps[1].output.requires_grad


def test_dropping_everything_leaves_fp32_activations(plain: SRNetwork, lr: Tensor) -> None:
    outputs: list[Tensor] = []

    def loss(step: Step) -> Tensor:
        outputs.append(step.output.detach() - step.target)
        return reconstruction(step)

    network = calibrated_on(plain, "brecq:w8a2", lr).eval()
    for drop in (0.0, 1.0):
        stage = Stage("of", {"weight": 0.0}, loss, 1, 8, over="block", drop=drop)
        tune(copy.deepcopy(network), plain, lr, [stage])
    kept, dropped = outputs[1].abs().mean(), outputs[3].abs().mean()
    assert dropped < 0.1 * kept  # what is left comes from 8-bit weights


def test_a_network_of_somebody_else(lr: Tensor) -> None:
    torch.manual_seed(3)
    quantized = cadyq.quantize(Foreign().eval(), "minmax:w8a8", calibration=lr, scale=4, pixel_range=1)
    assert blocks_of(quantized) == ["network.body.0.0", "network.body.1"]
    plain = quantized.without_scheme().eval()
    tuned, reports = calibrate(plain, "ptq4sr:w2a2", lr, steps=60)
    start = calibrated_on(plain, "ptq4sr:w2a2", lr).eval()
    assert len(reports) == 2 and error(tuned, plain, lr) < error(start, plain, lr)
    rounded, reports = calibrate(plain, "adaround:w3a8", lr, steps=60)
    assert [report.name.split()[-1] for report in reports] == ["network.body.0.0", "network.body.1"]
    assert error(rounded, plain, lr) < error(calibrated_on(plain, "adaround:w3a8", lr).eval(), plain, lr)


def test_distance_by_hand() -> None:
    a, b = torch.tensor([[3.0, 0], [1, 1]]), torch.tensor([[0.0, 5], [2, 2]])
    assert float(normalized_distance(a, b)) == pytest.approx((2**0.5 + 0) / 2, abs=1e-5)
    assert float(normalized_distance(torch.zeros(1, 2), torch.zeros(1, 2))) == pytest.approx(0, abs=1e-5)


def test_schemes_tune_nothing_by_default(plain: SRNetwork, lr: Tensor) -> None:
    network, reports = calibrate(plain, "minmax:w4a4", lr)
    assert reports == [] and isinstance(network.scheme, Scheme) and not network.scheme.stages()
    with torch.no_grad():
        assert torch.equal(network(lr), calibrated_on(plain, "minmax:w4a4", lr).eval()(lr))
    assert BRECQ.tuned and not network.scheme.tuned


def test_outer_layers_are_not_reconstructed(plain: SRNetwork, lr: Tensor) -> None:
    alone, whole = (calibrated_on(plain, f"adaround:w4a4{more}", lr) for more in ("", ",outer_bits=8"))
    assert blocks_of(whole) == blocks_of(alone) and quantized_layers(whole) == quantized_layers(alone)


def test_watched_outputs_are_copies() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x).add_(1)  # type: ignore[no-any-return]

    network = Adds()
    with watched(network, ["part"]) as seen:  # type: ignore[arg-type]
        network(torch.zeros(2))
    assert torch.equal(seen["part"], torch.zeros(2))


@pytest.mark.parametrize("scheme", ["twodquant", "ptq4sr", "brecq", "adabm"])
def test_a_bound_that_starts_at_zero_learns(scheme: str, plain: SRNetwork, lr: Tensor) -> None:
    network = calibrated_on(plain, f"{scheme}:w4a4", lr)
    quantizer = network.points["blocks.0.middle"].quantizer  # after a ReLU
    assert quantizer is not None and float(quantizer.get_parameter("low").detach()) == 0
    assert quantizer.learning_unit("low") == quantizer.learning_unit("high") > 0


def test_brecq_keeps_zero_as_a_level(plain: SRNetwork, lr: Tensor) -> None:
    network, _ = calibrate(plain, "brecq:w4a4", lr, steps=2)
    for point in network.points.values():
        assert point.quantizer is not None
        zeros = torch.zeros(1, point.channels, 4, 4)
        assert not point.quantizer(zeros, PatchContext(lr[:1])).value.any()


def test_a_random_start_repeats(plain: SRNetwork, lr: Tensor) -> None:
    before = torch.get_rng_state()
    first, second = (cadyq.quantize(plain, "ddtb:w4a4", lr).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(before, torch.get_rng_state())
