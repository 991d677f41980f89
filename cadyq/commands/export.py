"""Export a quantized network to ONNX for INT8 inference.

A dynamic scheme (CADyQ) is exported with the bits that it chooses most often on a set of photographs.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cadyq.checkpoints.io import load_model
from cadyq.commands.cli import Parser, add_network_options, exit_status, nothing, open_networks, program
from cadyq.data import datasets
from cadyq.deploy.frozen import freeze, is_dynamic
from cadyq.deploy.onnx_export import export_onnx
from cadyq.deploy.runtime import RUNTIMES, agreement
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs


def build_parser() -> argparse.ArgumentParser:
    """The command line of `cadyq.export`."""
    parser = Parser(prog=program("cadyq.export"), description=__doc__)
    parser.add_argument("--model", required=True, help="quantized network: zoo:NAME or a .safetensors file")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write; its name ends in .onnx")
    parser.add_argument(
        "--photographs",
        type=Path,
        help="folder of photographs that fix the bits of a dynamic scheme (default: scikit-image)",
    )
    parser.add_argument(
        "--size",
        type=image_size,
        metavar="HEIGHTxWIDTH",
        help="fixed LR size of the graph in pixels (default: any size)",
    )
    parser.add_argument(
        "--runtime",
        choices=tuple(RUNTIMES),
        default="onnxruntime",
        help="runtime whose fast kernels the graph is written for (default: onnxruntime)",
    )
    add_network_options(parser)
    return parser


def image_size(text: str) -> tuple[int, int]:
    """Height and width of "180x320"."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is not a size: write HEIGHTxWIDTH in LR pixels, such as 180x320")
    return int(found[1]), int(found[2])


def run(args: argparse.Namespace) -> None:
    """Export the network, compare it with the simulation and print the result."""
    open_networks(args)
    if args.out.suffix != ".onnx":
        raise UserError(f"--out {args.out}: does not end in .onnx; give the name of an ONNX file")
    if args.runtime == "openvino":
        with needs("openvino", "--runtime openvino"):
            import openvino  # noqa: F401
    network = load_model(args.model)
    if network.scheme_label == "fp32":
        print(f"warning: {args.model} is FP32, so its file has no integers; give a quantized network", file=sys.stderr)
    photographs = datasets.photographs(network.scale)
    if is_dynamic(network):
        shown = photographs if args.photographs is None else datasets.folder(args.photographs, network.scale)
        network = freeze(network, (pair.lr for pair in shown))
        bits = [int(point.quantizer.bits) for point in network.points.values() if point.counts_for_fab]  # type: ignore
        print(f"bits frozen by {len(shown)} photographs of {shown.name}: {sum(bits) / len(bits):.2f} in the mean")
    elif args.photographs is not None:
        raise UserError(f"--photographs {args.photographs}: {args.model} has fixed bits; leave the option out")
    made = export_onnx(network, args.out, args.size, args.runtime)
    integers = f"{made.layers} layers with integer weights, {made.points} quantized feature maps"
    print(f"{made.path}: {integers}, {made.bytes / 1e6:.2f} MB")
    pair = photographs[0]
    height, width = args.size or pair.lr.shape[-2:]
    lr, hr = filling(pair.lr, height, width), filling(pair.hr, height * network.scale, width * network.scale)
    found = agreement(RUNTIMES[args.runtime](args.out, 0), network, lr, hr)
    close = f"{found.within_one:.2%} of values within one grey level, PSNR {found.psnr_db:+.4f} dB"
    print(f"{args.runtime} against the simulation, {pair.name}: {close}")


def filling(image: Tensor, height: int, width: int) -> Tensor:
    """An image (3, H, W) repeated or cropped to (3, `height`, `width`)."""
    repeats = (1, math.ceil(height / image.shape[1]), math.ceil(width / image.shape[2]))
    return image.repeat(repeats)[:, :height, :width]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: run(args), args.debug, kept=nothing)


if __name__ == "__main__":
    sys.exit(main())
