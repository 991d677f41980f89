"""2DQuant: the search of bounds (DOBI) against every pair that it may take, and the loss that tunes them (DQC)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from baselines.twodquant import FEATURE_WEIGHT, DOBIActivation, DOBIWeight, K, TwoDQuant, dobi, dqc_loss
from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.functional import fake_quantize_offset
from cadyq.schemes import Step


def values_of(seed: int, one_sided: bool) -> Tensor:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(seed)) ** 3
    return values.abs() if one_sided else values


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("one_sided", [False, True])
def test_bounds_are_the_best_of_the_pairs(bits: int, one_sided: bool) -> None:
    values = values_of(bits, one_sided)
    low, high = values.min(), values.max()
    found = dobi(values, 1.0, low, high, bits)
    distance = (high - low) / 200

    def error(a: Tensor, b: Tensor) -> float:
        return float((fake_quantize_offset(values, a, b, bits) - values).square().sum())

    best = error(*found)
    for i in range(K):
        assert best <= error(low if one_sided else low + i * distance, high - i * distance) * (1 + 1e-6)
    if one_sided:
        assert found[0] == low


def test_dobi_by_hand() -> None:
    # 2 bits of 0, 1, 2, 3: the extremes leave no error, and every tighter pair does
    low, high = dobi(
        torch.tensor([0.0, 1, 2, 3]), torch.tensor([5.0, 1, 1, 1]), torch.tensor(0.0), torch.tensor(3.0), 2
    )
    assert (float(low), float(high)) == (0, 3)
    # mostly 0 and 1.6, hardly ever 3: with u = 2.4 (i = 40) the step is 0.8, and 1.6 a level
    values, counts = torch.tensor([0.0, 1.6, 3.0]), torch.tensor([1000.0, 1000, 1e-6])
    low, high = dobi(values, counts, values[0], values[-1], 2)
    assert float(low) == 0 and float(high) == pytest.approx(2.4, abs=1e-6)


def test_quantizers_start_there(seen: Callable[[Tensor], PointStatistics]) -> None:
    values = values_of(0, one_sided=True)
    quantizer = DOBIActivation(4)
    quantizer.initialize(seen(values))
    assert float(quantizer.low.detach()) == pytest.approx(float(values.min()))
    assert float(quantizer.high.detach()) < float(values.max())
    weight, weight_quantizer = values_of(1, one_sided=False).view(10, 4, 10, 10), DOBIWeight(4)
    weight_quantizer.initialize(weight)
    found = dobi(weight.flatten(), 1.0, weight.min(), weight.max(), 4)
    assert (float(weight_quantizer.low), float(weight_quantizer.high)) == pytest.approx(tuple(map(float, found)))


def test_loss_by_hand() -> None:
    # L1 of 51 of 255; features of 6 values at a right angle
    target = torch.zeros(2, 3, 2, 2)
    found = torch.zeros(2, 6).index_fill_(1, torch.tensor([0]), 2.0)
    other = torch.zeros(2, 6).index_fill_(1, torch.tensor([1]), 5.0)
    step = Step(target + 51, target, ((found, other),), torch.nn.Identity(), None, 0)
    assert float(dqc_loss(step)) == pytest.approx(0.2 + FEATURE_WEIGHT * 2**0.5 / 6, rel=1e-5)


def test_all_bounds_are_tuned_together() -> None:
    (stage,) = TwoDQuant(weight_bits=4, act_bits=4).stages()
    assert set(stage.rates) == {"activation", "weight"}
    assert (stage.steps, stage.batch) == (3000, 32)  # of the paper
