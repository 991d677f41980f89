"""DAQ against its equations, written out anew, and its steps against the error on a standard normal."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.daq import STEP, DAQActivation, DAQWeight
from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.context import PatchContext

Seen = Callable[[Tensor], PointStatistics]
BITS = range(2, 9)


def _error(bits: int, step: float) -> float:
    """Mean squared error of the mid-rise quantizer on a standard normal, by summing over a fine grid."""
    z = torch.linspace(-10, 10, 400_001, dtype=torch.float64)
    density = (-z.square() / 2).exp()
    end = (2 ** (bits - 1) - 0.5) * step
    on_grid = ((z / step).floor() + 0.5).mul(step).clamp(-end, end)
    return float((density * (on_grid - z).square()).sum() / density.sum())


@pytest.mark.parametrize("bits", STEP)
def test_steps_are_the_best_for_a_normal(bits: int) -> None:
    best = _error(bits, STEP[bits])
    assert all(_error(bits, STEP[bits] * factor) > best for factor in (0.98, 1.02))


def test_signed_by_hand(no_content: PatchContext) -> None:
    # mean 1, deviation sqrt(2.5), so s d = 2.523: levels 1 +- 1.262 and 1 +- 3.785
    x = torch.tensor([-1.0, 3.0, 0.0, 2.0]).double().view(1, 1, 2, 2)
    half = 1.5958 * math.sqrt(2.5) / 2
    value = DAQActivation(2, 1)(x, no_content).value.flatten().tolist()
    assert value == pytest.approx([1 - half, 1 + half, 1 - half, 1 + half])


def test_unsigned_by_hand(no_content: PatchContext) -> None:
    # mean 1, deviation sqrt(3): m - 3/2 s d is below 0, so levels are 0, 1, 2, 3 times s d
    quantizer = DAQActivation(2, 1)
    quantizer.signed.fill_(False)
    x = torch.tensor([0.0, 0.0, 0.0, 4.0]).double().view(1, 1, 2, 2)
    step = 1.5958 * math.sqrt(3)
    assert quantizer(x, no_content).value.flatten().tolist() == pytest.approx([0, 0, 0, step])
    # far from zero the interval stays around the mean
    x = x / 100 + 5
    value = quantizer(x, no_content).value.flatten()
    torch.testing.assert_close(value, _signed(x, 2).flatten())


def _signed(x: Tensor, bits: int) -> Tensor:
    """The paper's equations in its own order of operations."""
    mean, deviation = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True).sqrt()
    end = (2 ** (bits - 1) - 0.5) * STEP[bits - 1]
    standard = ((x - mean) / deviation).clamp(-end, end)
    return (torch.round(standard / STEP[bits - 1] + 0.5) - 0.5) * STEP[bits - 1] * deviation + mean


@given(bits=st.sampled_from(BITS), seed=st.integers(0, 999))
def test_equations(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64, generator=generator)
    x = x * torch.rand(3, 4, 1, 1, dtype=torch.float64, generator=generator) * 10 + seed % 7
    context = PatchContext(torch.zeros(3, 3, 4, 4))
    quantizer = DAQActivation(bits, 4)
    torch.testing.assert_close(quantizer(x, context).value, _signed(x, bits))
    quantizer.signed.fill_(False)
    y = x.relu()
    value = quantizer(y, context).value
    assert float(value.min()) >= 0
    starts_at_zero = y.mean((2, 3)) < (2 ** (bits - 1) - 0.5) * STEP[bits - 1] * y.std((2, 3), correction=0)
    zero = (y == 0) & starts_at_zero[..., None, None]
    assert not value[zero].any()
    assert all(len(channel.unique()) <= 2**bits for channel in value.flatten(0, 1))


def test_gradient_goes_straight_through(no_content: PatchContext) -> None:
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    DAQActivation(2, 2)(x, no_content).value.backward(upstream)
    assert torch.equal(x.grad, upstream)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    DAQWeight(2)(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.mark.parametrize("bits", BITS)
def test_weights(bits: int) -> None:
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) * 0.3
    step = STEP[bits] * float(weight.var(correction=0).sqrt())
    codes = ((weight / step).floor() + 0.5).clamp(-(2 ** (bits - 1)) + 0.5, 2 ** (bits - 1) - 0.5)
    torch.testing.assert_close(DAQWeight(bits)(weight), codes * step)


@pytest.mark.parametrize("value", [0.0, 7.25, -3.0])
def test_a_flat_channel_stays_flat(value: float, no_content: PatchContext) -> None:
    x = torch.full((1, 2, 5, 3), value)
    for signed in (True, False):
        quantizer = DAQActivation(4, 2)
        quantizer.signed.fill_(signed)
        expected = x if signed else x.relu()
        torch.testing.assert_close(quantizer(x, no_content).value, expected, atol=1e-6, rtol=1e-6)


def test_one_pixel(no_content: PatchContext) -> None:
    torch.testing.assert_close(DAQActivation(2, 1)(torch.ones(1, 1, 1, 1), no_content).value, torch.ones(1, 1, 1, 1))


def test_its_statistics_are_paid_for(seen: Seen) -> None:
    assert DAQActivation(4, 16).overhead_macs(10, 9) == 2 * 16 * 90
