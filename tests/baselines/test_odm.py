"""ODM against the equations of its paper, written out anew."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cadyq
from baselines.odm import ODM, ODMActivation, ODMWeight
from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.trace import trace_forward
from cadyq.testing.models import calibrated_model
from cadyq.utils.errors import UserError

Seen = Callable[[Tensor], PointStatistics]


def test_bounds_start_at_percentiles(seen: Seen) -> None:
    values = torch.linspace(-100, 300, 4001)
    for bits, low, high in ((2, -96, 296), (4, -96, 296), (5, -100, 300), (8, -100, 300)):
        quantizer = ODMActivation(bits)
        quantizer.initialize(seen(values))
        assert (quantizer.low.item(), quantizer.high.item()) == pytest.approx((low, high), abs=0.5)
    quantizer = ODMActivation(4)
    quantizer.initialize(seen(torch.linspace(0, 10, 1001)))
    assert quantizer.low.item() == pytest.approx(0, abs=0.11) and quantizer.low.item() <= 0


def test_mismatch_by_hand(no_content: PatchContext) -> None:
    """2 bits from 0 to 3: steps of 1. Clipped: 7 by 4; rounded: 1.3 by 0.3."""
    quantizer = ODMActivation(2)
    quantizer.low.data.fill_(0.0)
    quantizer.high.data.fill_(3.0)
    x = torch.tensor([7.0, 1.3, 2.0]).view(1, 1, 1, 3).requires_grad_()
    output = quantizer(x, no_content)
    assert output.value.flatten().tolist() == [3, 1, 2]
    assert output.auxiliary_loss is not None
    length = math.hypot(4, 0.3)
    assert output.auxiliary_loss.tolist() == pytest.approx([length])
    output.auxiliary_loss.sum().backward()
    # the clipped value is pulled in; of the rounded ones the gradients of x and q(x) cancel
    assert x.grad.flatten().tolist() == pytest.approx([4 / length, 0, 0], abs=1e-6)
    # dq/du = 1 above, (q - x) / (u - l) within: -0.1 of 1.3, 0 of 2; d||e|| / de = e / ||e||
    assert quantizer.high.grad.item() == pytest.approx(-(4 * 1 + 0.3 * -0.1) / length, rel=1e-5)
    assert quantizer.low.grad.item() == pytest.approx(-(0.3 * 0.1) / length, rel=1e-4)


@torch.no_grad()
def test_no_mismatch_without_gradients(no_content: PatchContext) -> None:
    assert ODMActivation(4)(torch.rand(1, 2, 3, 3), no_content).auxiliary_loss is None


def test_a_map_on_its_grid_has_a_finite_gradient(no_content: PatchContext) -> None:
    x = torch.zeros(1, 2, 3, 3).requires_grad_()
    ODMActivation(4)(x, no_content).auxiliary_loss.sum().backward()  # type: ignore[union-attr, no-untyped-call]
    assert x.grad.isfinite().all()


@given(bits=st.integers(2, 8), seed=st.integers(0, 99), factor=st.floats(0.2, 2))
def test_weights(bits: int, seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 4, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(6, 4, 3, 3, generator=generator, dtype=torch.float64)
    quantizer = ODMWeight(bits).double()
    quantizer.factor.data.fill_(factor)
    value = quantizer(weight)
    value.backward(upstream)
    w = weight.detach()
    largest = w.abs().flatten().sort().values
    position = 0.99 * (len(largest) - 1) if bits <= 4 else len(largest) - 1
    between = position - math.floor(position)
    cut = (1 - between) * largest[math.floor(position)] + between * largest[math.ceil(position)]
    bound, q = factor * cut, 2 ** (bits - 1) - 1
    expected = (w.clamp(-bound, bound) / bound * q).round() / q * bound
    torch.testing.assert_close(value.detach(), expected)
    inside = w.abs() <= bound
    torch.testing.assert_close(weight.grad, upstream * inside)
    of_bound = torch.where(inside, (expected - w) / bound, w.sign())
    torch.testing.assert_close(quantizer.factor.grad, (upstream * of_bound).sum().view(1) * cut)


def test_gradients_are_combined_by_their_cosine() -> None:
    scheme = ODM(mismatch_weight=0.5)
    loss = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    # parallel: all of it; opposite: nothing; at a right angle: half
    for auxiliary, share in (([[6.0, 0.0], 8.0], 1.0), ([[-6.0, 0.0], -8.0], 0.0), ([[0.0, 7.0], 0.0], 0.5)):
        other = [torch.tensor(auxiliary[0]), torch.tensor([[auxiliary[1]]])]
        found = scheme.combine_gradients(loss, other)
        for own, extra, combined in zip(loss, other, found, strict=True):
            torch.testing.assert_close(combined, own + 0.5 * share * extra)
    nothing = scheme.combine_gradients(loss, [torch.zeros(2), torch.zeros(1, 1)])
    assert [part.tolist() for part in nothing] == [[3, 0], [[4]]]


def test_the_trace_sums_the_mismatch_over_points() -> None:
    network = calibrated_model("edsr", "odm:w4a4", n_feats=8, n_resblocks=1)
    lr = torch.rand(2, 3, 8, 8) * 255
    _, trace = trace_forward(network, lr)
    losses = [record.auxiliary_loss for record in trace.records.values()]
    found = trace.auxiliary_loss()
    assert found is not None and len(losses) > 1 and all(loss is not None for loss in losses)
    torch.testing.assert_close(found, sum(losses))
    assert (
        trace_forward(calibrated_model("edsr", "pams:w4a4", n_feats=8, n_resblocks=1), lr)[1].auxiliary_loss() is None
    )


def test_its_weight_is_an_option() -> None:
    network = cadyq.create_model("edsr", "odm:w4a4,mismatch_weight=0.001", n_feats=8, n_resblocks=1)
    assert network.scheme is not None and network.scheme.label() == "odm:w4a4,mismatch_weight=0.001"
    for wrong in (-1.0, float("nan")):
        with pytest.raises(UserError, match=r"mismatch_weight=.*give a number of 0 or more"):
            ODM(mismatch_weight=wrong)
