"""How time and memory grow with the image: `python benchmarks/scale.py [--largest 7680]`.

CADyQ on CARN-M, tile by tile as `cadyq.upscale` runs it, for outputs of 256 to 7680 pixels wide (16:9), each in a
process of its own, so that its peak memory is its own. Linear growth: the same seconds per megapixel, memory that grows
by the image itself only.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from skimage import data
from timing import machine, table

WIDTHS = (256, 640, 1280, 1920, 3840, 7680)
SCALE = 4
MODEL = "zoo:carn_m_x4_cadyq"
MEMORY_AIM = 2.5  # GB for the largest


def photograph(height: int, width: int) -> torch.Tensor:
    """LR of that size, uint8 (3, height, width): a photograph, repeated by mirroring."""
    crop = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)
    mirrored = torch.cat([crop, crop.flip(2)], 2)
    mirrored = torch.cat([mirrored, mirrored.flip(1)], 1)
    down, across = -(-height // mirrored.shape[1]), -(-width // mirrored.shape[2])
    return mirrored.repeat(1, down, across)[:, :height, :width].contiguous()


def measure(width: int) -> None:
    """In the child: one image, printed as JSON."""
    import cadyq
    from cadyq.inference.tiled import run_tiles
    from cadyq.inference.tiles import tile_grid

    network = cadyq.load_model(MODEL).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lr = photograph(width * 9 // 16 // SCALE, width // SCALE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ran = run_tiles(network, lr, tile_grid(*lr.shape[-2:]), torch.device("cpu"))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = ran.sr.shape[-1] * ran.sr.shape[-2] * (1 + ran.overlap)
    print(
        json.dumps({"seconds": seconds, "peak_gb": peak / 1e6, "before_gb": before / 1e6, "megapixels": pixels / 1e6})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=WIDTHS[-1], help="width in pixels")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args.child)
        return
    rows = []
    for width in (w for w in WIDTHS if w <= args.largest):
        command = [sys.executable, __file__, "--child", str(width)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rate = found["seconds"] / found["megapixels"]
        cells = [f"{found['seconds']:.1f}", f"{rate:.2f}", f"{found['peak_gb']:.2f}", f"{found['before_gb']:.2f}"]
        rows.append([f"{width}x{width * 9 // 16}", *cells])
    print(f"{machine()}; {MODEL}; aim: below {MEMORY_AIM} GB for 7680x4320\n")
    heads = ["output", "s", "s a megapixel (overlap counted)", "peak memory, GB", "before the image, GB"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
