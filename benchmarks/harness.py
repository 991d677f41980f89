"""What the harness adds to the forwards it measures: `python benchmarks/harness.py [--backbone carn_m]`.

The photographs inside scikit-image, a network under FP32 and CADyQ, patch-wise: the share of PSNR and SSIM in the whole
command, the whole command (from reading images to the report) against bare forwards of the same tiles, and two
processes against one on several schemes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from timing import machine, table

from analysis.run import command as run_all
from analysis.run import jobs, networks
from analysis.run.jobs import one_thread
from cadyq.data.datasets import photographs
from cadyq.inference.tiled import batches
from cadyq.inference.tiles import split, tile_grid
from cadyq.metrics.registry import Metric

SCHEMES = ("fp32", "cadyq")
SEVERAL = ("fp32", "cadyq", "pams:w8a8", "pams:w8a5", "minmax:w8a8", "dorefa:w4a4")  # for the processes


class Timed:
    """A function, and the seconds spent in it: in all calls, and in the last."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds, self.last = function, 0.0, 0.0

    def __call__(self, *args: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*args)
        finally:
            self.last = time.perf_counter() - started
            self.seconds += self.last


MEASURING = Timed(run_all.measure)


class RunSeconds(NamedTuple):
    """Seconds of a run into an empty folder: the whole command, and its part that measures cells."""

    whole: float
    measuring: float


def command(backbone: str, schemes: Sequence[str], processes: int) -> RunSeconds:
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        words = ["--backbones", backbone, "--schemes", *schemes, "--datasets", "skimage", "--modes", "patch"]
        started = time.perf_counter()
        if run_all.main([*words, "--device", "cpu", "--jobs", str(processes), "--out", out]) != 0:
            raise SystemExit("run_all failed")
        return RunSeconds(time.perf_counter() - started, MEASURING.last)


@torch.no_grad()
def bare_forwards(backbone: str) -> float:
    """Seconds of the forwards alone, in the batches of the harness."""
    seconds = 0.0
    with one_thread():
        for scheme in SCHEMES:
            network = networks.load(networks.find(backbone, scheme, 4)).to(memory_format=torch.channels_last)
            for pair in photographs(4):
                tiles = tile_grid(*pair.lr.shape[-2:])
                parts = split(pair.lr, tiles)
                for indices in batches(tiles):
                    batch = (
                        torch.stack([parts[i] for i in indices]).float().contiguous(memory_format=torch.channels_last)
                    )
                    started = time.perf_counter()
                    network(batch)
                    seconds += time.perf_counter() - started
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="carn_m")
    parser.add_argument("--schemes", nargs="+", default=SEVERAL, help="that one and two processes measure")
    args = parser.parse_args()
    metrics = Timed(Metric.__call__)
    Metric.__call__ = lambda *args: metrics(*args)  # a method, which an object of `Timed` is not
    run_all.measure = MEASURING
    jobs.write_crop, jobs.show_bits = pictures = Timed(jobs.write_crop), Timed(jobs.show_bits)
    bare = bare_forwards(args.backbone)
    whole, measuring = command(args.backbone, SCHEMES, 1)
    quality = metrics.seconds
    images = measuring - sum(function.seconds for function in pictures)
    one, two = (command(args.backbone, args.schemes, processes) for processes in (1, 2))
    print(f"{machine()}; {args.backbone}, a network on one thread\n")
    rows = [
        ["PSNR and SSIM, share of run_all", f"{quality / whole:.1%}", "5 %"],
        ["measuring images / bare forwards of the same tiles", f"{images / bare:.2f}", "1.2"],
        [
            "whole command / bare forwards (6 photographs, so pictures and report weigh much)",
            f"{whole / bare:.2f}",
            "-",
        ],
        ["seconds for pictures, plots, tables and report", f"{whole - images:.1f}", "-"],
        ["two processes: speed of measuring against twice one", f"{one.measuring / (2 * two.measuring):.2f}", "0.9"],
        ["two processes: speed of the whole command against twice one", f"{one.whole / (2 * two.whole):.2f}", "-"],
    ]
    print(table(["harness", "measured", "aim"], rows))


if __name__ == "__main__":
    main()
