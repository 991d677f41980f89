"""Backbones: what they compute, and that their points sit where they say."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cadyq
from cadyq.data.datasets import load
from cadyq.metrics.quality import psnr
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.trace import Trace
from cadyq.schemes.calibration import initialize, observe
from cadyq.testing.models import calibrated_model
from cadyq.testing.subject import backbones_to_check, small_sizes
from cadyq.utils.errors import UserError

every_backbone = pytest.mark.parametrize("backbone", backbones_to_check())


def _small(backbone: str, scheme: str = "fp32", **options: Any) -> SRNetwork:
    torch.manual_seed(0)
    return calibrated_model(backbone, scheme, **(small_sizes(backbone) | options)).eval()


def test_a_plain_module_cannot_be_traced() -> None:
    with pytest.raises(UserError, match=r"a Conv2d has no quantization points to trace; trace what cadyq\.quantize"):
        cadyq.trace(nn.Conv2d(3, 3, 3), torch.zeros(1, 3, 8, 8))  # type: ignore[arg-type]


def test_the_list_is_not_empty() -> None:
    assert {"edsr", "carn", "carn_m", "idn", "imdn", "rlfn", "srresnet"} <= set(backbones_to_check())


@every_backbone
@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_output_shape(backbone: str, scale: int) -> None:
    assert _small(backbone, scale=scale)(torch.zeros(2, 3, 7, 5)).shape == (2, 3, 7 * scale, 5 * scale)


@every_backbone
@pytest.mark.parametrize("scale", [1, 5, 0, -2])
def test_other_scales_are_refused(backbone: str, scale: int) -> None:
    with pytest.raises(UserError, match=f"scale={scale}"):
        _small(backbone, scale=scale)


GRAPHS: list[tuple[str, dict[str, Any]]] = [(backbone, {}) for backbone in backbones_to_check()]
GRAPHS += [("idn", {"quantized_features": True}), ("srresnet", {"quantized_input": False})]


@pytest.mark.parametrize(("backbone", "graph"), GRAPHS)
@pytest.mark.parametrize("scheme", ["fp32", "minmax", "cadyq", "granular"])
def test_each_convolution_reads_the_point_that_feeds_it(
    backbone: str, graph: dict[str, Any], scheme: str, patches: Tensor
) -> None:
    """At every use: the tensor a convolution receives is the very tensor one of its points just returned.

    No scheme changes the graph. These have no quantizers, the same at every point, others where points do not count
    for FAB, and quantizers that depend on all points.
    """
    network = _small(backbone, scheme, **graph)
    feeding: dict[nn.Module, list[QuantizationPoint]] = {}
    for point in network.points.values():
        for conv in point.feeds:
            feeding.setdefault(conv, []).append(point)
    returned: list[tuple[QuantizationPoint, Tensor]] = []
    reads: list[tuple[QuantizationPoint, nn.Module]] = []

    def after_point(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, QuantizationPoint)
        returned.append((module, output))

    def before_conv(module: nn.Module, inputs: tuple[Tensor]) -> None:
        point, value = returned[-1]
        assert inputs[0] is value, f"{network.layer_names.get(module)} reads something else"  # type: ignore[call-overload]
        assert module in point.feeds, f"{point.name} does not say that it feeds {network.layer_names.get(module)}"  # type: ignore[call-overload]
        reads.append((point, module))

    for point in network.points.values():
        point.register_forward_hook(after_point)
    for conv in feeding:
        conv.register_forward_pre_hook(before_conv)
    # the figure alone: a scheme may run it several times to prepare a forward
    trace = Trace(network, patches)
    network.run_with_set_bits(trace.context, trace.record)
    assert [point.name for point, _ in returned] == list(trace.bits)
    assert len(returned) == len(network.points), "a point ran twice or never"
    assert {(point.name, conv) for point, conv in reads} == {
        (point.name, conv) for conv, points in feeding.items() for point in points
    }
    assert len(reads) == sum(len(point.feeds) for point in network.points.values())


@every_backbone
def test_only_convolutions_that_read_a_point_are_quantized(backbone: str) -> None:
    network = _small(backbone, "minmax")
    read = {conv for point in network.points.values() for conv in point.layers}
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, QuantConv2d)}
    assert read and read < set(convolutions.values())
    for name, module in convolutions.items():
        assert (module.weight_quantizer is not None) == (module in read), name
        assert (module in network.layer_names) == (module in read), name


def test_points_of_edsr() -> None:
    points = cadyq.create_model("edsr").points
    assert sum(point.counts_for_fab for point in points.values()) == 32
    assert sum(not point.counts_for_fab for point in points.values()) == 16
    assert all(point.counts_for_fab == bool(point.feeds) for point in points.values())
    assert list(points)[:3] != list(points)[3:6]


def test_points_of_carn_m() -> None:
    network = cadyq.create_model("carn_m")
    assert len(network.points) == sum(point.counts_for_fab for point in network.points.values()) == 27
    assert len(network.layer_names) == 9
    assert all(len(point.feeds) == 1 for point in network.points.values())


@pytest.mark.parametrize(
    ("backbone", "graph", "dynamic", "fixed", "convs"),
    [
        ("carn", {}, 18, 0, 18),
        ("srresnet", {}, 32, 0, 32),
        ("srresnet", {"quantized_input": False}, 32, 0, 32),
        ("idn", {}, 24, 0, 24),
        ("idn", {"quantized_features": True}, 24, 2, 26),
        ("imdn", {}, 32, 0, 32),
        ("rlfn", {}, 18, 0, 18),
        ("edsr", {"n_feats": 256, "n_resblocks": 32, "res_scale": 0.1}, 64, 32, 64),
    ],
)
def test_points_of_the_others(backbone: str, graph: dict[str, Any], dynamic: int, fixed: int, convs: int) -> None:
    network = cadyq.create_model(backbone, **graph)
    counted = [point.counts_for_fab for point in network.points.values()]
    assert (sum(counted), len(counted) - sum(counted), len(network.layer_names)) == (dynamic, fixed, convs)


@torch.no_grad()
def test_in_published_srresnet_only_the_shortcut_passes_the_first_point(patches: Tensor) -> None:
    network = _small("srresnet", "pams:w8a2", quantized_input=False)
    first, shortcut = network.get_submodule("blocks.0"), network.points["blocks.0.input"]
    entered: dict[str, Tensor] = {}
    first.register_forward_pre_hook(lambda module, inputs: entered.update(block=inputs[0]))
    shortcut.register_forward_hook(lambda module, inputs, output: entered.update(shortcut=output))
    conv1 = network.get_submodule("blocks.0.conv1")
    conv1.register_forward_pre_hook(lambda module, inputs: entered.update(conv1=inputs[0]))
    network(patches)
    assert entered["conv1"] is entered["block"]
    assert len(network.get_submodule("blocks.0.conv1").quantized_weight().unique()) > 2  # type: ignore[operator, union-attr]
    assert not torch.equal(entered["shortcut"], entered["block"])


@pytest.mark.parametrize(("backbone", "graph"), GRAPHS)
def test_graphs_are_rebuilt_from_their_configuration(
    backbone: str, graph: dict[str, Any], tmp_path: Path, patches: Tensor
) -> None:
    network = _small(backbone, "pams:w8a8", **graph)
    assert network.options.items() >= graph.items()
    cadyq.save_model(network, tmp_path / "model.safetensors")
    loaded = cadyq.load_model(tmp_path / "model.safetensors")
    assert loaded.options == network.options
    with torch.no_grad():
        assert torch.equal(loaded(patches), network(patches))


@every_backbone
def test_point_names_are_places(backbone: str) -> None:
    network = _small(backbone)
    for name, point in network.points.items():
        assert network.get_submodule(name) is point
        assert point.name == name


@every_backbone
@torch.no_grad()
def test_trace_of_full_precision(backbone: str, patches: Tensor) -> None:
    network = _small(backbone)
    sr, trace = cadyq.trace(network, patches)
    assert torch.equal(sr, network(patches))
    assert sorted(trace.bits) == sorted(network.points)
    assert all(bits.tolist() == [32] * len(patches) for bits in trace.bits.values())
    assert trace.fab().tolist() == [32] * len(patches)
    assert trace.bit_penalty().tolist() == [0] * len(patches)


@every_backbone
@torch.no_grad()
def test_trace_of_fixed_bits(backbone: str, patches: Tensor) -> None:
    _, trace = cadyq.trace(_small(backbone, "pams:w8a5"), patches)
    assert all(bits.tolist() == [5] * len(patches) for bits in trace.bits.values())
    assert trace.fab().tolist() == [5] * len(patches)


def _mixed(backbone: str, patches: Tensor) -> SRNetwork:
    network = _small(backbone, "cadyq", weight_bits=7, search_space=(3, 5, 8))
    initialize(network, observe(_small(backbone), patches))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, parameter in network.named_parameters():
            if ".selector." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


@every_backbone
@torch.no_grad()
def test_trace_of_mixed_bits(backbone: str, patches: Tensor) -> None:
    network = _mixed(backbone, patches)
    _, trace = cadyq.trace(network, patches)
    counted = [name for name, point in network.points.items() if point.counts_for_fab]
    for name, bits in trace.bits.items():
        assert set(bits.tolist()) <= ({3, 5, 8} if name in counted else {7}), name
    chosen = torch.stack([trace.bits[name] for name in counted])
    assert len(chosen.unique()) > 1
    assert bool((chosen != chosen[:, :1]).any()), "content makes no difference"
    torch.testing.assert_close(trace.fab(), chosen.float().mean(0))


@every_backbone
def test_mixed_bits_cost_more_where_more_are_chosen(backbone: str, patches: Tensor) -> None:
    network = _mixed(backbone, patches)
    _, trace = cadyq.trace(network, patches)
    penalties = {n: r.bit_penalty for n, r in trace.records.items() if r.point.counts_for_fab}
    for name, penalty in penalties.items():
        assert penalty is not None and penalty.shape == (len(patches),), name
        bits = trace.bits[name].float()
        # bits / expected bits, and the expectation lies between the candidates
        assert bool((penalty >= bits / 8 - 1e-5).all()) and bool((penalty <= bits / 3 + 1e-5).all()), name
    torch.testing.assert_close(trace.bit_penalty(), torch.stack(list(penalties.values())).sum(0))


@pytest.mark.parametrize(("backbone", "expected"), [("carn", 31.590), ("srresnet", 31.458), ("idn", 31.557)])
def test_set5_with_real_weights(data_root: Path, backbone: str, expected: float) -> None:
    network = cadyq.load_model(f"zoo:{backbone}_x4_fp32")
    values = []
    with torch.no_grad():
        for pair in load("Set5", 4, data_root):
            sr = network(pair.lr[None].float())
            values.append(float(psnr(sr, pair.hr[None].float(), 4, protocol="matlab")))
    assert len(values) == 5
    assert sum(values) / 5 == pytest.approx(expected, abs=0.001)


def _authors_names(network: SRNetwork) -> dict[str, Tensor]:
    """A small CARN-M's state under the names of its authors' code, with the upsampling heads of other scales."""
    state: dict[str, Tensor] = {"sub_mean.shifter.weight": torch.eye(3).view(3, 3, 1, 1)}
    for key, value in network.state_dict().items():
        part = key.split(".")
        if part[0] == "blocks" and part[2] == "residual":
            name = f"b{int(part[1]) + 1}.b1.body.{2 * (int(part[3][-1]) - 1)}.{part[-1]}"
        elif part[0] == "blocks":
            name = f"b{int(part[1]) + 1}.c{int(part[3]) + 1}.body.0.{part[-1]}"
        elif part[0] == "fusions":
            name = f"c{int(part[1]) + 1}.body.0.{part[-1]}"
        elif part[0] == "upsample":
            name = f"upsample.up{network.scale}.body.{part[1]}.{part[2]}"
            state[f"upsample.up{2 + (network.scale - 1) % 3}.body.{part[1]}.{part[2]}"] = value + 1
        else:
            name = key
        state[name] = value
    return state


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_authors_weights_of_carn_m(scale: int) -> None:
    made = _small("carn_m", scale=scale)
    loaded = cadyq.load_official(_authors_names(made), "carn_m", scale=scale, n_feats=16)
    for key, value in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_foreign_weights_must_be_finite(tmp_path: Path, value: float, suffix: str) -> None:
    from safetensors.torch import save_file

    state = {key: tensor.clone() for key, tensor in _authors_names(_small("carn_m")).items()}
    state["entry.weight"][0, 0, 0, 0] = value
    path = tmp_path / f"foreign{suffix}"
    (torch.save if suffix == ".pt" else save_file)(state, path)
    with pytest.raises(UserError, match=r"foreign.*entry\.weight"):
        cadyq.load_official(path, "carn_m", n_feats=16)


@pytest.mark.parametrize(("source", "target"), [("edsr", "carn_m"), ("carn_m", "edsr")])
def test_weights_of_another_architecture_are_refused(source: str, target: str) -> None:
    with pytest.raises(UserError, match=f"state dict: not weights of {target}"):
        cadyq.load_official(_small(source).state_dict(), target, **small_sizes(target))


@pytest.mark.parametrize("scheme", ["pams:w8a8", "cadyq", "lsq:w4a4"])
def test_a_network_made_in_inference_mode_runs(scheme: str) -> None:
    lr = torch.rand(1, 3, 12, 12) * 255
    with torch.inference_mode():
        torch.manual_seed(0)
        inside = calibrated_model("edsr", scheme, n_feats=8, n_resblocks=1).eval()
        result = inside(lr)
    torch.manual_seed(0)
    outside = calibrated_model("edsr", scheme, n_feats=8, n_resblocks=1).eval()
    with torch.no_grad():
        assert torch.equal(result, outside(lr))


@pytest.mark.parametrize(
    ("lr", "given"),
    [
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\) float32"),
        (torch.zeros(1, 4, 8, 8), r"\(1, 4, 8, 8\) float32"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"\(1, 3, 8, 8\) uint8"),
        ([1, 2], "list"),
    ],
)
def test_what_is_no_image_is_named(lr: Any, given: str) -> None:
    network = cadyq.create_model("edsr", n_feats=8, n_resblocks=1)
    for run in (network, partial(cadyq.trace, network)):
        with pytest.raises(UserError, match=rf"edsr: its input is {given}; give RGB images, a tensor \(B, 3, H, W\)"):
            run(lr)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    """It would change bits and pixels."""
    network, lr = cadyq.create_model("edsr", n_feats=8, n_resblocks=1).eval(), torch.rand(1, 3, 12, 8) * 255
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"edsr: its input is \(1, 3, 12, 8\) {name}; give RGB .* of float32"):
        network(lr.to(dtype))
    with pytest.raises(UserError, match=rf"edsr: its weights are {name}; load it again, and leave them in float32"):
        cadyq.trace(network.to(dtype), lr)
    with pytest.raises(UserError, match="its weights are"):
        network(lr.to(dtype))


def test_autocast_runs_with_weights_and_images_of_float32() -> None:
    network, lr = cadyq.create_model("edsr", n_feats=8, n_resblocks=1).eval(), torch.rand(1, 3, 12, 8) * 255
    with torch.autocast("cpu", torch.bfloat16):
        assert network(lr).shape == (1, 3, 48, 32)


def _calibrated(network: SRNetwork) -> set[bool]:
    return {point.quantizer.calibrated for point in network.points.values() if point.quantizer is not None}


@pytest.mark.parametrize("scheme", ["pams", "cadyq"])
def test_a_state_keeps_whether_it_is_calibrated(scheme: str) -> None:
    fresh, known = (
        cadyq.create_model("edsr", scheme, n_feats=8, n_resblocks=1),
        calibrated_model("edsr", scheme, n_feats=8, n_resblocks=1),
    )
    assert (_calibrated(fresh), _calibrated(known)) == ({False}, {True})
    whole = known.state_dict()
    file = io.BytesIO()
    torch.save(fresh.state_dict(), file)
    file.seek(0)
    known.load_state_dict(torch.load(file, weights_only=True))
    assert _calibrated(known) == {False}
    for part in (whole, {key: value for key, value in whole.items() if not key.startswith("head.")}):
        other = cadyq.create_model("edsr", scheme, n_feats=8, n_resblocks=1)
        other.load_state_dict(part, strict=False)
        assert _calibrated(other) == {True}
    other = cadyq.create_model("edsr", scheme, n_feats=8, n_resblocks=1)
    other.load_state_dict({key: value for key, value in whole.items() if "bound" not in key}, strict=False)
    assert _calibrated(other) == {False}
