"""LSQ against Eqs. 1 to 5 of its paper, written out anew."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.lsq import LSQActivation, LSQWeight, quantize_lsq
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import RANGE_SHARE, PointStatistics
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.ranges import LearnedBoundActivation
from cadyq.schemes.base import transplant
from cadyq.schemes.specs import scheme_of

Seen = Callable[[Tensor], PointStatistics]


def _quantizer(bits: int, step: float, signed: bool) -> LSQActivation:
    quantizer = LSQActivation(bits).double()
    quantizer.step.data.fill_(step)
    quantizer.signed.fill_(signed)
    return quantizer


def test_levels_by_hand() -> None:
    assert _quantizer(2, 1, True).levels() == (2, 1)
    assert _quantizer(2, 1, False).levels() == (0, 3)
    assert _quantizer(8, 1, True).levels() == (128, 127)
    assert _quantizer(8, 1, False).levels() == (0, 255)


def test_values_by_hand(no_content: PatchContext) -> None:
    x = torch.tensor([-9, -1.2, -0.7, 0.2, 0.3, 0.9, 5]).double().view(1, 1, 1, -1)
    # step 0.5, 2 bits: codes -2 to 1, or 0 to 3
    signed = _quantizer(2, 0.5, True)(x, no_content).value.flatten().tolist()
    assert signed == [-1, -1, -0.5, 0, 0.5, 0.5, 0.5]
    unsigned = _quantizer(2, 0.5, False)(x, no_content).value.flatten().tolist()
    assert unsigned == [0, 0, 0, 0, 0.5, 1, 1.5]


def test_step_gradient_by_hand() -> None:
    """Step 0.5, 3 bits signed: Q_N = 4, Q_P = 3; N = 16, so g = 1 / sqrt(48)."""
    for v, slope in ((0.6, 1 - 1.2), (0.9, 2 - 1.8), (-0.3, -1 + 0.6), (7.0, 3.0), (-7.0, -4.0), (0.0, 0.0)):
        step = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
        x = torch.tensor([v], dtype=torch.float64, requires_grad=True)
        quantize_lsq(x, step, 4, 3, 16).sum().backward()
        assert float(step.grad) == pytest.approx(slope / math.sqrt(48), abs=1e-12)
        assert float(x.grad) == (1 if abs(v) < 1.5 else 0)


@given(bits=st.integers(2, 8), seed=st.integers(0, 999), signed=st.booleans(), step=st.floats(1e-3, 10))
def test_equations(bits: int, seed: int, signed: bool, step: float) -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = (x * step * 2 ** (bits - 2)).requires_grad_()
    upstream = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    quantizer = _quantizer(bits, step, signed)
    value = quantizer(x, PatchContext(torch.zeros(2, 3, 4, 4))).value
    value.backward(upstream)
    q_n, q_p = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    v = x.detach() / step
    torch.testing.assert_close(value.detach(), v.clamp(-q_n, q_p).round() * step)
    inside = (v > -q_n) & (v < q_p)
    slope = torch.where(inside, v.round() - v, v.clamp(-q_n, q_p))
    g = 1 / math.sqrt(3 * 5 * 4 * q_p)  # of one sample: the batch adds up
    torch.testing.assert_close(quantizer.step.grad, (upstream * slope).sum().view(1) * g)
    torch.testing.assert_close(x.grad, upstream * inside)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights(bits: int) -> None:
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    quantizer = LSQWeight(bits).double()
    quantizer.initialize(weight)
    q_p = 2 ** (bits - 1) - 1
    assert quantizer.step.item() == pytest.approx(2 * float(weight.abs().mean()) / math.sqrt(q_p))
    value = quantizer(weight)
    step = quantizer.step.item()
    torch.testing.assert_close(value.detach(), (weight / step).round().clamp(-q_p - 1, q_p) * step)
    value.sum().backward()
    v = weight / step
    slope = torch.where((v > -q_p - 1) & (v < q_p), v.round() - v, v.clamp(-q_p - 1, q_p)).sum()
    assert float(quantizer.step.grad) == pytest.approx(float(slope) / math.sqrt(216 * q_p))


@pytest.mark.parametrize("bits", range(2, 9))
def test_start_and_parent(bits: int, seen: Seen) -> None:
    parent = LearnedBoundActivation(8)
    parent.bound.data.fill_(5.0)
    for values, q_p in (([0.0, 6.0], 2**bits - 1), ([-7.0, 6.0], 2 ** (bits - 1) - 1)):
        quantizer = LSQActivation(bits)
        quantizer.initialize(seen(torch.tensor(values)))
        assert quantizer.step.item() == pytest.approx(RANGE_SHARE[bits] * max(map(abs, values)) / q_p)
        quantizer.inherit(parent)
        assert quantizer.step.item() == pytest.approx(RANGE_SHARE[bits] * 5 / q_p)


@pytest.mark.parametrize("scheme", ["lsq", "pact", "pams", "quantsr", "odm", "ddtb"])
def test_an_inherited_range_is_a_range(scheme: str, small_pams: SRNetwork, pairs: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        network = transplant(small_pams, scheme_of(f"{scheme}:w4a4"))
        own, other = network(pairs[0]), small_pams(pairs[0])
    assert (own - other).square().mean() < 0.1 * other.var()
