"""Schemes that take over a trained CADyQ and choose the bits in another way: CABM and the controls."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cadyq
from baselines.assignment.scheme import assign, mean_probabilities
from baselines.assignment.search import descend, luma_error, price_for
from baselines.cabm import CABM, edge_score
from baselines.controls.gradient import Gradient, best_cuts
from baselines.controls.oracle import Oracle
from baselines.controls.random import Random, fingerprint, uniform
from baselines.controls.static import Static
from cadyq.checkpoints.io import save_model
from cadyq.commands.derive import count_forwards, main
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import RANGE_SHARE
from cadyq.quantizers.context import PatchContext, image_gradient
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import SCHEMES, transplant
from cadyq.schemes.cadyq import CADyQ, DynamicActivation
from cadyq.schemes.calibration import with_outer_bits
from cadyq.testing.models import calibrated_model
from cadyq.training.derive import derive, mean_fab
from cadyq.utils.errors import UserError
from cadyq.utils.options import parse_options

SEARCH_SPACE = (4, 6, 8)
DERIVED = ("cabm", "gradient", "oracle", "random", "static")


@pytest.fixture(scope="module")
def parent() -> SRNetwork:
    """A shipped CADyQ network: controls mean something only on trained ranges and selectors."""
    return cadyq.load_model("zoo:carn_m_x4_cadyq")


@pytest.fixture(scope="module")
def small_parent(small_cadyq: SRNetwork) -> SRNetwork:
    """Selectors moved from their start: for searches, which run hundreds of forwards."""
    network = copy.deepcopy(small_cadyq)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if ".selector." in name:
                value.normal_(0, 0.5)
    return network.eval()


@pytest.mark.parametrize("name", DERIVED)
def test_the_parents_bits_give_the_parents_output(name: str, parent: SRNetwork, pairs: tuple[Tensor, Tensor]) -> None:
    kind = {"cabm": CABM, "gradient": Gradient, "oracle": Oracle, "random": Random, "static": Static}[name]
    network = transplant(parent, kind())
    lr = pairs[0][:4]
    with torch.no_grad():
        expected, trace = trace_forward(parent, lr)
        bits = torch.stack([trace.bits[point] for point in trace.bits], 1)
        assign(network, (bits[..., None] == torch.tensor(SEARCH_SPACE)).long().argmax(2))
        actual = network.run_with_set_bits(PatchContext(lr))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", DERIVED)
def test_a_derived_network_comes_back_from_its_file(
    name: str, small_parent: SRNetwork, pairs: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    lr, hr = pairs
    network = derive(small_parent, name, lr, hr, mean_bits=5.5)
    assert network.scheme != type(network.scheme)(), "nothing was chosen"
    save_model(network, tmp_path / "derived.safetensors")
    again = cadyq.load_model(tmp_path / "derived.safetensors")
    assert again.scheme == network.scheme
    with torch.no_grad():
        (sr, trace), (sr_again, trace_again) = (trace_forward(net, lr[:2]) for net in (network, again))
    assert torch.equal(sr, sr_again)
    assert torch.equal(trace.fab(), trace_again.fab())


def test_derive_refuses_the_wrong_parent(parent: SRNetwork, pairs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="derived from a network of 'cadyq', not of 'pams'"):
        derive(cadyq.load_model("zoo:carn_m_x4_pams_w8a8"), "static", *pairs, mean_bits=6)
    with pytest.raises(UserError, match="derived from a network of 'cadyq', not of 'fp32'"):
        derive(cadyq.load_model("zoo:idn_x4_fp32"), "cadyq", *pairs, mean_bits=None, stats_stride=8)
    for stride in (0, 2.5, "8"):
        with pytest.raises(UserError, match=f"stats_stride={stride!r}: give a whole number"):
            derive(parent, "cadyq", *pairs, mean_bits=None, stats_stride=stride)
    with pytest.raises(UserError, match="train it with"):
        derive(cadyq.load_model("zoo:carn_m_x4_pams_w8a8"), "pams", *pairs, mean_bits=None)
    with pytest.raises(UserError, match="no option 'sweep'"):
        derive(parent, "oracle", *pairs, mean_bits=6, sweep=1)
    with pytest.raises(UserError, match="not derived from a trained network"):
        SCHEMES.get("pams")().fit(parent, *pairs, 6.0)
    with pytest.raises(UserError, match="NAME=VALUE"):
        parse_options(["objective"])
    assert parse_options(["objective=db", "sweeps=1"]) == {"objective": "db", "sweeps": 1}


@torch.no_grad()
@pytest.mark.parametrize("name", ["cabm", "cadyq"])
def test_outer_layers_are_quantized_after_the_choice(
    name: str, parent: SRNetwork, pairs: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    lr, hr = (side[:2] for side in pairs)
    network = derive(parent, name, lr, hr, None, outer_bits=8)
    assert torch.equal(network(lr), with_outer_bits(derive(parent, name, lr, hr, None), lr, 8)(lr))
    assert len(network.layer_names) > len(parent.layer_names)
    assert {layer.weight_bits for layer in network.layer_names} == {8}
    assert network.scheme.outer_bits == 8 and parent.scheme.outer_bits == 32  # type: ignore[union-attr, attr-defined]
    save_model(network, tmp_path / "whole.safetensors")
    assert torch.equal(cadyq.load_model(tmp_path / "whole.safetensors")(lr), network(lr))
    with pytest.raises(UserError, match="outer_bits=6: the parent has 8"):
        derive(network if name == "cadyq" else with_outer_bits(parent, lr), name, lr, hr, None, outer_bits=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer_bits": 9}, "outer_bits=9 is out of range"),
        ({"outer_bits": "8"}, "outer_bits='8' is out of range"),
        ({"search_space": 5}, "scheme 'static': .*'int' object is not iterable; give other values"),
        ({"search_space": "4-5"}, "search_space='4' is out of range"),
    ],
)
def test_options_of_another_type_are_refused(
    options: dict[str, Any], message: str, parent: SRNetwork, pairs: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(UserError, match=message):
        derive(parent, "static", *pairs, mean_bits=None, **options)


def test_a_mean_that_is_not_reached_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, pair in enumerate(list(photographs(4))[:4]):
        write_png(tmp_path / "photographs" / f"{k}.png", pair.hr[:, :128, :128])
    words = ["--parent", "zoo:carn_m_x4_cadyq", "--data-root", str(tmp_path / "photographs"), "--patches", "2"]
    words += ["--lr-patch", "24", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert main(["cadyq", "--mean-bits", "7.9", *words]) == 0  # keeps its selectors, whatever is asked for
    assert "warning: --mean-bits 7.9: cadyq takes " in capsys.readouterr().err
    model = tmp_path / "out" / "model.safetensors"
    made = model.stat().st_mtime_ns
    assert main(["cadyq", "--mean-bits", "7.9", *words]) == 0 and model.stat().st_mtime_ns == made
    assert main(["cadyq", "--mean-bits", "7.8", *words]) == 2
    assert "(mean_bits_asked: 7.9 there, 7.8 here)" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "least"), [("static", 10), ("gradient", 3)])
def test_a_search_counts_its_forwards(
    name: str, least: int, small_parent: SRNetwork, pairs: tuple[Tensor, Tensor]
) -> None:
    """For the bar of the command: the networks that a search runs are copies of the parent."""
    counted, forwards = copy.deepcopy(small_parent), itertools.count()
    expected = derive(small_parent, name, *pairs, mean_bits=None)
    count_forwards(counted, lambda: next(forwards))
    made = derive(counted, name, *pairs, mean_bits=None)
    assert next(forwards) >= least and made.scheme == expected.scheme


def test_a_wider_stride_keeps_the_selectors_and_lowers_the_cost_of_choosing(
    parent: SRNetwork, pairs: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    lr, hr = (side[:4] for side in pairs)
    same, thin = (derive(parent, "cadyq", lr, hr, mean_bits=None, stats_stride=stride) for stride in (1, 4))
    with torch.no_grad():
        (sr, trace), (sr_same, _), (_, trace_thin) = (trace_forward(net, lr) for net in (parent, same, thin))
    assert torch.equal(sr, sr_same)
    own, thinned_own = (found.bitops_split().selector[0] for found in (trace, trace_thin))
    points = sum(point.counts_for_fab for point in parent.points.values())
    gradient = 21 * 16 * 16
    for macs, pixels in ((own / 32**2, 16 * 16), (thinned_own / 32**2, 4 * 4)):
        assert macs == gradient + points * (2 * 64 * pixels + 3 * (64 + 2))
    assert abs(float(trace.fab().mean() - trace_thin.fab().mean())) < 1, "the samples tell little of the deviations"
    save_model(thin, tmp_path / "thin.safetensors")
    assert cadyq.load_model(tmp_path / "thin.safetensors").scheme == thin.scheme


@pytest.mark.parametrize("space", [(3, 4, 5), (4, 5, 6, 8), (4, 6, 8)])
def test_candidates_start_at_the_nearest_bound_of_a_cadyq_parent(
    space: tuple[int, ...], small_parent: SRNetwork
) -> None:
    network = transplant(small_parent, CADyQ(search_space=space))
    for name, point in network.points.items():
        own, other = point.quantizer, small_parent.points[name].quantizer
        if not isinstance(own, DynamicActivation):
            continue
        assert isinstance(other, DynamicActivation)
        for bits, bound in zip(space, own.bounds.tolist(), strict=True):
            k = min(range(3), key=lambda k: abs(SEARCH_SPACE[k] - bits))
            assert bound == pytest.approx(other.bounds.tolist()[k] * RANGE_SHARE[bits] / RANGE_SHARE[SEARCH_SPACE[k]])
        same = space == SEARCH_SPACE
        assert (own.selector.linear.weight.tolist() == other.selector.linear.weight.tolist()) == same


def test_selectors_of_other_inputs_are_not_taken_over(small_parent: SRNetwork) -> None:
    network = transplant(small_parent, CADyQ(selector_inputs="paper"))
    own, other = (net.points["blocks.0.input"].quantizer for net in (network, small_parent))
    assert isinstance(own, DynamicActivation) and isinstance(other, DynamicActivation)
    assert own.bounds.tolist() == pytest.approx(other.bounds.tolist())
    assert own.selector.linear.weight.eq(1).all()


@pytest.mark.parametrize("options", [{"search_space": (3, 4, 5)}, {"selector_inputs": "paper"}])
def test_selectors_are_not_derived_for_what_they_did_not_learn(
    options: dict[str, Any], small_parent: SRNetwork, pairs: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(UserError, match=r"the parent's selectors learned .*; leave the option out"):
        derive(small_parent, "cadyq", *pairs, None, **options)


@given(st.lists(st.integers(2, 8), min_size=2, max_size=4, unique=True), st.floats(0.02, 0.98))
def test_probabilities_have_the_wanted_mean(candidates: list[int], place: float) -> None:
    bits = tuple(sorted(candidates))
    mean = bits[0] + place * (bits[-1] - bits[0])
    probabilities = mean_probabilities(bits, mean)
    assert float(probabilities.sum()) == pytest.approx(1)
    assert float((probabilities * torch.tensor(bits)).sum()) == pytest.approx(mean, abs=1e-6)
    assert bool((probabilities > 0).all())


def test_probabilities_of_the_middle_mean_are_equal() -> None:
    torch.testing.assert_close(mean_probabilities((4, 6, 8), 6.0), torch.full((3,), 1 / 3, dtype=torch.float64))


def test_random_bits_follow_the_patch_not_the_batch(parent: SRNetwork, pairs: tuple[Tensor, Tensor]) -> None:
    lr = pairs[0]
    network = transplant(parent, Random(mean_bits=5.5))
    choices = Random(mean_bits=5.5).choices(network, PatchContext(lr))
    shuffled = Random(mean_bits=5.5).choices(network, PatchContext(lr.flip(0)))
    assert torch.equal(choices, shuffled.flip(0))
    assert not torch.equal(choices, Random(mean_bits=5.5, seed=1).choices(network, PatchContext(lr)))
    assert choices.shape == (12, 27)
    assert len(choices.unique(dim=0)) == 12, "patches share their bits"
    assert len(choices.unique(dim=1).T) > 20, "layers share their bits"


def test_random_bits_have_the_wanted_mean_and_are_independent() -> None:
    generator = torch.Generator().manual_seed(1)
    lr = torch.randint(0, 256, (400, 3, 4, 4), generator=generator).float()
    network = calibrated_model("edsr", "random", n_feats=4, n_resblocks=8)
    choices = Random(mean_bits=5.0).choices(network, PatchContext(lr))
    bits = torch.tensor(SEARCH_SPACE, dtype=torch.float64)[choices]
    assert float(bits.mean()) == pytest.approx(5.0, abs=0.06)
    assert float(bits.mean(0).std()) < 0.15, "some layer differs from the others"
    assert float(torch.corrcoef(bits.T).fill_diagonal_(0).abs().max()) < 0.25, "layers hang together"


def test_uniform_is_uniform() -> None:
    drawn = uniform(fingerprint(torch.arange(4000.0).view(-1, 1, 1, 1) % 256 + torch.zeros(1, 3, 1, 2)))
    assert bool(((drawn >= 0) & (drawn < 1)).all())
    spread = uniform(torch.arange(5000)).histc(10, 0, 1)
    assert float(spread.min()) > 400 and float(spread.max()) < 600


@given(st.integers(1, 7), st.integers(0, 100), st.sampled_from([(4, 8), (4, 6, 8), (4, 5, 7)]))
def test_cuts_are_the_best_of_all(n: int, seed: int, candidates: tuple[int, ...]) -> None:
    errors = torch.rand(len(candidates), n, generator=torch.Generator().manual_seed(seed))
    mean = 5.5
    tolerance = max(b - a for a, b in itertools.pairwise(candidates)) / n
    best = min(
        float(sum(errors[c, i] for i, c in enumerate(choice)))
        for choice in itertools.combinations_with_replacement(range(len(candidates)), n)
        if abs(sum(candidates[c] for c in choice) / n - mean) <= tolerance
    )
    edges = [0, *best_cuts(errors, candidates, mean), n]
    found = sum(float(errors[c, edges[c] : edges[c + 1]].sum()) for c in range(len(candidates)))
    assert found == pytest.approx(best, abs=1e-6)


def test_gradient_gives_one_choice_for_all_layers_by_gradient(parent: SRNetwork, pairs: tuple[Tensor, Tensor]) -> None:
    lr, hr = pairs
    network = derive(parent, "gradient", lr, hr, mean_bits=5.5)
    with torch.no_grad():
        _, trace = trace_forward(network, lr)
    bits = torch.stack(list(trace.bits.values()), 1)
    assert bool((bits == bits[:, :1]).all())
    ordered = bits[image_gradient(lr).mean(1).argsort(), 0]
    assert bool((ordered.diff() >= 0).all())
    assert float(trace.fab().mean()) == pytest.approx(5.5, abs=2 / 12 + 1e-6)


def test_gradient_refuses_a_wrong_number_of_thresholds() -> None:
    with pytest.raises(UserError, match="3 candidates need 2 thresholds, not 1"):
        Gradient(thresholds=(0.1,))


def test_descent_sees_what_single_changes_do_not() -> None:
    """Either of two points may be lowered for nothing, both together cost 5: only one is."""

    def cost(choices: Tensor) -> Tensor:
        low = (choices == 0).double()
        return 5 * low[:, 0] * low[:, 1] + choices.double().sum(1)

    found = descend(cost, torch.ones(1, 3, dtype=torch.int64), candidates=3, sweeps=4)
    assert found.tolist() == [[0, 1, 0]]


@given(st.integers(0, 1000))
def test_descent_never_costs_more_and_groups_are_alone(seed: int) -> None:
    table = torch.rand(5, 3, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def cost_of(rows: list[int]) -> Any:
        return lambda c: torch.stack([table[r, a, b, d] for r, (a, b, d) in zip(rows, c.tolist(), strict=True)])

    start = torch.ones(5, 3, dtype=torch.int64)
    together = descend(cost_of([0, 1, 2, 3, 4]), start, 3, sweeps=2)
    assert bool((cost_of([0, 1, 2, 3, 4])(together) <= cost_of([0, 1, 2, 3, 4])(start)).all())
    for row in range(5):
        assert torch.equal(descend(cost_of([row]), start[:1], 3, sweeps=2)[0], together[row])


def test_price_is_found_by_bisection() -> None:
    assert price_for(6.0, lambda price: 8 - 2 * price, 1e-3, 1e3, steps=30) == pytest.approx(1.0, rel=1e-3)


def test_static_is_the_same_for_every_patch_and_meets_the_mean(
    small_parent: SRNetwork, pairs: tuple[Tensor, Tensor]
) -> None:
    network = derive(small_parent, "static", *pairs, mean_bits=5.5)
    assert isinstance(network.scheme, Static)
    with torch.no_grad():
        _, trace = trace_forward(network, pairs[0])
    bits = torch.stack([trace.bits[name] for name, point in network.points.items() if point.counts_for_fab], 1)
    assert bool((bits == bits[:1]).all())
    assert float(trace.fab()[0]) == pytest.approx(5.5, abs=0.26)  # four points: the mean moves in steps of 0.5
    with pytest.raises(UserError, match="bits for 3 points, the network has 4"):
        replace(network.scheme, by_point="012").choices(network, PatchContext(pairs[0]))


@pytest.mark.parametrize("objective", ["mse", "db"])
def test_the_oracle_pays_less_than_any_uniform_choice(
    objective: str, small_parent: SRNetwork, pairs: tuple[Tensor, Tensor]
) -> None:
    context = PatchContext(*pairs)
    scheme = Oracle(objective=objective, price=0.05, sweeps=1)
    network = transplant(small_parent, scheme)
    chosen = scheme.choices(network, context)
    bits = torch.tensor(SEARCH_SPACE, dtype=torch.float64)

    def cost(choices: Tensor) -> Tensor:
        assign(network, choices)
        error = luma_error(network, context).double()
        return (error if objective == "mse" else 10 * error.log10()) + 0.05 * bits[choices].mean(1)

    middle = torch.full_like(chosen, 1)
    assert bool((cost(chosen) <= cost(middle)).all())
    assert bool((cost(chosen) < cost(middle)).any())


def test_the_oracle_is_told_hr_and_others_are_not() -> None:
    assert [name for name in cadyq.list_schemes() if SCHEMES.get(name).reads_hr] == ["oracle"]
    with pytest.raises(UserError, match="choose one of mse, db"):
        Oracle(objective="psnr")


@pytest.mark.parametrize("options", [{"price": -1.0}, {"price": math.nan}, {"sweeps": 0}, {"sweeps": 1.5}])
def test_the_oracle_refuses_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"(price|sweeps)=.*: give a (whole )?number of [01] or more"):
        Oracle(**options)


def test_edge_score_of_a_step() -> None:
    """A step of 10 gray levels: |Laplacian| is 10 in the two columns beside it, 0 elsewhere."""
    lr = torch.zeros(1, 3, 5, 8)
    lr[..., 4:] = 10
    torch.testing.assert_close(edge_score(lr), torch.tensor([10 * 2 / 8]))


def test_cabm_takes_the_selectors_majority_by_edge_score(parent: SRNetwork, pairs: tuple[Tensor, Tensor]) -> None:
    lr, hr = pairs
    network = derive(parent, "cabm", lr, hr, mean_bits=None)
    scheme = network.scheme
    assert isinstance(scheme, CABM)
    with torch.no_grad():
        _, ours = trace_forward(network, lr)
        _, theirs = trace_forward(parent, lr)
    # 12 patches in 16 rows: each row holds at most one patch, whose bits are the selectors' own
    assert {name: b.tolist() for name, b in ours.bits.items()} == {name: b.tolist() for name, b in theirs.bits.items()}
    assert mean_fab(network, lr) == pytest.approx(mean_fab(parent, lr))
    with pytest.raises(UserError, match="1 edges need 2 rows, not 1"):
        CABM(edges=(0.5,), table=("01",))
    with pytest.raises(UserError, match="bits for 2 points, the network has 27"):
        replace(scheme, edges=(), table=("01",)).choices(network, PatchContext(lr))
