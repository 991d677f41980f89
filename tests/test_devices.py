"""Device neutrality. What needs a GPU runs only where one is; that no tensor stays behind on the CPU shows anywhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import cadyq
from analysis.records import store as records
from analysis.run import command as run_all
from analysis.run.verification import TOLERANCE
from cadyq.commands import calibrate
from cadyq.commands.train import build_parser, train
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png
from cadyq.deploy import frozen, onnx_export
from cadyq.kernels.fused import fuse_quantizers
from cadyq.kernels.network import bit_serial
from cadyq.models.network import SRNetwork
from cadyq.quantizers.trace import trace_forward
from cadyq.testing.subject import backbones_to_check, small_sizes
from cadyq.training.distributed import choose_device, join
from cadyq.training.start import quantized_from
from cadyq.utils.devices import pick_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# A meta tensor has a shape and a device, but no values: what meets it has to lie on its device, and what reads a value
# fails. These schemes read none; those left out read a flag or a step as a number.
READ_NO_VALUE = ("fp32", "dorefa", "pams", "dynamic_range", "cadyq", "cabm", "random", "static", "gradient")


def network_of(backbone: str, scheme: str, patches: Tensor) -> SRNetwork:
    torch.manual_seed(0)
    parent = cadyq.create_model(backbone, **small_sizes(backbone))
    return quantized_from(parent, parent, scheme, patches)


@pytest.fixture(scope="module")
def patches() -> Tensor:
    """LR patches of photographs, float32 (4, 3, 24, 24)."""
    return torch.stack([pair.lr[:, 20:44, 30:54] for pair in list(photographs(4))[:4]]).float()


@pytest.mark.parametrize("backbone", backbones_to_check())
@pytest.mark.parametrize("scheme", READ_NO_VALUE)
def test_a_forward_makes_no_tensor_on_another_device(backbone: str, scheme: str, patches: Tensor) -> None:
    network = network_of(backbone, scheme, patches).eval().to("meta")
    lr = patches.to("meta")
    with torch.no_grad():
        sr, trace = trace_forward(network, lr)
    assert sr.device == lr.device
    assert trace.fab().device == lr.device


@pytest.mark.parametrize("backbone", backbones_to_check())
@pytest.mark.parametrize("scheme", ["pams", "cadyq"])
def test_a_training_step_makes_no_tensor_on_another_device(backbone: str, scheme: str, patches: Tensor) -> None:
    network = network_of(backbone, scheme, patches).train().to("meta")
    sr, trace = trace_forward(network, patches.to("meta"))
    (sr.mean() + trace.bit_penalty().mean()).backward()
    assert all(p.grad is None or p.grad.device == sr.device for p in network.parameters())


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[SRNetwork], SRNetwork]:
    """Moves a network to a device without values; its copy on the CPU is the network as it was."""

    def move(network: SRNetwork) -> SRNetwork:
        kept = copy.deepcopy(network)
        monkeypatch.setattr(SRNetwork, "cpu", lambda self: copy.deepcopy(kept))
        return network.to("meta")

    return move


def states(network: SRNetwork) -> list[tuple[bool, set[str]]]:
    """Mode of each module, and where its tensors lie."""
    return [(part.training, {t.device.type for t in part.state_dict().values()}) for part in network.modules()]


@torch.no_grad()
def test_a_network_on_any_device_is_exported(
    patches: Tensor, elsewhere: Callable[[SRNetwork], SRNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="the extra `deploy` is not installed")
    monkeypatch.setattr(onnx_export, "_model", lambda exportable, size: exportable)  # what torch would write
    network = network_of("edsr", "pams", patches).eval()
    expected = onnx_export.onnx_graph(network).model(patches)
    moved = elsewhere(network.train())
    before = states(moved)
    assert torch.equal(onnx_export.onnx_graph(moved).model(patches), expected)
    assert states(moved) == before


@pytest.mark.parametrize("made", [bit_serial, fuse_quantizers])
@torch.no_grad()
def test_a_network_on_any_device_runs_in_kernels(
    made: Callable[[SRNetwork], SRNetwork], patches: Tensor, elsewhere: Callable[[SRNetwork], SRNetwork]
) -> None:
    pytest.importorskip("cffi", reason="the extra `kernels` is not installed")
    network = network_of("edsr", "cadyq", patches).eval()
    expected = made(network)(patches)
    moved = elsewhere(network.train())
    before = states(moved)
    assert torch.equal(made(moved)(patches), expected)
    assert states(moved) == before


def test_frozen_bits_lie_where_the_network_does(patches: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("edsr", "cadyq", patches).eval()
    _, trace = trace_forward(network, patches[:1])
    seen = []
    monkeypatch.setattr(frozen, "trace_forward", lambda network, lr: (seen.append(lr.device.type), trace))
    made = frozen.freeze(network.to("meta"), [patches[0].byte()])
    assert set(seen) == {"meta"}
    assert {tensor.device.type for tensor in made.state_dict().values()} == {"meta"}


@needs_gpu
@torch.no_grad()
def test_a_network_on_a_gpu_is_frozen_and_exported(tmp_path: Path, patches: Tensor) -> None:
    network = network_of("edsr", "cadyq", patches).eval()
    photograph = [patches[0].byte()]
    cpu, gpu = frozen.freeze(network, photograph), frozen.freeze(network.to("cuda"), photograph)
    bits = [[int(point.quantizer.bits) for point in one.points.values() if point.quantizer] for one in (cpu, gpu)]
    assert bits[0] == bits[1]
    for name, one in (("cpu", cpu), ("gpu", gpu)):
        onnx_export.export_onnx(one, tmp_path / name)
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "gpu").read_bytes()
    assert torch.equal(bit_serial(gpu)(patches), bit_serial(cpu)(patches))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    for name in ("auto", "cuda", "cuda:0", "cuda:1"):
        assert pick_device(name).type == "cuda"
    for pick in (pick_device, choose_device):
        with pytest.raises(cadyq.UserError, match=r"--device cuda:2 .*: 2 GPUs found; use one of cuda:0, cuda:1"):
            pick("cuda:2")


@pytest.mark.usefixtures("two_gpus")
def test_each_process_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(cadyq.UserError, match=r"LOCAL_RANK=2: 2 GPUs found; .*--nproc-per-node 2"):
        choose_device("cuda")


@needs_gpu
@pytest.mark.parametrize("scheme", cadyq.list_schemes())
@torch.no_grad()
def test_a_gpu_computes_what_the_cpu_does(scheme: str, patches: Tensor) -> None:
    if scheme == "oracle":
        pytest.skip("reads HR: its choice is a search among near ties")
    network = network_of("edsr", scheme, patches).eval()
    sr, trace = trace_forward(network, patches)
    with torch.backends.cudnn.flags(allow_tf32=False):
        moved, other = trace_forward(network.to("cuda"), patches.to("cuda"))
    # values on a rounding tie may fall to either level, and carry on through the layers
    close = (sr - moved.cpu()).abs() < 0.05
    assert close.float().mean() > 0.99
    assert (trace.fab() - other.fab().cpu()).abs().max() < 0.5
    assert trace.bitops().shape == other.bitops().shape


@needs_gpu
@pytest.mark.parametrize("scheme", READ_NO_VALUE)
@torch.no_grad()
def test_a_forward_never_waits_for_the_gpu(scheme: str, patches: Tensor) -> None:
    network, lr = network_of("edsr", scheme, patches).eval().to("cuda"), patches.to("cuda")
    network(lr)  # the first forward loads kernels
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        trace_forward(network, lr)
    waits = [event.name for event in seen.events() if event.name in ("cudaStreamSynchronize", "cudaEventSynchronize")]
    assert waits == []


@pytest.fixture(scope="module")
def photo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for k, pair in enumerate(list(photographs(4))[:4]):
        write_png(root / f"{k}.png", pair.hr[:, 40:240, 20:216])
    return root


def measured(out: Path, device: str) -> pd.DataFrame:
    words = ["--backbones", "idn", "--schemes", "fp32", "pams:w8a8", "cadyq", "--datasets", "skimage"]
    assert run_all.main([*words, "--modes", "patch", "--device", device, "--out", str(out)]) == 0
    return records.load(out).set_index(["scheme", "image"])


@needs_gpu
def test_run_all_on_a_gpu(tmp_path: Path) -> None:
    cpu, gpu = measured(tmp_path / "cpu", "cpu"), measured(tmp_path / "gpu", "cuda")
    for column, tolerance in TOLERANCE.items():
        assert (cpu[column] - gpu[column]).abs().max() <= tolerance, column


def losses(photo_root: Path, out: Path, device: str, *more: str) -> list[float]:
    words = ["--recipe", "cadyq", "--backbone", "idn", "--init", "zoo:idn_x4_fp32", "--steps", "8"]
    words += ["--set", "batch=4", "lr_patch=12", "validate_every=4", "--data-root", str(photo_root), *more]
    words += ["--cache", str(out.parent / "cache"), "--out", str(out), "--device", device]
    processes = join(choose_device(device))
    train(build_parser().parse_args(words), processes)
    return list(pd.read_csv(out / "history.csv")["loss"])


@pytest.fixture
def no_tf32() -> Iterator[None]:
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@needs_gpu
@pytest.mark.usefixtures("no_tf32")
def test_training_on_a_gpu(photo_root: Path, tmp_path: Path) -> None:
    cpu = losses(photo_root, tmp_path / "on_cpu", "cpu")
    assert losses(photo_root, tmp_path / "on_gpu", "cuda") == pytest.approx(cpu, rel=0.02)
    resident = losses(photo_root, tmp_path / "resident", "cuda", "--bank-on-device")
    assert resident == pytest.approx(cpu, rel=0.02)
    half = losses(photo_root, tmp_path / "half", "cuda", "--amp")
    assert half == pytest.approx(cpu, rel=0.1)


@needs_gpu
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("scheme", ["ptq4sr:w4a4", "brecq:w4a4,qdrop=true", "adabm:w8a6"])
def test_calibrating_on_a_gpu(scheme: str, tmp_path: Path) -> None:
    last = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        words = ["--scheme", scheme, "--model", "zoo:idn_x4_fp32", "--patches", "4", "--steps", "4", "--batch", "2"]
        assert calibrate.main([*words, "--device", device, "--out", str(out)]) == 0
        stages = json.loads((out / "training.json").read_text())["stages"]
        last[device] = [stage["last_loss"] for stage in stages if stage["steps"]]
    assert last["cuda"] == pytest.approx(last["cpu"], rel=0.05)
