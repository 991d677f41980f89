"""What bits are worth on this CPU today: BitOPs beside megabytes on disk and milliseconds.

`python benchmarks/deploy.py [--threads N]`: networks of the zoo, exported and run by onnxruntime on one 96x96 LR patch.
BitOPs count 4-bit work as half of 8-bit work; no CPU kernel does, and INT8 pays only where the CPU has instructions for
it (VNNI).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from timing import machine, table, take_turns

import cadyq
from cadyq.data.datasets import photographs
from cadyq.deploy.frozen import freeze, is_dynamic
from cadyq.deploy.onnx_export import export_onnx
from cadyq.deploy.runtime import agreement, open_session, run
from cadyq.metrics.measure import HD_PIXELS

SCHEMES = ("fp32", "pams_w8a8", "pams_w8a5", "pams_w4a4", "cadyq")
SIDE = 96
AIM = 1.7  # FP32 / INT8, in time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="edsr")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pair = photographs(4)[0]
    patch = pair.lr[:, :SIDE, :SIDE][None].float()
    sessions, facts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for scheme in SCHEMES:
            network = cadyq.load_model(f"zoo:{args.backbone}_x4_{scheme}")
            with torch.no_grad():
                bitops = float(cadyq.trace(network, patch)[1].bitops()) / 1e9 * HD_PIXELS / (SIDE * 4) ** 2
            fixed = freeze(network, [p.lr for p in photographs(4)]) if is_dynamic(network) else network
            made = export_onnx(fixed, Path(folder) / f"{scheme}.onnx")
            sessions[scheme] = open_session(made.path, args.threads)
            close = agreement(sessions[scheme], fixed, pair.lr, pair.hr)
            cost = [f"{bitops:,.0f}", f"{made.bytes / 1e6:.2f}"]
            facts[scheme] = (cost, [f"{close.within_one:.2%}", f"{close.psnr_db:+.3f}"])
        runs = {scheme: lambda s=session: run(s, patch) for scheme, session in sessions.items()}
        seconds = take_turns(runs, args.repetitions)
    rows = []
    for scheme, spent in seconds.items():
        cost, closeness = facts[scheme]
        speed = seconds["fp32"].clock / spent.clock
        rows.append([scheme, *cost, f"{1000 * spent.clock:.0f}", f"{speed:.2f}", *closeness])
    print(f"{machine()}; {args.backbone}, onnxruntime, LR {SIDE}x{SIDE}; aim for w8a8: {AIM} times FP32's speed\n")
    heads = [
        "scheme",
        "BitOPs (G, 720p)",
        "MB on disk",
        "ms",
        "speed / FP32",
        "within one grey level",
        "PSNR against simulation, dB",
    ]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
