"""PTQ4SR: which bins are dropped, what is tuned, and the gradient of its loss."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from baselines.ptq4sr import FEATURE_WEIGHT, PTQ4SR, DensityActivation, density_bounds, output_and_features
from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.functional import fake_quantize_offset
from cadyq.schemes import Step, cosine


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.0, (0, 5)), (0.01, (1, 5)), (0.03, (1, 4)), (0.06, (1, 4)), (0.07, (2, 4)), (0.2, (2, 3))],
)
def test_bins_go_from_the_sparser_end(share: float, kept: tuple[int, int]) -> None:
    # 1 of 100 at the left end; then 2 at the right, then 4 at the left, then 13 at the right
    assert density_bounds(torch.tensor([1.0, 4, 40, 40, 13, 2]), share) == kept


def test_an_empty_tail_goes_at_once() -> None:
    assert density_bounds(torch.tensor([0.0, 0, 50, 50, 0]), 1e-4) == (2, 3)


def test_a_dense_end_stays(seen: Callable[[Tensor], PointStatistics]) -> None:
    """Behind a ReLU most values are zero: that end is never the sparser one."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).relu()
    quantizer = DensityActivation(4)
    quantizer.initialize(seen(values))
    assert float(quantizer.low.detach()) == 0
    dropped = float((values > quantizer.high).float().mean())
    assert 0 < dropped <= 1e-4


def test_fewer_values_are_dropped_at_8_bits(seen: Callable[[Tensor], PointStatistics]) -> None:
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(1))
    ranges = {}
    for bits in (4, 8):
        quantizer = DensityActivation(bits)
        quantizer.initialize(seen(values))
        ranges[bits] = float((quantizer.high - quantizer.low).detach())
    assert ranges[8] > ranges[4]


def test_quantizer_by_hand() -> None:
    # [-1, 2] in 2 bits: steps of 1 from -1 on
    x = torch.tensor([-3.0, -1.2, -0.6, -0.4, 0.4, 0.6, 1.6, 5.0])
    value = fake_quantize_offset(x, torch.tensor(-1.0), torch.tensor(2.0), 2)
    assert value.tolist() == [-1, -1, -1, 0, 0, 1, 2, 2]
    # bounds that are no multiples of the step are levels all the same
    value = fake_quantize_offset(torch.tensor([-9.0, 9.0]), torch.tensor(-0.7), torch.tensor(0.9), 3)
    assert value.tolist() == pytest.approx([-0.7, 0.9])


def test_gradient_by_hand() -> None:
    # [-1, 2] in 2 bits: t = x + 1; e = round(t) - t is -0.4 at 0.4 and 0.4 at 0.6; above and below only the bound moves
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    for x, to_x, to_low, to_high in (
        (0.4, 1.0, 0.4 / 3, -0.4 / 3),
        (0.6, 1.0, -0.4 / 3, 0.4 / 3),
        (5.0, 0.0, 0.0, 1.0),
        (-5.0, 0.0, 1.0, 0.0),
    ):
        point = torch.tensor(x, requires_grad=True)
        grads = torch.autograd.grad(fake_quantize_offset(point, low, high, 2), [point, low, high])
        assert [float(grad) for grad in grads] == pytest.approx([to_x, to_low, to_high], abs=1e-6)


def test_loss_by_hand() -> None:
    # outputs 2 grey levels apart; features at a right angle, so their directions are sqrt(2) apart
    output = torch.full((1, 3, 2, 2), 12.0, requires_grad=True)
    found = torch.tensor([[3.0, 0.0]], requires_grad=True)
    step = Step(
        output, torch.full((1, 3, 2, 2), 10.0), ((found, torch.tensor([[0.0, 7.0]])),), torch.nn.Identity(), None, 0
    )
    loss = output_and_features(step)
    assert float(loss) == pytest.approx(2 + FEATURE_WEIGHT * 2**0.5, rel=1e-6)
    loss.backward()
    assert output.grad is not None and torch.allclose(output.grad, torch.full_like(output, 1 / 12))
    # unlike in the published code, features have a gradient: across their direction, 1 / (norm sqrt(2)) a unit
    assert found.grad is not None
    assert found.grad[0].tolist() == pytest.approx([0, -FEATURE_WEIGHT / 2**0.5 / 3], abs=1e-6)


def test_activations_come_before_weights() -> None:
    first, second = PTQ4SR(weight_bits=4, act_bits=4).stages()
    assert set(first.rates) == {"activation"} and set(second.rates) == {"weight"}
    assert [cosine(0), cosine(0.5)] == pytest.approx([1, 0.5]) and first.decay is cosine
