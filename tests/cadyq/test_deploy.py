"""Exported networks: their grids are the quantizers', and onnxruntime gives what the simulation gives."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import cadyq
from cadyq.commands import export
from cadyq.data.datasets import photographs
from cadyq.deploy import runtime
from cadyq.deploy.frozen import freeze, is_dynamic
from cadyq.deploy.grid import grid_of, weight_codes
from cadyq.deploy.onnx_export import Exportable, export_onnx, on_grid, onnx_graph
from cadyq.deploy.runtime import OpenVINOSession, agreement, open_session, run
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.calibration import calibrated_on
from cadyq.training.start import quantized_from
from cadyq.utils.errors import UserError

onnx = pytest.importorskip("onnx", reason="the extra `deploy` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `deploy` is not installed")

FIXED = ["minmax:w8a8", "percentile:w8a6", "mse:w4a4", "pams:w8a8", "pams:w8a5", "pams:w4a4"]
FIXED += ["pact:w4a4", "lsq:w4a4", "ddtb:w4a4", "dorefa:w4a4"]


def _network(spec: str, backbone: str = "edsr") -> SRNetwork:
    torch.manual_seed(0)
    sizes = {"n_feats": 16, "n_resblocks": 2} if backbone == "edsr" else {}
    parent = cadyq.create_model(backbone, **sizes)
    patches = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 255
    return quantized_from(parent, parent, spec, patches).eval()


@pytest.mark.parametrize("spec", FIXED)
def test_the_grid_gives_what_the_quantizer_gives(spec: str) -> None:
    network = _network(spec)
    for name, point in network.points.items():
        assert point.quantizer is not None
        grid = grid_of(point.quantizer, point.channels, name)
        width = grid.step * (grid.high - grid.low + 1)
        # away from the middle of two levels, where rounding errors decide
        steps = torch.arange(-0.3 * width, 1.3 * width, grid.step / 7) + 0.013 * grid.step
        x = (grid.step * (grid.low - grid.zero) + grid.offset + steps).expand(1, point.channels, 1, -1)
        mine = on_grid(x - grid.offset, grid.step, grid.zero, grid.low, grid.high) + grid.offset
        theirs = point.quantizer(x, PatchContext(torch.zeros(1, 3, 8, 8))).value
        assert torch.allclose(mine, theirs, atol=1e-4 * grid.step)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dynamic_range:w8a8", r"point blocks\.0\.input: its range depends on the feature map"),
        ("daq:w4a4", r"point blocks\.0\.input: "),
        ("cadyq", r"point blocks\.0\.input: its bits depend on content; freeze"),
        ("adabm", r"point blocks\.0\.input: its levels depend on the photograph"),
        ("static", "'static' chooses bits before each forward"),
    ],
)
def test_bits_or_grids_that_move_are_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Exportable(_network(spec))


@given(st.integers(2, 8), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_weights_come_back_from_their_codes(bits: int, seed: int) -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    weight[2] = 0
    levels = 2 ** (bits - 1) - 1
    quantized = (weight / weight.abs().max() * levels).round() * (weight.abs().max() / levels)
    coded = weight_codes(quantized)
    assert coded is not None
    codes, steps = coded
    assert codes.dtype == torch.int8 and codes.abs().max() <= 127
    assert torch.allclose(codes * steps.view(-1, 1, 1, 1), quantized, atol=1e-6)


def test_weights_without_a_grid_have_no_codes() -> None:
    assert weight_codes(torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))) is None


@pytest.mark.parametrize("spec", ["fp32", "minmax:w8a8", "pams:w8a8", "lsq:w4a4", "dorefa:w4a4"])
def test_an_exported_network_runs_at_any_size(spec: str, tmp_path: Path) -> None:
    network = _network(spec)
    made = export_onnx(network, tmp_path / "m.onnx")
    assert (made.layers > 0) == (spec != "fp32")
    session = open_session(made.path, threads=1)
    for batch, height, width in ((1, 24, 31), (3, 17, 9)):
        lr = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2)) * 255
        with torch.no_grad():
            simulated = network(lr)
        apart = (run(session, lr) - simulated).abs()
        assert apart.shape == simulated.shape
        assert (apart <= 1).double().mean() >= 0.99


def test_convolutions_read_integers(tmp_path: Path) -> None:
    """A ReLU before a quantizer is gone, and every quantized convolution lies between integers."""
    model = onnx.load(export_onnx(_network("pams:w8a8"), tmp_path / "m.onnx").path)
    assert "Relu" not in {node.op_type for node in model.graph.node}
    made_by = {node.output[0]: node.op_type for node in model.graph.node}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    integer = [node for node in convs if made_by.get(node.input[1]) == "DequantizeLinear"]
    assert len(integer) == 4 and all(made_by[node.input[0]] == "DequantizeLinear" for node in integer)


@pytest.mark.parametrize("backbone", ["imdn", "rlfn"])
@torch.no_grad()
def test_splits_and_attention_are_exported(tmp_path: Path, backbone: str) -> None:
    torch.manual_seed(0)
    network = cadyq.create_model(backbone, n_feats=8, n_resblocks=1).eval()
    export_onnx(network, tmp_path / "net.onnx")
    session = open_session(tmp_path / "net.onnx")
    for sides in [(24, 32), (19, 40)]:
        lr = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(1)) * 255
        assert np.abs(run(session, lr) - network(lr).numpy()).max() < 1e-3


def _random_patches(number: int, height: int, width: int) -> Tensor:
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(1)) * 255


SMALL = {
    "edsr": {"n_feats": 8, "n_resblocks": 1},
    "carn": {"n_feats": 8},
    "carn_m": {"n_feats": 8},
    "idn": {"n_feats": 16, "n_resblocks": 1},
    "imdn": {"n_feats": 8, "n_resblocks": 1},
    "rlfn": {"n_feats": 8, "n_resblocks": 1},
}


@pytest.mark.parametrize("backbone", SMALL)
@torch.no_grad()
def test_every_backbone_is_exported_in_integers(backbone: str, tmp_path: Path) -> None:
    """Under `outer_bits` every quantized convolution sums integers; pixels are those of the simulation."""
    torch.manual_seed(0)
    parent = cadyq.create_model(backbone, **SMALL[backbone])
    network = calibrated_on(parent, "minmax:w8a8", _random_patches(4, 16, 16), {"outer_bits": 8}).eval()
    made = export_onnx(network, tmp_path / "m.onnx")
    assert made.layers == len(network.layer_names)
    graph = onnx.load(made.path).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    integer = [n for n in graph.node if n.op_type == "Conv" and made_by.get(n.input[1]) == "DequantizeLinear"]
    assert all(readers[node.output[0]] == {"QuantizeLinear"} for node in integer)  # becomes one kernel
    assert any(node.op_type == "ConvInteger" for node in graph.node)
    lr = _random_patches(2, 19, 14)
    apart = (run(open_session(made.path, threads=1), lr) - network(lr)).abs()
    assert (apart <= 1).double().mean() >= 0.98  # the last digit of a sum may decide between two levels


class Foreign(nn.Module):
    """Not of this project: a stride, a linear layer, a shuffle in the middle, and no names to go by."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.mix = nn.Linear(8, 8)
        self.up = nn.Conv2d(8, 32, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.out = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.down(x), 0.1)
        y = F.gelu(self.mix(y.movedim(1, -1))).movedim(-1, 1)
        y = F.pixel_shuffle(F.relu(self.up(y)), 2)
        y = F.pixel_shuffle(self.out(self.grouped(y)), 2)
        return y * 0.05 + F.interpolate(x, scale_factor=2.0, mode="bilinear")


@torch.no_grad()
def test_a_foreign_network_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    photograph = photographs(4)[0].lr
    quantized = cadyq.quantize(Foreign(), "minmax:w8a8", photograph, exclude=[], pixel_range=1, multiple_of=2)
    made = export_onnx(quantized, tmp_path / "m.onnx")
    kinds = [node.op_type for node in onnx.load(made.path).graph.node]
    assert made.layers == 5 and kinds.count("DepthToSpace") == 1  # the last, which no convolution reads
    session = open_session(made.path, threads=1)
    for height, width in ((34, 48), (33, 47)):  # odd sides are padded
        lr = photograph[None, :, :height, :width].float()
        apart = (run(session, lr) - quantized(lr)).abs()
        assert (apart <= 1).double().mean() >= 0.99


class Chain(nn.Module):
    """Layers of every kind between points from 0, one of them behind an average over the map."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.ReLU()),
        )
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs(x)
        return y + self.outer(self.inner(y.mean((2, 3))).relu())[..., None, None]  # type: ignore[no-any-return]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@torch.no_grad()
def test_onnxruntime_leaves_fp32_weights_as_they_are(runtime: str, tmp_path: Path) -> None:
    """Of weights that are not multiples of one step in -127..127, in a session as users open it."""
    torch.manual_seed(0)
    chain = Chain()
    for weight in (parameter for parameter in chain.parameters() if parameter.dim() > 1):
        weight[0, 0] *= 8  # of int8, the other values have few levels
    quantized = cadyq.quantize(chain, "dorefa:w8a8", photographs(2)[0].lr, exclude=[], pixel_range=1)
    made = export_onnx(quantized, tmp_path / "m.onnx", runtime=runtime)
    assert made.layers == 0 and made.points == 6
    lr = _random_patches(2, 24, 20)
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    apart = (run(session, lr) - quantized(lr)).abs()
    assert float(apart.quantile(0.99)) < 1e-2  # the last digit of a sum may decide between two levels


@pytest.mark.parametrize("name", ["edsr_x4_pams_w8a8", "carn_m_x4_pams_w8a8"])
def test_trained_networks_keep_their_pixels(name: str, tmp_path: Path) -> None:
    network = cadyq.load_model(f"zoo:{name}")
    pair = photographs(4)[2]
    lr, hr = pair.lr[:, 20:84, 30:110], pair.hr[:, 80:336, 120:440]
    found = agreement(open_session(export_onnx(network, tmp_path / "m.onnx").path), network, lr, hr)
    assert found.within_one >= 0.99 and abs(found.psnr_db) <= 0.02


def _openvino() -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    if not runtime.has_vnni():
        pytest.skip("OpenVINO's INT8 kernels are not exact on a CPU without VNNI")


# signed and unsigned points with limits of 5 bits, a grid without a zero, leaky ReLUs, attention
@pytest.mark.parametrize(
    ("backbone", "spec", "outer_bits"),
    [("edsr", "pams:w8a5", 8), ("edsr", "dorefa:w4a4", 32), ("idn", "minmax:w8a8", 8), ("rlfn", "minmax:w8a8", 8)],
)
@torch.no_grad()
def test_openvino_gives_what_onnxruntime_gives(backbone: str, spec: str, outer_bits: int, tmp_path: Path) -> None:
    _openvino()
    torch.manual_seed(0)
    parent = cadyq.create_model(backbone, **SMALL[backbone])
    network = calibrated_on(parent, spec, _random_patches(4, 16, 16), {"outer_bits": outer_bits}).eval()
    graph = onnx_graph(network)
    theirs = open_session(graph.write(tmp_path / "a.onnx").path, threads=1)
    ours = OpenVINOSession(graph.write(tmp_path / "b.onnx", "openvino").path, threads=1)
    for batch, height, width in ((1, 24, 31), (2, 33, 26)):
        lr = _random_patches(batch, height, width)
        apart = (run(ours, lr) - run(theirs, lr)).abs()
        assert (apart <= 1).double().mean() >= 0.98  # the last digit of a sum may decide between two levels


@torch.no_grad()
def test_a_file_for_openvino_limits_values_in_front_of_the_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code is limited after it, and onnxruntime finds the same function in it, with exact kernels too.

    These are taken on a CPU without VNNI. They need a weight of its own for each use.
    """
    torch.manual_seed(0)
    parent = cadyq.create_model("edsr", **SMALL["edsr"])
    exported = onnx_graph(calibrated_on(parent, "pams:w4a4", _random_patches(4, 16, 16), {}).eval())
    made = exported.write(tmp_path / "m.onnx", "openvino")
    graph = onnx.load(made.path).graph
    made_by = {name: node for node in graph.node for name in node.output}
    limits = [node for node in graph.node if node.op_type == "Clip"]
    assert limits and all(made_by[node.input[0]].op_type != "QuantizeLinear" for node in limits)
    lr = _random_patches(2, 19, 14)
    other = open_session(exported.write(tmp_path / "n.onnx").path, threads=1)
    monkeypatch.setattr(runtime, "has_vnni", lambda: False)
    apart = (run(open_session(made.path, threads=1), lr) - run(other, lr)).abs()
    assert (apart <= 1).double().mean() >= 0.98


def test_openvino_names_a_damaged_file(tmp_path: Path) -> None:
    _openvino()
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"m\.onnx: OpenVINO cannot read it"):
        OpenVINOSession(tmp_path / "m.onnx")


def test_a_runtime_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"pip install 'cadyq\[openvino\]'"):
        OpenVINOSession(tmp_path / "m.onnx")


def test_frozen_bits_are_those_chosen_most_often() -> None:
    network = cadyq.load_model("zoo:carn_m_x4_cadyq")
    lr = photographs(4)[0].lr[:, :40, :40]
    frozen = freeze(network, [lr])
    assert is_dynamic(network) and not is_dynamic(frozen)
    dynamic, fixed = (trace_forward(n, lr[None].float()) for n in (network, frozen))
    assert torch.allclose(dynamic[0], fixed[0], atol=1e-3)  # one tile: the choice is that tile's
    assert {k: int(v) for k, v in dynamic[1].bits.items()} == {k: int(v) for k, v in fixed[1].bits.items()}


def test_frozen_bits_of_a_point_that_runs_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body, self.tail = (nn.Conv2d(*c, 3, padding=1) for c in ((3, 8), (8, 8), (8, 12)))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pixel_shuffle(self.tail(self.body(self.body(self.head(x)))), 2)

    torch.manual_seed(0)
    lr = photographs(2)[0].lr[:, :40, :40]
    network = cadyq.quantize(Twice(), "cadyq", lr, pixel_range=1)
    assert list(trace_forward(network, lr[None].float())[1].bits) == ["body", "body@2"]
    frozen = freeze(network, [lr])
    assert not is_dynamic(frozen)


def test_a_frozen_network_is_not_saved_and_not_measured_as_fp32(tmp_path: Path) -> None:
    lr = photographs(4)[0].lr[:, :40, :40]
    frozen, path = freeze(cadyq.load_model("zoo:carn_m_x4_cadyq"), [lr]), tmp_path / "frozen.safetensors"
    with pytest.raises(UserError, match=r"frozen\.safetensors: .*carn_m .*no scheme"):
        cadyq.save(frozen, path)
    assert not path.exists()
    with pytest.raises(UserError, match=r"cadyq\.evaluate: .*carn_m .*no scheme"):
        cadyq.evaluate(frozen, "skimage")


@pytest.mark.parametrize("ranges", ["fitted", "sample"])
def test_ranges_of_another_kind_are_not_frozen(ranges: str) -> None:
    network = _network(f"profiles,ranges={ranges}")
    with pytest.raises(UserError, match="has ranges of its own"):
        freeze(network, [photographs(4)[0].lr[:, :40, :40]])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(photographs(4)[1].hr[:, :160, :160].permute(1, 2, 0).numpy().astype(np.uint8)).save(
        folder / "a.png"
    )
    model, out = tmp_path / "small.safetensors", tmp_path / "m.onnx"
    cadyq.save_model(_network("cadyq"), model)
    assert export.main(["--model", str(model), "--out", str(out), "--photographs", str(folder)]) == 0
    text = capsys.readouterr().out
    assert out.exists() and "bits frozen by 1 photographs" in text and "6 quantized feature maps" in text


@pytest.mark.parametrize("size", ["16x24", "20x150"])  # smaller and wider than the photograph that it is checked on
def test_command_with_a_fixed_size(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "small.safetensors", tmp_path / "m.onnx"
    cadyq.save_model(_network("pams:w8a8"), model)
    assert export.main(["--model", str(model), "--out", str(out), "--size", size]) == 0
    assert "of values within one grey level" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "zoo:edsr_x4_pams_w8a8", "--out", "m.pb"], "m.pb"),
        (["--model", "zoo:nothing", "--out", "m.onnx"], "nothing"),
        (["--model", "zoo:edsr_x4_pams_w8a8", "--out", "m.onnx", "--photographs", "."], "fixed bits"),
        (["--model", "zoo:carn_m_x4_cadyq", "--out", "m.onnx", "--photographs", "none"], "none"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"m\.onnx: onnxruntime cannot read it"):
        open_session(tmp_path / "m.onnx")


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = QuantConv2d(channels, channels, 3)
        self.point = QuantizationPoint(channels, feeds=[self.conv])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.point(x))


class _Named(SRNetwork):
    name = "named"

    def __init__(self, scale: int = 4) -> None:
        super().__init__()
        self.head, self.block = QuantConv2d(3, 8, 3), _Block(8)
        self.up, self.shuffle = QuantConv2d(8, 3 * scale * scale, 3), nn.PixelShuffle(scale)
        self.register_points(scale)

    def forward(self, lr: Tensor) -> Tensor:
        return self.shuffle(self.up(self.block(self.head(lr))))  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_point_may_be_called_point(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lr = _random_patches(2, 12, 10)
    network = calibrated_on(_Named().eval(), "minmax:w8a8", lr).eval()
    export_onnx(network, tmp_path / "n.onnx")
    torch.testing.assert_close(run(open_session(tmp_path / "n.onnx"), lr), network(lr), atol=0.05, rtol=0)


def test_all_levels_of_int8_are_codes() -> None:
    """As of a learned rounding at 8 bits, whose grid has one negative level more."""
    codes = [-128, 127, 5, 0, -3, 64, 1, -90, 33]
    weight = (torch.tensor(codes) * 0.01).view(1, 1, 3, 3)
    found = weight_codes(weight)
    assert found is not None and found[0].flatten().tolist() == codes
    assert weight_codes(-weight) is None, "int8 has no 128"


@pytest.mark.parametrize("spec", ["adaround:w8a8", "pact:w7a8"])
@torch.no_grad()
def test_inner_layers_run_in_integers(spec: str, tmp_path: Path) -> None:
    network = _network(spec)
    inner = [point for point in network.points.values() if point.quantizer is not None and point.feeds]
    assert export_onnx(network, tmp_path / "n.onnx").layers == len(inner)


@pytest.mark.parametrize("codes", [[127, 63, 64, 0, -63, 0, 0, 64, 0], [101, 1, -1, 0, 0, 1, 0, 0, 0]])
def test_a_coarser_grid_that_nearly_fits_is_not_taken(codes: list[int]) -> None:
    weight = (torch.tensor(codes) * 0.01).view(1, 1, 3, 3)
    found = weight_codes(weight)
    assert found is not None and found[0].flatten().tolist() == codes
