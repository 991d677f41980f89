"""Any network from LR to SR is quantized, traced, saved and loaded by one call each."""

from __future__ import annotations

import copy
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import cadyq
from cadyq import UserError, quantization
from cadyq.data import datasets
from cadyq.data.images import read_rgb, write_png
from cadyq.models.foreign import ForeignNetwork
from cadyq.quantization import calibration_patches
from cadyq.quantizers.cost import count_by_fvcore, count_macs
from cadyq.quantizers.layers import QuantConv2d, QuantConvTranspose2d, QuantLinear, frozen_weights
from cadyq.schemes.base import SCHEMES

SCALE = 2


class Attention(nn.Module):
    """Self-attention over all pixels, with linear layers on channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        samples, width, height, columns = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        y = (q @ k.transpose(1, 2) / width**0.5).softmax(-1) @ v
        return x + self.project(y).transpose(1, 2).reshape(samples, width, height, columns)


class Mixed(nn.Module):
    """Every kind of layer that can be quantized: strided, dilated, grouped, padded otherwise, transposed, linear."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1, padding_mode="reflect")
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2, groups=2)
        self.attention = Attention(2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, groups=2)
        self.tail = nn.Conv2d(width, 3 * SCALE**2, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        z = self.attention(F.gelu(self.dilated(self.down(y).relu())))
        out = F.pixel_shuffle(self.tail(y + self.up(z)), SCALE)
        return out * 0.01 + F.interpolate(x, scale_factor=SCALE, mode="bilinear")


def photographs(count: int = 4, side: int = 24) -> Tensor:
    """Smooth LR images (N, 3, side, side) in 0..255."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, side // 4, side // 4, generator=generator) * 255
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 255)


@pytest.fixture
def network() -> Mixed:
    torch.manual_seed(0)
    return Mixed().eval()


def _quantized(network: nn.Module, scheme: str = "minmax:w8a8", **options: object) -> ForeignNetwork:
    made = cadyq.quantize(network, scheme, photographs(), pixel_range=1, **options)  # type: ignore[arg-type]
    assert isinstance(made, ForeignNetwork)
    return made


@torch.no_grad()
def test_one_call_quantizes_what_it_was_given(network: Mixed) -> None:
    lr = photographs(3, 20)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    made = _quantized(network)
    sr, trace = cadyq.trace(made, lr)
    assert list(trace.bits) == ["down", "dilated", "attention.qkv", "attention.project", "up"]
    assert made.scale == SCALE and sr.shape == (3, 3, 40, 40)
    assert all(bits.tolist() == [8, 8, 8] for bits in trace.bits.values())
    assert float((sr - 255 * network(lr / 255)).abs().max()) < 4
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "the original changed"
    assert type(network.down) is nn.Conv2d


@torch.no_grad()
@pytest.mark.parametrize("exclude", [[], ["up*", "attention.*"], ["*"]])
def test_what_is_excluded_stays_in_fp32(network: Mixed, exclude: list[str]) -> None:
    if exclude == ["*"]:
        with pytest.raises(UserError, match="no layer is left to quantize"):
            _quantized(network, exclude=exclude)
        return
    trace = cadyq.trace(_quantized(network, exclude=exclude), photographs(1))[1]
    everything = ["head", "down", "dilated", "attention.qkv", "attention.project", "up", "tail"]
    left = [name for name in everything if not name.startswith(("up", "attention"))] if exclude else everything
    assert list(trace.bits) == left


@torch.no_grad()
def test_without_quantizers_the_points_change_nothing(network: Mixed) -> None:
    plain = _quantized(network).without_scheme()
    lr = photographs(2, 28)
    torch.testing.assert_close(plain(lr), 255 * network(lr / 255), atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["minmax:w4a8", "dynamic_range:w8a4", "pams:w4a4", "cadyq", "daq:w4a4"])
def test_saved_and_loaded_it_gives_the_same(network: Mixed, scheme: str, tmp_path: Path) -> None:
    lr = photographs(2)
    made = _quantized(network, scheme)
    path = cadyq.save(made, tmp_path / "q.safetensors")
    sr, trace = cadyq.trace(cadyq.load_into(Mixed(), path), lr)
    expected, before = cadyq.trace(made, lr)
    assert torch.equal(sr, expected)
    assert {name: bits.tolist() for name, bits in trace.bits.items()} == {n: b.tolist() for n, b in before.bits.items()}
    with pytest.raises(UserError, match="Mixed, which is no backbone of this project"):
        cadyq.load_model(path)
    with pytest.raises(UserError, match="of a Mixed, not of a Attention"):
        cadyq.load_into(Attention(4), path)
    with pytest.raises(UserError, match=r"q\.safetensors: tensor network\..* is damaged or of another size"):
        cadyq.load_into(Mixed(16), path)


@torch.no_grad()
def test_it_is_exported_and_runs_in_onnxruntime(network: Mixed, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from cadyq.deploy.onnx_export import export_onnx
    from cadyq.deploy.runtime import open_session, run

    made = _quantized(network)
    exported = export_onnx(made, tmp_path / "q.onnx", (20, 28))
    assert (exported.points, exported.layers, exported.any_size) == (5, 5, False)
    lr = F.interpolate(photographs(2), size=(20, 28), mode="bilinear")
    difference = (run(open_session(exported.path), lr) - made(lr)).abs()
    assert float(difference.max()) < 1 and float(difference.mean()) < 0.05


@torch.no_grad()
def test_a_trained_scheme_learns_from_there(network: Mixed) -> None:
    made = _quantized(network, "cadyq")
    with torch.enable_grad():
        sr, trace = cadyq.trace(made.train(), photographs(2))
        (sr.mean() + trace.bit_penalty().mean()).backward()  # type: ignore[no-untyped-call]
    parameters = dict(made.named_parameters())
    assert len(parameters) > len(list(network.parameters()))  # the scheme's own too
    for name, parameter in parameters.items():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 24), (20, 20)])
def test_macs_are_those_of_the_network_in_hand(network: Mixed, size: tuple[int, int]) -> None:
    """Counted on the real size: strides and attention are not proportional to the pixels."""
    made = _quantized(network)
    height, width = size
    small = -(-height // 2) * -(-width // 2)
    trace = cadyq.trace(made, torch.rand(1, 3, height, width) * 255)[1]
    assert trace.macs.by_layer["network.head"] == height * width * 3 * 8 * 9
    assert trace.macs.by_layer["network.down"] == small * 8 * 16 * 9
    assert trace.macs.by_layer["network.dilated"] == small * 16 * 8 * 9
    assert trace.macs.by_layer["network.attention.qkv"] == small * 16 * 48
    assert trace.macs.by_layer["network.up"] == small * 16 * 4 * 16
    assert trace.macs.products == {"matmul": 2 * small * small * 16}
    quantized = sum(trace.macs.by_layer[f"network.{name}"] for name in trace.bits)
    split = trace.bitops_split()
    assert float(split.quantized) == quantized * 64
    assert float(split.fp32) == (trace.macs.total - quantized) * 1024


@torch.no_grad()
def test_scaled_dot_product_attention_is_counted() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(3, 12, 1)
            self.out = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.flatten(2).transpose(1, 2) for part in self.mix(x).split(4, 1))
            y = F.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).reshape(len(x), 4, *x.shape[-2:]))

    macs = count_by_fvcore(Fused().eval(), 6, 4)
    assert macs.products == {"scaled_dot_product_attention": 2 * 24 * 24 * 4}
    assert macs.by_layer == {"mix": 24 * 36, "out": 24 * 12}


def test_it_says_what_is_unclear(network: Mixed) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(self.conv(x), scale_factor=2)

    with pytest.raises(UserError, match="pass pixel_range=1 or pixel_range=255"):
        cadyq.quantize(Shifted(), "minmax:w8a8", photographs(), exclude=[])
    with pytest.raises(UserError, match="upscales by 2, not by scale=4"):
        _quantized(network, scale=4)
    with pytest.raises(UserError, match=r"exclude 'haed' matches no layer \(did you mean 'head'\?\)"):
        _quantized(network, exclude=["haed"])
    with pytest.raises(UserError, match="no parameters"):
        cadyq.quantize(nn.Upsample(scale_factor=2), "minmax:w8a8", photographs())
    with pytest.raises(UserError, match="multiply by 255"):
        cadyq.quantize(network, "minmax:w8a8", photographs() / 255, pixel_range=1)
    with pytest.raises(UserError, match="no image was given"):
        cadyq.quantize(network, "minmax:w8a8", [], pixel_range=1)
    with pytest.raises(UserError, match="names trained weights"):
        cadyq.quantize(network, "minmax:w8a8:seed1", photographs(), pixel_range=1)
    with pytest.raises(UserError, match="does not run on LR images"):
        cadyq.quantize(nn.Sequential(nn.Conv2d(4, 3, 1)), "minmax:w8a8", photographs())


class Folds(nn.Module):
    """Takes images whose sides a number divides, of some channels."""

    def __init__(self, divisor: int = 1, channels: int = 3) -> None:
        super().__init__()
        self.divisor, self.layers = divisor, nn.Sequential(nn.Conv2d(channels, 8, 1), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(x, self.divisor)
        return self.layers(F.pixel_shuffle(folded, self.divisor))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "remedy"),
    [
        (Folds(32), r"it runs if 32 divides both sides: pass multiple_of=32$"),
        (Folds(channels=1), r"expected input.*; wrap it so that it takes RGB images \(N, 3, h, w\)$"),
    ],
)
def test_the_remedy_fits_the_failure(network: nn.Module, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"Folds does not run on LR images \(2, 3, 24, 24\): .*{remedy}"):
        cadyq.quantize(network, "minmax:w8a8", photographs(2), exclude=[], pixel_range=1)


class Listed(nn.Module):
    """Calls its layers through a list of Python, which no replacement reaches, and by name where `named`."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.steps, self.named = [self.one, self.two], named

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.two(self.one(x)) if self.named else x


@pytest.mark.parametrize("named", [False, True])
def test_layers_in_a_python_list_are_named(named: bool) -> None:
    with pytest.raises(UserError, match=r"layer 'one' runs through .* Python list, .* nn\.ModuleList, or exclude"):
        cadyq.quantize(Listed(named), "minmax:w8a8", photographs(2), exclude=[], pixel_range=1)


def test_images_in_every_form(network: Mixed, tmp_path: Path) -> None:
    images = photographs(2, 60).round().to(torch.uint8)
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    for index, image in enumerate(images):
        write_png(tmp_path / f"{index}.png", image)
    expected = calibration_patches(images)
    assert expected.shape == (64, 3, 48, 48)
    opened = [Image.fromarray(array) for array in arrays]
    pairs = [datasets.ImagePair("mine", str(k), lr, lr, None, "") for k, lr in enumerate(images)]
    files = tmp_path, str(tmp_path), sorted(tmp_path.iterdir())
    subset = torch.utils.data.Subset(images, range(len(images)))  # type: ignore[arg-type, var-annotated]
    for given in (list(images), arrays, np.stack(arrays), *files, opened, pairs, subset):
        assert torch.equal(calibration_patches(given), expected)
    assert torch.equal(calibration_patches(opened[0]), calibration_patches(images[:1]))
    few = datasets.photographs(4)
    assert torch.equal(calibration_patches(few, 8), calibration_patches([pair.lr for pair in few], 8))


def test_images_too_small_for_a_patch_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    large = photographs(3, 60).byte()
    small = torch.zeros(3, 8, 20, dtype=torch.uint8)
    assert torch.equal(calibration_patches([*large, small], 8), calibration_patches(large, 8))
    assert "1 of 4 images are left out, as a side is below 48 pixels (an image: 8)" in caplog.text
    assert calibration_patches([small, small]).shape == (64, 3, 8, 8)  # all of them are small
    for name, image in (("a", large[0]), ("icon", small)):
        write_png(tmp_path / f"{name}.png", image)
    assert torch.equal(calibration_patches(tmp_path), calibration_patches(large[:1]))
    assert f"{tmp_path / 'icon.png'}: 8" in caplog.text


def test_one_calibration_image_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(4):
        write_png(tmp_path / f"{k}.png", photographs(1, 60)[0].byte())
    alive: list[weakref.ref[Tensor]] = []

    def read(path: Path) -> Tensor:
        assert sum(image() is not None for image in alive) <= 1
        alive.append(weakref.ref(image := read_rgb(path)))
        return image

    monkeypatch.setattr(quantization, "read_rgb", read)
    calibration_patches(tmp_path, 8)
    assert len(alive) == 4


@pytest.mark.parametrize(("given", "named"), [(None, "None"), ([3], "3"), (len, "<built-in function len>")])
def test_what_is_no_image(given: Any, named: str) -> None:
    with pytest.raises(UserError, match=f"calibration: {named} is no image; give a folder, paths, .*arrays or tensors"):
        calibration_patches(given)


@pytest.mark.parametrize("dtype", [bool, complex, "U1"])
def test_arrays_that_hold_no_pixels_are_refused(dtype: Any) -> None:
    """Before, a mask was taken for an image that is nearly black."""
    with pytest.raises(UserError, match=r"calibration: an array of .*; give uint8 in 0\.\.255"):
        calibration_patches(np.zeros((48, 48, 3), dtype))
    with pytest.raises(UserError, match="calibration: a tensor of bool"):
        calibration_patches(torch.ones(3, 48, 48, dtype=torch.bool))


def test_a_black_image_among_others_is_an_image() -> None:
    assert len(calibration_patches([torch.zeros(3, 48, 48), *photographs(1, 48)], 2)) == 2


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_opened_images_are_read_as_files(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(photographs(1, 60)[0].byte().permute(1, 2, 0).numpy()).convert(mode)
    image.save(tmp_path / "image.png")
    assert torch.equal(calibration_patches([image]), calibration_patches(tmp_path))
    with pytest.raises(UserError, match="has 32-bit samples"):
        calibration_patches([image.convert("L").convert("F")])


class Folded(nn.Module):
    """Windows folded into the batch, a table of positions through a layer, and a weight that is read elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 1)
        self.window = nn.Linear(8, 8)
        self.position = nn.Linear(2, 8)
        self.borrowed = nn.Linear(8, 8)
        self.normed = nn.utils.spectral_norm(nn.Conv2d(8, 8, 1))
        self.tail = nn.Conv2d(8, 3, 1)
        self.register_buffer("table", torch.rand(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        samples, _, height, width = x.shape
        y = self.head(x)
        windows = F.unfold(y, 4, stride=4).view(samples, 8, 16, -1).permute(0, 3, 2, 1).reshape(-1, 16, 8)
        windows = self.window(windows) + self.position(self.table)
        windows = F.linear(windows, self.borrowed.weight)
        folded = windows.view(samples, -1, 16, 8).permute(0, 3, 2, 1).reshape(samples, 128, -1)
        y = self.normed(F.fold(folded, (height, width), 4, stride=4))
        return F.interpolate(self.tail(y), scale_factor=2) * 0.01 + F.interpolate(x, scale_factor=2)


@torch.no_grad()
def test_windows_in_the_batch_belong_to_their_sample() -> None:
    torch.manual_seed(0)
    made = _quantized(Folded().eval(), "dynamic_range:w8a4")
    lr = photographs(3, 24)
    sr, trace = cadyq.trace(made, lr)
    alone = torch.cat([made(one[None]) for one in lr])
    torch.testing.assert_close(sr, alone, atol=1e-3, rtol=0)
    assert list(trace.bits) == ["window"] and trace.bits["window"].shape == (3,)
    reasons = {layer.name: layer.reason for layer in made.skipped}
    assert "no feature map" in reasons["position"]
    assert "never ran" in reasons["borrowed"]
    assert "normalization" in reasons["normed"]
    assert "first or last" in reasons["head"] and reasons["head"] == reasons["tail"]


def test_print_shows_each_layer_with_its_bits(network: Mixed) -> None:
    lines = repr(_quantized(network, "minmax:w4a8")).splitlines()
    assert lines[0] == "mixed x2, minmax:w4a8: 5 layers with quantized weights"
    found = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert found["network.down"] == ["4", "bit", "8", "bit"]
    assert found["network.head"] == ["FP32", "FP32", "first", "or", "last", "layer"]
    assert "4/6/8 bit" in repr(_quantized(network, "cadyq"))


def test_a_range_that_was_never_calibrated_raises() -> None:
    model = cadyq.create_model("edsr", scheme="pams:w4a4", n_feats=8, n_resblocks=1)
    with pytest.raises(UserError, match=r"point 'blocks\.0\.input' has no range yet"):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="not written, as point"):
        cadyq.save(model, "never.safetensors")


@torch.no_grad()
def test_a_backbone_of_this_project_goes_through_the_same_door(tmp_path: Path) -> None:
    model = cadyq.create_model("edsr", n_feats=8, n_resblocks=2)
    made = cadyq.quantize(model, "minmax:w8a8", photographs(), exclude=["blocks.0.*"])
    trace = cadyq.trace(made, photographs(1))[1]
    assert {name: int(bits) for name, bits in trace.bits.items() if "blocks.0" in name} == dict.fromkeys(
        ["blocks.0.input", "blocks.0.middle", "blocks.0.branch"], 32
    )
    assert float(trace.fab()) == 8
    path = cadyq.save(made, tmp_path / "m.safetensors")
    lr = photographs(1)
    assert torch.equal(cadyq.load_model(path)(lr), made(lr))
    assert torch.equal(cadyq.load_into(model, path)(lr), made(lr))


@torch.no_grad()
def test_threads_and_nested_forwards_keep_apart(network: Mixed) -> None:
    made = _quantized(network, "cadyq")
    teacher = _quantized(network, "minmax:w8a8")
    lr = [photographs(1) * share for share in (0.2, 0.5, 0.8, 1.0)]
    alone = [cadyq.trace(made, one) for one in lr]
    found: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(3):
                sr, trace = cadyq.trace(made, lr[index])
                made(lr[index])  # records nothing
                found[index] = sr, trace.bits

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(lr))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (sr, trace) in enumerate(alone):
        assert torch.equal(found[index][0], sr)
        assert {n: b.tolist() for n, b in found[index][1].items()} == {n: b.tolist() for n, b in trace.bits.items()}

    def run_teacher(*_: object) -> None:
        teacher(lr[0])

    handle = made.points["dilated"].register_forward_hook(run_teacher)
    try:
        _, trace = cadyq.trace(made, lr[0])
    finally:
        handle.remove()
    assert list(trace.bits) == list(alone[0][1].bits)


@torch.no_grad()
def test_a_point_that_runs_twice_has_a_record_for_each() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body, self.tail = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 12, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(self.body(self.head(x)))
            return F.pixel_shuffle(self.tail(y), 2) * 0.01 + F.interpolate(x, scale_factor=2)

    trace = cadyq.trace(_quantized(Recursive().eval()), photographs(1, 20))[1]
    assert list(trace.bits) == ["body", "body@2"]
    assert [use.macs for use in trace.uses()] == [20 * 20 * 4 * 4 * 9] * 2
    assert float(trace.bitops_split().quantized) == 2 * 400 * 144 * 64


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (
            nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=1, groups=2, padding_mode="circular"),
            (2, 4, 9, 8),
        ),
        (nn.Conv2d(4, 4, 3, padding="same", dilation=2, bias=False), (1, 4, 9, 9)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 6, 5, 4)),
        (nn.Linear(5, 7), (2, 3, 5)),
    ],
)
def test_the_quantizable_twin_computes_the_same(layer: nn.Module, shape: tuple[int, ...]) -> None:
    twins = {nn.Conv2d: QuantConv2d, nn.ConvTranspose2d: QuantConvTranspose2d, nn.Linear: QuantLinear}
    twin = twins[type(layer)].like(layer)  # type: ignore[index, attr-defined]
    x = torch.randn(shape)
    torch.testing.assert_close(twin(x), layer(x))
    rows = twin.rows(twin.weight)
    assert torch.equal(twin.from_rows(rows), twin.weight)
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert len(rows) == outputs and rows.dim() == 4


@torch.no_grad()
def test_frozen_weights_are_those_of_the_moment(network: Mixed) -> None:
    made, lr = _quantized(network), photographs(1)
    with frozen_weights(made):
        frozen = made(lr)
        assert torch.equal(frozen, made(lr))
    assert torch.equal(frozen, made(lr))
    made.network.down.weight.mul_(2)
    assert not torch.equal(frozen, made(lr))


def test_counts_need_no_registry() -> None:
    class Mine(cadyq.SRNetwork):
        name = "mine"

        def __init__(self) -> None:
            super().__init__()
            self.conv = QuantConv2d(3, 12, 3)
            self.register_points(2)

        def forward(self, lr: Tensor) -> Tensor:
            return F.pixel_shuffle(self.conv(lr), 2)

    assert count_macs(Mine(), 10, 7).by_layer == {"conv": 70 * 3 * 12 * 9}
    assert float(cadyq.trace(Mine(), torch.zeros(1, 3, 10, 7))[1].bitops()) == 70 * 324 * 1024


CALIBRATED = [name for name in cadyq.list_schemes() if not SCHEMES.get(name).trained and name != "fp32"]


@torch.no_grad()
@pytest.mark.parametrize("scheme", CALIBRATED)
def test_outer_bits_quantize_every_layer(network: Mixed, scheme: str, tmp_path: Path) -> None:
    made = _quantized(network, f"{scheme}:w8a8", outer_bits=8)
    lr = photographs(1, 20)
    sr, trace = cadyq.trace(made, lr)
    plain = cadyq.trace(_quantized(network, f"{scheme}:w8a8"), lr)[1]
    assert float(trace.fab()) == float(plain.fab()), "head and tail do not count for FAB"
    assert {use.name for use in trace.uses()} == set(trace.macs.by_layer)
    assert float(trace.bitops_split().fp32) == sum(trace.macs.products.values()) * 1024
    path = cadyq.save(made, tmp_path / "whole.safetensors")
    assert torch.equal(cadyq.load_into(Mixed(), path)(lr), sr)


@torch.no_grad()
def test_outer_bits_leave_out_what_was_excluded(network: Mixed, tmp_path: Path) -> None:
    made, lr = _quantized(network, exclude=["dilated", "tail"], outer_bits=8), photographs(1, 20)
    sr, trace = cadyq.trace(made, lr)
    assert list(trace.bits) == ["head", "down", "attention.qkv", "attention.project", "up"]
    found = {line.split()[0]: line.split()[1:] for line in repr(made).splitlines()[2:]}
    assert found["network.dilated"] == found["network.tail"] == ["FP32", "FP32", "excluded"]
    path = cadyq.save(made, tmp_path / "q.safetensors")
    assert torch.equal(cadyq.load_into(Mixed(), path)(lr), sr)


@torch.no_grad()
def test_a_parent_without_outer_points_passes_on_its_ranges() -> None:
    from cadyq.training.start import quantized_from

    parent = cadyq.create_model("edsr", n_feats=8, n_resblocks=1)
    patches = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255
    made = quantized_from(parent, parent, "pams:w8a8", patches, {"outer_bits": 8})
    assert all(point.quantizer is not None and point.quantizer.calibrated for point in made.points.values())


def test_a_trained_network_gets_outer_bits_afterwards() -> None:
    from cadyq.schemes.calibration import with_outer_bits

    model = cadyq.load_model("zoo:idn_x4_cadyq")
    patches = photographs(2, 24)
    whole = with_outer_bits(model, patches, bits=8)
    (sr, trace), (expected, before) = cadyq.trace(whole, patches), cadyq.trace(model, patches)
    assert float((sr - expected).abs().mean()) < 2
    assert [n for n in trace.bits if n not in before.bits] == [
        "features.conv1",
        "features.conv2",
        *(f"blocks.{k}.compression" for k in range(4)),
        "upsample",
    ]
    assert float(trace.bitops_split().fp32.max()) == 0
    assert torch.equal(trace.fab(), before.fab()) or float((trace.fab() - before.fab()).abs().max()) < 1
    assert whole.scheme.outer_bits == 8 and model.scheme.outer_bits == 32  # type: ignore[union-attr, attr-defined]


class Tied(nn.Module):
    """A layer of two names, and one that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = self.first
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.third(self.second(self.first(self.head(x)).relu()))
        return F.pixel_shuffle(self.tail(y), 2) * 0.01 + F.interpolate(x, scale_factor=2)


@torch.no_grad()
def test_a_layer_of_two_names_and_tied_weights(tmp_path: Path) -> None:
    made, lr = _quantized(Tied().eval(), "minmax:w4a4"), photographs(1, 20)
    sr, trace = cadyq.trace(made, lr)
    assert list(trace.bits) == ["first", "first@2", "third"]
    assert float(trace.bitops_split().quantized) == 3 * 400 * 144 * 16
    path = cadyq.save(made, tmp_path / "tied.safetensors")
    loaded = cadyq.load_into(Tied(), path)
    assert torch.equal(loaded(lr), sr)
    assert loaded.get_parameter("network.first.weight") is loaded.get_parameter("network.third.weight")


@torch.no_grad()
@pytest.mark.parametrize(
    ("scheme", "exclude"),
    [
        ("minmax:w2a8", ["head", "tail", "third"]),
        ("minmax:w2a8", ["head", "tail", "first"]),
        ("ilp:w4a4,by_layer=28", None),
        ("ilp:w4a4,by_layer=82", None),
    ],
)
def test_tied_weights_of_other_bits_are_loaded_apart(scheme: str, exclude: list[str] | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made, lr = _quantized(Tied().eval(), scheme, exclude=exclude), photographs(1, 20)
    sr, network = made(lr), Tied()
    loaded = cadyq.load_into(network, cadyq.save(made, tmp_path / "tied.safetensors"))
    assert torch.equal(loaded(lr), sr)
    assert torch.equal(cadyq.load_into(network, cadyq.save(loaded, tmp_path / "again.safetensors"))(lr), sr)
    assert network.third.weight is network.first.weight, "the network in hand is unchanged"


@torch.no_grad()
def test_a_feature_map_of_one_pixel_is_calibrated(tmp_path: Path) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.gate, self.tail = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 12, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(x)
            y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
            return F.pixel_shuffle(self.tail(y), 2) * 0.01 + F.interpolate(x, scale_factor=2)

    for scheme in ("minmax:w8a8", "cadyq"):
        made = _quantized(Pooled().eval(), scheme)
        sr, trace = cadyq.trace(made, photographs(2))
        assert bool(sr.isfinite().all()) and list(trace.bits) == ["gate"]
        assert trace.macs.by_layer["network.gate"] == 16, "one pixel, whatever the size of the image"
        cadyq.save(made, tmp_path / "pooled.safetensors")


def test_a_network_that_gives_nan_is_not_calibrated(network: Mixed) -> None:
    with torch.no_grad():
        network.dilated.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"values that are not finite|pass pixel_range"):
        _quantized(network)


def test_what_is_no_network_of_ours_is_refused_as_a_backbone() -> None:
    with pytest.raises(UserError, match=r"backbone 'plain': Plain is no cadyq\.SRNetwork; .*cadyq\.quantize"):

        @cadyq.register_backbone("plain")  # type: ignore[type-var]
        class Plain(nn.Module):
            pass


# the oracle needs HR
@pytest.mark.parametrize(
    "scheme", [name for name in cadyq.list_schemes() if name not in (*CALIBRATED, "fp32", "oracle")]
)
def test_trained_schemes_start_with_layers_left_out_or_outer_layers(network: Mixed, scheme: str) -> None:
    """What a scheme does with all points after calibration meets points without a quantizer of its own."""
    lr = photographs(1, 20)
    for options in ({"exclude": ["up"]}, {"outer_bits": 8}):
        sr = cadyq.trace(_quantized(network, scheme, **options), lr)[0]
        assert sr.shape == (1, 3, 20 * SCALE, 20 * SCALE) and bool(sr.isfinite().all()), options
    own = cadyq.create_model("edsr", n_feats=8, n_resblocks=2)
    sr = cadyq.trace(cadyq.quantize(own, scheme, photographs(), exclude=["blocks.0.*"]), lr)[0]
    assert sr.shape == (1, 3, 20 * own.scale, 20 * own.scale) and bool(sr.isfinite().all())


def test_an_exclusion_is_taken_back() -> None:
    own = cadyq.create_model("edsr", n_feats=8, n_resblocks=2)
    less = cadyq.quantize(own, "minmax:w8a8", photographs(), exclude=["blocks.0.*"])
    assert less.excluded
    again = cadyq.quantize(less, "minmax:w8a8", photographs(), exclude=[])
    whole = cadyq.quantize(own, "minmax:w8a8", photographs())
    assert not again.excluded
    assert {n: p.counts_for_fab for n, p in again.points.items()} == {
        n: p.counts_for_fab for n, p in whole.points.items()
    }


def test_an_exclusion_stays_where_nothing_is_said() -> None:
    own = cadyq.create_model("edsr", n_feats=8, n_resblocks=2)
    less = cadyq.quantize(own, "minmax:w8a8", photographs(), exclude=["blocks.0.*"])
    assert cadyq.quantize(less, "mse:w8a8", photographs()).excluded == less.excluded != ()


def test_points_are_excluded_by_any_iterable_of_their_names() -> None:
    own = cadyq.create_model("edsr", n_feats=8, n_resblocks=2)
    names = [name for name in own.points if name.startswith("blocks.0")]
    own.exclude(name for name in names)
    assert list(own.excluded) == names and len(names) > 1
    with pytest.raises(UserError, match=r"edsr has no point 'blocks\.0\.inputt' to exclude.*'blocks\.0\.input'"):
        own.exclude(["blocks.0.inputt"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"act_bits": 8}, "act_bits is given twice"), ({"act_bit": 8}, "minmax has no option 'act_bit'.*act_bits")],
)
def test_options_are_checked_as_those_in_the_name(network: Mixed, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _quantized(network, "minmax:w4a4", **options)
    with pytest.raises(UserError, match=r"is given twice|is unknown"):
        cadyq.create_model("edsr", "minmax:w4a4", **options)


def test_modes_of_training_are_as_before(network: Mixed) -> None:
    frozen = nn.Sequential(nn.BatchNorm2d(3), network)
    frozen.train()
    frozen[0].eval()  # as in fine-tuning with fixed statistics
    modes = [module.training for module in frozen.modules()]
    _quantized(frozen)
    assert [module.training for module in frozen.modules()] == modes
    broken = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)).train()
    with pytest.raises(UserError):
        _quantized(broken)
    assert broken.training and broken[0].training, "also where the network cannot be quantized"


@pytest.mark.parametrize("patches", [1, 0, -3, 2.5])
def test_too_few_patches(network: Mixed, patches: float) -> None:
    with pytest.raises(UserError, match=f"patches={patches}; give a whole number of 2 or more"):
        _quantized(network, patches=patches)


@pytest.mark.parametrize("multiple_of", [0, -2, 2.5])
def test_a_multiple_is_a_whole_number(network: Mixed, multiple_of: float) -> None:
    with pytest.raises(UserError, match=f"multiple_of={multiple_of}; give a whole number of 1 or more"):
        _quantized(network, multiple_of=multiple_of)


def test_a_scheme_is_given_by_name(network: Mixed) -> None:
    with pytest.raises(UserError, match="scheme=None; give its name, as in 'minmax:w8a8'"):
        _quantized(network, None)  # type: ignore[arg-type]


def test_one_patch_of_an_image_is_its_centre() -> None:
    images = [torch.arange(30 * 50.0).view(1, 30, 50).expand(3, -1, -1) % 256 for _ in range(3)]
    found = calibration_patches(images, count=2, side=10)
    assert len(found) == 3 and torch.equal(found[0], images[0][:, 10:20, 20:30])


class Choosing(nn.Module):
    """Convolutions for bright images, interpolation for dark ones, among them those that probes show."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.tail = (nn.Conv2d(*c, 3, padding=1) for c in ((3, 8), (8, 8), (8, 12)))

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 100:
            return F.pixel_shuffle(self.tail(self.body(self.head(x))), 2)
        return F.interpolate(x, scale_factor=2)


@torch.no_grad()
def test_bitops_of_a_network_that_chooses_its_way_by_the_image() -> None:
    bright = photographs() * 0.1 + 200
    made = cadyq.quantize(Choosing(), "minmax:w8a8", bright, pixel_range=255)
    split = cadyq.trace(made, bright[:1])[1].bitops_split()
    assert float(split.quantized) == 24 * 24 * 8 * 8 * 9 * 64
    assert float(split.fp32) == 24 * 24 * 9 * (3 * 8 + 8 * 12) * 1024
    dark = cadyq.trace(made, bright[:1] * 0)[1].bitops_split()
    assert float(dark.quantized) == float(dark.fp32) == 0


def test_what_is_only_a_start_says_so(network: Mixed, caplog: pytest.LogCaptureFixture) -> None:
    _quantized(network, "minmax:w8a8")
    assert "calibrated" not in caplog.text
    _quantized(network, "pams:w8a8")
    assert "pams: only its ranges are calibrated" in caplog.text and "cadyq.train" in caplog.text
    _quantized(network, "brecq:w4a4")
    assert "brecq: only its ranges are calibrated" in caplog.text and "cadyq.calibrate tunes it" in caplog.text
    caplog.clear()
    _quantized(network, "cadyq")  # can be derived from itself, but is trained first
    assert "cadyq: only its ranges are calibrated" in caplog.text and "cadyq.train trains it" in caplog.text
    with pytest.raises(UserError, match="'oracle' chooses bits by HR images"):
        _quantized(network, "oracle")


def test_what_evaluate_cannot_measure(network: Mixed) -> None:
    made = _quantized(network)
    with pytest.raises(UserError, match="unknown mode 'whole'; choose from image, patch"):
        cadyq.evaluate(made, "skimage", modes=["whole"])
    with pytest.raises(UserError, match="is no dataset; give one name"):
        cadyq.evaluate(made, ["Set5"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"dataset 'skimage' is of scale 3, mixed of scale {made.scale}"):
        cadyq.evaluate(made, datasets.photographs(3))


def test_evaluate_names_an_image_that_is_too_small(network: Mixed, tmp_path: Path) -> None:
    """Before it measures any image."""
    for name, side in (("a", 64), ("b", 12)):
        write_png(tmp_path / f"{name}.png", torch.zeros(3, side, side, dtype=torch.uint8))
    made = _quantized(network)
    with pytest.raises(UserError, match=r"b\.png: 12x12 pixels is too small .* need 15x15; remove or replace it"):
        cadyq.evaluate(made, datasets.folder(tmp_path, made.scale))


@pytest.mark.parametrize(("option", "value"), [("res_scale", 0.1), ("scale", 2)])
def test_a_file_of_a_backbone_with_other_options_is_refused(option: str, value: float, tmp_path: Path) -> None:
    """The shapes of all tensors are the same for another `res_scale`."""
    given, other = (cadyq.create_model("edsr", n_feats=4, n_resblocks=1, **o) for o in ({}, {option: value}))
    path = cadyq.save(cadyq.quantize(given, "minmax:w8a8", photographs()), tmp_path / "m.safetensors")
    with pytest.raises(
        UserError, match=rf"m\.safetensors: .* edsr with {option}=\S+, not {value}; pass such a network"
    ):
        cadyq.load_into(other, path)


def test_what_cannot_be_quantized_or_saved_is_named(tmp_path: Path) -> None:
    lr = torch.rand(2, 3, 16, 16) * 255
    with pytest.raises(UserError, match=r"'zoo:idn_x4_fp32' is no nn.Module; give a network"):
        cadyq.quantize("zoo:idn_x4_fp32", "minmax:w8a8", lr)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pixel_range=2; give 1 or 255"):
        cadyq.quantize(cadyq.load_model("zoo:idn_x4_fp32"), "minmax:w8a8", lr, pixel_range=2)
    with pytest.raises(UserError, match="nope: no such folder or image"):
        cadyq.quantize(cadyq.load_model("zoo:idn_x4_fp32"), "minmax:w8a8", tmp_path / "nope")
    with pytest.raises(UserError, match="a Conv2d is not quantized; save what"):
        cadyq.save(nn.Conv2d(3, 3, 3), tmp_path / "q.safetensors")  # type: ignore[arg-type]


def test_a_network_without_weights_is_not_quantized(network: Mixed) -> None:
    partly = copy.deepcopy(network)
    partly.tail.to("meta")
    for empty in (network.to("meta"), partly, cadyq.create_model("edsr", n_feats=8, n_resblocks=1).to("meta")):
        with pytest.raises(UserError, match=r"of \w+ is on the device 'meta', which holds no values; load its weights"):
            cadyq.quantize(empty, "minmax:w8a8", photographs())


def test_a_network_without_its_fp32_weights_is_not_quantized(network: Mixed, tmp_path: Path) -> None:
    own = cadyq.quantize(cadyq.create_model("edsr", n_feats=8, n_resblocks=1), "pams:w4a4", photographs())
    for made in (own, _quantized(network)):
        assert cadyq.quantize(made, "mse:w8a8", photographs()).scheme_label == "mse:w8a8", "its FP32 weights are there"
        path = cadyq.save(made, tmp_path / "q.safetensors")
        packed = cadyq.load_into(network, path) if isinstance(made, ForeignNetwork) else cadyq.load_model(path)
        for scheme in ("fp32", "minmax:w8a8"):
            what = f"{made.name} is already quantized by {made.scheme_label}, and its FP32 weights are not in its file"
            with pytest.raises(UserError, match=f"{what}; pass its FP32 network"):
                cadyq.quantize(packed, scheme, photographs())
