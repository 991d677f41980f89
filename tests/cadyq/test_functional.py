"""Fake-quantization primitives: their grids, and their gradients against autograd through what they stand for."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cadyq.quantizers.functional import (
    fake_quantize_affine,
    fake_quantize_bounds,
    fake_quantize_offset,
    fake_quantize_symmetric,
    fake_quantize_weight,
    mixed_symmetric,
    quantize_symmetric,
    quantize_unit,
    signed_levels,
    straight_through,
)

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**31)
SPREADS = st.sampled_from([1e-3, 0.3, 1.0, 40.0, 1e4])


def _normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("bits", "levels"), [(2, 1), (3, 3), (4, 7), (6, 31), (8, 127)])
def test_signed_levels(bits: int, levels: int) -> None:
    assert signed_levels(bits) == levels


def test_quantize_symmetric_by_hand() -> None:
    x = torch.tensor([-9.0, -2.0, -1.1, -0.9, 0.0, 0.4, 1.0, 2.9, 3.0, 7.0]).view(1, 1, 1, -1)
    # bound 6, 3 bits: steps of 2, ties to even
    found = quantize_symmetric(x, torch.tensor(6.0), signed_levels(3))
    assert found.flatten().tolist() == [-6, -2, -2, 0, 0, 0, 0, 2, 4, 6]


@given(seed=SEEDS, bits=BITS, bound=st.floats(1e-3, 1e4), spread=SPREADS)
def test_symmetric_grid(seed: int, bits: int, bound: float, spread: float) -> None:
    x = _normal(seed, 2, 3, 8, 9) * spread
    before, limit, levels = x.clone(), torch.tensor(bound), signed_levels(bits)
    value = quantize_symmetric(x, limit, levels)
    assert torch.equal(x, before)
    assert len(value.unique()) <= 2 * levels + 1 < 2**bits
    assert torch.equal(quantize_symmetric(value, limit, levels), value)
    assert torch.equal(quantize_symmetric(-x, limit, levels), -value)
    error = (value - x.clamp(-limit, limit)).abs().max()
    assert float(error) <= float(limit) / levels / 2 * (1 + 1e-4)
    order = x.flatten().argsort()
    assert bool((value.flatten()[order].diff() >= 0).all())


def test_symmetric_grid_of_each_sample() -> None:
    x = _normal(0, 3, 2, 5, 5)
    bounds, levels = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 7.0, 127.0])
    value = quantize_symmetric(x, bounds.view(-1, 1, 1, 1), levels.view(-1, 1, 1, 1))
    for k in range(3):
        assert torch.equal(value[k : k + 1], quantize_symmetric(x[k : k + 1], bounds[k], int(levels[k])))


def _ste_round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def _reference(x: Tensor, bounds: Tensor, mixture: Tensor, choice: Tensor, levels: Tensor) -> Tensor:
    """CADyQ, Sec. 3.3, in parts that autograd knows: all candidates, the hard choice forward, the mixture backward."""
    candidates = torch.stack(
        [
            _ste_round(torch.minimum(torch.maximum(x, -a), a) / a * q) / q * a
            for a, q in zip(bounds, levels, strict=True)
        ],
        1,
    )
    soft = (mixture[:, :, None, None, None] * candidates).sum(1)
    hard = candidates[torch.arange(len(x)), choice]
    return hard.detach() - soft.detach() + soft


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    candidates=st.lists(BITS, min_size=1, max_size=4, unique=True).map(sorted),
    batch=st.integers(1, 4),
    spread=st.sampled_from([0.05, 1.0, 30.0]),
)
def test_hand_written_backward_is_autograds(seed: int, candidates: list[int], batch: int, spread: float) -> None:
    double, count = torch.float64, len(candidates)
    x = (_normal(seed, batch, 3, 5, 4, dtype=double) * spread).requires_grad_()
    bounds = (_normal(seed + 1, count, dtype=double).abs() + 0.2).requires_grad_()
    logits = _normal(seed + 2, batch, count, dtype=double).requires_grad_()
    levels = torch.tensor([float(signed_levels(bits)) for bits in candidates], dtype=double)
    choice = logits.detach().argmax(1)
    upstream = _normal(seed + 3, batch, 3, 5, 4, dtype=double)
    inputs = [x, bounds, logits]
    value = mixed_symmetric(x, bounds, logits.softmax(1), choice, levels)
    expected = _reference(x, bounds, logits.softmax(1), choice, levels)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(value, inputs, upstream)
    for ours, theirs in zip(found, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_mixture_gradient_with_one_numeric_difference() -> None:
    """The gradient to the mixture is exact, so it can be measured: the soft output is linear in it."""
    x, bounds = _normal(1, 2, 2, 3, 3, dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
    levels = torch.tensor([1.0, 7.0], dtype=torch.float64)
    mixture = torch.full((2, 2), 0.5, dtype=torch.float64, requires_grad=True)
    mixed_symmetric(x, bounds, mixture, torch.zeros(2, dtype=torch.long), levels).sum().backward()
    for k in range(2):
        expected = quantize_symmetric(x, bounds[k], levels[k]).sum((1, 2, 3))
        torch.testing.assert_close(mixture.grad[:, k], expected)


def test_no_second_derivative_is_offered() -> None:
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    value = fake_quantize_symmetric(x * 1, torch.tensor([0.7], requires_grad=True), 4)
    (first,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice|does not require grad"):
        first.sum().backward()


@given(seed=SEEDS, bits=BITS, spread=SPREADS)
def test_fixed_bit_quantization_is_a_mixture_of_one(seed: int, bits: int, spread: float) -> None:
    x = (_normal(seed, 2, 2, 4, 4) * spread).requires_grad_()
    bound = torch.tensor([spread], requires_grad=True)
    value = fake_quantize_symmetric(x, bound, bits)
    assert torch.equal(value.detach(), quantize_symmetric(x.detach(), bound.detach(), signed_levels(bits)))
    value.sum().backward()
    assert torch.equal(x.grad, (x.abs() <= bound).float())


def test_bound_gradient_by_hand() -> None:
    # bound 1, 3 bits (q = 3): 5 is clipped and pulls by +1, -5 by -1, 0.5 rounds to 2/3 and pulls by 2/3 - 1/2
    for value, slope in ((5.0, 1.0), (-5.0, -1.0), (0.5, 2 / 3 - 1 / 2), (0.0, 0.0)):
        bound = torch.tensor([1.0], requires_grad=True)
        fake_quantize_symmetric(torch.full((1, 1, 1, 1), value), bound, 3).sum().backward()
        assert float(bound.grad) == pytest.approx(slope, abs=1e-6)


def test_weight_grid_by_hand() -> None:
    weight = torch.tensor([-1.0, -0.4, 0.1, 0.2, 0.5, 0.9])
    assert fake_quantize_weight(weight, 2).tolist() == pytest.approx([-1, 0, 0, 0, 0, 1], abs=1e-6)
    third = [-1, -1 / 3, 0, 1 / 3, 2 / 3, 1]
    assert fake_quantize_weight(weight, 3).tolist() == pytest.approx(third, abs=1e-6)


@given(seed=SEEDS, bits=BITS, spread=SPREADS)
def test_weight_grid(seed: int, bits: int, spread: float) -> None:
    weight = (_normal(seed, 6, 4, 3, 3) * spread).requires_grad_()
    value = fake_quantize_weight(weight, bits)
    assert len(value.unique()) <= 2**bits - 1
    largest = weight.detach().abs().max()
    assert float((value - weight).detach().abs().max()) <= float(largest) / signed_levels(bits) / 2 * (1 + 1e-4)
    upstream = _normal(seed + 1, 6, 4, 3, 3)
    value.backward(upstream)
    assert torch.equal(weight.grad, upstream)


def test_a_weight_of_zeros_stays_zero() -> None:
    assert not fake_quantize_weight(torch.zeros(2, 2, 3, 3), 4).any()


@given(
    seed=SEEDS,
    bits=BITS,
    low=st.floats(-1e3, 0),
    high=st.floats(0, 1e3),
)
def test_affine_grid(seed: int, bits: int, low: float, high: float) -> None:
    x = _normal(seed, 1, 2, 8, 8) * 300
    x[0, 0, 0, :3] = torch.tensor([0.0, low, high])
    ends = torch.tensor(low), torch.tensor(high)
    value = fake_quantize_affine(x, *ends, bits)
    assert value[0, 0, 0, 0] == 0
    assert len(value.unique()) <= 2**bits
    torch.testing.assert_close(fake_quantize_affine(value, *ends, bits), value, rtol=1e-6, atol=0.0)
    step = (high - low) / (2**bits - 1)
    # the grid is shifted by up to half a step so that zero is on it
    error = (value - x.clamp(*ends)).abs().max()
    assert float(error) <= step * 1.001 + 1e-9


def test_affine_by_hand() -> None:
    x = torch.tensor([-5.0, -1.0, -0.6, -0.4, 0.0, 0.7, 1.4, 1.6, 2.0, 9.0])
    # [-1, 2] at 2 bits: steps of 1, zero is code 1
    value = fake_quantize_affine(x, torch.tensor(-1.0), torch.tensor(2.0), 2)
    assert value.tolist() == [-1, -1, -1, 0, 0, 1, 1, 2, 2, 2]


def test_affine_gradient_stops_outside_the_range() -> None:
    x = torch.tensor([-5.0, -0.6, 0.7, 9.0], requires_grad=True)
    fake_quantize_affine(x, torch.tensor(-1.0), torch.tensor(2.0), 4).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_affine_of_an_empty_range_gives_zero() -> None:
    value = fake_quantize_affine(torch.tensor([-1.0, 0.0, 3.0]), torch.tensor(0.0), torch.tensor(0.0), 8)
    assert value.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


@given(seed=SEEDS, bits=st.integers(1, 8))
def test_unit_grid(seed: int, bits: int) -> None:
    x = torch.rand(200, generator=torch.Generator().manual_seed(seed))
    value = quantize_unit(x, bits)
    assert len(value.unique()) <= 2**bits
    assert torch.equal(quantize_unit(value, bits), value)
    assert float(value.min()) >= 0 and float(value.max()) <= 1
    assert float((value - x).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6


def test_unit_by_hand() -> None:
    x = torch.tensor([0.0, 0.16, 0.17, 0.49, 0.51, 0.84, 1.0])
    thirds = [0, 0, 1 / 3, 1 / 3, 2 / 3, 1, 1]
    assert quantize_unit(x, 2).tolist() == pytest.approx(thirds)


@given(seed=SEEDS)
def test_straight_through(seed: int) -> None:
    x, value = _normal(seed, 3, 4).requires_grad_(), _normal(seed + 1, 3, 4).requires_grad_()
    out = straight_through(x * 2, value)
    assert torch.equal(out, value)
    upstream = _normal(seed + 2, 3, 4)
    out.backward(upstream)
    assert torch.equal(x.grad, 2 * upstream)
    assert value.grad is None


def test_straight_through_is_exact_where_adding_the_difference_is_not() -> None:
    x, value = torch.tensor([1e8]), torch.tensor([math.pi])
    assert float(x + (value - x)) != float(value)
    assert torch.equal(straight_through(x, value), value)


@pytest.mark.parametrize("quantize", [fake_quantize_affine, fake_quantize_bounds, fake_quantize_offset])
@given(
    seed=SEEDS, bits=BITS, spread=SPREADS, low=st.floats(-2, 0), high=st.floats(0.01, 2), channels_last=st.booleans()
)
def test_values_are_the_same_without_a_gradient(
    quantize: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    seed: int,
    bits: int,
    spread: float,
    low: float,
    high: float,
    channels_last: bool,
) -> None:
    """Without a gradient another, faster formula runs. Bounds lie inside and outside of the values."""
    x = _normal(seed, 2, 3, 8, 9) * spread
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    before, bounds = x.clone(), (torch.tensor(low * spread), torch.tensor(high * spread))
    with torch.no_grad():
        found = quantize(x, *bounds, bits)
    assert torch.equal(found, quantize(x, *bounds, bits))
    assert torch.equal(x, before)
    assert found.stride() == x.stride()


@given(seed=SEEDS, spread=SPREADS)
def test_values_are_the_same_without_a_gradient_for_bounds_of_each_sample(seed: int, spread: float) -> None:
    x, bits = _normal(seed, 3, 2, 5, 5) * spread, torch.tensor([2, 4, 8]).view(-1, 1, 1, 1)
    low, high = -_normal(seed + 1, 3, 1, 1, 1).abs() * spread, _normal(seed + 2, 3, 1, 1, 1).abs() * spread
    with torch.no_grad():
        found = fake_quantize_bounds(x, low, high, bits)
    assert torch.equal(found, fake_quantize_bounds(x, low, high, bits))
