"""The dynamic-range control: each sample's own range."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.controls.dynamic_range import SHARE, DynamicRangeActivation
from cadyq.quantizers.context import PatchContext


def test_by_hand(no_content: PatchContext) -> None:
    # 8 bits take the whole range: 12.7 in steps of 0.1
    x = torch.tensor([-12.7, -0.26, 0.0, 0.14, 3.33]).double().view(1, 1, 1, -1)
    value = DynamicRangeActivation(8, 1)(x, no_content).value.flatten().tolist()
    assert value == pytest.approx([-12.7, -0.3, 0, 0.1, 3.3])


@given(bits=st.integers(2, 8), seed=st.integers(0, 999))
def test_equation_of_each_sample(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=generator)
    x = x * torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64).view(3, 1, 1, 1)
    value = DynamicRangeActivation(bits, 2)(x, PatchContext(torch.zeros(3, 3, 4, 4))).value
    levels = 2 ** (bits - 1) - 1
    for found, sample in zip(value, x, strict=True):
        bound = SHARE[bits] * float(sample.abs().max())
        step = bound / levels
        torch.testing.assert_close(found, (sample.clamp(-bound, bound) / step).round() * step)


def test_scaled_samples_get_scaled_grids(no_content: PatchContext) -> None:
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quantizer = DynamicRangeActivation(4, 2)
    torch.testing.assert_close(quantizer(8 * x, no_content).value, 8 * quantizer(x, no_content).value)


def test_black_stays_black_and_gradients_pass(no_content: PatchContext) -> None:
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    value = DynamicRangeActivation(4, 2)(x, no_content).value
    value.sum().backward()
    assert not value.any()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_the_range_is_paid_for() -> None:
    assert DynamicRangeActivation(4, 16).overhead_macs(10, 9) == 16 * 90
