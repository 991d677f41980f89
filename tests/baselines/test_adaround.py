"""AdaRound and BRECQ: the rounding that is learned, its penalty, and what is kept of it."""

import math

import pytest
import torch

from baselines.adaround import BETAS, beta_of, reconstruction
from baselines.brecq import BRECQ
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.rounding import (
    RoundedWeight,
    inverse_rectified_sigmoid,
    pack_bits,
    rectified_sigmoid,
    unpack_bits,
)
from cadyq.schemes import Step


def quantizer_of(weight: torch.Tensor, bits: int, channelwise: bool = False) -> RoundedWeight:
    quantizer = RoundedWeight(bits, channelwise)
    quantizer.prepare(weight)
    quantizer.initialize(weight)
    return quantizer


def test_rectified_sigmoid_by_hand() -> None:
    v = torch.tensor([-10.0, 0.0, 10.0], requires_grad=True)
    h = rectified_sigmoid(v)
    assert h.tolist() == [0, pytest.approx(0.5), 1]
    h.sum().backward()
    # inside 1.2 sigmoid', which is 1/4 at zero; where it is clipped, nothing
    assert v.grad is not None and v.grad.tolist() == pytest.approx([0, 0.3, 0])
    shares = torch.linspace(0, 1, 11)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(shares)), shares, rtol=0, atol=1e-6)


def test_penalty_by_hand() -> None:
    quantizer = RoundedWeight(4)
    # h of 1/2, 3/4 and 1: 1 - |2h - 1|^2 is 1, 3/4 and 0
    quantizer.rounding = torch.nn.Parameter(inverse_rectified_sigmoid(torch.tensor([0.5, 0.75, 1.0])))
    assert float(quantizer.penalty(2.0)) == pytest.approx(1.75, abs=1e-5)


def test_beta_falls_behind_the_warm_up() -> None:
    assert [beta_of(done) for done in (0.0, 0.2, 0.6, 1.0)] == pytest.approx([BETAS[0], BETAS[0], 11, BETAS[1]])


def test_value_and_gradient_by_hand() -> None:
    weight = torch.tensor([0.3, -0.6, 1.4, 5.0]).view(1, 1, 2, 2)
    quantizer = RoundedWeight(3)
    quantizer.prepare(weight)
    quantizer.start_tuning(weight)  # the step is 1
    assert quantizer.rounding is not None
    # at first h is the fraction, so the soft value is the weight itself, up to where codes end: -4 ... 3
    value = quantizer(weight)
    assert value.flatten().tolist() == pytest.approx([0.3, -0.6, 1.4, 3], abs=1e-5)
    quantizer.rounding.data.zero_()  # h = 1/2, with slope 0.3
    (grad,) = torch.autograd.grad(quantizer(weight).sum(), [quantizer.rounding])
    assert grad.flatten().tolist() == pytest.approx([0.3, 0.3, 0.3, 0])
    quantizer.rounding.data.copy_(torch.tensor([3.0, -3, -3, 3]).view(1, 1, 2, 2))
    quantizer.finish_tuning()
    assert quantizer.rounding is None and not list(quantizer.parameters())
    assert quantizer(weight).flatten().tolist() == [1, -1, 1, 3]


@pytest.mark.parametrize("channelwise", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_starts_at_the_nearest_level_and_keeps_it(bits: int, channelwise: bool) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(bits))
    quantizer = quantizer_of(weight, bits, channelwise)
    value = quantizer(weight)
    assert quantizer.step.numel() == (6 if channelwise else 1)
    codes, half = weight / quantizer.step, 2 ** (bits - 1)
    inside = (codes > -half) & (codes < half - 1)
    assert bool(((value - weight).abs() <= quantizer.step / 2 * 1.001)[inside].all())
    quantizer.start_tuning(weight)
    quantizer.finish_tuning()
    assert torch.equal(quantizer(weight), value)


def test_bits_are_packed() -> None:
    up = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    packed = pack_bits(up)
    assert packed.dtype == torch.uint8 and len(packed) == 3
    assert torch.equal(unpack_bits(packed, up.shape), up.long())


def test_loss_by_hand() -> None:
    layer = QuantConv2d(1, 1, 1)
    layer.weight_quantizer = RoundedWeight(4)
    layer.weight_quantizer.rounding = torch.nn.Parameter(torch.zeros(1, 1, 1, 1))  # h = 1/2: a penalty of 1
    target = torch.full((1, 1, 2, 2), 2.0)
    early, late = (Step(target + 1, target, (), layer, None, done) for done in (0.0, 0.5))
    assert float(reconstruction(early)) == pytest.approx(1 / 4)
    assert float(reconstruction(late)) == pytest.approx(1 / 4 + 0.01)


def test_rounding_together_beats_rounding_alone() -> None:
    """Two weights of 0.4 on equal inputs: nearest gives 0, and the best sum of both, 0.8, is one of them rounded up."""
    weight = torch.tensor([0.4, 0.4]).view(1, 2, 1, 1)
    quantizer = RoundedWeight(3)
    quantizer.prepare(weight)
    quantizer.start_tuning(weight)
    assert quantizer.rounding is not None
    with torch.no_grad():
        quantizer.rounding += torch.tensor([0.05, -0.05]).view_as(weight)
    optimizer = torch.optim.Adam([quantizer.rounding], 0.02)
    for step in range(400):
        error = (quantizer(weight).sum() - 0.8).square()
        loss = error + 0.01 * quantizer.penalty(beta_of(step / 400))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    quantizer.finish_tuning()
    assert sorted(quantizer(weight).flatten().tolist()) == [0, 1]


def test_qdrop_is_an_option() -> None:
    assert BRECQ(weight_bits=4, act_bits=4).stages()[0].drop == 0
    assert BRECQ(weight_bits=4, act_bits=4, qdrop=True).stages()[0].drop == 0.5
    assert BRECQ(weight_bits=4, act_bits=4, qdrop=True).label() == "brecq:w4a4,qdrop=true"
    assert math.isclose(BRECQ().stages()[0].rates["activation"], 1e-3)
