"""What bits are worth on this CPU today: BitOPs beside megabytes on disk and milliseconds.

`python benchmarks/deploy.py [--backbones edsr ...] [--size HEIGHTxWIDTH]`: networks of the zoo, exported and run by
onnxruntime on a whole image, by default of 1280x720 pixels of output, on one thread and on two. "+ outer_bits=8"
quantizes head, upsampler and tail too. BitOPs count 4-bit work as half of 8-bit work; no CPU kernel does, and INT8 pays
only where the CPU has instructions for it (VNNI).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from timing import machine, table, take_turns

import cadyq
from cadyq.commands.export import image_size
from cadyq.data.datasets import photographs
from cadyq.deploy.frozen import freeze, is_dynamic
from cadyq.deploy.onnx_export import export_onnx
from cadyq.deploy.runtime import agreement, has_vnni, open_session, run
from cadyq.inference.tiled import REFERENCE_BITS
from cadyq.metrics.measure import HD_PIXELS
from cadyq.models.network import SRNetwork
from cadyq.quantization import calibration_patches
from cadyq.schemes.calibration import with_outer_bits

OUTER = " + outer_bits=8"
SCHEMES = ("fp32", "pams_w8a8", "pams_w8a8" + OUTER, "pams_w8a5", "pams_w4a4", "cadyq")
AIMS = {("edsr", "pams_w8a8"): 1.6, ("edsr", "pams_w8a8" + OUTER): 3.0}  # FP32 / INT8 in time, one thread
THREADS = (1, 2)
HEADS = ["network", "BitOPs (G, 720p)", "MB on disk", "ms, 1 thread", "speed / FP32", "aim", "ms, 2 threads"]
HEADS += ["speed / FP32", "within one grey level", "PSNR against simulation, dB"]


def network_of(backbone: str, scheme: str) -> SRNetwork:
    """A network of the zoo, with its outer layers in 8 bits where the name says so."""
    name, outer, _ = scheme.partition(OUTER)
    network = cadyq.load_model(f"zoo:{backbone}_x4_{name}")
    if not outer:
        return network
    return with_outer_bits(network, calibration_patches([pair.lr for pair in photographs(4)]), REFERENCE_BITS)


@torch.no_grad()
def exported(network: SRNetwork, path: Path, side: int = 96) -> list[str]:
    """Write a network; returns its BitOPs and megabytes, and how close it is to the simulation."""
    pair = photographs(network.scale)[0]
    patch = pair.lr[:, :side, :side]
    bitops = float(cadyq.trace(network, patch[None].float())[1].bitops()) / 1e9
    hd = bitops * HD_PIXELS / (side * network.scale) ** 2
    fixed = freeze(network, [p.lr for p in photographs(network.scale)]) if is_dynamic(network) else network
    made = export_onnx(fixed, path)
    hr = pair.hr[:, : side * network.scale, : side * network.scale]
    close = agreement(open_session(path, 1), fixed, patch, hr)
    return [f"{hd:,.0f}", f"{made.bytes / 1e6:.2f}", f"{close.within_one:.2%}", f"{close.psnr_db:+.3f}"]


def rows_of(backbone: str, size: tuple[int, int], repetitions: int, folder: Path) -> list[list[str]]:
    """A row a scheme; all of them take turns, on one thread and on two."""
    facts, runs = {}, {}
    lr = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    for scheme in SCHEMES:
        path = folder / f"{backbone}_{scheme}.onnx"
        facts[scheme] = exported(network_of(backbone, scheme), path)
        for threads in THREADS:
            session: Any = open_session(path, threads)
            runs[f"{scheme}, {threads}"] = lambda s=session: run(s, lr)
    seconds = {key: spent.clock for key, spent in take_turns(runs, repetitions).items()}
    rows = []
    for scheme, (bitops, megabytes, *closeness) in facts.items():
        aim = AIMS.get((backbone, scheme))
        row = [f"{backbone} {scheme}", bitops, megabytes]
        for threads in THREADS:
            spent, full = (seconds[f"{name}, {threads}"] for name in (scheme, "fp32"))
            row += [f"{1000 * spent:.0f}", f"{full / spent:.2f}"]
            row += ["-" if aim is None else f"{aim}"] if threads == 1 else []
        rows.append(row + closeness)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["edsr", "idn"])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--size", type=image_size, default=(180, 320), metavar="HEIGHTxWIDTH", help="LR pixels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row for backbone in args.backbones for row in rows_of(backbone, args.size, args.repetitions, Path(folder))
        ]
    vnni = "with VNNI" if has_vnni() else "without VNNI"
    print(f"{machine()}, {vnni}; onnxruntime, LR {args.size[0]}x{args.size[1]}, {args.repetitions} repetitions\n")
    print(table(HEADS, rows))


if __name__ == "__main__":
    main()
