"""DDTB against its equations, written out anew."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cadyq
from baselines.ddtb import HIDDEN, DDTBActivation, DDTBWeight
from cadyq.quantizers.base import RANGE_SHARE, PointStatistics
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import fake_quantize_bounds
from cadyq.quantizers.ranges import LearnedBoundActivation
from cadyq.schemes.calibration import initialize, observe

Seen = Callable[[Tensor], PointStatistics]
SIZES = {"n_feats": 8, "n_resblocks": 3}


def _quantizer(bits: int, low: float, high: float) -> DDTBActivation:
    quantizer = DDTBActivation(bits, 2).double()
    quantizer.low.data.fill_(low)
    quantizer.high.data.fill_(high)
    return quantizer


def _bounds(quantizer: DDTBActivation) -> list[float]:
    return torch.cat([quantizer.low, quantizer.high]).tolist()


def test_values_by_hand(no_content: PatchContext) -> None:
    # [-1, 2] at 2 bits: steps of 1
    x = torch.tensor([-5, -0.6, -0.4, 0, 0.7, 1.4, 1.6, 9]).double().view(1, 1, 1, -1)
    value = _quantizer(2, -1, 2)(x, no_content).value.flatten()
    assert value.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2]


def test_bounds_gradient_by_hand() -> None:
    """[-1, 2] at 2 bits: the error e of rounding moves the bounds by e / 3, what is clipped by 1 more."""
    cases = [(1.25, -0.25, 0, 0), (-0.25, 0.25, 0, 0), (7.0, 0.0, 1, 0), (-7.0, 0.0, 0, 1)]
    for x, error, over, under in cases:
        low, high = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (-1.0, 2.0))
        fake_quantize_bounds(torch.tensor([x], dtype=torch.float64), low, high, 2).sum().backward()
        assert float(high.grad) == pytest.approx(over + error / 3, abs=1e-12)
        assert float(low.grad) == pytest.approx(under - error / 3, abs=1e-12)


@given(bits=st.integers(2, 8), low=st.floats(-20, 0), high=st.floats(0.1, 20), seed=st.integers(0, 999))
def test_equations(bits: int, low: float, high: float, seed: int) -> None:
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 10
    x.requires_grad_()
    upstream = torch.randn(2, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    quantizer, context = _quantizer(bits, low, high), PatchContext(torch.zeros(2, 3, 4, 4))
    value = quantizer(x, context).value
    value.backward(upstream)
    with torch.no_grad():
        assert torch.equal(quantizer(x, context).value, value)
        assert torch.equal(quantizer(value, context).value, value)
        step = (high - low) / (2**bits - 1)
        clamped = x.clamp(low, high)
        error = value - clamped
        assert float(error.abs().max()) <= step * 1.001
        assert len(value.unique()) <= 2**bits
        assert float((value / step - (value / step).round()).abs().max()) < 1e-6
        over, under = (x > high).double(), (x < low).double()
        slope_high = (upstream * (over + error / (high - low))).sum()
        slope_low = (upstream * (under - error / (high - low))).sum()
    torch.testing.assert_close(quantizer.high.grad, slope_high.view(1))
    torch.testing.assert_close(quantizer.low.grad, slope_low.view(1))
    torch.testing.assert_close(x.grad, upstream * (1 - over - under))


def test_both_bounds_on_a_tie_give_no_further_level() -> None:
    # steps of 1 from -1.5 to 13.5: rounding to even would take both -2 and 14
    x = torch.linspace(-3, 20, 500)
    value = fake_quantize_bounds(x, torch.tensor(-1.5), torch.tensor(13.5), 4)
    assert value.unique().tolist() == list(range(-2, 14))


@pytest.mark.parametrize("bits", range(2, 9))
def test_start_and_parent(bits: int, seen: Seen) -> None:
    quantizer = DDTBActivation(bits, 2)
    quantizer.initialize(seen(torch.tensor([-2.0, 8.0])))
    share = RANGE_SHARE[bits]
    assert _bounds(quantizer) == pytest.approx([-2 * share, 8 * share])
    parent = LearnedBoundActivation(8)
    parent.bound.data.fill_(4.0)
    quantizer.inherit(parent)
    assert _bounds(quantizer) == pytest.approx([-1 * share, 4 * share])
    quantizer.initialize(seen(torch.tensor([0.5, 8.0])))
    assert _bounds(quantizer) == pytest.approx([0, 8 * share])


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights(bits: int) -> None:
    weight = torch.randn(10, 10, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    weight.requires_grad_()
    value = DDTBWeight(bits)(weight)
    value.sum().backward()
    ordered = sorted(weight.flatten().tolist())
    low, high = (ordered[9], ordered[-10]) if bits <= 4 else (ordered[0], ordered[-1])
    step = (high - low) / (2**bits - 1)
    torch.testing.assert_close(value.detach(), (weight.detach().clamp(low, high) / step).round() * step)
    assert len(value.unique()) <= 2**bits
    assert int((weight.grad == 0).sum()) == (18 if bits <= 4 else 0)


def test_gate_by_hand() -> None:
    """Two channels of mean 1 and 3: hidden 0 is relu(1 + 2 * 3) = 7, hidden 1 is relu(-3) = 0."""
    quantizer = _quantizer(8, -1, 2)
    quantizer.gated.fill_(True)
    x = torch.tensor([1.0, 3.0]).double().view(1, 2, 1, 1).expand(1, 2, 4, 4)
    bounds = torch.cat([bound.flatten() for bound in quantizer.bounds(x)])
    assert bounds.tolist() == [-1, 2]  # it starts at 1
    quantizer.gate1.data.zero_()
    quantizer.gate1.data[0] = torch.tensor([1.0, 2.0])
    quantizer.gate1.data[1] = torch.tensor([0.0, -1.0])
    quantizer.gate2.data[:, 0] = torch.tensor([0.1, -0.2])
    quantizer.gate2.data[:, 1] = 5.0
    low, high = (bound.flatten() for bound in quantizer.bounds(x))
    assert float(high.detach()) == pytest.approx(2 * 2 / (1 + 2.718281828459045**-0.7))
    assert float(low.detach()) == pytest.approx(-1 * 2 / (1 + 2.718281828459045**1.4))


def test_each_sample_has_its_own_bounds() -> None:
    quantizer = _quantizer(4, -1, 2)
    quantizer.gated.fill_(True)
    quantizer.gate2.data.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value = quantizer(x, PatchContext(torch.zeros(3, 3, 4, 4))).value
    for k in range(3):
        low, high = (bound.flatten() for bound in quantizer.bounds(x[k : k + 1]))
        assert torch.equal(value[k : k + 1], fake_quantize_bounds(x[k : k + 1], low, high, 4))


def test_gates_go_where_extremes_vary_most(patches: Tensor) -> None:
    torch.manual_seed(0)
    plain = cadyq.create_model("edsr", **SIZES).eval()
    statistics = observe(plain, patches)
    network = cadyq.create_model("edsr", "ddtb:w4a4", **SIZES)
    initialize(network, statistics)
    intensity = {k: float(s.minimum_spread**2 + s.maximum_spread**2) for k, s in statistics.items()}
    gated = {name for name, point in network.points.items() if point.quantizer.gated}  # type: ignore[union-attr]
    assert len(gated) == int(0.3 * 9) == 2
    assert min(intensity[name] for name in gated) > max(v for name, v in intensity.items() if name not in gated)
    used = sum(p.numel() for point in network.points.values() for p in point.quantizer.used_parameters())  # type: ignore[union-attr]
    assert used == 9 * 2 + 2 * HIDDEN * (8 + 2)


def test_only_gates_cost() -> None:
    quantizer = DDTBActivation(4, 8)
    assert quantizer.overhead_macs(10, 9) == 0
    quantizer.gated.fill_(True)
    assert quantizer.overhead_macs(10, 9) == 8 * 90 + (8 + 2) * HIDDEN
    assert {name: quantizer.learning_role(name) for name, _ in quantizer.named_parameters()} == {
        "low": "range",
        "high": "range",
        "gate1": "selector",
        "gate2": "selector",
    }
