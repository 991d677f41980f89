"""A figure restarted at a point gives what the whole network gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import cadyq
from cadyq.models.network import SRNetwork
from cadyq.models.restartable import TracedForward
from cadyq.quantizers.points import QuantizationPoint
from cadyq.testing.models import calibrated_model
from cadyq.utils.errors import UserError

SIZES: list[tuple[str, dict[str, Any]]] = [
    ("edsr", {"n_feats": 8, "n_resblocks": 2, "res_scale": 0.1}),
    ("carn", {"n_feats": 8}),
    ("carn_m", {"n_feats": 8}),
    ("idn", {"n_feats": 16, "n_resblocks": 2}),
    ("srresnet", {"n_feats": 8, "n_resblocks": 2}),
]


@pytest.mark.parametrize(("name", "options"), SIZES)
def test_every_point_can_be_restarted(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = cadyq.create_model(name, **options).eval()
    lr = torch.rand(2, 3, 9, 7) * 255
    forward = TracedForward(network)
    with torch.no_grad():
        whole = network(lr)
    assert torch.equal(forward.run(lr), whole)
    met = []
    for stop in forward.stops(lr):
        met.append(stop.point.name)
        changed = stop.finish(stop.x * 0.5)
        # the walk goes on unharmed, and a stop can be finished again
        assert torch.equal(stop.finish(stop.x.clone()), whole)
        assert torch.equal(stop.finish(stop.x * 0.5), changed)

        def halve(point: QuantizationPoint, x: Tensor, here: QuantizationPoint = stop.point) -> Tensor:
            return x * 0.5 if point is here else x

        assert torch.equal(forward.run(lr, halve), changed)
    assert set(met) == set(network.points)


def test_what_comes_before_a_point_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = cadyq.create_model("edsr", n_feats=8, n_resblocks=3).eval()
    ran: list[str] = []
    for name, conv in ((n, m) for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)):
        conv.register_forward_hook(lambda *_, name=name: ran.append(name))
    for stop in TracedForward(network).stops(torch.rand(1, 3, 8, 8)):
        if stop.point.name == "blocks.2.middle":
            ran.clear()
            stop.finish(stop.x)
            assert ran == ["blocks.2.conv2", "body_end", "upsample.0", "upsample.2", "tail"]
            return
    pytest.fail("no stop at blocks.2.middle")


def test_quantized_convolutions_are_quantized() -> None:
    network = calibrated_model("edsr", scheme="minmax:w3a8", n_feats=8, n_resblocks=1).eval()
    lr = torch.rand(1, 3, 8, 8) * 255
    with torch.no_grad():
        quantizers = {name: point.quantizer for name, point in network.points.items()}
        for point in network.points.values():
            point.quantizer = None
        assert torch.equal(TracedForward(network).run(lr), network(lr))
        for name, quantizer in quantizers.items():
            network.points[name].quantizer = quantizer


class Branching(SRNetwork):
    name = "branching"

    def forward(self, lr: Tensor) -> Tensor:
        return lr if float(lr.mean()) > 0 else -lr


def test_a_figure_that_looks_at_values_is_refused_in_one_line() -> None:
    network = Branching()
    network.register_points(1)
    with pytest.raises(UserError, match="branching: forward cannot be traced") as error:
        TracedForward(network)
    assert "\n" not in str(error.value)
