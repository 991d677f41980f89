"""AdaBM: bits of images and layers, what they learn by, and its loss."""

import math

import pytest
import torch

from baselines.adabm import (
    BITS_WEIGHT,
    FEATURE_WEIGHT,
    AdaBM,
    AdaBMActivation,
    AdaBMWeight,
    tuning_loss,
    tuning_loss_with_bits,
)
from baselines.mse import MSEWeight
from cadyq.quantizers.context import image_gradient
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes import Step
from cadyq.schemes.calibration import calibrated, observe
from cadyq.schemes.factory import create_model
from cadyq.training.reconstruction import calibrate


def quantizer_with(layer_step: float, bits: int = 4) -> AdaBMActivation:
    quantizer = AdaBMActivation(bits)
    quantizer.thresholds.data.copy_(torch.tensor([10.0, 30.0]))
    quantizer.layer_step.data.fill_(layer_step)
    return quantizer


@pytest.mark.parametrize(("layer_step", "step"), [(-2.0, -1), (-0.6, -1), (-0.4, 0), (0.4, 0), (0.7, 1), (9.0, 1)])
def test_bits_by_hand(layer_step: float, step: int) -> None:
    bits = quantizer_with(layer_step).choose(torch.tensor([5.0, 10.0, 20.0, 30.0, 31.0]))
    assert bits.tolist() == [3 + step, 4 + step, 4 + step, 4 + step, 5 + step]
    assert quantizer_with(-1, bits=2).choose(torch.tensor([5.0])).tolist() == [2]
    assert quantizer_with(1, bits=8).choose(torch.tensor([50.0])).tolist() == [8]


def test_gradient_of_bits_by_hand() -> None:
    """tanh(m) by the layer; tanh(2 (g - 20) / 20) by the image: at g = 20 its slope is 1 / 10, shared by l and u."""
    quantizer = quantizer_with(0.5)
    bits = quantizer.choose(torch.tensor([20.0]))
    to_layer, to_thresholds = torch.autograd.grad(bits.sum(), [quantizer.layer_step, quantizer.thresholds])
    assert float(to_layer) == pytest.approx(1 - math.tanh(0.5) ** 2, rel=1e-5)
    assert to_thresholds.tolist() == pytest.approx([-0.05, -0.05], rel=1e-5)


def test_weights_are_those_of_mse_until_they_are_tuned() -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = AdaBMWeight(4)
    quantizer.initialize(weight)
    assert torch.equal(quantizer(weight), MSEWeight(4)(weight))
    quantizer(weight).square().sum().backward()
    assert quantizer.bound.grad is not None and float(quantizer.bound.grad) != 0


def test_loss_by_hand() -> None:
    target = torch.zeros(1, 3, 2, 2)
    found, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    step = Step(target + 4, target, ((found, other), (found, found)), torch.nn.Identity(), None, 0)
    assert float(tuning_loss(step)) == pytest.approx(4 + FEATURE_WEIGHT * 2**0.5 / 2, rel=1e-4)


def test_only_bits_above_the_base_cost() -> None:
    torch.manual_seed(0)
    plain = create_model("edsr", n_feats=8, n_resblocks=2).eval()
    lr = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 255
    network = calibrated(plain, "adabm:w4a4", observe(plain, lr)).eval()
    chosen = [point.quantizer for point in network.points.values() if isinstance(point.quantizer, AdaBMActivation)]

    def cost(layer_step: float) -> float:
        for quantizer in chosen:
            quantizer.layer_step.data.fill_(layer_step)
            quantizer.thresholds.data.copy_(torch.tensor([0.0, 1e6]))
        sr, trace = trace_forward(network, lr)
        step = Step(sr, sr.detach(), ((sr, sr),), network, trace, 0)
        return float(tuning_loss_with_bits(step, base=4) - tuning_loss(step))

    assert cost(-1) == 0 and cost(0) == 0
    assert cost(1) == pytest.approx(BITS_WEIGHT, rel=1e-5)


def test_stages_take_turns() -> None:
    stages = AdaBM(weight_bits=4, act_bits=6).stages()
    assert [next(iter(stage.rates)) for stage in stages[:4]] == ["weight", "activation", "selector", "weight"]
    assert [stage.steps for stage in stages] == [50] * 10
    assert stages[3].rates["weight"] == pytest.approx(0.9 * stages[0].rates["weight"])


def test_thresholds_stay_among_the_gradients_while_they_are_tuned(patches: torch.Tensor) -> None:
    """Their steps are as small as the gradients, else one epoch moves them past all images."""
    torch.manual_seed(0)
    parent = create_model("edsr", n_feats=8, n_resblocks=2).eval()
    network, _ = calibrate(parent, "adabm:w4a4", patches, steps=20)
    gradients = image_gradient(patches).mean(1)
    tuned = [p.quantizer for p in network.points.values() if isinstance(p.quantizer, AdaBMActivation)]
    start = calibrated(parent, "adabm:w4a4", observe(parent, patches))
    for quantizer in tuned:
        low, high = quantizer.thresholds.tolist()
        assert gradients.min() - 0.01 < low < high < gradients.max() + 0.01
    moved = [q.thresholds.tolist() for q in tuned]
    first = next(p.quantizer for p in start.points.values() if isinstance(p.quantizer, AdaBMActivation))
    assert any(own != first.thresholds.tolist() for own in moved), "and they do move"
