"""Bits by layer: the program against every assignment, its budget, and the joint refinement."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import cadyq
from baselines.assignment.program import (
    CANDIDATES,
    FP32,
    Options,
    OutputErrors,
    equal_bits,
    groups_of,
    refine,
    separate_bits,
    solve,
)
from baselines.ilp import ILP, digits_of
from baselines.ilp_brecq import ILPBRECQ
from cadyq.models.network import SRNetwork
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import with_scheme
from cadyq.schemes.calibration import calibrated_on
from cadyq.training.reconstruction import calibrate
from cadyq.utils.errors import UserError

POINTS = 4


SIZES = {"edsr": {"n_feats": 8, "n_resblocks": 1}, "carn_m": {"n_feats": 8, "groups": 2}}  # carn_m: shared layers


@pytest.fixture(scope="module", params=SIZES)
def plain(request: pytest.FixtureRequest) -> SRNetwork:
    torch.manual_seed(2)
    return cadyq.create_model(request.param, **SIZES[request.param]).eval()


@pytest.fixture(scope="module")
def lr() -> torch.Tensor:
    return torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 255


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 1.0])
def test_the_program_is_solved(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    sensitivity = np.sort(generator.random((POINTS, 3)), 1)[:, ::-1].copy()
    costs = np.outer(generator.random(POINTS) + 0.1, [4.0, 16, 64])
    budget = float(costs[:, 0].sum() + share * (costs[:, -1] - costs[:, 0]).sum())
    points = np.arange(POINTS)
    found = solve(sensitivity, costs, budget)
    assert costs[points, found].sum() <= budget * (1 + 1e-6)
    affordable = [
        sensitivity[points, list(choice)].sum()
        for choice in itertools.product(range(3), repeat=POINTS)
        if costs[points, list(choice)].sum() <= budget
    ]
    assert sensitivity[points, found].sum() == pytest.approx(min(affordable), abs=1e-6)


def test_the_program_by_hand() -> None:
    # both cost alike; only the first gains from more bits, and there is money for one
    assert solve(np.array([[9.0, 1], [2, 1]]), np.array([[1.0, 4], [1, 4]]), 5).tolist() == [1, 0]


def test_a_budget_below_the_lowest_bits() -> None:
    with pytest.raises(UserError, match="allow more bits"):
        solve(np.ones((2, 2)), np.array([[2.0, 4], [2, 4]]), 3)


@pytest.fixture(scope="module")
def errors(plain: SRNetwork, lr: torch.Tensor) -> OutputErrors:
    return OutputErrors(plain, lr)


@pytest.fixture(scope="module", params=[equal_bits, separate_bits])
def options(request: pytest.FixtureRequest, errors: OutputErrors) -> Options:
    found: Options = request.param(errors)
    return found


def test_error_grows_as_bits_fall(errors: OutputErrors) -> None:
    omega = equal_bits(errors).omega
    assert omega.shape == (len(errors.groups), len(CANDIDATES)) and bool((omega[:, 0] > omega[:, -1]).all())
    assert errors.of([FP32] * len(errors.groups)) == 0


def test_costs_are_those_of_the_trace(plain: SRNetwork, errors: OutputErrors, options: Options) -> None:
    for k in range(options.costs.shape[1]):
        pairs = [own[k] for own in options.bits]
        weights, activations = (digits_of(bits) for bits in zip(*pairs, strict=True))
        network = with_scheme(plain, ILP(by_layer=activations, weights_by_layer=weights)).eval()
        for point in network.points.values():
            if point.quantizer is not None:
                point.quantizer.calibrated = True
        _, trace = trace_forward(network, errors.lr[:1])
        assert options.costs[:, k].sum() == pytest.approx(float(trace.bitops_split().quantized))


def test_the_refinement_only_improves(errors: OutputErrors, options: Options) -> None:
    budget = float(errors.macs.sum()) * 16
    first = solve(options.omega, options.costs, budget)
    best = refine(errors, first, options, budget)
    points = np.arange(len(first))
    assert options.costs[points, best].sum() <= budget * (1 + 1e-6)
    assert errors.of(options.chosen(best)) <= errors.of(options.chosen(first))


def test_the_refinement_measures_no_choice_twice(errors: OutputErrors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where groups have fewer pairs than others, their last one is repeated."""
    options = separate_bits(errors)
    fewer = Options([own[:2] + own[1:2] for own in options.bits], options.omega[:, [0, 1, 1]], options.costs[:, :3])
    choice = np.ones(len(errors.groups), dtype=np.int64)
    measured: list[object] = []
    monkeypatch.setattr(errors, "of", lambda bits: float(len(measured.append(bits) or measured)))
    refine(errors, choice, fewer, budget=float("inf"))
    assert len(measured) == 1, "all groups are at their highest bits"


def test_separate_bits_by_hand() -> None:
    """Two groups of 10 and 1 MACs. An error is 100 for weights and 1 for activations, over their levels."""

    class Errors:
        groups = ("a", "b")
        macs = np.array([10.0, 1.0])

        def alone(self, candidates: list[tuple[int | None, int | None]]) -> np.ndarray:
            one = [(0 if w is None else 100 / 2**w) + (0 if a is None else 1 / 2**a) for w, a in candidates]
            return np.array([one, one])

    found = separate_bits(Errors())  # type: ignore[arg-type]
    assert found.bits[0] == found.bits[1]
    assert found.bits[0][0] == (2, 2) and found.bits[0][-1] == (8, 8)
    assert all(w >= a for w, a in found.bits[0]), "bits go where the error is"
    assert found.omega[0, 0] == 25 + 0.25 and found.costs[:, 0].tolist() == [40, 4]
    assert bool((np.diff(found.omega) < 0).all() and (np.diff(found.costs) >= 0).all())


def test_separate_bits_lose_less(plain: SRNetwork, lr: torch.Tensor) -> None:
    """At the same BitOPs: every choice of equal bits is also one of separate bits."""
    losses = []
    for spec in ("ilp:w3a3", "ilp:w3a3,separate=true"):
        network, _ = calibrate(plain, spec, lr)
        with torch.no_grad():
            losses.append(float((network(lr) - plain(lr)).square().mean()))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("separate", [False, True])
def test_bits_are_used_and_come_back(plain: SRNetwork, lr: torch.Tensor, tmp_path: Path, separate: bool) -> None:
    network, reports = calibrate(plain, f"ilp:w4a4,separate={str(separate).lower()}", lr)
    assert reports == [] and isinstance(network.scheme, ILP)
    digits = [int(digit) for digit in network.scheme.by_layer]
    of_weights = [int(digit) for digit in network.scheme.weights_by_layer or network.scheme.by_layer]
    assert (of_weights != digits) == separate
    expected, trace = trace_forward(network, lr)
    used = {name: int(bits[0]) for name, bits in trace.bits.items()}
    for group, digit, of_weight in zip(groups_of(network), digits, of_weights, strict=True):
        assert [used.pop(name) for name in group] == [digit] * len(group)
        layers = [layer for name in group for layer in network.points[name].layers]
        assert {layer.weight_quantizer.bits for layer in layers if layer.weight_quantizer} == {of_weight}
    assert set(used.values()) <= {4}, "points that no layer reads keep the bits of the scheme"
    budget = calibrated_on(plain, "mse:w4a4", lr).eval()
    spent, allowed = (float(t.bitops_split().quantized.sum()) for t in (trace, trace_forward(budget, lr)[1]))
    assert spent <= allowed * (1 + 1e-6)
    assert [len(part) for part in network.scheme.program.split("-")] == [len(digits)] * (1 + separate)
    cadyq.save_model(network, tmp_path / "n.safetensors", packed=True)
    assert torch.equal(cadyq.load_model(tmp_path / "n.safetensors")(lr), expected)


def test_digits_of_another_network_are_refused(plain: SRNetwork) -> None:
    count = len(groups_of(with_scheme(plain, ILP())))
    with pytest.raises(UserError, match=rf"by_layer has 20 digits for {count} points; calibrate it anew"):
        with_scheme(plain, ILP(by_layer="4" * 20))
    with pytest.raises(UserError, match=f"weights_by_layer has 20 digits for {count} points"):
        with_scheme(plain, ILP(by_layer="4" * count, weights_by_layer="4" * 20))


@pytest.mark.parametrize("channelwise", [False, True])
def test_rounding_and_bounds_are_learned_at_the_chosen_bits(
    plain: SRNetwork, lr: torch.Tensor, tmp_path: Path, channelwise: bool
) -> None:
    scheme = f"ilp_brecq:w3a3,channelwise={str(channelwise).lower()}"
    only_bits, _ = calibrate(plain, "ilp:w3a3", lr)
    start, _ = calibrate(plain, scheme, lr, steps=1)
    network, reports = calibrate(plain, scheme, lr, steps=10)
    assert isinstance(network.scheme, ILPBRECQ) and isinstance(only_bits.scheme, ILP)
    assert network.scheme.by_layer == only_bits.scheme.by_layer
    assert reports and all(report.steps == 10 for report in reports if report.steps)
    with torch.no_grad():
        error, error_at_start = (float((n(lr) - plain(lr)).square().mean()) for n in (network, start))
    assert error < error_at_start
    for group, digit in zip(groups_of(network), network.scheme.by_layer, strict=True):
        for layer in (layer for name in group for layer in network.points[name].layers):
            assert layer.weight_quantizer is not None and layer.weight_quantizer.bits == int(digit)
            weight = layer.quantized_weight()
            assert all(len(part.unique()) <= 2 ** int(digit) for part in (weight if channelwise else [weight]))
            assert weight[0].unique().numel() > 1
    expected, trace = trace_forward(network, lr)
    assert {int(bits[0]) for bits in trace.bits.values()} >= {int(digit) for digit in network.scheme.by_layer}
    cadyq.save_model(network, tmp_path / "n.safetensors", packed=True)
    assert torch.equal(cadyq.load_model(tmp_path / "n.safetensors")(lr), expected)
