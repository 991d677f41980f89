"""Bits and ranges that follow content: the error model, allocations at a mean, ranges, and the derived scheme."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cadyq
from baselines.assignment.error_model import ErrorModel, measure_changes
from baselines.assignment.scheme import assign
from baselines.assignment.search import search_patches
from baselines.cabm import edge_score
from baselines.content.allocation import _best_lengths, by_patch, fit_profiles
from baselines.content.features import content_features
from baselines.content.profiles import Profiles, fit_score, patch_weights
from baselines.content.ranges import FittedRange, SampleRange, calibrate_ranges
from cadyq.checkpoints.io import save_model
from cadyq.models.network import SRNetwork
from cadyq.models.restartable import TracedForward
from cadyq.quantizers.context import PatchContext, image_gradient, luma
from cadyq.quantizers.ranges import CandidateActivation
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import transplant
from cadyq.training.derive import derive
from cadyq.training.start import quantized_from, require_trainable
from cadyq.utils.errors import UserError

BITS = torch.tensor([3.0, 5.0, 8.0], dtype=torch.float64)


def random_model(patches: int = 9, points: int = 4) -> tuple[ErrorModel, Tensor, Tensor]:
    """A model, and the vectors that it is made of: r (N, X) and d (N, P, K, X)."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.tensor([4.0, 1.0, 0.0]).view(1, 1, 3, 1)
    d = torch.randn(patches, points, 3, 30, generator=generator, dtype=torch.float64) * strength
    r = 5 * torch.randn(patches, 30, generator=generator, dtype=torch.float64)
    linear = torch.einsum("nx,npkx->npk", r, d) / 30
    return ErrorModel(r.square().mean(1), linear, torch.einsum("npkx,nqlx->npkql", d, d) / 30), r, d


def test_the_model_has_the_error_of_a_sum_of_changes() -> None:
    model, r, d = random_model()
    choices = torch.randint(0, 3, (9, 4), generator=torch.Generator().manual_seed(1))
    changes = d[torch.arange(9)[:, None], torch.arange(4), choices].sum(1)
    torch.testing.assert_close(model.errors(choices), (r + changes).square().mean(1))
    torch.testing.assert_close(model.changes_only().errors(choices) - model.base, changes.square().mean(1))
    single = d[torch.arange(9)[:, None], torch.arange(4), choices].square().mean(2).sum(1)
    torch.testing.assert_close(model.sizes_only().errors(choices) - model.base, single)


def test_weights_pool_patches_into_one() -> None:
    model, _, _ = random_model()
    weights, row = torch.arange(1.0, 10.0), torch.tensor([[0, 2, 1, 0]])
    expected = (model.errors(row) * weights).sum() / weights.sum()
    torch.testing.assert_close(model.pooled(weights).errors(row)[0], expected)


def test_descent_ends_where_no_single_point_gains() -> None:
    model, _, _ = random_model()
    price = 0.3 * BITS.expand(4, -1)
    found = model.descend(torch.ones(1, 4, dtype=torch.long), price, lambda error: error)

    def cost(choices: Tensor) -> Tensor:
        return model.errors(choices) + price[torch.arange(4), choices].sum(1)

    for point, candidate in itertools.product(range(4), range(3)):
        other = found.clone()
        other[:, point] = candidate
        assert bool((cost(found) <= cost(other) + 1e-9).all())


@pytest.mark.parametrize("mean", [4.0, 5.5, 7.0])
def test_allocations_meet_the_mean_and_know_what_pays(mean: float) -> None:
    model, _, _ = random_model(patches=40)
    weights = torch.ones(40, dtype=torch.float64)
    choices = by_patch(model, weights, BITS, mean)
    assert float(BITS[choices].mean()) == pytest.approx(mean, abs=0.1)
    generator = torch.Generator().manual_seed(3)
    drawn = choices.flatten()[torch.randperm(choices.numel(), generator=generator)].view_as(choices)
    assert model.errors(choices).mean() < model.errors(drawn).mean()
    score = torch.arange(40.0)
    fitted = fit_profiles(model, weights, score, score, BITS, mean, 4)
    assert fitted.mean_bits(score, BITS) == pytest.approx(mean, abs=0.3)
    assert len(fitted.edges) == len(fitted.table) - 1 and bool((fitted.edges.diff() > 0).all())


def test_flat_patches_of_an_image_are_cheap() -> None:
    """Their change is small beside the error of the image, though large beside their own."""
    model, _, _ = random_model(patches=40)
    size = torch.where(torch.arange(40) < 20, 0.03, 1.0).double()
    gram, linear = model.gram * size[:, None, None, None, None] ** 2, model.linear * size[:, None, None] ** 2.2
    model = ErrorModel(model.base * size**2.4, linear, gram)  # the errors differ more than the changes
    of_image = torch.full((40,), 1 / float(model.base.mean()), dtype=torch.float64)
    chosen = BITS[by_patch(model.changes_only(), of_image, BITS, 5.0)].mean(1)
    assert float(chosen[:20].mean()) < 4 < 6 < float(chosen[20:].mean())

    def bits_of_profiles(exponent: float) -> list[float]:
        fitted = fit_profiles(model, patch_weights(model.base, exponent), size, size, BITS, 4.0, 2)
        row = torch.bucketize(torch.tensor([0.03, 1.0], dtype=torch.float64), fitted.edges, right=True)
        return BITS[fitted.table].mean(1)[row].tolist()

    flat, textured = bits_of_profiles(0.5)
    assert flat <= 3.5 and textured >= 4.5
    flat, textured = bits_of_profiles(1.0)
    assert flat >= 4.5 and textured <= 3.5, "a patch is an image of its own"


def test_cuts_are_the_best_of_all() -> None:
    for seed in range(5):
        costs = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

        def total(a: int, b: int, costs: Tensor = costs) -> float:
            return float(costs[0, :a].sum() + costs[1, a:b].sum() + costs[2, b:].sum())

        first, second, _ = _best_lengths(costs)
        least = min(total(a, b) for a in range(7) for b in range(a, 7))
        assert total(first, first + second) == pytest.approx(least)


@torch.no_grad()
def test_measured_changes_predict_the_network(small_cadyq: SRNetwork, pairs: tuple[Tensor, Tensor]) -> None:
    """Exactly where one point differs from the highest candidates, and nearly where all do."""
    network = transplant(small_cadyq, Profiles(search_space=(4, 6, 8)))
    calibrate_ranges(network, pairs[0])
    context = search_patches(*pairs)
    lr, hr = context.lr, context.hr
    assert hr is not None
    whole = torch.ones(1, *hr.shape[-2:])
    ((model,),) = measure_changes(network, lr, [hr], whole, batch=5)

    def true_error(choices: Tensor) -> Tensor:
        assign(network, choices)
        return luma(network.run_with_set_bits(PatchContext(lr)) - hr).square().mean((1, 2, 3))

    for row in ([2, 2, 2, 2], [0, 2, 2, 2], [2, 2, 1, 2]):
        torch.testing.assert_close(
            model.errors(torch.tensor([row])), true_error(torch.tensor([row])), rtol=1e-3, atol=0
        )
    lowest = torch.zeros(1, 4, dtype=torch.long)
    changed = true_error(lowest) - model.base
    torch.testing.assert_close((model.errors(lowest) - model.base).mean(), changed.mean(), rtol=0.3, atol=0)


def test_a_sample_range_moves_with_its_sample(pairs: tuple[Tensor, Tensor]) -> None:
    x = pairs[0] - 128
    quantizer = SampleRange((3, 5, 8), channels=3)
    quantizer.highs.fill_(0.7)
    choice = torch.full((len(x),), 1)
    value = quantizer.quantize(x, choice)
    torch.testing.assert_close(quantizer.quantize(3 * x, choice), 3 * value)
    torch.testing.assert_close(quantizer.quantize(x[:1], choice[:1]), value[:1])
    assert quantizer.overhead_macs(16, 16) == 3 * 3 * 4 * 4
    fixed = FittedRange((3, 5, 8), channels=3)
    assert fixed.overhead_macs(16, 16) == 0
    assert float(fixed.quantize(100 * x, choice).abs().max()) <= fixed.bounds[-1].item() * 1.1


def test_fitted_ranges_leave_less_error_than_the_whole_range(
    small_cadyq: SRNetwork, pairs: tuple[Tensor, Tensor]
) -> None:
    network = transplant(small_cadyq, Profiles(ranges="fitted"))
    calibrate_ranges(network, pairs[0])
    plain = network.without_scheme().eval()
    maps = {stop.point.name: stop.x for stop in TracedForward(plain).stops(pairs[0])}
    fitted = {n: p.quantizer for n, p in network.points.items() if isinstance(p.quantizer, FittedRange)}
    assert len(fitted) == 4
    for name, quantizer in fitted.items():
        x, lows, highs = maps[name], quantizer.lows.clone(), quantizer.highs.clone()
        assert bool(((highs - lows).diff() >= 0).all()), "more bits pay for a wider range"
        assert bool((lows <= 0).all() and (highs > 0).all())
        choices = [torch.full((len(x),), k) for k in range(len(quantizer.candidates))]
        left = [float((quantizer.quantize(x, choice) - x).square().mean()) for choice in choices]
        unit = quantizer.scale(x)
        quantizer.lows.fill_(min(float(x.min() / unit), 0.0))
        quantizer.highs.fill_(float(x.max() / unit))
        whole = [float((quantizer.quantize(x, choice) - x).square().mean()) for choice in choices]
        assert left[0] < 0.9 * whole[0], name
        assert all(own <= other * 1.01 for own, other in zip(left, whole, strict=True)), name


def test_features_are_those_of_the_other_schemes(pairs: tuple[Tensor, Tensor]) -> None:
    lr = pairs[0]
    found = content_features(lr).exp()
    torch.testing.assert_close(found[:, 0], edge_score(lr), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[:, 1], 255 * image_gradient(lr).mean(1), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[:, 2], luma(lr).flatten(1).std(1, correction=0), rtol=1e-4, atol=0)
    assert bool(content_features(torch.full((1, 3, 8, 8), 90.0)).isfinite().all())


def test_the_score_finds_the_feature_that_predicts_the_loss() -> None:
    """Changes grow with the second feature; the others are noise."""
    model, _, _ = random_model(patches=60)
    features = torch.randn(60, 3, generator=torch.Generator().manual_seed(4))
    strength = (2 * features[:, 1]).exp().double()
    grown = ErrorModel(model.base, model.linear, model.gram * strength[:, None, None, None, None])
    score = fit_score(grown, torch.ones(60, dtype=torch.float64), features, BITS, 5.0)
    assert float(score[1]) == pytest.approx(2, abs=0.4) and float(score[[0, 2]].abs().max()) < 0.4


@pytest.mark.parametrize("ranges", ["fitted", "sample"])
def test_profiles_come_back_from_their_file(
    ranges: str, small_pams: SRNetwork, pairs: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    network = derive(small_pams, "profiles", *pairs, mean_bits=5.0, ranges=ranges)
    assert isinstance(network.scheme, Profiles) and network.scheme.table
    save_model(network, tmp_path / "profiles.safetensors")
    again = cadyq.load_model(tmp_path / "profiles.safetensors")
    assert again.scheme == network.scheme
    with torch.no_grad():
        (sr, trace), (sr_again, trace_again) = (trace_forward(net, pairs[0]) for net in (network, again))
    assert torch.equal(sr, sr_again) and torch.equal(trace.fab(), trace_again.fab())
    assert float(trace.fab().mean()) == pytest.approx(5.0, abs=0.5)
    choosing = trace.bitops_split().selector
    assert bool((choosing > 0).all()) if ranges == "sample" else True


def test_training_keeps_what_was_fitted(small_pams: SRNetwork, pairs: tuple[Tensor, Tensor]) -> None:
    fitted = derive(small_pams, "profiles", *pairs, mean_bits=5.0, profiles=2)
    start = quantized_from(fitted, small_pams, "profiles", pairs[0])
    assert start.scheme == fitted.scheme
    for name, tensor in fitted.state_dict().items():
        assert torch.equal(tensor, start.state_dict()[name]), name
    with pytest.raises(UserError, match="was derived with profiles=2; leave the option out, or derive"):
        quantized_from(fitted, small_pams, "profiles,profiles=3", pairs[0])


def test_training_needs_fitted_bits(small_pams: SRNetwork, pairs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="chooses its bits on photographs before it is trained: run python -m"):
        require_trainable(small_pams, "profiles")
    require_trainable(small_pams, "cadyq")
    require_trainable(derive(small_pams, "profiles", *pairs, mean_bits=5.0, profiles=1), "profiles")


@pytest.mark.parametrize("name", ["adaround", "brecq", "ilp", "ilp_brecq", "ptq4sr", "twodquant"])
def test_calibrated_schemes_are_not_trained(name: str, small_pams: SRNetwork) -> None:
    with pytest.raises(UserError, match=f"'{name}:w4a4' is calibrated, not trained, .*run python -m cadyq.calibrate"):
        require_trainable(small_pams, f"{name}:w4a4")


def test_candidates_that_the_parent_lacks_start_at_its_nearest(small_cadyq: SRNetwork) -> None:
    parent = copy.deepcopy(small_cadyq)
    for point in parent.points.values():
        if isinstance(point.quantizer, CandidateActivation):  # so that each candidate tells where it comes from
            point.quantizer.bounds.data.mul_(torch.tensor([1.0, 2.0, 4.0]))
    network = transplant(parent, Profiles(search_space=(3, 4, 8)))
    pairs = [(point.quantizer, parent.points[name].quantizer) for name, point in network.points.items()]
    chosen = [(own, other) for own, other in pairs if isinstance(own, FittedRange)]
    assert len(chosen) == 4
    for own, other in chosen:
        assert isinstance(other, CandidateActivation)
        torch.testing.assert_close(own.bounds[1:], other.bounds[[0, 2]])
        torch.testing.assert_close(own.bounds[0], other.bounds[0] * 0.4 / 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": "wide"}, "ranges='wide' is unknown: choose one of fitted, sample"),
        ({"profiles": 0}, "profiles=0: give a whole number"),
        ({"exponent": 1.5}, "exponent=1.5 is out of range; give a number from 0 to 1"),
        ({"edges": (1.0,), "table": ("00",)}, "1 edges need 2 rows, not 1"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Profiles(**options)  # type: ignore[arg-type]
