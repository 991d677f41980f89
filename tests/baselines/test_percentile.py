"""Percentile calibration: its ends against sorted values, and what it clips."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import baselines.percentile as module
from baselines.percentile import PercentileActivation
from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.context import PatchContext

Seen = Callable[[Tensor], PointStatistics]


def test_percentile_of_a_histogram(seen: Seen) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) ** 3
    statistics = seen(values)
    width = float(values.max() - values.min()) / 1000
    for percent in (0.01, 1, 30, 50, 99, 99.9, 99.99):
        expected = float(values.double().quantile(percent / 100))
        assert float(statistics.percentile(percent)) == pytest.approx(expected, abs=2 * width)
    assert float(statistics.percentile(0)) == pytest.approx(float(values.min()))
    assert float(statistics.percentile(100)) == pytest.approx(float(values.max()))


def test_ends_by_hand(seen: Seen, monkeypatch: pytest.MonkeyPatch, no_content: PatchContext) -> None:
    # 0, 1, ..., 1000 evenly: the 1st and 99th percentile are 10 and 990; zero stays in the range
    monkeypatch.setattr(module, "PERCENTILE", 99.0)
    quantizer = PercentileActivation(2)
    quantizer.initialize(seen(torch.arange(1001.0)))
    assert [float(quantizer.low), float(quantizer.high)] == pytest.approx([0, 990], abs=1)
    quantizer.initialize(seen(torch.arange(-500.0, 501.0)))
    assert [float(quantizer.low), float(quantizer.high)] == pytest.approx([-490, 490], abs=1)
    quantizer.initialize(seen(torch.arange(-600.0, 301.0)))
    # 2 bits: steps of (291 + 591) / 3 = 294, zero is code 2
    x = torch.tensor([-999.0, -450.0, -140.0, 150.0, 999.0]).view(1, 1, 1, -1)
    value = quantizer(x, no_content).value.flatten().tolist()
    assert value == pytest.approx([-588, -588, 0, 294, 294], abs=2)


@pytest.mark.parametrize("bits", range(2, 9))
def test_an_outlier_is_clipped(bits: int, seen: Seen, no_content: PatchContext) -> None:
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(bits))
    values[:3] = 50.0
    quantizer = PercentileActivation(bits)
    quantizer.initialize(seen(values))
    assert float(quantizer.high) < 1.1
    error = (quantizer(values.view(1, 1, 1, -1), no_content).value.flatten() - values)[3:].abs().max()
    assert float(error) < float(quantizer.high) / (2**bits - 1) / 2 * 1.01


def test_a_flat_point(seen: Seen, no_content: PatchContext) -> None:
    for value in (0.0, 3.0, -2.0):
        quantizer = PercentileActivation(4)
        quantizer.initialize(seen(torch.full((100,), value)))
        found = quantizer(torch.full((1, 1, 2, 2), value), no_content).value
        assert found.flatten().tolist() == pytest.approx([value] * 4, abs=1e-5)
