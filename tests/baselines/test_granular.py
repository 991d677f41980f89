"""Granular-DQ: its entropy, its gate and its choice of bits, written out anew."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from baselines.granular import CANDIDATES, GranularActivation
from baselines.lsq import quantize_lsq
from baselines.quantsr import tanh_round
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import RANGE_SHARE
from cadyq.quantizers.context import PatchContext, patch_entropy
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.calibration import observe
from cadyq.testing.models import calibrated_model
from cadyq.testing.subject import patches as synthetic
from cadyq.utils.errors import UserError

GATE = "blocks.0.input.quantizer.gate"


def _network() -> SRNetwork:
    torch.manual_seed(0)
    return calibrated_model("edsr", "granular", n_feats=8, n_resblocks=2).eval()


def _deciding(network: SRNetwork) -> GranularActivation:
    found = [p.quantizer for p in network.points.values() if isinstance(p.quantizer, GranularActivation)]
    deciding = [quantizer for quantizer in found if quantizer.decides]
    assert len(deciding) == 1 and deciding[0] is found[0]
    return deciding[0]


def _say(network: SRNetwork, bits: int) -> None:
    """Let the gate say these bits for every patch."""
    bias = _deciding(network).gate.bias
    bias.data.copy_(torch.tensor([10.0 * (bits == b) for b in (4, 6, 8)]))


def test_entropy_by_hand() -> None:
    """A flat patch: kernels at distance d have exp(-(d / 0.0255)^2 / 2); half black, half white: two such densities."""
    centres = [j / 31 for j in range(32)]
    flat = [math.exp(-(((c - 10 / 31) / 0.0255) ** 2) / 2) for c in centres]
    ends = [math.exp(-((c / 0.0255) ** 2) / 2) + math.exp(-(((1 - c) / 0.0255) ** 2) / 2) for c in centres]
    expected = []
    for density in (flat, ends):
        shares = [max(p / sum(density), 1e-30) for p in density]
        expected.append(-sum(p * math.log(p) for p in shares))
    lr = torch.full((2, 3, 6, 6), 255 * 10 / 31)
    lr[1] = 0
    lr[1, :, :, 3:] = 255
    assert patch_entropy(lr).tolist() == pytest.approx(expected, abs=1e-4)
    assert expected[1] > expected[0] > 0.5


def test_entropy_of_all_greys_is_near_its_largest() -> None:
    ramp = torch.linspace(0, 255, 64 * 64).view(1, 1, 64, 64).expand(1, 3, 64, 64)
    found = float(patch_entropy(ramp))
    assert 0.99 * math.log(32) < found < math.log(32)


def test_thresholds_are_percentiles_of_the_calibration_patches() -> None:
    network, lr = calibrated_model("edsr", n_feats=8, n_resblocks=2), synthetic(16)
    statistics = next(iter(observe(network, lr).values()))
    quantizer = GranularActivation(8)
    quantizer.initialize(statistics)
    exact = patch_entropy(lr).quantile(torch.tensor([0.5, 0.9]))
    assert quantizer.thresholds.tolist() == pytest.approx(exact.tolist(), abs=0.1)
    q_p = 127 if bool(statistics.minimum < 0) else 255
    assert quantizer.steps[3].item() == pytest.approx(float(statistics.max_abs) / q_p)
    assert quantizer.steps[0].item() == pytest.approx(
        RANGE_SHARE[4] * float(statistics.max_abs) / (7 if q_p == 127 else 15)
    )


@torch.no_grad()
def test_the_gate_decides_and_entropy_refines_its_8_bits() -> None:
    network, lr = _network(), synthetic(8)
    entropy = patch_entropy(lr)
    _deciding(network).thresholds.copy_(entropy.sort().values[[3, 5]])  # 4 patches at or below, 2 more, 2 above
    for said, expected in ((4, [4] * 8), (6, [6] * 8), (8, None)):
        _say(network, said)
        trace = trace_forward(network, lr)[1]
        counted = [trace.bits[name] for name, point in network.points.items() if point.counts_for_fab]
        assert len(counted) > 1 and all(torch.equal(bits, counted[0]) for bits in counted)
        ranked = counted[0][entropy.argsort()].tolist()
        assert ranked == (expected or [4, 4, 4, 4, 5, 5, 8, 8])
        assert all(bits.eq(8).all() for name, bits in trace.bits.items() if not network.points[name].counts_for_fab)


@torch.no_grad()
def test_the_gate_reads_averages_of_the_first_map() -> None:
    network = _network()
    quantizer = _deciding(network)
    weight = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
    quantizer.gate.weight.copy_(weight)
    x = torch.randn(3, 8, 8, 12, generator=torch.Generator().manual_seed(2)) * 5
    lr = synthetic(3)
    # squares that tile the map have its own average
    mean = x.mean((2, 3)) / quantizer.spread
    expected = (torch.cat([mean] * 3, 1) @ weight.T).argmax(1)
    weights = quantizer.decide(x, PatchContext(lr))
    coarse = torch.stack([weights[:, 0], weights[:, 2], weights[:, 1] + weights[:, 3]], 1)
    low = patch_entropy(lr) <= quantizer.thresholds[0]
    agrees = (coarse.argmax(1) == expected) | ((expected == 2) & low)
    assert bool(agrees.all()) and weights.sum(1).tolist() == [1, 1, 1]


def test_gradients_of_steps_and_gate_by_hand() -> None:
    """Only the step that is chosen learns; the gate sees what each candidate would have given, through a softmax."""
    network = _network()
    quantizer = _deciding(network)
    quantizer.steps.data.copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    quantizer.signed.fill_(True)
    quantizer.gate.bias.data.copy_(torch.tensor([0.0, 1.0, 0.5]))
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(3)) * 10
    upstream = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(4))
    context = PatchContext(synthetic(1))
    quantizer.thresholds.fill_(0.0)  # entropy above both: 8 stays 8
    output = quantizer(x, context)
    output.value.backward(upstream)
    assert output.bits.tolist() == [6]
    values = []
    for bits, step in zip(CANDIDATES, (4.0, 3.0, 2.0, 1.0), strict=True):
        half = 2 ** (bits - 1)
        values.append((x / step).clamp(-half, half - 1).round() * step)
    torch.testing.assert_close(output.value.detach(), values[2])
    p = torch.tensor([0.0, 1.0, 0.5]).softmax(0)
    gains = torch.stack([(upstream * value).sum() for value in (values[0], values[2], values[3])])
    torch.testing.assert_close(quantizer.gate.bias.grad, p * (gains - (p * gains).sum()), rtol=1e-3, atol=1e-3)
    step = torch.tensor(2.0, requires_grad=True)
    quantize_lsq(x, step, 32, 31, 8 * 36, tanh_round).backward(upstream)
    expected = torch.zeros(4)
    expected[2] = step.grad
    torch.testing.assert_close(quantizer.steps.grad, expected)


def test_training_draws_and_test_does_not() -> None:
    network, lr = _network(), synthetic(64, (8, 8))
    with torch.no_grad():
        first = trace_forward(network, lr)[1].fab()
        assert torch.equal(trace_forward(network, lr)[1].fab(), first)
        network.train()
        torch.manual_seed(0)
        drawn = trace_forward(network, lr)[1].fab()
        assert drawn.unique().tolist() != first.unique().tolist()
        torch.manual_seed(0)
        assert torch.equal(trace_forward(network, lr)[1].fab(), drawn)


def test_each_forward_decides_anew() -> None:
    network, lr = _network(), synthetic(2)
    context = PatchContext(lr)
    with torch.no_grad():
        network.run(context)
        before = context.decision
        _say(network, 4)
        network.run(context)
    assert before is not None and context.decision is not None
    assert context.decision.argmax(1).eq(0).all()


def test_a_point_before_the_one_that_decides_is_one_clear_line(no_content: PatchContext) -> None:
    quantizer = GranularActivation(2)
    with pytest.raises(UserError, match="a point runs before the one that decides"):
        quantizer(torch.zeros(1, 2, 4, 4), no_content)


def test_files_without_entropies_are_refused() -> None:
    network = calibrated_model("edsr", n_feats=8, n_resblocks=1)
    statistics = next(iter(observe(network, synthetic(4)).values()))
    with pytest.raises(UserError, match="hold no entropies; calibrate anew"):
        GranularActivation(8).initialize(replace(statistics, entropy_quantiles=None))


def test_its_cost_counts_the_gate_once_and_the_entropy() -> None:
    network: SRNetwork = _network()
    lr: Tensor = synthetic(1)
    with torch.no_grad():
        trace = trace_forward(network, lr)[1]
    pixels = lr.shape[-1] * lr.shape[-2]
    gate = 3 * 8 * pixels + 3 * 24
    assert float(trace.bitops_split().selector) == 1024 * (gate + 99 * pixels)
