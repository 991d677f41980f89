"""What bits are worth on this CPU today: BitOPs beside megabytes of the file and milliseconds.

`python benchmarks/deploy.py [--backbones edsr ...] [--size HEIGHTxWIDTH] [--runtimes onnxruntime openvino]`: networks
of the zoo, and with CADYQ_PUBLISHED those of other authors, exported and run on a whole image, by default of 1280x720
pixels of output, on one thread and on two. `outer_bits=8` quantizes head, upsampler and tail too. BitOPs count 4-bit
work as half of 8-bit work; no CPU kernel does, and INT8 pays only where the CPU has instructions for it (VNNI).

All networks and runtimes of a backbone take turns. A file is opened for its turn and closed after it, so that one
network at a time lies in memory. The first forward of each turn is not counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timing import Seconds, machine, medians, seconds_of, table
from torch import Tensor

import cadyq
from analysis.run import networks
from analysis.run.source import Source
from cadyq.commands.export import image_size
from cadyq.data.datasets import photographs
from cadyq.deploy.frozen import freeze, is_dynamic
from cadyq.deploy.onnx_export import onnx_graph
from cadyq.deploy.runtime import RUNTIMES, agreement, has_vnni, run
from cadyq.metrics.measure import HD_PIXELS
from cadyq.models.network import SRNetwork

SCALE = 4
SIDE = 96  # LR pixels of the patch that BitOPs and agreement are of
# of schemes joined by "|" the first that a backbone has weights for: PAMS is not trained on IMDN and RLFN
SCHEMES = ("fp32", "pams:w8a8|minmax:w8a8", "pams:w8a8,outer_bits=8|minmax:w8a8,outer_bits=8")
SCHEMES += ("pams:w8a5", "pams:w4a4", "cadyq")
REFERENCE = "fp32"
AIMS = {("edsr", "pams:w8a8"): 1.6, ("edsr", "pams:w8a8,outer_bits=8"): 3.0}  # onnxruntime on one thread, against FP32
THREADS = (1, 2)
HEADS = ["network", "BitOPs (G, 720p)", "runtime", "MB of the file", "ms, 1 thread", "speed / FP32, clock"]
HEADS += ["speed / FP32, processor", "aim", "ms, 2 threads", "speed / FP32, clock", "within one grey level"]
HEADS += ["PSNR against simulation, dB"]


@dataclass(frozen=True)
class File:
    """A network as written for a runtime.

    Attributes:
        bitops: G, for 1280x720 pixels of output.
        within_one, psnr_db: see `cadyq.deploy.runtime.Agreement`.
    """

    scheme: str
    runtime: str
    path: Path
    bitops: float
    within_one: float
    psnr_db: float

    def seconds(self, lr: Tensor, threads: int) -> Seconds:
        """Of one forward, after one that is not counted."""
        session = RUNTIMES[self.runtime](self.path, threads)
        run(session, lr)
        return seconds_of(lambda: run(session, lr))


def say(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


def sources_of(backbone: str, schemes: Iterable[str]) -> Iterator[Source]:
    """One a scheme; with its `reason` where it has no weights."""
    for names in schemes:
        found = [networks.find(backbone, name, SCALE) for name in names.split("|")]
        yield next((source for source in found if not source.reason), found[0])


@torch.no_grad()
def files_of(source: Source, runtimes: Sequence[str], folder: Path) -> Iterator[File]:
    """The network of a source written for each runtime, and how close it is to the simulation on a patch."""
    network, pair = networks.load(source), photographs(SCALE)[0]
    if is_dynamic(network):
        network = freeze(network, [one.lr for one in photographs(SCALE)])
    patch, hr = pair.lr[:, :SIDE, :SIDE], pair.hr[:, : SIDE * SCALE, : SIDE * SCALE]
    bitops, graph = bitops_of(network, patch), onnx_graph(network)
    for runtime in runtimes:
        path = folder / f"{source.backbone}_{source.scheme}_{runtime}.onnx"
        graph.write(path, runtime)
        close = agreement(RUNTIMES[runtime](path, 1), network, patch, hr)
        say(f"exported {source.backbone} {source.scheme} for {runtime}")
        yield File(source.scheme, runtime, path, bitops, close.within_one, close.psnr_db)


def bitops_of(network: SRNetwork, patch: Tensor) -> float:
    """G, for 1280x720 pixels of output."""
    bitops = float(cadyq.trace(network, patch[None].float())[1].bitops()) / 1e9
    return bitops * HD_PIXELS / (patch.shape[-1] * patch.shape[-2] * network.scale**2)


def time_files(files: Sequence[File], lr: Tensor, repetitions: int) -> dict[tuple[File, int], Seconds]:
    """Medians over the repetitions, of each file and number of threads."""
    found: dict[tuple[File, int], list[Seconds]] = {(file, threads): [] for file in files for threads in THREADS}
    for turn in range(1, repetitions + 1):
        for (file, threads), spent in found.items():
            spent.append(file.seconds(lr, threads))
        say(f"timed {turn} of {repetitions}")
    return {key: medians(spent) for key, spent in found.items()}


def rows_of(backbone: str, files: Sequence[File], spent: Mapping[tuple[File, int], Seconds]) -> list[list[str]]:
    """One row per file. Speed is against the FP32 file of the first runtime."""
    full = next((file for file in files if file.scheme == REFERENCE), None)

    def speed(file: File, threads: int, column: str) -> str:
        ours = getattr(spent[file, threads], column)
        return "-" if full is None else f"{getattr(spent[full, threads], column) / ours:.2f}"

    rows = []
    for file in files:
        aim = AIMS.get((backbone, file.scheme), "-") if file.runtime == "onnxruntime" else "-"
        megabytes = file.path.stat().st_size / 1e6
        row = [f"{backbone} {file.scheme}", f"{file.bitops:,.0f}", file.runtime, f"{megabytes:.2f}"]
        row += [f"{1000 * spent[file, 1].clock:.0f}", speed(file, 1, "clock"), speed(file, 1, "processor"), f"{aim}"]
        row += [f"{1000 * spent[file, 2].clock:.0f}", speed(file, 2, "clock")]
        rows.append([*row, f"{file.within_one:.2%}", f"{file.psnr_db:+.3f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["edsr", "idn", "carn", "imdn", "rlfn"])
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=["onnxruntime"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--size", type=image_size, default=(180, 320), metavar="HEIGHTxWIDTH", help="LR pixels")
    args = parser.parse_args()
    lr = torch.rand(1, 3, *args.size, generator=torch.Generator().manual_seed(0)) * 255
    vnni = "with VNNI" if has_vnni() else "without VNNI"
    print(f"{machine()}, {vnni}; LR {args.size[0]}x{args.size[1]}, {args.repetitions} repetitions\n")
    missing = []
    for number, backbone in enumerate(args.backbones):
        with tempfile.TemporaryDirectory() as folder:
            sources = list(sources_of(backbone, args.schemes))
            there = [source for source in sources if not source.reason]
            missing += [f"{backbone} {source.scheme}: {source.reason}" for source in sources if source.reason]
            files = [file for source in there for file in files_of(source, args.runtimes, Path(folder))]
            lines = table(HEADS, rows_of(backbone, files, time_files(files, lr, args.repetitions))).splitlines()
        print("\n".join(lines[2:] if number else lines), flush=True)  # what is measured stays if the rest is stopped
    print("\n" + "\n".join(f"Not here: {line}" for line in missing) if missing else "")


if __name__ == "__main__":
    main()
