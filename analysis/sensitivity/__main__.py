"""Measure the sensitivity of each patch and layer to its bits, what predicts it, and what a bit selector gains.

A second run of the same command measures only what is missing. Tables and plots are made from records alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from analysis.records import store as records
from analysis.run import models
from analysis.run.provenance import provenance
from analysis.run.source import PARENT
from analysis.sensitivity.parts import PARTS, Inputs, run_part, source_of
from analysis.sensitivity.patches import add_patch_options
from analysis.sensitivity.plots import write_plots
from analysis.sensitivity.tables import write_tables
from cadyq.commands.cli import (
    MOST_SEED,
    Numbers,
    Parser,
    add_model_option,
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
    parser.add_argument("--backbone", help="backbone of this project with trained FP32 weights")
    add_model_option(parser)
    parser.add_argument("--scale", type=Numbers(2, 4), default=4, help="upscaling factor (default: 4)")
    add_patch_options(parser, None, 24)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument(
        "--bits",
        type=Numbers(MIN_BITS, MAX_BITS),
        nargs="+",
        default=[3, 4, 5, 6],
        help="bit-widths to measure (default: 3 4 5 6)",
    )
    parser.add_argument("--patches", type=Numbers(10), default=200, help="number of patches (default: 200)")
    parser.add_argument(
        "--points",
        choices=("counted", "all"),
        default="counted",
        help="points to measure: those counted in FAB, or all (default: counted)",
    )
    parser.add_argument(
        "--second",
        type=Numbers(0),
        default=16,
        help="patches measured again with all other points at 8 bits (default: 16)",
    )
    parser.add_argument(
        "--additivity-patches", type=Numbers(1), default=16, help="patches for the additivity test (default: 16)"
    )
    parser.add_argument("--selector", help="trained network with a bit selector: zoo:NAME or a .safetensors file")
    parser.add_argument(
        "--controls",
        nargs="+",
        default=["random", "static", "gradient", "oracle"],
        help="control schemes to compare with (default: random static gradient oracle)",
    )
    parser.add_argument(
        "--capture-patches",
        type=Numbers(2),
        default=16,
        help="patches that selectors and controls are compared on (default: 16)",
    )
    parser.add_argument(
        "--capture-side",
        type=Numbers(8),
        default=24,
        help="side of compared and training patches in LR pixels (default: 24)",
    )
    parser.add_argument(
        "--train",
        default="BSDS500/train",
        help="folder of training photographs for thresholds (default: BSDS500/train)",
    )
    parser.add_argument("--train-patches", type=Numbers(8), default=64, help="number of training patches (default: 64)")
    parser.add_argument(
        "--searched", type=Numbers(2), default=16, help="training patches that the oracle searches (default: 16)"
    )
    parser.add_argument(
        "--outer-images",
        type=Numbers(1),
        default=5,
        help="whole images for the measurement of outer layers (default: 5)",
    )
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to measure (default: all)"
    )
    parser.add_argument(
        "--seed", type=Numbers(0, MOST_SEED), default=0, help="seed of patches, subsets and shuffles (default: 0)"
    )
    add_threads_option(parser)
    add_network_options(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises UserError for options that no part could work with."""
    if (args.backbone is None) == (not args.model):
        raise UserError("give either --backbone NAME, or one or more of --model NAME_OR_PATH")
    if args.backbone:
        BACKBONES.get(args.backbone)
    models.sources(args.model, [PARENT], args.scale, args.calibration)
    for model in args.model:
        source_of(model, args.scale, args.calibration)
    args.bits = sorted(set(args.bits))
    args.second = min(args.second, args.patches)
    args.searched = min(args.searched, args.train_patches)
    parents = {SCHEMES.get(name).parent for name in args.controls}
    if len(parents) > 1:
        raise UserError(
            f"--controls {' '.join(args.controls)}: need parents {sorted(parents)}; give controls of one parent"
        )
    check_writable(args.out)


def manifest(inputs: Inputs, parts: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """What is needed to repeat the run. Of paths only the last part is kept."""
    # a set of photographs such as BSDS500/train is no path
    shown = [Path(word).name if word.startswith("/") or ":/" in word else word for word in argv]
    kept = {k: str(v.name if isinstance(v, Path) else v) for k, v in vars(inputs.options).items() if k != "plugin"}
    kept["model"] = models.label(inputs.options.model) if inputs.options.model else ""
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
    """Measure what is missing, write tables and plots; return the run's folder.

    With --model it holds a folder for each network, under the stem of its file.
    """
    open_networks(args)
    check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    for one in each(args):
        with alone_in(one.out):
            measure_and_show(one, argv)
        print(f"tables and plots: {one.out}")
    out: Path = args.out
    return out


def each(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each network: the backbone's as they are, a model's with a folder of its own below --out."""
    if args.backbone:
        return [argparse.Namespace(**vars(args) | {"model": ""})]
    return [argparse.Namespace(**vars(args) | {"model": m, "out": args.out / models.label(m)}) for m in args.model]


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
