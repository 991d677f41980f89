"""What quantization costs in simulation: a forward of a quantized network against FP32, and FP32 against plain torch.

`python benchmarks/forward.py [--backbones edsr ...] [--threads N]`: one 96x96 LR patch, eval mode;
beside it what the published code takes. "Weights once" is the forward inside `frozen_weights`, as tiles, validation and
`upscale` run it; in the other rows every forward quantizes the weights again, as in the published code. "Fused kernels"
quantize feature maps in C (extra `kernels`). EDSR's FP32 forward is also timed as exported for each installed runtime.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from timing import Seconds, machine, table, take_turns
from torch import Tensor, nn

import cadyq
from cadyq.deploy.onnx_export import export_onnx
from cadyq.deploy.runtime import RUNTIMES, run
from cadyq.kernels.build import instruction_sets
from cadyq.kernels.fused import fuse_quantizers
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import frozen_weights
from cadyq.training.start import quantized_from
from cadyq.utils.errors import UserError

PUBLISHED = {
    ("edsr", "cadyq"): 1.74,
    ("srresnet", "cadyq"): 1.52,
    ("idn", "cadyq"): 2.1,
    ("edsr", "pams:w8a8"): 1.29,
}
AIMS = {
    ("edsr", "cadyq"): 1.08,
    ("srresnet", "cadyq"): 1.05,
    ("idn", "cadyq"): 1.10,
    ("carn_m", "cadyq"): 1.20,
    ("edsr", "pams:w8a8"): 1.04,
    ("srresnet", "pams:w8a8"): 1.04,
    ("idn", "pams:w8a8"): 1.04,
}
PLAIN_AIM = 0.65
SIDE = 96
# what a row is called -> scheme, its options
CONTESTANTS: dict[str, tuple[str, dict[str, int]]] = {
    "fp32": ("fp32", {}),
    "pams:w8a8": ("pams:w8a8", {}),
    "minmax:w8a8": ("minmax:w8a8", {}),  # affine levels, as those of every scheme of bounds alone
    "twodquant:w8a8": ("twodquant:w8a8", {}),  # both bounds are levels
    "cadyq": ("cadyq", {}),
    "cadyq, stats_stride 8": ("cadyq", {"stats_stride": 8}),
}
VARIED = ("pams:w8a8", "cadyq")  # with fused kernels and with weights quantized once too


class PlainBlock(nn.Module):
    def __init__(self, n_feats: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_feats, n_feats, 3, padding=1)
        self.conv2 = nn.Conv2d(n_feats, n_feats, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))


class PlainEDSR(nn.Module):
    """EDSR as one would write it down: channels first, no quantization points."""

    def __init__(self, reference: SRNetwork) -> None:
        super().__init__()
        self.shift = reference.mean_shift
        self.head = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.Sequential(*(PlainBlock(64) for _ in range(16)))
        self.body_end = nn.Conv2d(64, 64, 3, padding=1)
        up = (layer for _ in range(2) for layer in (nn.Conv2d(64, 256, 3, padding=1), nn.PixelShuffle(2)))
        self.upsample = nn.Sequential(*up)
        self.tail = nn.Conv2d(64, 3, 3, padding=1)
        self.load_state_dict(reference.state_dict(), strict=True)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.head(self.shift.subtract(lr))
        return self.shift.add(self.tail(self.upsample(self.body_end(self.blocks(shallow)) + shallow)))


def network_of(backbone: str, scheme: str, patches: Tensor, options: dict[str, int]) -> SRNetwork:
    """Random weights, calibrated on `patches`; the same for every scheme."""
    torch.manual_seed(0)
    parent = cadyq.create_model(backbone)
    network = quantized_from(parent, parent, scheme, patches, options).eval()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def networks_of(backbone: str, patches: Tensor, kernels: bool, stack: ExitStack) -> dict[str, SRNetwork]:
    """The contestants by name; `VARIED` also fused, and each with weights that stay quantized until `stack` closes."""
    networks = {name: network_of(backbone, spec, patches, options) for name, (spec, options) in CONTESTANTS.items()}
    if kernels:
        networks |= {f"{name}, fused kernels": fuse_quantizers(networks[name]) for name in VARIED}
    for name in [name for name in networks if name.split(", fused")[0] in VARIED]:
        once = copy.deepcopy(networks[name])
        stack.enter_context(frozen_weights(once))
        networks[f"{name}, weights once"] = once
    return networks


def missing_kernels() -> str:
    """Why there are no fused kernels; empty if they run."""
    try:
        instruction_sets()
    except UserError as error:
        return str(error)
    return ""


def exported_runs(network: SRNetwork, lr: Tensor, threads: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The name of each installed runtime, and a forward of the network by it."""
    for runtime, opened in RUNTIMES.items():
        if find_spec(runtime) is not None and find_spec("onnx") is not None:
            with TemporaryDirectory() as folder:
                export_onnx(network, Path(folder, "network.onnx"), runtime=runtime)
                session = opened(Path(folder, "network.onnx"), threads)
            yield runtime, lambda session=session: run(session, lr)  # type: ignore[misc]


def row(what: str, ours: Seconds, base: Seconds, published: float | None, aim: float | None) -> list[str]:
    shown = ["-" if value is None else f"{value:.2f}" for value in (published, aim)]
    ratios = [f"{ours.clock / base.clock:.2f}", f"{ours.processor / base.processor:.2f}"]
    return [what, f"{1000 * ours.processor:.0f}", *ratios, *shown]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--backbones", nargs="+", default=["edsr", "srresnet", "idn", "carn_m"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    patches = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 255
    lr = (torch.rand(1, 3, SIDE, SIDE) * 255).contiguous(memory_format=torch.channels_last)
    rows, missing = [], missing_kernels()
    for backbone in args.backbones:
        with ExitStack() as stack:
            networks = networks_of(backbone, patches, not missing, stack)
            runs = {name: lambda n=network: n(lr) for name, network in networks.items()}
            if backbone == "edsr":
                plain, channels_first = PlainEDSR(networks["fp32"]).eval(), lr.contiguous()
                runs["plain"] = lambda p=plain, x=channels_first: p(x)
                runs |= dict(exported_runs(networks["fp32"], channels_first, args.threads))
            seconds = take_turns(runs, args.repetitions)
        if "plain" in seconds:
            for name in ("fp32", *(runtime for runtime in RUNTIMES if runtime in seconds)):
                what = f"edsr fp32{'' if name == 'fp32' else f' by {name}'} / plain torch, channels first"
                rows.append(row(what, seconds[name], seconds["plain"], 1, PLAIN_AIM))
        for name in (name for name in networks if name != "fp32"):
            key = (backbone, name)
            rows.append(
                row(f"{backbone} {name} / fp32", seconds[name], seconds["fp32"], PUBLISHED.get(key), AIMS.get(key))
            )
    print(f"{machine()}; LR {SIDE}x{SIDE}, {args.repetitions} repetitions\n")
    if missing:
        print(f"without rows of fused kernels: {missing}\n")
    print(table(["forward", "ms, processor", "ratio, clock", "ratio, processor", "published code", "aim"], rows))


if __name__ == "__main__":
    main()
