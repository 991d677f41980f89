"""What the harness adds to the forwards it measures: `python benchmarks/harness.py`.

The photographs inside scikit-image, CARN-M under FP32 and CADyQ, patch-wise: the share of PSNR and SSIM in the whole
command, the whole command (from reading images to the report) against bare forwards of the same tiles, and two
processes against one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from timing import machine, table

from analysis import jobs, measure, networks, run_all
from analysis.jobs import one_thread
from cadyq.data.datasets import photographs
from cadyq.data.tiles import split, tile_grid
from cadyq.tiled import batches

SCHEMES = ("fp32", "cadyq")


def command(schemes: tuple[str, ...], processes: int) -> float:
    """Seconds of a run into an empty folder."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        words = ["--backbones", "carn_m", "--schemes", *schemes, "--datasets", "skimage", "--modes", "patch"]
        started = time.perf_counter()
        if run_all.main([*words, "--device", "cpu", "--jobs", str(processes), "--out", out]) != 0:
            raise SystemExit("run_all failed")
        return time.perf_counter() - started


class Timed:
    """A function, and the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*args)
        finally:
            self.seconds += time.perf_counter() - started


@torch.no_grad()
def bare_forwards() -> float:
    """Seconds of the forwards alone, in the batches of the harness."""
    seconds = 0.0
    with one_thread():
        for scheme in SCHEMES:
            network = networks.load(networks.find("carn_m", scheme, 4)).to(memory_format=torch.channels_last)
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
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    measure.psnr, measure.ssim = metrics = Timed(measure.psnr), Timed(measure.ssim)
    run_all.measure, jobs.write_view = measuring, pictures = Timed(run_all.measure), Timed(jobs.write_view)
    bare = bare_forwards()
    whole = command(SCHEMES, 1)
    quality = sum(function.seconds for function in metrics)
    images = measuring.seconds - pictures.seconds
    several = ("fp32", "cadyq", "pams:w8a8", "pams:w8a5", "minmax:w8a8", "dorefa:w4a4")
    one, two = command(several, 1), command(several, 2)
    print(f"{machine()}; a network on one thread\n")
    rows = [
        ["PSNR and SSIM, share of run_all", f"{quality / whole:.1%}", "5 %"],
        ["measuring images / bare forwards of the same tiles", f"{images / bare:.2f}", "1.2"],
        [
            "whole command / bare forwards (6 photographs, so pictures and report weigh much)",
            f"{whole / bare:.2f}",
            "-",
        ],
        ["seconds for pictures, plots, tables and report", f"{whole - images:.1f}", "-"],
        ["two processes: speed against twice one", f"{one / (2 * two):.2f}", "0.9"],
    ]
    print(table(["harness", "measured", "aim"], rows))


if __name__ == "__main__":
    main()
