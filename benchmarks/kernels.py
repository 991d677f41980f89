"""What bits are worth where they run bit by bit: time against BitOPs, beside FP32 and 8-bit integers.

`python benchmarks/kernels.py [--photographs DIR] [--patches N] [--networks NAME ...]`, on one thread.

First one convolution of 64 channels, 3x3, on a 96x96 patch, with 2 to 8 bits on both sides; quantizing and packing the
feature map, and CADyQ's selector, are timed beside it. Then whole networks on real patches, each patch and each layer
with its own bits. Contestants take turns; processor time, medians. The extra `kernels` brings the bit-serial
convolution (`docs/kernels.md`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from timing import machine, table, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

import cadyq
import cadyq.kernels.fused
import cadyq.kernels.network
from analysis.run.latency import middle
from cadyq.data.datasets import folder, photographs
from cadyq.deploy.onnx_export import OPSET, export_onnx
from cadyq.deploy.runtime import has_vnni, open_session, run
from cadyq.kernels.bit_planes import convolve, pack, pack_weight
from cadyq.kernels.build import instruction_sets
from cadyq.kernels.fused import FusedSelector
from cadyq.kernels.maps import Rounding
from cadyq.kernels.network import bit_serial
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import SymmetricWeight
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import signed_levels
from cadyq.quantizers.layers import frozen_weights
from cadyq.quantizers.ranges import LearnedBoundActivation
from cadyq.schemes.bit_selector import BitSelector

CHANNELS, KERNEL, SIDE, CHAIN, SCALE = 64, 3, 96, 8, 4
PATCH = 80  # side in LR pixels, of real patches
MACS = CHANNELS**2 * KERNEL**2 * SIDE**2
PAIRS = [(b, b) for b in range(2, 9)] + [(8, 2), (8, 3), (8, 4), (8, 5), (8, 6), (4, 8)]  # weight and activation bits
NETWORKS = ("pams_w8a8", "pams_w8a6", "pams_w8a5", "pams_w8a4", "pams_w6a6", "pams_w4a4", "cadyq")
FULL, SIMULATED, EXPORTED = "torch FP32", ("pams_w8a8", "cadyq"), ("pams_w8a8",)
# what is timed inside a bit-serial network -> where it is found
PARTS = {
    "convolutions": [(cadyq.kernels.network, "convolve")],
    "quantizing and packing": [(cadyq.kernels.network, "pack"), (cadyq.kernels.fused, "quantize")],
    "selector": [(FusedSelector, "choose")],
}
Run = Callable[[], object]


def bit_serial_runs(x: Tensor, instructions: str, generator: torch.Generator) -> dict[str, Run]:
    """Packing and convolving with each pair of bits; codes take all values that the bits have."""
    runs: dict[str, Run] = {}
    out, values = torch.empty_like(x), torch.empty_like(x)
    steps, bias = torch.ones(CHANNELS), torch.zeros(CHANNELS)
    for weight_bits, act_bits in PAIRS:
        q, most = signed_levels(act_bits), signed_levels(weight_bits)
        rounding = Rounding(float(x.abs().max()), float(q), 0, -q, q, act_bits)
        codes = torch.randint(-most, most + 1, (CHANNELS, CHANNELS, KERNEL, KERNEL), generator=generator)
        weight = pack_weight(codes.to(torch.int8))
        planes = pack(x[0], rounding, 1, instructions=instructions)
        assert (planes.bits, weight.bits) == (act_bits, weight_bits)
        name = f"{weight_bits} {act_bits} {instructions}"
        runs[f"pack {name}"] = lambda r=rounding: pack(x[0], r, 1, values[0], instructions)  # type: ignore[misc]
        runs[f"conv {name}"] = lambda p=planes, w=weight: convolve(p, w, steps, bias, out[0], instructions)  # type: ignore[misc]
    return runs


def other_runs(x: Tensor, scratch: Path) -> dict[str, Run]:
    """FP32, 8-bit integers, the simulation and CADyQ's selector on the same feature map."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, KERNEL, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    quantizer, weight_quantizer = LearnedBoundActivation(8), SymmetricWeight(8)
    weight = weight_quantizer(conv.weight).contiguous(memory_format=torch.channels_last)
    context = PatchContext(torch.zeros(1, 3, SIDE, SIDE))
    _ = context.gradient  # once per patch, not once per layer
    selectors = {stride: BitSelector(CHANNELS, 3, "normalized", 1000.0, stride) for stride in (1, 8)}
    runs: dict[str, Run] = {
        FULL: lambda: conv(x),
        "simulation of 8 bits": lambda: F.conv2d(quantizer(x, context).value, weight, conv.bias, padding=1),
    }
    for stride, selector in selectors.items():
        runs[f"selector, stride {stride}"] = lambda s=selector: s(x, context).argmax(1).tolist()  # type: ignore[misc]
    for name, integers in (("onnxruntime FP32", False), ("onnxruntime INT8", True)):
        path = scratch / f"{name}.onnx"
        onnx.save_model(chain_of_convolutions(integers), str(path))
        session, array = open_session(path, 1), x.contiguous().numpy()
        runs[name] = lambda s=session, a=array: s.run(None, {"x": a})  # type: ignore[misc]
    return runs


def chain_of_convolutions(integers: bool) -> Any:
    """`CHAIN` convolutions in a row, in FP32 or between unsigned bytes."""
    generator = np.random.default_rng(0)
    nodes: list[Any] = []
    stored: dict[str, Any] = {"step": np.float32(0.05), "zero": np.uint8(128), "wstep": np.float32(0.002)}

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    value = node("QuantizeLinear", ["x", "step", "zero"], "codes") if integers else "x"
    for k in range(CHAIN):
        codes = generator.integers(-127, 128, (CHANNELS, CHANNELS, KERNEL, KERNEL)).astype(np.int8)
        stored[f"w{k}"] = codes if integers else codes.astype(np.float32) * stored["wstep"]
        stored[f"b{k}"] = np.zeros(CHANNELS, np.int32 if integers else np.float32)
        weight, bias = f"w{k}", f"b{k}"
        if integers:
            stored[f"bstep{k}"], stored[f"wzero{k}"] = stored["step"] * stored["wstep"], np.int8(0)
            value = node("DequantizeLinear", [value, "step", "zero"], f"x{k}")
            weight = node("DequantizeLinear", [weight, "wstep", f"wzero{k}"], f"wf{k}")
            bias = node("DequantizeLinear", [bias, f"bstep{k}"], f"bf{k}")
        value = node("Conv", [value, weight, bias], f"y{k}", pads=[1, 1, 1, 1])
        value = node("QuantizeLinear", [value, "step", "zero"], f"q{k}") if integers else value
    if integers:
        value = node("DequantizeLinear", [value, "step", "zero"], "out")
    size = [1, CHANNELS, SIDE, SIDE]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name in ("x", value)]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


@torch.no_grad()
def one_convolution(repetitions: int, scratch: Path) -> str:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, CHANNELS, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    vectors = [name for name in instruction_sets() if name != "c"] or ["c"]
    runs = other_runs(x, scratch)
    for name in vectors:
        runs |= bit_serial_runs(x, name, generator)
    ms = {name: 1000 * spent.processor for name, spent in take_turns(runs, repetitions).items()}
    ms |= {name: ms[name] / CHAIN for name in ms if name.startswith("onnxruntime")}
    full = ms[FULL]
    others = [
        [name, f"{ms[name]:.2f}", f"{ms[name] / full:.2f}"] for name in ms if name.split()[0] not in ("pack", "conv")
    ]
    lines = [table(["contestant", "ms", "time / torch FP32"], others), ""]
    heads, rows = (
        ["weights x activations", "BitOPs, G"],
        [[f"{w} x {a}", f"{MACS * w * a / 1e9:.1f}"] for w, a in PAIRS],
    )
    for name in vectors:
        heads += [f"{name}: packing, ms", "convolution, ms", "BitOPs / s, T", "both / torch FP32", "both / INT8"]
        for row, (w, a) in zip(rows, PAIRS, strict=True):
            packing, conv = (ms[f"{part} {w} {a} {name}"] for part in ("pack", "conv"))
            row += [f"{packing:.2f}", f"{conv:.2f}", f"{MACS * w * a / conv / 1e9:.2f}"]
            row += [f"{(packing + conv) / ms[base]:.2f}" for base in (FULL, "onnxruntime INT8")]
    lines += [table(heads, rows), ""]
    for name in vectors:
        lines.append(f"{name}: {fit([ms[f'conv {w} {a} {name}'] for w, a in PAIRS])}")
    return "\n".join(lines)


def fit(ms: list[float]) -> str:
    """Time of the convolution as a line over BitOPs, by least squares."""
    bitops = np.array([MACS * w * a / 1e9 for w, a in PAIRS])
    slope, start = np.polyfit(bitops, ms, 1)
    off = np.abs(start + slope * bitops - ms) / ms
    return f"convolution = {start:.2f} ms + BitOPs / {1 / slope:.2f} T a second, at most {off.max():.0%} off"


@torch.no_grad()
def whole_networks(patches: list[Tensor], backbone: str, names: Sequence[str], repetitions: int, scratch: Path) -> str:
    """Milliseconds per patch of a network in FP32, in integers, in simulation and bit by bit."""
    contestants = contestants_of(patches, backbone, names, scratch)
    seconds = take_turns({name: ran for name, (ran, _) in contestants.items()}, repetitions)
    rows = []
    for name, (ran, network) in contestants.items():
        ms = 1000 * seconds[name].processor / len(patches)
        ratio = seconds[name].processor / seconds[FULL].processor
        parts, planes = parts_of(ran)
        shown = [f"{1000 * parts[part] / len(patches):.1f}" if planes else "-" for part in PARTS]
        shown += [f"{np.mean(planes):.2f}" if planes else "-"]
        rows.append([name, *costs_of(network, patches), f"{ms:.0f}", f"{ratio:.2f}", *shown])
    heads = ["network", "FAB", "BitOPs, G", "quantized, G", "ms a patch", "time / torch FP32"]
    return table([*heads, *(f"{part}, ms" for part in PARTS), "activation planes"], rows)


def contestants_of(
    patches: list[Tensor], backbone: str, names: Sequence[str], scratch: Path
) -> dict[str, tuple[Run, SRNetwork]]:
    """What runs all patches one after another, and the network that it is of."""
    full = _loaded(backbone, "fp32")
    found: dict[str, tuple[Run, SRNetwork]] = {FULL: (_over(patches, full), full)}
    for name in names:
        network = _loaded(backbone, name)
        found[name] = _over(patches, bit_serial(network)), network
        if name in SIMULATED:
            found[f"{name}, simulated"] = _frozen_over(patches, network), network
        if name in EXPORTED:
            session = open_session(export_onnx(network, scratch / f"{name}.onnx").path, 1)
            found[f"{name}, onnxruntime INT8"] = (lambda s=session: [run(s, lr) for lr in patches]), network
    return found


def _loaded(backbone: str, name: str) -> SRNetwork:
    network = cadyq.load_model(f"zoo:{backbone}_x4_{name}")
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _over(patches: list[Tensor], network: SRNetwork) -> Run:
    return lambda: [network(lr) for lr in patches]


def _frozen_over(patches: list[Tensor], network: SRNetwork) -> Run:
    def ran() -> None:
        with frozen_weights(network):  # quantizes each weight once for all patches
            _over(patches, network)()

    return ran


def costs_of(network: SRNetwork, patches: list[Tensor]) -> list[str]:
    """FAB, BitOPs and those of the quantized layers in G, means over the patches."""
    traces = [cadyq.trace(network, lr)[1] for lr in patches]
    sums = [(float(t.fab()), float(t.bitops()) / 1e9, float(t.bitops_split().quantized) / 1e9) for t in traces]
    fab, bitops, quantized = np.mean(sums, 0)
    return [f"{fab:.2f}", f"{bitops:.0f}", f"{quantized:.0f}"]


def parts_of(ran: Run) -> tuple[dict[str, float], list[int]]:
    """Processor seconds in the parts of one run, and the planes of each feature map that was packed."""
    spent, planes = dict.fromkeys(PARTS, 0.0), []

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = time.process_time()
            result = function(*args)
            spent[part] += time.process_time() - started
            planes.extend([result.bits] if function is pack else [])
            return result

        return call

    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), part)))
        ran()
    return spent, planes


def real_patches(source: Path | None, number: int) -> list[Tensor]:
    """The middle of photographs evenly spread over a folder, LR (1, 3, PATCH, PATCH)."""
    pairs = photographs(SCALE) if source is None else folder(source, SCALE)
    chosen = [pairs[len(pairs) * k // number] for k in range(number)]
    return [middle(pair.lr, PATCH)[None].float().contiguous(memory_format=torch.channels_last) for pair in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--backbone", default="edsr")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="of the zoo, without backbone and scale")
    parser.add_argument("--patches", type=int, default=8)
    parser.add_argument("--photographs", type=Path, help="folder; by default those inside scikit-image")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vnni = "with VNNI" if has_vnni() else "without VNNI"
    print(f"{machine()}, {vnni}; {args.repetitions} repetitions\n")
    with tempfile.TemporaryDirectory() as scratch:
        print(one_convolution(args.repetitions, Path(scratch)), flush=True)
        patches = real_patches(args.photographs, args.patches)
        print(f"\n{args.backbone}, {len(patches)} patches of {PATCH}x{PATCH} LR pixels\n")
        print(whole_networks(patches, args.backbone, args.networks, args.repetitions, Path(scratch)))


if __name__ == "__main__":
    main()
