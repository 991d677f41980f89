"""MSE calibration: no other share of the extremes does better."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from baselines.mse import MSEActivation, MSEWeight, errors_of_ranges
from cadyq.quantizers.base import SEARCHED_SHARES, PointStatistics
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import fake_quantize_affine, signed_levels

Seen = Callable[[Tensor], PointStatistics]
BITS = range(2, 9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("unsigned", [False, True])
def test_activation_range_is_a_minimum(bits: int, unsigned: bool, seen: Seen) -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(bits)) ** 3
    values = values.relu() if unsigned else values
    quantizer = MSEActivation(bits)
    quantizer.initialize(seen(values))

    def error(low: Tensor, high: Tensor) -> float:
        return float((fake_quantize_affine(values, low, high, bits) - values).square().mean())

    found = error(quantizer.low, quantizer.high)
    # the search saw the middles of bins: of the values themselves a neighbour may be better by as little as that
    for share in SEARCHED_SHARES:
        assert found <= error(quantizer.low, share * values.max()) * 1.02 + 1e-6
        assert found <= error(share * values.min(), quantizer.high) * 1.02 + 1e-6
    assert found <= error(values.min().clamp_max(0), values.max())
    assert unsigned == (float(quantizer.low) == 0)


@pytest.mark.parametrize("bits", BITS)
def test_all_ranges_at_once_are_the_ranges_one_by_one(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    x, count = torch.randn(2000, generator=generator) * 40, torch.rand(2000, generator=generator)
    low, high = SEARCHED_SHARES * x.min(), SEARCHED_SHARES * x.max()
    for lows, highs in ((low, high), (low, high[-1]), (torch.zeros(()), high)):
        pairs = zip(lows.expand(len(SEARCHED_SHARES)), highs.expand(len(SEARCHED_SHARES)), strict=True)
        single = [(count * (fake_quantize_affine(x, a, b, bits) - x).square()).sum() for a, b in pairs]
        assert torch.equal(errors_of_ranges(x, count, lows, highs, bits), torch.stack(single))


def test_evenly_spread_values_need_no_clipping(seen: Seen) -> None:
    quantizer = MSEActivation(4)
    quantizer.initialize(seen(torch.linspace(0, 15, 4001)))
    # rounding is as coarse at the ends as inside: half a step may be cut off
    assert 14 <= float(quantizer.high) <= 15
    assert float(quantizer.low) == 0


def test_weight_by_hand() -> None:
    # 2 bits keep -b, 0, b: of ten 1s and one 2 the best b of all is 12 / 11, of the shares of 2 it is 0.54 or 0.56
    weight = torch.cat([torch.ones(10), torch.tensor([2.0])]).double()
    value = MSEWeight(2)(weight)
    assert value.unique().tolist() == pytest.approx([1.08], abs=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_weight_bound_is_a_minimum(bits: int) -> None:
    weight = torch.randn(
        6, 5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)
    ).requires_grad_()
    value = MSEWeight(bits)(weight)
    value.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))
    w, q = weight.detach(), signed_levels(bits)
    found = float((value.detach() - w).square().sum())
    for share in SEARCHED_SHARES.double():
        bound = share * w.abs().max()
        other = torch.round(w.clamp(-bound, bound) / bound * q) / q * bound
        assert found <= float((other - w).square().sum()) + 1e-9
    assert len(value.unique()) <= 2**bits


def test_a_weight_of_zeros_stays_zero() -> None:
    assert not MSEWeight(4)(torch.zeros(2, 2, 3, 3)).any()


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_flat_point(value: float, seen: Seen, no_content: PatchContext) -> None:
    quantizer = MSEActivation(4)
    quantizer.initialize(seen(torch.full((100,), value)))
    found = quantizer(torch.full((1, 1, 2, 2), value), no_content).value
    assert found.flatten().tolist() == pytest.approx([value] * 4, rel=0.05)
