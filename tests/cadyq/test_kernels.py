"""Bit-serial convolutions: their sums are those of int64 arithmetic, and networks give what the simulation gives."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import cadyq
from cadyq.data.datasets import photographs
from cadyq.kernels import build
from cadyq.kernels.bit_planes import BitPlanes, convolve, pack, pack_weight, sums
from cadyq.kernels.maps import Rounding, quantize
from cadyq.kernels.network import BitSerialConv2d, PackingQuantizer, bit_serial, bit_serial_layers
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import PatchContext
from cadyq.training.start import quantized_from
from cadyq.utils.errors import UserError

pytest.importorskip("cffi", reason="the extra `kernels` is not installed")
try:
    SETS = build.instruction_sets()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

SMALL = {
    "edsr": {"n_feats": 16, "n_resblocks": 1},
    "carn": {"n_feats": 8},
    "carn_m": {"n_feats": 8},
    "idn": {"n_feats": 16, "n_resblocks": 1},
    "srresnet": {"n_feats": 8, "n_resblocks": 1},
}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _codes(size: tuple[int, ...], low: int, high: int, seed: int) -> Tensor:
    return torch.randint(low, high + 1, size, generator=_generator(seed))


def _of_codes(codes: Tensor, rounding: Rounding) -> Tensor:
    """The values (C, H, W) that codes stand for, as a feature map with channels last."""
    return (codes - rounding.zero).float().mul(rounding.step).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _reference(codes: Tensor, weight: Tensor) -> Tensor:
    """A convolution in int64 with "same" padding, as products of shifted maps."""
    side = weight.shape[-1]
    padded = F.pad(codes, [side // 2] * 4)
    height, width = codes.shape[1:]
    total = torch.zeros(len(weight), height, width, dtype=torch.int64)
    for y in range(side):
        for x in range(side):
            part = padded[:, y : y + height, x : x + width]
            total += torch.einsum("oi,ihw->ohw", weight[:, :, y, x].long(), part)
    return total


@pytest.mark.parametrize("instructions", SETS)
@given(
    st.integers(2, 8), st.integers(2, 8), st.booleans(), st.sampled_from([1, 3, 5]), st.integers(0, 3),
    st.tuples(*[st.integers(1, n) for n in (140, 75, 9, 20)]), st.floats(0, 1), st.integers(0, 2**30),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_sums_are_exact(
    instructions: str,
    act_bits: int,
    weight_bits: int,
    signed: bool,
    side: int,
    more: int,
    size: tuple[int, ...],
    share: float,
    seed: int,
) -> None:
    """Any bits, sign, zero point, kernel, channels and map, a share of the codes, and more padding than is needed."""
    inputs, outputs, height, width = size
    low, high = (-(2 ** (act_bits - 1)), 2 ** (act_bits - 1) - 1) if signed else (0, 2**act_bits - 1)
    zero = 0 if signed else int(_codes((1,), low, high, seed + 2))
    rounding = Rounding(0.5, 1.0, zero, low, high, act_bits)
    codes = _codes((inputs, height, width), round(share * low), round(share * high), seed)
    most = 2 ** (weight_bits - 1)
    weight = _codes((outputs, inputs, side, side), -most, most - 1, seed + 1).to(torch.int8)
    planes = pack(_of_codes(codes, rounding), rounding, side // 2 + more, instructions=instructions)
    found = sums(planes, pack_weight(weight), instructions)
    assert torch.equal(found.long(), _reference(codes - zero, weight))


@pytest.mark.parametrize("instructions", SETS)
def test_the_largest_sums(instructions: str) -> None:
    """Every code at its end, in the most channels that are tried: no counter on the way overflows."""
    weight = torch.full((8, 700, 3, 3), -128, dtype=torch.int8)
    for rounding in (Rounding(1.0, 1.0, 0, -128, 127, 8), Rounding(1.0, 1.0, 255, 0, 255, 8)):
        codes = torch.full((700, 5, 7), rounding.low)
        planes = pack(_of_codes(codes, rounding), rounding, 1, instructions=instructions)
        found = sums(planes, pack_weight(weight), instructions)
        assert torch.equal(found.long(), _reference(codes - rounding.zero, weight))


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("spec", ["pams:w8a8", "pams:w8a4", "pams:w2a2", "minmax:w8a8", "lsq:w4a4", "pact:w4a5"])
@torch.no_grad()
def test_values_and_sums_are_those_of_the_layers(spec: str, instructions: str) -> None:
    """A quantizer and a convolution of this project beside the same in integers, on values that fall out of range."""
    network = _network(spec)
    packed = bit_serial(network)
    name = "blocks.0.conv2"
    layer, point = network.get_submodule(name), network.points["blocks.0.middle"]
    twin, packing = packed.get_submodule(name), packed.points["blocks.0.middle"].quantizer
    assert isinstance(twin, BitSerialConv2d) and isinstance(packing, PackingQuantizer) and point.quantizer is not None
    width = 3 * packing.roundings[0].step * max(abs(packing.roundings[0].low), packing.roundings[0].high)
    x = (torch.rand(1, 16, 11, 13, generator=_generator(3)) * 2 - 1) * width
    simulated = point.quantizer(x, PatchContext(torch.zeros(1, 3, 8, 8))).value
    values = torch.empty_like(x, memory_format=torch.channels_last)
    planes = pack(x[0], packing.roundings[0], 1, values[0], instructions)
    assert torch.allclose(values, simulated, rtol=1e-6, atol=0)
    out = torch.empty_like(simulated, memory_format=torch.channels_last)
    convolve(planes, twin.codes, twin.steps, twin.offsets, out[0], instructions)
    expected = layer(simulated)
    assert torch.allclose(out, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    alone = quantize(x, packing.roundings, instructions)
    assert torch.allclose(alone, simulated, rtol=1e-6, atol=0)


@pytest.mark.parametrize("instructions", SETS)
def test_ties_round_to_even_as_in_the_simulation(instructions: str) -> None:
    x = torch.arange(-8, 9).div(2).view(1, 1, -1)
    values = quantize(x, [Rounding(1.0, 1.0, 0, -3, 3, 3)], instructions)
    assert torch.equal(values, x.round().clamp(-3, 3))


def test_planes_that_no_code_needs_are_left_out() -> None:
    """Behind a ReLU a symmetric grid has no negative code; a dark patch may not reach the largest ones."""
    rounding = Rounding(1.0, 1.0, 0, -127, 127, 8)
    for codes, bits, signed in (([-127, 3], 8, True), ([127, 0], 7, False), ([-4, 3], 3, True), ([0, 0], 0, False)):
        planes = pack(torch.tensor(codes, dtype=torch.float32).view(1, 1, -1), rounding, 0)
        assert (planes.bits, planes.signed) == (bits, signed)


def _network(spec: str, backbone: str = "edsr") -> SRNetwork:
    torch.manual_seed(0)
    parent = cadyq.create_model(backbone, **SMALL[backbone])
    patches = torch.rand(4, 3, 16, 16, generator=_generator(1)) * 255
    return quantized_from(parent, parent, spec, patches).eval()


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("spec", ["pams:w8a8", "minmax:w8a8"])
@torch.no_grad()
def test_every_backbone_runs_bit_by_bit(backbone: str, spec: str) -> None:
    network = _network(spec, backbone)
    packed = bit_serial(network)
    fed = {network.layer_names[layer] for point in network.points.values() for layer in point.feeds}
    assert set(bit_serial_layers(packed)) == fed
    lr = torch.rand(2, 3, 14, 17, generator=_generator(2)) * 255
    apart = (packed(lr) - network(lr)).abs()
    assert (apart <= 1).double().mean() >= 0.99  # the last digit of a sum may decide between two levels


@pytest.mark.parametrize("name", ["edsr_x4_pams_w4a4", "edsr_x4_cadyq", "carn_m_x4_cadyq"])
@torch.no_grad()
def test_each_patch_runs_at_its_own_bits(name: str) -> None:
    """A flat and a busy patch in one batch: bits, BitOPs and pixels are those of the simulation."""
    network = cadyq.load_model(f"zoo:{name}")
    busy = photographs(4)[0].lr[:, 30:62, 20:52].float()
    lr = torch.stack([busy, busy.mean((1, 2), keepdim=True).expand_as(busy)])
    packed = bit_serial(network)
    sr, trace = cadyq.trace(packed, lr)
    simulated, expected = cadyq.trace(network, lr)
    assert {k: v.tolist() for k, v in trace.bits.items()} == {k: v.tolist() for k, v in expected.bits.items()}
    assert torch.equal(trace.bitops(), expected.bitops())
    if "cadyq" in name:
        assert any(len(set(bits.tolist())) > 1 for bits in trace.bits.values())
    # a change of 1e-6 of the input moves 8 % of the values of EDSR's CADyQ by more than one level
    assert ((sr - simulated).abs() <= 1).double().mean() >= 0.97


class Foreign(nn.Module):
    """Not of this project: a stride, a linear layer, a grouped and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.mix = nn.Linear(8, 8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.up = nn.Conv2d(12, 48, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.down(x).relu().movedim(1, -1)).movedim(-1, 1)
        return F.pixel_shuffle(self.up(self.grouped(y)), 4)


@torch.no_grad()
def test_a_foreign_network_is_costed_and_run() -> None:
    """Its MACs are counted on the copy itself, whose convolutions are plain ones there."""
    torch.manual_seed(0)
    photograph = photographs(4)[0].lr
    network = cadyq.quantize(Foreign(), "minmax:w8a8", photograph, exclude=[], pixel_range=1, multiple_of=2)
    packed = bit_serial(network)
    assert bit_serial_layers(packed) == ["network.grouped", "network.up"]
    lr = photograph[None, :, :34, :48].float()
    sr, trace = cadyq.trace(packed, lr)
    bitops = trace.bitops()  # before the simulation's, whose count would be found in a cache
    simulated, expected = cadyq.trace(network, lr)
    assert torch.equal(bitops, expected.bitops())
    assert ((sr - simulated).abs() <= 1).double().mean() >= 0.99


@torch.no_grad()
def test_threads_share_the_rows() -> None:
    packed = bit_serial(_network("pams:w8a8"))
    lr = torch.rand(1, 3, 7, 9, generator=_generator(2)) * 255
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(packed(lr))
    finally:
        torch.set_num_threads(before)
    assert all(torch.allclose(one, results[0], atol=1e-3) for one in results)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fp32", "edsr: no quantized convolution"),
        ("static", "scheme 'static' sets bits before each forward"),
        ("dorefa:w4a4", r"point blocks\.0\.input: zero is no level"),
        ("dynamic_range:w8a8", r"point blocks\.0\.input: its range depends on the feature map"),
    ],
)
def test_what_has_no_integers_is_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bit_serial(_network(spec))


def test_no_gradient_is_lost_in_silence() -> None:
    packed = bit_serial(_network("pams:w8a8"))
    with pytest.raises(UserError, match=r"run the network under torch\.no_grad"):
        packed(torch.zeros(1, 3, 8, 8))


def test_a_map_that_no_point_gave_is_refused() -> None:
    packed = bit_serial(_network("pams:w8a8"))
    with torch.no_grad(), pytest.raises(UserError, match="no quantization point in front of it gave"):
        packed.get_submodule("blocks.0.conv1")(torch.zeros(1, 16, 8, 8))


def _zeros(channels: int, pad: int) -> BitPlanes:
    return pack(torch.zeros(channels, 3, 4), Rounding(1, 1, 0, -1, 1, 2), pad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(torch.zeros(1, 2, 2).double(), Rounding(1, 1, 0, -1, 1, 2), 0), "is torch.float64 on cpu"),
        (lambda: pack(torch.full((1, 2, 2), torch.nan), Rounding(1, 1, 0, -1, 1, 2), 0), "holds NaN"),
        (lambda: pack(torch.zeros(1, 2, 2), Rounding(1, 1, 0, -1, 1, 2), 0, instructions="sse"), "instructions='sse'"),
        (lambda: pack(torch.zeros(2, 3, 4), Rounding(1, 1, 0, -1, 1, 2), 0, torch.zeros(2, 3, 4)), "channels last in"),
        (lambda: sums(_zeros(2, pad=0), pack_weight(torch.zeros(1, 2, 3, 3, dtype=torch.int8))), "padded by 0, does"),
        (lambda: sums(_zeros(2, pad=1), pack_weight(torch.zeros(1, 3, 3, 3, dtype=torch.int8))), "a map of 2 channels"),
        (lambda: pack_weight(torch.zeros(1, 2, 2, 2, dtype=torch.int8)), "a 2x2 kernel is not square and odd"),
        (lambda: pack_weight(torch.zeros(1, 64, 33, 33, dtype=torch.int8)), "33x33 kernel over 64 channels"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and nothing loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    yield tmp_path  # type: ignore[misc]
    build.library.cache_clear()


def test_code_is_compiled_once(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.library().lib.instruction_set(0) == 1
    assert len([*(fresh_cache / "cadyq" / "kernels").iterdir()]) == 1
    build.library.cache_clear()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    build.library()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    build.library.cache_clear()
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        build.library()


@pytest.mark.parametrize(
    ("command", "message"),
    [("no-such-compiler -m64", "no C compiler 'no-such-compiler'"), ("false", "false cannot compile it")],
)
def test_a_missing_compiler_is_one_line(
    fresh_cache: Path, command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(UserError, match=message) as raised:
        build.library()
    assert "CC" in str(raised.value) and "\n" not in str(raised.value)


def test_an_error_of_the_compiler_is_one_line(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = fresh_cache / "bit_serial.c"
    broken.write_text("#error no popcount here\n")
    monkeypatch.setattr(build, "SOURCE", broken)
    with pytest.raises(UserError, match="no popcount here") as raised:
        build.library()
    assert "\n" not in str(raised.value)
    assert list((fresh_cache / "cadyq" / "kernels").iterdir()) == []


def test_a_damaged_library_is_named(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(ffi: object, command: list[str], path: Path) -> None:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no library")

    monkeypatch.setattr(build, "_compile", damaged)
    with pytest.raises(UserError, match=r"_bit_serial_.*: cannot be loaded .* delete it"):
        build.library()


def test_c_code_has_no_warnings(tmp_path: Path) -> None:
    command = [*build.compiler(), *build.FLAGS, "-Wall", "-Wextra", "-Werror", str(build.SOURCE)]
    done = subprocess.run([*command, "-o", str(tmp_path / "m.so")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
