"""Multiply-adds and BitOPs, against fvcore, published numbers and sums made here."""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import cadyq
from cadyq.models.network import SRNetwork
from cadyq.quantizers import cost
from cadyq.quantizers.cost import Macs, count_by_fvcore, count_macs, count_on
from cadyq.testing.models import calibrated_model
from cadyq.testing.subject import backbones_to_check, small_sizes
from cadyq.utils.errors import UserError

WITH_POINTS = backbones_to_check()
every_backbone = pytest.mark.parametrize("backbone", WITH_POINTS)


@lru_cache(maxsize=32)
def _network(backbone: str, scheme: str = "fp32", **options: Any) -> SRNetwork:
    network = calibrated_model(backbone, scheme, **(small_sizes(backbone) | options)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".selector." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


FULL_EDSR = {"n_feats": 256, "n_resblocks": 32, "res_scale": 0.1}


@pytest.mark.parametrize(
    ("backbone", "options", "giga"),
    [("edsr", {}, 114.2), ("edsr", FULL_EDSR, 2894.5), ("carn", {}, 90.9), ("carn_m", {}, 32.5)],
)
def test_published_multiply_adds(backbone: str, options: dict[str, Any], giga: float) -> None:
    """Of a 1280x720 output at scale 4, as the papers and their successors print them."""
    assert count_macs(cadyq.create_model(backbone, **options), 180, 320).total / 1e9 == pytest.approx(giga, rel=0.005)


def test_multiply_adds_of_srresnet_and_what_papers_print() -> None:
    """The 146 G that papers print are those of a variant: 3x3 head and tail, and one more 3x3 layer at full size."""
    macs = count_macs(cadyq.create_model("srresnet"), 180, 320).by_layer
    assert sum(macs.values()) / 1e9 == pytest.approx(127.8, abs=0.05)
    pixels = 180 * 320
    body = sum(count for name, count in macs.items() if name.startswith(("blocks", "upsample")))
    variant = body + pixels * 9 * (3 * 64 + 16 * 64 * 64 + 16 * 64 * 3)
    assert variant / 1e9 == pytest.approx(146.1, abs=0.05)


def test_multiply_adds_of_idn_by_hand() -> None:
    macs = count_macs(cadyq.create_model("idn"), 10, 6).by_layer
    assert macs["upsample"] == 60 * 64 * 3 * 17 * 17  # each input value meets the whole kernel
    assert macs["blocks.3.top.convs.1"] == 60 * 48 * 32 * 9 // 4
    assert macs["blocks.0.bottom.convs.2"] == 60 * 48 * 80 * 9
    assert macs["blocks.1.compression"] == 60 * 80 * 64


def test_multiply_adds_of_rlfns_attention_by_hand() -> None:
    """21x31 pixels: 10x15 behind the stride of 2, and 2x3 behind the pooling."""
    macs = count_macs(cadyq.create_model("rlfn"), 21, 31).by_layer
    assert macs["blocks.0.convs.2"] == 21 * 31 * 52 * 52 * 9
    assert macs["blocks.0.attention.reduce"] == macs["blocks.0.attention.expand"] == 21 * 31 * 52 * 16
    assert macs["blocks.0.attention.stride"] == 10 * 15 * 16 * 16 * 9
    assert macs["blocks.5.attention.conv"] == 2 * 3 * 16 * 16 * 9


@every_backbone
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(31, 45), (1, 7)])
def test_proportionality_is_fvcores_count(backbone: str, scale: int, size: tuple[int, int]) -> None:
    network = _network(backbone, scale=scale)
    ours, theirs = count_macs(network, *size), count_by_fvcore(network, *size)
    assert ours.by_layer == theirs.by_layer
    assert ours.total == sum(theirs.by_layer.values())


def test_multiply_adds_by_hand() -> None:
    macs = count_macs(_network("edsr", n_feats=8), 10, 6).by_layer
    assert macs["head"] == 60 * 3 * 8 * 9
    assert macs["blocks.1.conv2"] == macs["body_end"] == 60 * 8 * 8 * 9
    assert macs["upsample.0"] == 60 * 8 * 32 * 9
    assert macs["upsample.2"] == 4 * 60 * 8 * 32 * 9
    assert macs["tail"] == 16 * 60 * 8 * 3 * 9
    assert len(macs) == 1 + 4 + 1 + 2 + 1


def test_recursive_uses_by_hand() -> None:
    network = _network("carn_m")
    macs = count_macs(network, 10, 6)
    uses = [use for use in cadyq.trace(network, _lr(1, 10, 6, 0))[1].uses() if use.name == "blocks.0.residual.conv1"]
    assert [use.macs for use in uses] == [60 * 16 * 4 * 9] * 3  # four groups
    assert macs.by_layer["blocks.0.residual.conv1"] == 3 * 60 * 16 * 4 * 9
    assert macs.by_layer["blocks.2.residual.conv3"] == 3 * 60 * 16 * 16


@every_backbone
def test_the_scheme_does_not_change_multiply_adds(backbone: str) -> None:
    assert count_macs(_network(backbone, "cadyq"), 9, 9) == count_macs(_network(backbone), 9, 9)


@every_backbone
def test_what_is_not_counted_is_listed(backbone: str) -> None:
    not_counted = count_macs(_network(backbone), 9, 9).not_counted
    assert not_counted and all(count > 0 for count in not_counted.values())
    assert any("add" in name for name in not_counted)
    assert not any("conv" in name for name in not_counted)


def test_a_network_without_weights_costs_nothing() -> None:
    network = cadyq.create_model("bicubic")
    assert count_macs(network, 30, 20).total == 0
    _, trace = cadyq.trace(network, torch.zeros(2, 3, 5, 5))
    assert trace.bitops().tolist() == [0, 0]


def _lr(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.linspace(2, 120, batch).view(-1, 1, 1, 1)
    return (128 + contrast * torch.randn(batch, 3, height, width, generator=generator)).clamp(0, 255)


@every_backbone
@torch.no_grad()
def test_full_precision_is_1024_a_multiply_add(backbone: str) -> None:
    network = _network(backbone)
    _, trace = cadyq.trace(network, _lr(2, 9, 5))
    assert trace.bitops().tolist() == [count_macs(network, 9, 5).total * 1024.0] * 2
    split = trace.bitops_split()
    assert split.quantized.tolist() == split.selector.tolist() == [0, 0]


@settings(max_examples=12)
@given(
    backbone=st.sampled_from(WITH_POINTS),
    scheme=st.sampled_from(["cadyq", "pams:w3a5", "minmax:w8a2", "fp32"]),
    batch=st.integers(1, 4),
    height=st.integers(2, 17),
    width=st.integers(2, 17),
    seed=st.integers(0, 100),
)
@torch.no_grad()
def test_bitops_are_the_sum_over_uses(
    backbone: str, scheme: str, batch: int, height: int, width: int, seed: int
) -> None:
    network = _network(backbone, scheme)
    _, trace = cadyq.trace(network, _lr(batch, height, width, seed))
    macs = count_by_fvcore(_network(backbone), height, width)
    uses = Counter(conv for point in network.points.values() for conv in point.layers)
    split = trace.bitops_split()
    torch.testing.assert_close(split.quantized + split.fp32 + split.selector, trace.bitops())
    for sample in range(batch):
        quantized, rest = 0.0, float(sum(macs.by_layer.values()))
        for name, bits in trace.bits.items():
            if int(bits[sample]) == 32:
                continue
            assert not network.points[name].bypassed_by
            for conv in network.points[name].feeds:
                use = macs.by_layer[network.layer_names[conv]] / uses[conv]
                quantized += use * conv.weight_bits * int(bits[sample])
                rest -= use
        assert float(split.quantized[sample]) == pytest.approx(quantized, rel=1e-9)
        assert float(split.fp32[sample]) == pytest.approx(rest * 1024, rel=1e-9)
    assert bool((split.selector > 0).all()) == (scheme == "cadyq")


@settings(max_examples=8)
@given(backbone=st.sampled_from(WITH_POINTS), batch=st.integers(2, 4), seed=st.integers(0, 100))
@torch.no_grad()
def test_a_batch_costs_the_sum_of_its_samples(backbone: str, batch: int, seed: int) -> None:
    network, lr = _network(backbone, "cadyq"), _lr(batch, 9, 8, seed)
    whole = cadyq.trace(network, lr)[1].bitops()
    assert whole.dtype == torch.float64
    alone = torch.cat([cadyq.trace(network, lr[k : k + 1])[1].bitops() for k in range(batch)])
    torch.testing.assert_close(whole, alone)


def test_the_selector_by_hand() -> None:
    network, height, width = _network("edsr", "cadyq", n_feats=8), 10, 6
    _, trace = cadyq.trace(network, _lr(1, height, width))
    # four selectors: sum and sum of squares of every value, a linear layer of 3 x (8 + 2); grayscale and Sobel once
    expected = 4 * (2 * 8 * height * width + 3 * 10) + (3 + 18) * height * width
    assert float(trace.bitops_split().selector) == expected * 1024


@pytest.mark.parametrize("scheme", ["pams:w4a4", "cadyq"])
@torch.no_grad()
def test_the_selector_costs_little(scheme: str) -> None:
    network = calibrated_model("edsr", scheme, n_resblocks=2).eval()
    split = cadyq.trace(network, _lr(1, 24, 24))[1].bitops_split()
    assert float(split.selector / split.total) < 0.02


@pytest.mark.parametrize(("scheme", "act_bits"), [("pams:w4a6", 6), ("fp32", 32)])
@torch.no_grad()
def test_quantized_weights_on_unquantized_inputs_cost_32_bit_activations(scheme: str, act_bits: int) -> None:
    """Published SRResNet: a block's first convolution bypasses the point of the shortcut."""
    sizes: dict[str, Any] = {"n_feats": 8, "n_resblocks": 2}
    native = calibrated_model("srresnet", scheme, **sizes).eval()
    published = calibrated_model("srresnet", scheme, quantized_input=False, **sizes).eval()
    lr = _lr(2, 9, 5)
    use = 2 * 45 * 8 * 8 * 9  # two blocks
    splits = [cadyq.trace(network, lr)[1].bitops_split() for network in (native, published)]
    weight_bits = 4 if act_bits == 6 else 32
    assert splits[0].fp32.tolist() == splits[1].fp32.tolist()
    assert (splits[1].quantized - splits[0].quantized).tolist() == [use * weight_bits * (32 - act_bits)] * 2
    assert cadyq.trace(published, lr)[1].fab().tolist() == [act_bits] * 2


def _macs_of(forward: Callable[[Tensor], Tensor], *layers: nn.Module) -> Macs:
    """Of a network of these layers and that forward, on 3 samples of 6x4 pixels."""

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1), *layers])

        def forward(self, x: Tensor) -> Tensor:
            return forward(self.layers[0](x))

    return count_on(Made().eval(), torch.zeros(3, 3, 6, 4))


@pytest.mark.parametrize(
    ("options", "pixels"),
    [
        ({"padding": "same"}, 24),
        ({"padding": "same", "padding_mode": "reflect"}, 24),
        ({"padding": "valid"}, 8),
        ({"padding": "same", "groups": 3}, 24),
    ],
)
def test_padding_by_name_is_counted(options: dict[str, Any], pixels: int) -> None:
    layer = nn.Conv2d(3, 6, 3, **options)
    macs = _macs_of(layer, layer)
    assert macs.by_layer["layers.1"] == 3 * pixels * layer.weight.numel()
    assert macs.products == {} and "aten::_convolution_mode" not in macs.not_counted


@pytest.mark.parametrize(
    ("product", "macs"),
    [
        (lambda t: torch.baddbmm(torch.zeros(1), t, t.transpose(1, 2)), {"baddbmm": 3 * 3 * 3 * 24}),
        (lambda t: t @ torch.zeros(24), {"matmul": 3 * 3 * 24}),
        (lambda t: torch.zeros(3) @ t, {"matmul": 3 * 3 * 24}),
        (lambda t: torch.zeros(5, 3) @ t, {"matmul": 3 * 5 * 3 * 24}),  # the first factor is used for each sample
        (lambda t: t[0, 0] @ torch.zeros(24), {"matmul": 24}),
        (lambda t: torch.mv(t[0], torch.zeros(24)), {"mv": 3 * 24}),
        (lambda t: torch.mm(t[0], torch.zeros(24, 5)), {"mm": 3 * 24 * 5}),
        (lambda t: torch.dot(t[0, 0], t[1, 0]), {"dot": 24}),
        (lambda t: torch.addmv(torch.zeros(3), t[0], torch.zeros(24)), {"addmv": 3 * 24}),
        (lambda t: torch.inner(t, torch.zeros(5, 24)), {"inner": 3 * 3 * 5 * 24}),
        (lambda t: torch.addbmm(torch.zeros(1), t, torch.zeros(3, 24, 5)), {"addbmm": 3 * 3 * 5 * 24}),
        (lambda t: torch.tensordot(t, torch.zeros(3, 5), ([1], [0])), {"tensordot": 3 * 24 * 3 * 5}),
        (lambda t: torch.tensordot(t, torch.zeros(24, 3, 5), ([1, 2], [1, 0])), {"tensordot": 3 * 5 * 3 * 24}),
        (lambda t: torch.einsum("bid, bjd -> bij", t, t), {"einsum": 3 * 3 * 3 * 24}),
        (lambda t: torch.einsum("...id,...jd->...ij", t, t), {"einsum": 3 * 3 * 3 * 24}),
        (lambda t: torch.einsum("bid,jd", t, torch.zeros(5007, 24)), {"einsum": 3 * 3 * 5007 * 24}),  # not rounded
        (lambda t: torch.einsum("bid->bdi", t), {}),
    ],
)
def test_products_are_counted(product: Callable[[Tensor], Tensor], macs: dict[str, float]) -> None:
    assert _macs_of(lambda f: product(f.flatten(2))).products == macs


def test_attention_with_a_mask_is_counted() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def attend(f: Tensor) -> Tensor:
        t = f.permute(0, 2, 3, 1).flatten(1, 2)
        t = nn.functional.pad(t, (0, 1))
        return attention(t, t, t, attn_mask=torch.zeros(24, 24))[0]  # type: ignore[no-any-return]

    macs = _macs_of(attend, attention).products
    assert macs["baddbmm"] == macs["bmm"] == 3 * 24 * 24 * 4


def test_products_without_a_formula_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    recurrent = nn.GRU(3, 3, batch_first=True)
    cost._warn_of.cache_clear()
    for _ in range(2):
        _macs_of(lambda f: recurrent(f.flatten(2).transpose(1, 2))[0], recurrent)
    assert [record.getMessage() for record in caplog.records] == [
        "BitOPs leave out aten::gru, which fvcore has no formula for; add its MACs by hand"
    ]


class Unsteady(nn.Module):
    """Doubles the resolution. It runs a layer twice more on large images, and three times more on bright ones."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.tail = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 4), (4, 4), (4, 12)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for _ in range(1 + 2 * (x.shape[-1] > 32) + 3 * int(x.mean() > 0.5)):
            y = self.body(y).relu()
        return nn.functional.pixel_shuffle(self.tail(y), 2)


@pytest.mark.parametrize(("width", "gray", "runs"), [(20, 0, 1), (40, 0, 3), (20, 200, 4), (40, 200, 6)])
def test_every_run_of_a_layer_is_counted(width: int, gray: int, runs: int) -> None:
    torch.manual_seed(0)
    calibration = [_lr(1, 16, 20)[0].to(torch.uint8)]
    network = cadyq.quantize(Unsteady(), "minmax:w8a4", calibration, pixel_range=1)
    _, trace = cadyq.trace(network, torch.full((2, 3, 16, width), float(gray)))
    assert trace.macs.total == 16 * width * 9 * (3 * 4 + runs * 4 * 4 + 4 * 12)
    inner = 16 * width * 9 * runs * 4 * 4 * 8 * 4
    assert trace.bitops_split().quantized.tolist() == [inner] * 2


class Unknown(nn.Conv2d):
    """A subclass that multiplies nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def test_a_layer_that_ran_without_a_formula_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, own = nn.Conv2d(3, 3, 3, padding="same"), Unknown(3, 3, 3)
    assert _macs_of(own, own).by_layer["layers.1"] == 0
    monkeypatch.setattr(cost, "_formulas", dict)
    assert _macs_of(lambda f: f, layer).by_layer["layers.1"] == 0  # it does not run
    with pytest.raises(UserError, match=r"layer 'layers\.1': .*no formula for aten::_convolution_mode"):
        _macs_of(layer, layer)
