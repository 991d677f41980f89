"""Networks of users in the shapes that they come in: layers with two names, several inputs, half precision."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import cadyq
from baselines.daq import DAQWeight
from cadyq.data.datasets import folder, photographs
from cadyq.data.images import write_png
from cadyq.deploy.onnx_export import Exportable, export_onnx
from cadyq.deploy.runtime import open_session, run
from cadyq.models.network import SRNetwork
from cadyq.quantization import calibration_patches
from cadyq.quantizers.cost import count_macs
from cadyq.quantizers.layers import QuantConv2d, frozen_weights
from cadyq.quantizers.points import QuantizationPoint
from cadyq.training.reconstruction import calibrate
from cadyq.training.units import Passage, blocks_of, watched
from cadyq.utils.errors import UserError

LR = [pair.lr for pair in photographs(4)]


class Bicubic(nn.Module):
    """x2: bicubic interpolation plus what a body of 8 channels adds."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.head, self.body, self.tail = nn.Conv2d(3, 8, 3, padding=1), body, nn.Conv2d(8, 12, 3, padding=1)
        nn.init.normal_(self.tail.weight, std=0.005)
        nn.init.zeros_(self.tail.bias)

    def forward(self, x: Tensor) -> Tensor:
        details = F.pixel_shuffle(self.tail(self.body(self.head(x))), 2)
        return F.interpolate(x, scale_factor=2, mode="bicubic") + details


class TwoNames(nn.Module):
    """Each layer is an attribute and a member of a sequence, as in many published networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.steps = nn.Sequential(self.conv1, nn.ReLU(), self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)  # type: ignore[no-any-return]


class Skip(nn.Module):
    """A block with a second feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(x) + 3 * skip  # type: ignore[no-any-return]


class WithSkips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Skip(), Skip()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x, x), skip=x)  # type: ignore[no-any-return]


def network_of(body: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.1)
    return Bicubic(body).eval()


@pytest.mark.parametrize("scheme", ["minmax:w2a8", "lsq:w4a4"])
@torch.no_grad()
def test_a_layer_with_two_names_stays_quantized(scheme: str, tmp_path: Path) -> None:
    network = network_of(TwoNames())
    quantized = cadyq.quantize(network, scheme, LR, pixel_range=1, patches=4)
    cadyq.save(quantized, tmp_path / "q.safetensors")
    loaded = cadyq.load_into(network, tmp_path / "q.safetensors")
    lr = LR[0][None, :, :32, :32].float()
    assert torch.equal(loaded(lr), quantized(lr))
    for layer, bits in ((layer, layer.weight_bits) for layer in loaded.layer_names):
        assert len(layer.quantized_weight().unique()) <= 2**bits


@torch.no_grad()
def test_a_layer_with_two_names_is_exported(tmp_path: Path) -> None:
    quantized = cadyq.quantize(network_of(TwoNames()), "minmax:w8a8", LR, pixel_range=1, patches=4)
    lr = LR[0][None, :, :32, :32].float()
    found = run(open_session(export_onnx(quantized, tmp_path / "m.onnx").path, threads=1), lr)
    assert (found - quantized(lr)).abs().max() < 1


class Versioned(Skip):
    """A block with a state that is no tensor."""

    version = 1

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        return self.conv(x) * self.version  # type: ignore[no-any-return]

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.version = state["version"]


@torch.no_grad()
def test_extra_state_that_is_no_tensor_is_left_to_the_network(tmp_path: Path) -> None:
    network, same = (network_of(nn.Sequential(Versioned(), Versioned())) for _ in range(2))
    for made in (network, same):
        made.body[1].version = 2
    quantized = cadyq.quantize(network, "pams:w4a4", LR, exclude=[], pixel_range=1, patches=4)
    lr = LR[0][None, :, :32, :32].float()
    sr, trace = cadyq.trace(quantized, lr)
    assert trace.macs.by_layer["network.body.1.conv"] > 0
    loaded = cadyq.load_into(same, cadyq.save(quantized, tmp_path / "q.safetensors"))
    assert torch.equal(loaded(lr), sr) and not torch.equal(sr, quantized.without_scheme()(lr))


@torch.no_grad()
def test_buffers_may_hold_infinity(tmp_path: Path) -> None:
    """As the masks of attention do."""
    network = network_of(nn.Conv2d(8, 8, 3, padding=1))
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf, torch.nan]))
    quantized = cadyq.quantize(network, "minmax:w4a4", LR, exclude=[], pixel_range=1, patches=4)
    loaded = cadyq.load_into(network, cadyq.save(quantized, tmp_path / "q.safetensors"))
    lr = LR[0][None, :, :32, :32].float()
    assert torch.equal(loaded(lr), quantized(lr)) and torch.equal(
        loaded.network.mask.isfinite(), network.mask.isfinite()
    )
    name = next(iter(quantized.quantizer_tensors()))
    quantized.state_dict()[name].fill_(torch.inf)
    cadyq.save_model(quantized, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=rf"bad\.safetensors: tensor '{name}' holds NaN or infinity"):
        cadyq.load_into(network, tmp_path / "bad.safetensors")


@pytest.mark.parametrize("count", [24, 32])
def test_a_second_feature_map_belongs_to_its_patch(count: int) -> None:
    prepared = cadyq.quantize(network_of(WithSkips()), "fp32", LR, pixel_range=1, patches=count)
    patches, rows = calibration_patches(LR, count, 16), torch.tensor([1, count - 1])
    first, second = (Passage(prepared, f"network.body.{name}", patches) for name in ("one", "two"))
    (skip,), _ = first.arguments(rows)
    _, options = second.arguments(rows)
    assert torch.equal(skip, first.read[rows]) and torch.equal(options["skip"], first.read[rows])
    _, reports = calibrate(prepared, "brecq:w4a4", patches, steps=2)
    assert [report.steps for report in reports] == [2, 2]


@torch.no_grad()
def test_threads_choose_their_own_bits() -> None:
    network = cadyq.load_model("zoo:carn_m_x4_cabm")
    flat = torch.full((1, 3, 16, 16), 128.0)
    busy = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255
    alone = {id(lr): cadyq.trace(network, lr)[1].fab() for lr in (flat, busy)}
    assert alone[id(flat)] != alone[id(busy)]
    wrong: list[float] = []

    def repeat(lr: Tensor) -> None:
        with torch.no_grad():
            wrong.extend(float(fab) for _ in range(20) if (fab := cadyq.trace(network, lr)[1].fab()) != alone[id(lr)])

    threads = [threading.Thread(target=repeat, args=(lr,)) for lr in (flat, busy)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_stored_networks_keep_their_own_macs(tmp_path: Path) -> None:
    """The key of the counted MACs was a number of the process."""
    small = cadyq.quantize(network_of(TwoNames()), "minmax:w8a8", LR, pixel_range=1, patches=4)
    torch.save(small, tmp_path / "small.pt")
    again = torch.load(tmp_path / "small.pt", weights_only=False)
    other = cadyq.quantize(network_of(TwoNames()), "minmax:w8a8", LR, pixel_range=1, patches=4)
    assert again.architecture == small.architecture != other.architecture
    assert isinstance(again.architecture, str) and len(again.architecture) == 32  # unique beyond this process


class Plain(SRNetwork):
    """A backbone that does not tell its width as an option."""

    name = "plain"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head, self.body = nn.Conv2d(3, width, 3, padding=1), QuantConv2d(width, width, 3)
        self.point = QuantizationPoint(width, [self.body])
        self.tail = nn.Conv2d(width, 12, 3, padding=1)
        self.register_points(2)

    def forward(self, lr: Tensor) -> Tensor:
        return F.pixel_shuffle(self.tail(self.body(self.point(self.head(lr)))), 2)


def test_networks_of_other_widths_have_other_macs() -> None:
    assert count_macs(Plain(8), 8, 8).total < count_macs(Plain(16), 8, 8).total


@torch.no_grad()
def test_macs_of_half_precision_and_autocast() -> None:
    network = cadyq.quantize(network_of(TwoNames()), "minmax:w8a8", LR, pixel_range=1, patches=4)
    expected = count_macs(network, 16, 16).total
    half = copy.deepcopy(network).half()
    half._token = "half"
    assert count_macs(half, 16, 16).total == expected
    copied = copy.deepcopy(network)
    copied._token = "autocast"
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        assert count_macs(copied, 16, 16).total == expected


def test_arguments_that_contradict_the_network_are_refused() -> None:
    wrapped = cadyq.quantize(network_of(TwoNames()), "minmax:w8a8", LR, pixel_range=1, patches=4)
    with pytest.raises(UserError, match=r"scale=3; bicubic has 2"):
        cadyq.quantize(wrapped, "mse:w8a8", LR, scale=3, patches=4)
    with pytest.raises(UserError, match=r"pixel_range=255; bicubic has 1"):
        cadyq.quantize(wrapped, "mse:w8a8", LR, pixel_range=255, patches=4)
    with pytest.raises(UserError, match=r"exclude=\[\]; bicubic was wrapped with 'head' in FP32"):
        cadyq.quantize(wrapped, "mse:w8a8", LR, exclude=[], patches=4)
    with pytest.raises(UserError, match=r"parameter 'head\.weight' is float16; give float32"):
        cadyq.quantize(network_of(TwoNames()).half(), "mse:w8a8", LR, patches=4)
    with pytest.raises(
        UserError, match=r"parameter 'head.weight' is float64; give float32, as from network\.float\(\)"
    ):
        cadyq.quantize(network_of(TwoNames()).double(), "mse:w8a8", LR, patches=4)


def test_frozen_weights_are_released_after_an_error() -> None:
    network = cadyq.load_model("zoo:idn_x4_fp32")
    layers = [module for module in network.modules() if isinstance(module, QuantConv2d)]

    def fail() -> Tensor:
        raise UserError("no weight")

    layers[3].quantized_weight = fail  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no weight"), frozen_weights(network):
        pass
    assert all(layer._frozen is None for layer in layers)


@torch.no_grad()
def test_transformer_layers_run_their_linear_layers() -> None:
    """In eval mode torch calls a fused kernel instead."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])  # type: ignore[no-any-return]

    network = network_of(Tokens())
    quantized = cadyq.quantize(network, "minmax:w4a4", LR, pixel_range=1, patches=2)
    assert {"body.layer.linear1", "body.layer.linear2"} <= quantized.points.keys()
    lr = LR[0][None, :, :16, :16].float()
    _, trace = cadyq.trace(quantized, lr)
    assert float(trace.fab()) == 4
    before = torch.backends.mha.get_fastpath_enabled()
    quantized(lr)
    assert torch.backends.mha.get_fastpath_enabled() is before


class TokensFirst(nn.Module):
    """A layer on tokens (T, B, C). All tokens have the same mean, deviation and maximum, as behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(2, 0, 1)
        tokens = tokens + self.linear(tokens.argsort(2).float())
        return tokens.permute(1, 2, 0).reshape(x.shape)


def test_layers_that_read_the_batch_in_the_second_dimension_stay_in_fp32() -> None:
    made = cadyq.quantize(network_of(TokensFirst()), "fp32", LR, pixel_range=1, patches=4, exclude=[])
    assert list(made.points) == ["head", "tail"]
    assert made.reasons() == {"network.body.linear": "its input is no feature map of the images"}


def test_two_photographs_of_one_name_are_refused(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(UserError, match="two images have the name 'a'"):
        folder(tmp_path, 4)


def test_images_of_16_bits_are_refused_with_their_range() -> None:
    with pytest.raises(UserError, match=r"pixels run from 0 to 65535; give them in 0\.\.255"):
        calibration_patches(np.arange(65536, dtype=np.uint16).repeat(3).reshape(256, 256, 3), 2)


def test_a_blurring_weight_survives_daq() -> None:
    """Its deviation, the step of DAQ's grid, is 0."""
    weight = torch.full((8, 1, 3, 3), 1 / 9)
    assert torch.allclose(DAQWeight(8)(weight), weight)
    assert torch.allclose(DAQWeight(2)(weight + 1e-3 * torch.randn(weight.shape)), weight, atol=5e-3)


@torch.no_grad()
def test_a_block_may_return_several_outputs() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return self.conv(x), 1

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.other = Both(), Both()

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.block(x)[0])[0]  # type: ignore[no-any-return]

    prepared = cadyq.quantize(network_of(First()), "minmax:w8a8", LR, pixel_range=1, patches=4)
    with watched(prepared, blocks_of(prepared)) as seen:
        prepared(LR[0][None, :, :16, :16].float())
    assert [value.shape for value in seen.values()] == [(1, 8, 16, 16)] * 2


class Blur(nn.Module):
    """Reads maps with `view`, which only maps in the default layout allow, and in windows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.window, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c, h, w = y.shape
        y = F.avg_pool2d(y.view(b * c, 1, h, w), 3, 1, 1).view(b, c, h, w)
        windows = torch.cat([y[:, None, :, : h // 2], y[:, None, :, h // 2 :]], 1).view(b * 2, c, h // 2, w)
        windows = self.up(self.window(windows)).view(b, 2, c, h // 2, w)
        y = self.last(torch.cat([windows[:, 0], windows[:, 1]], 2).relu())
        return y * y.view(b, -1).mean(1).view(b, 1, 1, 1).sigmoid()


@torch.no_grad()
def test_a_network_may_view_its_maps(tmp_path: Path) -> None:
    network, lr = network_of(Blur()), LR[0][None, :, :32, :32].float()
    quantized = cadyq.quantize(network, "minmax:w8a8", LR, pixel_range=1, patches=4)
    assert torch.equal(quantized.without_scheme()(lr), network(lr * (1 / 255)) * 255), "maps in the layout it has alone"
    with frozen_weights(quantized):
        frozen = quantized(lr)
    cadyq.save(quantized, tmp_path / "q.safetensors")
    loaded = cadyq.load_into(network, tmp_path / "q.safetensors")
    assert torch.equal(loaded(lr), frozen) and torch.equal(quantized(lr), frozen)
    assert torch.equal(quantized(lr.contiguous(memory_format=torch.channels_last)), frozen), "as in training"


@torch.no_grad()
def test_channels_of_a_batch_are_viewed_as_samples() -> None:
    """One sample allows that in any layout."""

    class Apart(Blur):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            b, c, h, w = y.shape
            return self.last(F.avg_pool2d(y.view(b * c, 1, h, w), 3, 1, 1).view(b, c, h, w))

    quantized = cadyq.quantize(network_of(Apart()), "minmax:w8a8", LR, pixel_range=1, patches=4)
    assert quantized(LR[0][None, :, :16, :16].float()).shape == (1, 3, 32, 32)


@torch.no_grad()
def test_the_image_itself_may_be_viewed() -> None:
    """Tiles and training batches are channels last; the network gets them as its authors give them."""

    class Centered(Bicubic):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.view(len(x), -1).mean(1)[:, None, None, None]
            return super().forward(x - mean) + mean

    network = network_of(TwoNames())
    network.__class__ = Centered
    quantized = cadyq.quantize(network, "minmax:w8a8", LR, pixel_range=1, patches=4)
    lr = torch.stack([image[:, :16, :16] for image in LR[:2]]).float()
    assert torch.equal(quantized(lr.contiguous(memory_format=torch.channels_last)), quantized(lr))
    assert {type(layer) for layer in quantized.layer_names} == {QuantConv2d}, "maps keep the faster layout"


def test_maps_keep_the_faster_layout_elsewhere() -> None:
    quantized = cadyq.quantize(network_of(TwoNames()), "fp32", LR, pixel_range=1, patches=4)
    assert {type(layer) for layer in quantized.layer_names} == {QuantConv2d}
    assert "contiguous" not in quantized.options


class Stubborn(nn.Module):
    """Asks for the class of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if type(self.conv) is not nn.Conv2d:
            raise TypeError("no convolution")
        return self.conv(x)  # type: ignore[no-any-return]


def test_a_network_that_its_points_break_is_refused() -> None:
    with pytest.raises(UserError, match=r"Bicubic runs alone, but not with quantizable layers: .*no convolution; .*"):
        cadyq.quantize(network_of(Stubborn()), "minmax:w8a8", LR, pixel_range=1, patches=4)


def test_a_layer_with_a_forward_of_its_own_stays_in_fp32() -> None:
    network, lr = network_of(TwoNames()), LR[0][None, :, :32, :32].float()
    doubled, padded = network.body.conv1, network.body.conv2  # type: ignore[union-attr]
    doubled.forward = lambda x: 2 * nn.Conv2d.forward(doubled, x)  # type: ignore[union-attr, arg-type]

    def circular(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)

    padded._conv_forward = circular  # type: ignore[union-attr]
    made = cadyq.quantize(network, "fp32", LR, pixel_range=1, patches=4, exclude=[])
    assert list(made.points) == ["head", "tail"]
    assert set(made.reasons().values()) == {"its forward is changed, which a replacement would lose"}
    with torch.no_grad():
        torch.testing.assert_close(made(lr), network(lr / 255) * 255)


class Asking(Stubborn):
    """Computes something else where its layer has another class."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (10 if type(self.conv) is nn.Conv2d else 1)  # type: ignore[no-any-return]


class Noisy(Bicubic):
    """Draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        sr = super().forward(x)
        return sr + 0.1 * torch.randn_like(sr)


def test_a_network_that_computes_something_else_with_its_points_is_refused() -> None:
    with pytest.raises(UserError, match=r"Bicubic computes something else with quantizable layers, .*: exclude=\["):
        cadyq.quantize(network_of(Asking()), "minmax:w8a8", LR, pixel_range=1, patches=4)
    assert cadyq.quantize(Noisy(TwoNames()).eval(), "minmax:w8a8", LR, pixel_range=1, patches=4).points


def test_a_network_whose_layer_was_changed_is_not_loaded_into(tmp_path: Path) -> None:
    """Before, the change was lost without a word."""
    network = network_of(TwoNames())
    cadyq.save(cadyq.quantize(network, "minmax:w8a8", LR, pixel_range=1, patches=4), tmp_path / "q.safetensors")
    assert cadyq.load_into(network, tmp_path / "q.safetensors").points
    layer = network.body.conv1
    layer.forward = lambda x: 2 * nn.Conv2d.forward(layer, x)  # type: ignore[union-attr, arg-type]
    with pytest.raises(UserError, match=r"q\.safetensors: Bicubic computes something else with quantizable layers"):
        cadyq.load_into(network, tmp_path / "q.safetensors")


class Halving(nn.Module):
    """Needs even sides: other maps become smaller, or do not fit the shortcut."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 8, 2, stride=2), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x))
        return y + x if self.shortcut else y


class Detail(Bicubic):
    """Details alone, whose size follows that of the maps."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.tail(self.body(self.head(x))), 2)


@pytest.mark.parametrize("shortcut", [False, True])
def test_sides_that_the_network_needs_are_named(
    shortcut: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = Detail(Halving(shortcut)).eval()
    quantized = cadyq.quantize(network, "minmax:w8a8", LR, pixel_range=1, patches=4)
    assert "Detail fails where 2 does not divide both sides of LR; pass multiple_of=2" in caplog.text
    caplog.clear()
    padding = cadyq.quantize(network, "minmax:w8a8", LR, pixel_range=1, patches=4, multiple_of=2)
    assert not caplog.text and padding(LR[0][None, :, :33, :31].float()).shape == (1, 3, 66, 62)
    write_png(tmp_path / "a.png", torch.zeros(3, 66, 66, dtype=torch.uint8))
    if not shortcut:
        with pytest.raises(UserError, match="give multiple_of to cadyq"):
            cadyq.evaluate(quantized, folder(tmp_path, 2), modes=["image"])


@pytest.mark.parametrize(
    ("compiled", "message"),
    [
        (
            lambda network: torch.jit.trace(network, torch.rand(1, 3, 8, 8)),
            "is compiled by torch.jit; pass the network",
        ),
        (lambda network: torch.compile(network, backend="eager"), "OptimizedModule is compiled by torch.compile"),
    ],
)
def test_compiled_networks_are_named(compiled: Callable[[nn.Module], nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cadyq.quantize(compiled(network_of(TwoNames())), "minmax:w8a8", LR, pixel_range=1, patches=4)


class Depth(nn.Module):
    """A convolution over channels and pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, None])[:, 0]  # type: ignore[no-any-return]


def test_every_layer_that_stays_in_fp32_is_printed_with_its_reason() -> None:
    normalized = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
    network = network_of(nn.Sequential(Depth(), normalized, nn.Conv2d(8, 8, 3, padding=1)))
    shown = repr(cadyq.quantize(network, "minmax:w8a8", LR, pixel_range=1, patches=4))
    assert "network.body.0.conv  FP32      FP32         a Conv3d cannot be quantized" in shown
    assert "network.body.1       FP32      FP32         its weight is made of others" in shown


def test_weights_that_are_not_finite_are_named() -> None:
    """Before, the message said that pixel_range was unclear."""
    network = network_of(TwoNames())
    network.get_parameter("head.weight").data[0] = torch.nan
    with pytest.raises(UserError, match="values that are not finite; check its weights"):
        cadyq.quantize(network, "minmax:w8a8", LR, patches=4)


@torch.no_grad()
def test_a_layer_with_an_output_size_is_excluded() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up = nn.Conv2d(8, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.conv(x), list(x.shape[-2:]))  # type: ignore[no-any-return]

    network, lr = network_of(Sized()), LR[0][None, :, :32, :32].float()
    with pytest.raises(UserError, match="output_size cannot be quantized; exclude it"):
        cadyq.quantize(network, "minmax:w8a8", LR, pixel_range=1, patches=4)
    quantized = cadyq.quantize(network, "minmax:w8a8", LR, pixel_range=1, patches=4, exclude=["body.up"])
    assert list(cadyq.trace(quantized, lr)[1].bits) == ["head", "body.conv", "tail"]


class Merging(nn.Module):
    """As SPAN: three layers in training mode, in eval mode one whose weight each forward makes of theirs."""

    def __init__(self, data: bool) -> None:
        super().__init__()
        self.data = data
        self.wide, self.narrow, self.conv = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.merged = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.conv(self.narrow(self.wide(x)))  # type: ignore[no-any-return]
        weight = (self.narrow.weight[..., 0, 0] @ self.wide.weight[..., 0, 0])[..., None, None]
        if self.data:
            self.merged.weight.data = weight.detach()
        else:
            self.merged.weight.data.copy_(weight)
        return self.conv(self.merged(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("data", [True, False])
@torch.no_grad()
def test_a_weight_that_each_forward_computes_stays_in_fp32(data: bool, tmp_path: Path) -> None:
    network, lr = network_of(Merging(data)), LR[0][None, :, :32, :32].float()
    made = cadyq.quantize(network, "minmax:w3a8", LR, pixel_range=1, patches=4, outer_bits=8)
    assert {"network.body.merged": "its weight is changed in each forward"}.items() <= made.reasons().items()
    assert list(made.points) == ["head", "body.conv", "tail"]
    cadyq.save(made, tmp_path / "q.safetensors")
    other = network_of(Merging(data))
    assert torch.equal(cadyq.load_into(other, tmp_path / "q.safetensors")(lr), made(lr))
    with pytest.raises(UserError, match=r"no layer is left to quantize .*body\.merged: its weight is changed"):
        cadyq.quantize(network, "minmax:w3a8", LR, pixel_range=1, patches=4, exclude=["head", "tail", "body.conv"])


@pytest.mark.parametrize("transposed", [False, True])
@torch.no_grad()
def test_a_layer_is_called_by_keyword(transposed: bool) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = nn.ConvTranspose2d if transposed else nn.Conv2d
            self.conv, self.linear = kind(8, 8, 3, padding=1), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(input=self.conv(input=x).movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]

    quantized = cadyq.quantize(network_of(Named()), "minmax:w8a8", LR, pixel_range=1, patches=4)
    lr = LR[0][None, :, :16, :16].float()
    assert list(cadyq.trace(quantized, lr)[1].bits) == ["body.conv", "body.linear"]
    assert float((Exportable(quantized)(lr) - quantized(lr)).abs().max()) < 1


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_a_fresh_network_with_a_computed_weight_is_copied(tmp_path: Path) -> None:
    """Its weight has a history until a forward without gradients."""

    def fresh() -> nn.Module:
        network = network_of(TwoNames())
        nn.utils.weight_norm(network.body.conv1)
        return network

    network, lr = fresh().train(), LR[0][None, :, :32, :32].float()
    network(lr)
    parts = {key: value.clone() for key, value in network.state_dict().items()}
    quantized = cadyq.quantize(network, "minmax:w8a8", LR, pixel_range=1, patches=4)
    assert all(torch.equal(value, parts[key]) for key, value in network.state_dict().items())
    cadyq.save(quantized, tmp_path / "q.safetensors")
    expected = quantized(lr)
    assert float((Exportable(quantized)(lr) - expected).detach().abs().max()) < 1
    assert torch.equal(cadyq.load_into(fresh(), tmp_path / "q.safetensors")(lr), expected)
    torch.testing.assert_close(quantized.without_scheme()(lr), network.eval()(lr / 255) * 255, atol=1e-2, rtol=0)
