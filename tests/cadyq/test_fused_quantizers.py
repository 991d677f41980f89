"""Fused quantizers: values are those of the simulation bit for bit, and networks choose the same bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import cadyq
from cadyq.data.datasets import photographs
from cadyq.kernels import build
from cadyq.kernels.fused import FusedQuantizer, FusedSelector, fuse_quantizers
from cadyq.kernels.maps import Rounding, deviations, quantize
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import quantize_symmetric, signed_levels
from cadyq.schemes.bit_selector import BitSelector, channel_std
from cadyq.schemes.cadyq import DynamicActivation
from cadyq.training.start import quantized_from
from cadyq.utils.errors import UserError

pytest.importorskip("cffi", reason="the extra `kernels` is not installed")
try:
    SETS = build.instruction_sets()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

DOCS = Path(__file__).parents[2] / "docs"
SMALL = {
    "edsr": {"n_feats": 16, "n_resblocks": 1},
    "carn": {"n_feats": 8},
    "idn": {"n_feats": 16, "n_resblocks": 1},
    "srresnet": {"n_feats": 8, "n_resblocks": 1},
}
LAYOUTS = {
    "channels first": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "some channels": lambda x: x.repeat(1, 2, 1, 1).contiguous(memory_format=torch.channels_last)[:, 1::2],
    "every second sample": lambda x: x.repeat_interleave(2, 0)[::2],
    "one sample for all": lambda x: x[:1].expand(len(x), -1, -1, -1),
    "rows and columns swapped": lambda x: x.transpose(2, 3),
    "samples last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "of a linear layer": lambda x: x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unsqueeze(-1),
}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _hard(size: tuple[int, ...], bound: float, levels: int, seed: int) -> Tensor:
    """Values in and out of range, on ties, and the special ones of float32."""
    generator = _generator(seed)
    values = torch.randn(size, generator=generator) * bound
    ties = (torch.randint(-levels - 2, levels + 2, size, generator=generator) + 0.5) / levels * bound
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-42, -1e-42, bound, -bound, 3e38])
    picked = special[torch.randint(0, len(special), size, generator=generator)]
    kind = torch.randint(0, 4, size, generator=generator)
    return torch.where(kind == 0, picked, torch.where(kind == 1, ties, values))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are alike to the sign of zero; any NaN equals any other."""
    nan = a.isnan() & b.isnan()
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | nan).all())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("instructions", SETS)
@given(
    st.lists(st.integers(2, 8), min_size=1, max_size=3), st.floats(2**-20, 1e4, width=32),
    st.tuples(*[st.integers(1, n) for n in (35, 5, 6)]), st.integers(0, 2**30),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_values_are_those_of_the_simulation(
    instructions: str, layout: str, bits: list[int], bound: float, size: tuple[int, ...], seed: int
) -> None:
    """Bit for bit, and in the same layout, for samples with bits and bounds of their own."""
    levels = [signed_levels(b) for b in bits]
    bounds = torch.tensor([bound * (1 + 0.37 * k) for k in range(len(bits))])
    x = LAYOUTS[layout](_hard((len(bits), *size), bound, levels[0], seed))
    per_sample = (-1, 1, 1, 1)
    expected = quantize_symmetric(x, bounds.view(per_sample), torch.tensor(levels).float().view(per_sample))
    grids = [Rounding(a, float(q), 0, -q, q, b) for a, q, b in zip(bounds.tolist(), levels, bits, strict=True)]
    found = quantize(x, grids, instructions)
    assert _same_bits(found, expected)
    if layout != "samples last":  # which the C code would read from all over memory
        assert [s for s, n in zip(found.stride(), found.shape, strict=True) if n > 1] == [
            s for s, n in zip(expected.stride(), expected.shape, strict=True) if n > 1
        ]


@pytest.mark.parametrize("instructions", SETS)
@given(
    st.tuples(*[st.integers(1, n) for n in (3, 140, 12, 12)]), st.floats(-1e4, 1e4), st.floats(1e-2, 1e3),
    st.booleans(), st.integers(0, 2**30),
)  # fmt: skip
@example((1, 12, 1, 3), 8192.0, 0.01, False, 0)
@settings(max_examples=60, deadline=None)
def test_deviations_are_exact(
    instructions: str, size: tuple[int, ...], mean: float, spread: float, outlier: bool, seed: int
) -> None:
    """Against two passes in float64, where the mean is large beside the deviation, or the first pixel far away."""
    x = torch.randn(size, generator=_generator(seed)) * spread + mean
    if outlier:
        x[:, :, 0, 0] += 1e6 * spread
    expected = x.double().var((2, 3), correction=int(size[2] * size[3] > 1)).sqrt()
    rounded = 1e-15 * abs(mean)  # the mean of equal values, as float64 holds it
    assert torch.allclose(deviations(x, instructions), expected, rtol=1e-10, atol=1e-12 * spread + rounded)


@pytest.mark.parametrize("instructions", SETS)
def test_deviations_of_a_large_map_are_nearer_than_those_of_the_simulation(instructions: str) -> None:
    x = (torch.randn(1, 17, 300, 300, generator=_generator(0)) + 1000).contiguous(memory_format=torch.channels_last)
    expected = x.double().std((2, 3))
    errors = [
        float(((found - expected) / expected).abs().max()) for found in (deviations(x, instructions), channel_std(x))
    ]
    assert errors[0] < 1e-10 < errors[1] < 1e-6


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_deviations_of_no_number_are_none(value: float) -> None:
    x = torch.zeros(1, 3, 4, 5)
    x[0, 1, 2, 2] = value
    assert deviations(x).isnan().tolist() == [[False, True, False]]


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("inputs", ["paper", "normalized"])
@torch.no_grad()
def test_selectors_choose_alike(inputs: str, stride: int) -> None:
    torch.manual_seed(0)
    selector = BitSelector(20, 3, inputs, 1000.0, stride)
    for tensor in (selector.linear.weight, selector.linear.bias, selector.center):
        nn.init.normal_(tensor)
    selector.spread.uniform_(0.5, 2)
    context = PatchContext(torch.rand(40, 3, 8, 8) * 255)
    x = torch.randn(40, 20, 9, 7) * torch.rand(40, 20, 1, 1)
    x[:5, ::2] = 0.25  # flat channels
    expected = selector(x, context).argmax(1).tolist()
    assert FusedSelector(selector).choose(x, context) == expected
    assert len(set(expected)) > 1
    x[:] = torch.nan
    assert FusedSelector(selector).choose(x, context) == selector(x, context).argmax(1).tolist()


def _network(spec: str, backbone: str = "edsr", **options: object) -> SRNetwork:
    """With selectors that choose by content."""
    torch.manual_seed(0)
    parent = cadyq.create_model(backbone, **SMALL[backbone])
    patches = torch.rand(4, 3, 16, 16, generator=_generator(1)) * 255
    network = quantized_from(parent, parent, spec, patches, options).eval()
    for module in network.modules():
        if isinstance(module, DynamicActivation):
            nn.init.normal_(module.selector.linear.weight, std=0.5)
    return network


@pytest.mark.parametrize(
    ("spec", "backbone", "options"),
    [
        *[("pams:w8a8", name, {}) for name in SMALL],
        *[("cadyq", name, {}) for name in SMALL],
        ("pams:w4a2", "edsr", {"outer_bits": 8}),
        ("cadyq", "edsr", {"selector_inputs": "paper", "search_space": (2, 3, 5, 8)}),
        ("cadyq", "idn", {"stats_stride": 8}),
    ],
)
@torch.no_grad()
def test_networks_give_what_the_simulation_gives(spec: str, backbone: str, options: dict[str, object]) -> None:
    network = _network(spec, backbone, **options)
    fused = fuse_quantizers(network)
    assert not any(isinstance(module, FusedQuantizer) for module in network.modules())
    lr = torch.rand(3, 3, 14, 17, generator=_generator(2)) * torch.tensor([255.0, 60.0, 5.0]).view(3, 1, 1, 1)
    for images in (lr, lr.contiguous(memory_format=torch.channels_last)):
        sr, trace = cadyq.trace(fused, images)
        simulated, expected = cadyq.trace(network, images)
        assert {k: v.tolist() for k, v in trace.bits.items()} == {k: v.tolist() for k, v in expected.bits.items()}
        assert torch.equal(sr, simulated)
    if spec == "cadyq" and options.get("selector_inputs") != "paper":
        assert any(len(set(bits.tolist())) > 1 for bits in trace.bits.values())


@torch.no_grad()
def test_a_trained_network_gives_what_its_simulation_gives() -> None:
    network = cadyq.load_model("zoo:idn_x4_cadyq")
    busy = photographs(4)[0].lr[:, 20:68, 20:68].float()
    lr = torch.stack([busy, busy.mean((1, 2), keepdim=True).expand_as(busy)])
    sr, trace = cadyq.trace(fuse_quantizers(network), lr)
    simulated, expected = cadyq.trace(network, lr)
    assert all(torch.equal(bits, expected.bits[name]) for name, bits in trace.bits.items())
    assert torch.equal(sr, simulated) and torch.equal(trace.bitops(), expected.bitops())
    assert any(len(set(bits.tolist())) > 1 for bits in trace.bits.values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fp32", "edsr under fp32: no quantizer with a learned bound"),
        ("static", "scheme 'static' sets bits before each forward"),
        ("minmax:w8a8", "edsr under minmax:w8a8: no quantizer with a learned bound; apply pams or cadyq"),
    ],
)
def test_what_has_no_fused_form_is_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fuse_quantizers(_network(spec))


def test_no_gradient_is_lost_in_silence() -> None:
    fused = fuse_quantizers(_network("pams:w8a8"))
    lr = torch.zeros(1, 3, 8, 8)
    with pytest.raises(UserError, match=r"run the network under torch\.no_grad"):
        fused(lr)
    fused.requires_grad_(False)(lr)
    with pytest.raises(UserError, match=r"run the network under torch\.no_grad"):
        fused(lr.requires_grad_())


@torch.no_grad()
def test_a_network_in_double_precision_is_refused() -> None:
    fused = fuse_quantizers(_network("cadyq")).double()
    with pytest.raises(UserError, match=r"a feature map is torch\.float64 on cpu; cadyq\.kernels reads"):
        fused(torch.zeros(1, 3, 8, 8).double())


@pytest.mark.parametrize("call", [lambda x: quantize(x, [Rounding(1.0, 1.0, 0, -1, 1, 2)]), deviations])
def test_maps_on_other_devices_are_refused(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match=r"a feature map is torch\.float32 on meta; cadyq\.kernels reads"):
        call(torch.zeros(1, 1, 2, 2, device="meta"))


def test_the_code_of_the_page_runs() -> None:
    names = {"lr": torch.rand(1, 3, 16, 16) * 255}
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "kernels.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)
