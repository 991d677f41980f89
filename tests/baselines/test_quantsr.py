"""QuantSR against the equations of its paper, written out anew."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.quantsr import QuantSRActivation, QuantSRWeight, tanh_round
from cadyq.quantizers.base import RANGE_SHARE, PointStatistics
from cadyq.quantizers.context import PatchContext
from cadyq.testing.models import calibrated_model
from cadyq.training.optimization import parameter_groups
from cadyq.training.recipes import load_recipe

Seen = Callable[[Tensor], PointStatistics]
AT_INTEGERS = (1 - math.tanh(0.5) ** 2) / (2 * math.tanh(0.5))  # 0.851
HALF_WAY = 1 / (2 * math.tanh(0.5))  # 1.082


def _quantizer(bits: int, step: float, shift: list[float], signed: bool = True) -> QuantSRActivation:
    quantizer = QuantSRActivation(bits, len(shift)).double()
    quantizer.step.data.fill_(step)
    quantizer.shift.data.copy_(torch.tensor(shift))
    quantizer.signed.fill_(signed)
    return quantizer


def test_rounding_by_hand() -> None:
    ratio = torch.tensor([-1.5, -0.4, 0.0, 0.25, 0.5, 2.9], dtype=torch.float64, requires_grad=True)
    value = tanh_round(ratio)
    assert value.tolist() == [-2, 0, 0, 0, 0, 3]
    value.sum().backward()
    by_hand = [HALF_WAY, (1 - math.tanh(0.1) ** 2) * HALF_WAY, AT_INTEGERS, (1 - math.tanh(0.25) ** 2) * HALF_WAY]
    expected = [*by_hand, HALF_WAY, (1 - math.tanh(0.4) ** 2) * HALF_WAY]
    assert ratio.grad.tolist() == pytest.approx(expected)
    assert pytest.approx((0.8509, 1.0820), abs=1e-4) == (AT_INTEGERS, HALF_WAY)


def test_the_slope_is_one_on_average() -> None:
    ratio = ((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000 - 3).requires_grad_()
    tanh_round(ratio).sum().backward()
    assert float(ratio.grad.mean()) == pytest.approx(1, abs=1e-8)


def test_values_by_hand(no_content: PatchContext) -> None:
    x = torch.tensor([[-9, 0.1], [-9, 0.1]]).double().view(1, 2, 1, 2)
    # step 0.5, 2 bits: codes -2 to 1, of x and of x + 0.2
    value = _quantizer(2, 0.5, [0, 0.2])(x, no_content).value
    assert value.flatten().tolist() == [-1, 0, -1, 0.5]


def test_gradients_by_hand(no_content: PatchContext) -> None:
    """Step 0.5, 3 bits signed (Q_N 4, Q_P 3), one value, so g = 1 / sqrt(3)."""
    # x + t = 0.6, r = 1.2, f = 0.2; and two that are clipped
    inside = (1 - math.tanh(0.3) ** 2) * HALF_WAY
    for x, slope, of_step in ((0.5, inside, 1 - inside * 1.2), (6.9, 0.0, 3.0), (-7.1, 0.0, -4.0)):
        quantizer = _quantizer(3, 0.5, [0.1])
        value = torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 1).requires_grad_()
        quantizer(value, no_content).value.sum().backward()
        assert float(value.grad) == pytest.approx(slope) == quantizer.shift.grad.tolist()[0]
        assert float(quantizer.step.grad) == pytest.approx(of_step / math.sqrt(3))


@given(bits=st.integers(2, 8), seed=st.integers(0, 999), signed=st.booleans(), step=st.floats(1e-3, 10))
def test_equations(bits: int, seed: int, signed: bool, step: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator) * step * 2 ** (bits - 2)
    upstream = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    shift = [0.3 * step, 0.0, -0.6 * step]
    quantizer = _quantizer(bits, step, shift, signed)
    value = quantizer(x.requires_grad_(), PatchContext(torch.zeros(2, 3, 4, 4))).value
    value.backward(upstream)
    q_n, q_p = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    t = quantizer.shift.detach().view(-1, 1, 1)
    r = (x.detach() + t) / quantizer.step.detach()
    torch.testing.assert_close(value.detach(), r.clamp(-q_n, q_p).round() * quantizer.step.detach())
    inside = (r > -q_n) & (r < q_p)
    slope = (1 - torch.tanh(r - r.floor() - 0.5).square()) / (2 * math.tanh(0.5)) * inside
    torch.testing.assert_close(x.grad, upstream * slope)
    torch.testing.assert_close(quantizer.shift.grad, (upstream * slope).sum((0, 2, 3)))
    of_step = torch.where(inside, r.round() - slope * r, r.clamp(-q_n, q_p))
    g = 1 / math.sqrt(3 * 5 * 4 * q_p)
    torch.testing.assert_close(quantizer.step.grad, (upstream * of_step).sum().view(1) * g)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights(bits: int) -> None:
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    quantizer = QuantSRWeight(bits).double()
    quantizer.initialize(weight)
    q_p = 2 ** (bits - 1) - 1
    step = quantizer.step.item()
    assert step == pytest.approx(2 * float(weight.abs().mean()) / math.sqrt(q_p))
    value = quantizer(weight.requires_grad_())
    r = weight.detach() / step
    torch.testing.assert_close(value.detach(), r.round().clamp(-q_p - 1, q_p) * step)
    value.sum().backward()
    slope = (1 - torch.tanh(r - r.floor() - 0.5).square()) * HALF_WAY
    torch.testing.assert_close(weight.grad, torch.where((r > -q_p - 1) & (r < q_p), slope, 0))


def test_start(seen: Seen) -> None:
    quantizer = QuantSRActivation(4, 3)
    quantizer.initialize(seen(torch.tensor([0.0, 6.0])))
    assert quantizer.step.item() == pytest.approx(RANGE_SHARE[4] * 6 / 15)
    assert quantizer.shift.tolist() == [0, 0, 0]


def test_a_shift_learns_though_it_starts_at_zero() -> None:
    """Its rate is in units of the step; its own size at the start is 0."""
    network = calibrated_model("edsr", "quantsr:w4a4", n_feats=8, n_resblocks=1)
    recipe = load_recipe("finetune")
    rates = {id(group["params"][0]): group["base"] for group in parameter_groups(network, recipe)}
    for point in network.points.values():
        quantizer = point.quantizer
        assert isinstance(quantizer, QuantSRActivation)
        assert rates[id(quantizer.shift)] > 0
        assert rates[id(quantizer.shift)] == pytest.approx(recipe.rate_range * quantizer.step.item())
