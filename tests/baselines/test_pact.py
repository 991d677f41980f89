"""PACT against Eqs. 1 to 3 of its paper, written out anew."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.pact import PACTActivation
from cadyq.quantizers.base import RANGE_SHARE, PointStatistics, TanhWeight
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.ranges import LearnedBoundActivation
from cadyq.schemes.base import SCHEMES

Seen = Callable[[Tensor], PointStatistics]


def _quantizer(bits: int, alpha: float, signed: bool) -> PACTActivation:
    quantizer = PACTActivation(bits).double()
    quantizer.alpha.data.fill_(alpha)
    quantizer.signed.fill_(signed)
    return quantizer


def _map(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1).requires_grad_()


def test_unsigned_by_hand(no_content: PatchContext) -> None:
    # a = 3 at 2 bits: levels 0 1 2 3
    value = _quantizer(2, 3.0, False)(_map([-1, 0.4, 0.6, 1.6, 2.4, 2.9, 7]), no_content).value
    assert value.flatten().tolist() == pytest.approx([0, 0, 1, 2, 2, 3, 3], abs=1e-12)


def test_signed_by_hand(no_content: PatchContext) -> None:
    # a = 3 at 3 bits: levels -3 to 3
    value = _quantizer(3, 3.0, True)(_map([-9, -1.6, -0.4, 0, 0.6, 2.4, 7]), no_content).value
    assert value.flatten().tolist() == pytest.approx([-3, -2, 0, 0, 1, 2, 3], abs=1e-12)


def test_gradients_by_hand(no_content: PatchContext) -> None:
    """Only what is clipped moves the bound; what is inside goes straight through."""
    for signed, slope_x, slope_alpha in (
        (False, [0, 1, 1, 0, 0], 10 + 100),
        (True, [0, 1, 1, 0, 0], 10 + 100 - 1000),
    ):
        quantizer = _quantizer(3, 3.0, signed)
        x = _map([-9, 0.7, 2.9, 3.5, 7])
        weights = torch.tensor([1000.0, 5.0, 7.0, 10.0, 100.0], dtype=torch.float64)
        (quantizer(x, no_content).value.flatten() * weights).sum().backward()
        assert x.grad.flatten().tolist() == (weights * torch.tensor(slope_x)).tolist()
        assert float(quantizer.alpha.grad) == slope_alpha


@given(bits=st.integers(2, 8), alpha=st.floats(1e-2, 1e2), seed=st.integers(0, 999), signed=st.booleans())
def test_equations(bits: int, alpha: float, seed: int, signed: bool) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * alpha
    value = _quantizer(bits, alpha, signed)(x, PatchContext(torch.zeros(2, 3, 4, 4))).value.detach()
    if signed:
        clipped = ((x + alpha).abs() - (x - alpha).abs()) / 2
        levels = 2 ** (bits - 1) - 1
    else:
        clipped = (x.abs() - (x - alpha).abs() + alpha) / 2
        levels = 2**bits - 1
    expected = torch.round(clipped * levels / alpha) * alpha / levels
    # a value on a tie may go either way for another order of operations
    assert float(((value - expected).abs() > 1e-9 * alpha).float().mean()) < 0.02
    assert float((value - clipped).abs().max()) <= alpha / levels / 2 * (1 + 1e-9)


@pytest.mark.parametrize("bits", range(2, 9))
def test_start(bits: int, seen: Seen) -> None:
    for values, signed in (([0.0, 5.0], False), ([-8.0, 5.0], True)):
        quantizer = PACTActivation(bits)
        quantizer.initialize(seen(torch.tensor(values)))
        assert bool(quantizer.signed) is signed
        assert quantizer.alpha.item() == pytest.approx(RANGE_SHARE[bits] * max(map(abs, values)))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_inherits_a_bound_in_proportion(bits: int) -> None:
    parent = LearnedBoundActivation(8)
    parent.bound.data.fill_(3.0)
    quantizer = PACTActivation(bits)
    quantizer.inherit(parent)
    assert quantizer.alpha.item() == pytest.approx(3 * RANGE_SHARE[bits])
    other = PACTActivation(4)
    other.inherit(quantizer)
    assert other.alpha.item() == pytest.approx(3 * RANGE_SHARE[4])


def test_weights_are_dorefas() -> None:
    assert isinstance(SCHEMES.get("pact")().weight_quantizer(), TanhWeight)
