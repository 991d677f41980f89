"""What every registered scheme owes the others: the same properties, whatever it does inside."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import cadyq
from baselines.dorefa import DoReFaActivation
from cadyq.models.network import SRNetwork
from cadyq.quantizers import MinMaxRange
from cadyq.quantizers.base import RANGE_SHARE, ActivationQuantizer, PackedWeight, PointStatistics, TanhWeight
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.layers import frozen_weights
from cadyq.schemes.base import SCHEMES, apply_scheme, with_scheme
from cadyq.schemes.calibration import initialize, observe
from cadyq.testing.models import calibrated_model
from cadyq.testing.subject import backbones_to_check, small_sizes
from cadyq.utils.errors import UserError


def _takes_bits(scheme: str) -> bool:
    return bool({"act_bits", "weight_bits"} & set(SCHEMES.get(scheme).option_names()))


def _first_of_each_weight_quantizer() -> list[str]:
    """For what lies in the layer and its weight alone: one scheme for each class of weight quantizers."""
    first = {type(SCHEMES.get(scheme)().weight_quantizer()): scheme for scheme in reversed(cadyq.list_schemes())}
    return sorted(first.values())


WIDTHS = {scheme: range(2, 9) if _takes_bits(scheme) else [32] for scheme in cadyq.list_schemes()}
WEIGHTS = _first_of_each_weight_quantizer()
OTHERS = [backbone for backbone in backbones_to_check() if backbone != "edsr"]
# the next of them for the next scheme
OTHER = dict(zip(WIDTHS, itertools.cycle(OTHERS), strict=False))

# the lowest and the highest width of each scheme on EDSR
LOW_AND_HIGH = [(scheme, bits) for scheme, widths in WIDTHS.items() for bits in sorted({widths[0], widths[-1]})]
# each scheme once: at its lowest width on EDSR or its highest on CARN-M in turn; an oracle's search is short on EDSR
ONCE = [
    (scheme, "edsr", widths[0]) if number % 2 or SCHEMES.get(scheme).reads_hr else (scheme, "carn_m", widths[-1])
    for number, (scheme, widths) in enumerate(WIDTHS.items())
]

every_scheme = pytest.mark.parametrize(("scheme", "backbone", "bits"), ONCE)
every_weight = pytest.mark.parametrize(("scheme", "backbone", "bits"), [case for case in ONCE if case[0] in WEIGHTS])


def _options(scheme: str, bits: int) -> dict[str, int]:
    return {name: bits for name in ("weight_bits", "act_bits") if name in SCHEMES.get(scheme).option_names()}


@lru_cache(maxsize=8)
def _plain(backbone: str) -> SRNetwork:
    torch.manual_seed(3)
    return cadyq.create_model(backbone, **small_sizes(backbone)).eval()


@lru_cache(maxsize=8)
def _statistics(backbone: str) -> dict[str, PointStatistics]:
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(16, 3, 1, 1, generator=generator) * 255
    detail = torch.randn(16, 3, 12, 12, generator=generator) * torch.linspace(1, 60, 16).view(-1, 1, 1, 1)
    return observe(_plain(backbone), (flat + detail).clamp(0, 255))


@cache
def _calibrated(backbone: str, scheme: str, bits: int) -> SRNetwork:
    network = with_scheme(_plain(backbone), SCHEMES.get(scheme)(**_options(scheme, bits)))
    initialize(network, _statistics(backbone))
    return network.eval()


def _prepared(backbone: str, scheme: str, bits: int) -> SRNetwork:
    """Calibrated, with selectors that are no longer at their start, so that samples may differ in bits."""
    network = copy.deepcopy(_calibrated(backbone, scheme, bits))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for point in network.points.values():
            for name, value in point.quantizer.named_parameters() if point.quantizer else ():
                if point.quantizer is not None and point.quantizer.learning_role(name) == "selector":
                    value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return network.eval()


def _training(network: SRNetwork) -> SRNetwork:
    """In training mode, but for batch normalization: with the statistics of a batch it is another network."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def test_the_projects_schemes_are_registered() -> None:
    assert {"cadyq", "dorefa", "fp32", "minmax", "pams"} <= set(cadyq.list_schemes())
    assert all(SCHEMES.get(name).name == name for name in cadyq.list_schemes())


@pytest.mark.parametrize(
    ("backbone", "scheme", "bits"),
    [
        *(("edsr", *case) for case in LOW_AND_HIGH),
        *(("edsr", scheme, bits) for scheme in WEIGHTS for bits in WIDTHS[scheme][1:-1]),
        *(("carn_m", scheme, WIDTHS[scheme][-1]) for scheme in WEIGHTS),  # groups, and layers that several points share
        *((OTHER[scheme], scheme, WIDTHS[scheme][0]) for scheme in WIDTHS),
    ],
)
@torch.no_grad()
def test_weight_grid(backbone: str, scheme: str, bits: int) -> None:
    network = _prepared(backbone, scheme, bits)
    for conv, name in network.layer_names.items():
        if bits == 32:
            assert conv.quantized_weight() is conv.weight
            continue
        assert conv.weight_bits == bits
        weight = conv.quantized_weight()
        per_channel = conv.weight_quantizer is not None and conv.weight_quantizer.granularity == "channel"
        for grid, plain in zip(weight, conv.weight, strict=True) if per_channel else [(weight, conv.weight)]:
            levels = grid.unique()
            assert 2 <= len(levels) <= 2**bits, name
            order = plain.flatten().argsort()
            assert bool((grid.flatten()[order].diff() >= 0).all()), f"{name}: a larger weight became a smaller one"
            # a grid that does not end at the largest weight may round it up
            half_step = float(levels.diff().max()) / 2
            assert float(levels.abs().max()) <= float(plain.abs().max()) * 1.001 + half_step, name


@torch.no_grad()
def test_packing_pays_at_the_paper_sizes(tmp_path: Path) -> None:
    network = calibrated_model("edsr", "pams:w8a8", n_resblocks=1)
    for name, packed in (("full", False), ("packed", True)):
        cadyq.save_model(network, tmp_path / f"{name}.safetensors", packed)
    saved = (tmp_path / "full.safetensors").stat().st_size - (tmp_path / "packed.safetensors").stat().st_size
    assert saved == pytest.approx(3 * 2 * 64 * 64 * 9, rel=0.02)


@pytest.mark.parametrize(("scheme", "bits"), LOW_AND_HIGH)
@torch.no_grad()
def test_packed_networks_saved_again(scheme: str, bits: int, patches: Tensor, tmp_path: Path) -> None:
    """What was packed stays what it is, or is refused: never another network without a word."""
    network = _prepared("edsr", scheme, bits)
    expected = network(patches)
    cadyq.save_model(network, tmp_path / "first.safetensors", packed=True)
    loaded = cadyq.load_model(tmp_path / "first.safetensors")
    cadyq.save_model(loaded, tmp_path / "second.safetensors", packed=True)
    assert torch.equal(cadyq.load_model(tmp_path / "second.safetensors")(patches), expected)
    try:
        cadyq.save_model(loaded, tmp_path / "third.safetensors", packed=False)
    except UserError:
        return
    assert torch.equal(cadyq.load_model(tmp_path / "third.safetensors")(patches), expected)


@every_weight
def test_packed_networks_refuse_training(
    scheme: str, backbone: str, bits: int, patches: Tensor, tmp_path: Path
) -> None:
    cadyq.save_model(_prepared(backbone, scheme, bits), tmp_path / "packed.safetensors", packed=True)
    loaded = cadyq.load_model(tmp_path / "packed.safetensors")
    if bits == 32:
        loaded.train()(patches)
        return
    assert all(isinstance(conv.weight_quantizer, PackedWeight) for conv in loaded.layer_names)
    with pytest.raises(UserError, match=f"packed {bits}-bit weights cannot be trained"):
        loaded.train()(patches)
    loaded.eval()(patches)


@every_scheme
def test_eval_equals_the_plain_path(scheme: str, backbone: str, bits: int, patches: Tensor) -> None:
    network = _prepared(backbone, scheme, bits)
    with torch.no_grad():
        first, second = network(patches), network(patches)
    assert torch.equal(first, second)
    assert torch.equal(network(patches).detach(), first)
    if SCHEMES.get(scheme).draws_in_training:
        drawn = []
        for seed in (0, 0):
            torch.manual_seed(seed)
            drawn.append(_training(network)(patches).detach())
        assert torch.equal(*drawn)
    else:
        assert torch.equal(_training(network)(patches).detach(), first)


def _scaled_in_place(network: SRNetwork) -> None:
    for conv in network.layer_names:
        conv.weight.mul_(1.5)


def _scaled_data(network: SRNetwork) -> None:
    for conv in network.layer_names:
        conv.weight.data = conv.weight.data * 1.5


def _loaded(network: SRNetwork) -> None:
    network.load_state_dict({k: v * 1.5 if v.is_floating_point() else v for k, v in network.state_dict().items()})


def _stepped(network: SRNetwork) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for parameter in network.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()


CHANGES = [_scaled_in_place, _scaled_data, _loaded, _stepped]


@every_weight
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_changed_weights_are_quantized_again(
    scheme: str, backbone: str, bits: int, change: Callable[[SRNetwork], None], patches: Tensor
) -> None:
    network = _prepared(backbone, scheme, bits)
    before = network(patches)
    change(network)
    fresh = _prepared(backbone, scheme, bits)
    fresh.load_state_dict(network.state_dict())
    after = network(patches)
    assert not torch.equal(after, before)
    assert torch.equal(after, fresh(patches))


@pytest.mark.parametrize("scheme", ["adabm", "minmax"])
@torch.no_grad()
def test_another_scheme_is_seen_too(scheme: str, patches: Tensor) -> None:
    """Also when the new weight quantizer happens to lie where the first one lay in memory."""
    network = _prepared("edsr", scheme, 8)
    for _ in range(20):
        apply_scheme(network, SCHEMES.get(scheme)(weight_bits=8, act_bits=8))
        initialize(network, _statistics("edsr"))
        network(patches)
        apply_scheme(network, SCHEMES.get(scheme)(weight_bits=5, act_bits=8))
        apply_scheme(network, SCHEMES.get(scheme)(weight_bits=2, act_bits=8))
        for conv, name in network.layer_names.items():
            assert len(conv.quantized_weight().unique()) <= 4, name


@every_weight
@torch.no_grad()
def test_frozen_weights_are_quantized_once(scheme: str, backbone: str, bits: int, patches: Tensor) -> None:
    network = _prepared(backbone, scheme, bits)
    expected = network(patches)
    with frozen_weights(network):
        kept = {layer: layer.quantized_weight() for layer in network.layer_names}
        assert torch.equal(network(patches), expected)
        assert all(layer.quantized_weight() is weight for layer, weight in kept.items())
    if bits != 32:
        assert all(layer.quantized_weight() is not weight for layer, weight in kept.items())


@every_scheme
@torch.no_grad()
def test_a_copy_is_independent(scheme: str, backbone: str, bits: int, patches: Tensor) -> None:
    network = _prepared(backbone, scheme, bits)
    expected = network(patches)
    other = copy.deepcopy(network)
    assert torch.equal(other(patches), expected)
    _scaled_in_place(other)
    assert not torch.equal(other(patches), expected)
    assert torch.equal(network(patches), expected)


@pytest.mark.parametrize(
    ("backbone", "scheme"),
    [
        (backbone, scheme)
        for scheme in cadyq.list_schemes()
        # where activations choose their own bits, those of the weights do not decide
        if _options(scheme, 8).keys() != {"weight_bits"}
        for backbone in ("edsr", OTHER[scheme])
    ],
)
@torch.no_grad()
def test_more_bits_come_closer_to_full_precision(backbone: str, scheme: str, patches: Tensor) -> None:
    expected = _plain(backbone)(patches)
    widths = [bits for bits in WIDTHS[scheme] if bits in (2, 4, 8, 32)]
    errors = [float((_calibrated(backbone, scheme, bits)(patches) - expected).abs().mean()) for bits in widths]
    assert errors == sorted(errors, reverse=True)
    if widths == [32]:
        assert errors == [0]


@pytest.mark.parametrize("scheme", cadyq.list_schemes())
def test_labels_read_back(scheme: str) -> None:
    network = cadyq.create_model("edsr", scheme, n_feats=8, n_resblocks=1)
    assert network.scheme is not None
    again = cadyq.create_model("edsr", network.scheme.label(), n_feats=8, n_resblocks=1)
    assert again.scheme == network.scheme


@pytest.mark.parametrize("scheme", [scheme for scheme in WIDTHS if "act_bits" in _options(scheme, 8)])
def test_bits_in_the_name(scheme: str) -> None:
    for bits in WIDTHS[scheme]:
        network = cadyq.create_model("edsr", f"{scheme}:w{bits}a8", n_feats=8, n_resblocks=1)
        assert network.scheme is not None
        assert network.scheme.label() == f"{scheme}:w{bits}a8"
        assert network.scheme.options()["weight_bits"] == bits
        assert network.scheme.options()["act_bits"] == 8


def _seen(minimum: float, maximum: float, channels: int = 1) -> PointStatistics:
    statistics = next(iter(_statistics("edsr").values()))
    return replace(statistics, minimum=torch.tensor(minimum), maximum=torch.tensor(maximum))


def _values(quantizer: Any, values: list[float]) -> list[float]:
    x = torch.tensor(values).view(1, 1, 1, -1)
    result: list[float] = quantizer(x, PatchContext(torch.zeros(1, 3, 4, 4))).value.flatten().tolist()
    return result


def test_dorefa_activation_by_hand() -> None:
    # 2 bits take 0.3 of the calibrated maximum: [0, 3] in steps of 1
    quantizer = DoReFaActivation(2)
    quantizer.initialize(_seen(0.0, 10.0))
    assert _values(quantizer, [-1, 0.4, 0.6, 1.4, 2.6, 9]) == pytest.approx([0, 0, 1, 1, 3, 3], abs=1e-6)
    # signed: [-3, 3] in steps of 2, no zero
    quantizer.initialize(_seen(-10.0, 4.0))
    found = _values(quantizer, [-5, -2.1, -1.9, -0.1, 0.1, 1.9, 2.1, 7])
    assert found == pytest.approx([-3, -3, -1, -1, 1, 1, 3, 3], abs=1e-6)


def test_dorefa_weight_by_hand() -> None:
    weight = torch.tensor([-0.8, -0.2, 0.4, 0.8]).atanh()
    # tanh / 1.6 + 1/2 is 0, 0.375, 0.75, 1; at 2 bits 0, 1/3, 2/3, 1; back: -0.8 + 1.6 times that
    expected = [-0.8, -0.8 / 3, 0.8 / 3, 0.8]
    assert TanhWeight(2)(weight).tolist() == pytest.approx(expected, abs=1e-6)


def test_dorefa_weight_gradient_by_hand() -> None:
    weight = torch.tensor([-0.8, -0.2, 0.4, 0.8]).atanh().requires_grad_()
    TanhWeight(2)(weight)[1].backward()
    # straight through the rounding, d tanh = 1 - tanh^2; the largest weight also moves the scale
    assert float(weight.grad[1]) == pytest.approx(1 - 0.2**2, abs=1e-5)
    assert float(weight.grad[2]) == 0


def test_minmax_by_hand() -> None:
    quantizer = MinMaxRange(2)
    quantizer.initialize(_seen(-1.0, 2.0))
    assert _values(quantizer, [-5, -0.6, -0.4, 0, 0.7, 1.4, 1.6, 9]) == [-1, -1, 0, 0, 1, 1, 2, 2]
    # a range on one side of zero is stretched to hold it
    quantizer.initialize(_seen(1.0, 3.0))
    assert _values(quantizer, [-1, 0.4, 0.6, 2.6, 9]) == pytest.approx([0, 0, 1, 3, 3], abs=1e-6)
    quantizer.initialize(_seen(-3.0, -1.0))
    assert _values(quantizer, [-9, -2.6, -0.6, -0.4, 5]) == pytest.approx([-3, -3, -1, 0, 0], abs=1e-6)


def test_pams_starts_at_its_share_of_the_range() -> None:
    for bits, share in RANGE_SHARE.items():
        network = calibrated_model("edsr", f"pams:w8a{bits}", n_feats=8, n_resblocks=2)
        initialize(network, _statistics("edsr"))
        for name, point in network.points.items():
            found = point.quantizer.bound.item()  # type: ignore[union-attr, arg-type]
            assert found == pytest.approx(share * float(_statistics("edsr")[name].max_abs), rel=1e-6)


@given(bits=st.integers(2, 8), low=st.floats(-50, 0), high=st.floats(0.01, 50), seed=st.integers(0, 1000))
def test_minmax_keeps_zero(bits: int, low: float, high: float, seed: int) -> None:
    quantizer = MinMaxRange(bits)
    quantizer.initialize(_seen(low, high))
    x = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) * 20
    x[0, 0, 0, 0] = 0
    value = quantizer(x, PatchContext(torch.zeros(1, 3, 6, 6))).value
    assert float(value[0, 0, 0, 0]) == 0
    step = (high - low) / (2**bits - 1)
    assert float((value - x.clamp(low, high)).abs().max()) <= step * 1.001 + 1e-6


@given(bits=st.integers(2, 8), seed=st.integers(0, 1000), spread=st.floats(1e-3, 3))
def test_dorefa_weight_keeps_its_largest_and_its_sign_symmetry(bits: int, seed: int, spread: float) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) * spread
    value = TanhWeight(bits)(weight)
    assert float(value.abs().max()) == pytest.approx(float(weight.tanh().abs().max()), rel=1e-5)
    torch.testing.assert_close(TanhWeight(bits)(-weight), -value, rtol=1e-4, atol=2 * spread / 2**bits)


@pytest.mark.parametrize("scheme", cadyq.list_schemes())
def test_quantizers_are_on_the_device_of_the_network(scheme: str) -> None:
    parent = cadyq.create_model("edsr", n_feats=8, n_resblocks=1).to("meta")
    network = with_scheme(parent, SCHEMES.get(scheme)())
    left = {
        name
        for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers())
        if tensor.device.type != "meta"
    }
    quantizers = {name: m for name, m in network.named_modules() if isinstance(m, ActivationQuantizer)}
    assert left == {f"{name}.{flag}" for name, quantizer in quantizers.items() for flag in quantizer.flags}
