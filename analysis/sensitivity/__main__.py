"""`python -m analysis.sensitivity`: true sensitivity of (patch, layer, bits), what predicts it, what a selector gains.

A second run of the same command measures only what is missing; tables and plots are made from records alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from analysis.records import store as records
from analysis.run.provenance import provenance
from analysis.sensitivity.parts import PARTS, Inputs, run_part
from analysis.sensitivity.plots import write_plots
from analysis.sensitivity.tables import write_tables
from cadyq.commands.cli import (
    MOST_SEED,
    Numbers,
    Parser,
    add_network_options,
    add_threads_option,
    check_writable,
    exit_status,
    open_networks,
    program,
)
from cadyq.models.network import BACKBONES
from cadyq.quantizers.base import MAX_BITS, MIN_BITS
from cadyq.schemes.base import SCHEMES
from cadyq.utils.errors import UserError
from cadyq.utils.locks import alone_in


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=program("analysis.sensitivity"), description=__doc__)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--scale", type=Numbers(2, 4), default=4)
    parser.add_argument("--data-root", type=Path, help="folder that holds benchmark/ and training photographs")
    parser.add_argument("--dataset", required=True, help="benchmark set, skimage, or a folder (below --data-root)")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--bits", type=Numbers(MIN_BITS, MAX_BITS), nargs="+", default=[3, 4, 5, 6])
    parser.add_argument("--patches", type=Numbers(10), default=200)
    parser.add_argument("--side", type=Numbers(8), default=24, help="of a patch, LR pixels")
    parser.add_argument("--points", choices=("counted", "all"), default="counted", help="which points are quantized")
    parser.add_argument(
        "--second", type=Numbers(0), default=16, help="patches measured with all other points at 8 bits too"
    )
    parser.add_argument("--additivity-patches", type=Numbers(1), default=16)
    parser.add_argument("--selector", help="trained network with a selector: zoo:NAME or a .safetensors file")
    parser.add_argument("--controls", nargs="+", default=["random", "static", "gradient", "oracle"])
    parser.add_argument(
        "--capture-patches", type=Numbers(2), default=16, help="patches that choices of bits compete on"
    )
    parser.add_argument(
        "--capture-side", type=Numbers(8), default=24, help="of those and of training patches, LR pixels"
    )
    parser.add_argument("--train", default="BSDS500/train", help="photographs that thresholds are set on")
    parser.add_argument("--train-patches", type=Numbers(8), default=64)
    parser.add_argument("--searched", type=Numbers(2), default=16, help="training patches that the oracle searches")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument(
        "--seed", type=Numbers(0, MOST_SEED), default=0, help="of the choice of patches, subsets and shuffles"
    )
    add_threads_option(parser)
    add_network_options(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises UserError for options that no part could work with."""
    BACKBONES.get(args.backbone)
    args.bits = sorted(set(args.bits))
    args.second = min(args.second, args.patches)
    args.searched = min(args.searched, args.train_patches)
    parents = {SCHEMES.get(name).parent for name in args.controls}
    if len(parents) > 1:
        raise UserError(f"--controls {' '.join(args.controls)}: are derived from different schemes, {sorted(parents)}")
    check_writable(args.out)


def manifest(inputs: Inputs, parts: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """What is needed to repeat the run. Of paths only the last part is kept."""
    # a set of photographs such as BSDS500/train is no path
    shown = [Path(word).name if word.startswith("/") else word for word in argv]
    kept = {k: str(v.name if isinstance(v, Path) else v) for k, v in vars(inputs.options).items() if k != "plugin"}
    return provenance("analysis.sensitivity", shown, torch.device("cpu")) | {
        "options": kept,
        "parts": parts,
        "seed": inputs.options.seed,
        "tensors_sha256": inputs.hashes(),
    }


def merge(out: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Seconds of what was measured earlier into the same folder stay known."""
    before: dict[str, Any] = records.read_manifest(out).get("parts", {})
    for name, status in parts.items():
        if status["status"] == "cached" and name in before:
            status["seconds"] = before[name]["seconds"]
    return before | parts


def run(args: argparse.Namespace, argv: Sequence[str]) -> Path:
    """Measure what is missing, write tables and plots; return the run's folder."""
    open_networks(args)
    check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    with alone_in(args.out):
        measure_and_show(args, argv)
    print(f"tables and plots: {args.out}")
    out: Path = args.out
    return out


def measure_and_show(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure each part that is missing into the run's folder, then make its tables and plots."""
    inputs, done = Inputs(args), dict[str, Any]()
    for name in args.parts:
        done[name] = run_part(name, inputs, args.out)
        note = done[name]["reason"] or f"{done[name]['seconds']:.0f} s"
        print(f"{name}: {done[name]['status']} ({note})", flush=True)
        records.write_manifest(args.out, manifest(inputs, merge(args.out, dict(done)), argv))
    write_plots(args.out, write_tables(args.out))


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    return exit_status(lambda: run(args, words), args.debug)


if __name__ == "__main__":
    sys.exit(main())
