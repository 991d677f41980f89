"""Measure the sensitivity of each patch and layer to its bits, the features that predict it, and a bit selector's gain.

A second run of the same command measures only the missing parts. Tables and plots are made from records alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from analysis.commands.options import add_patch_options
from analysis.records import store as records
from analysis.run import models
from analysis.run.provenance import provenance, without_folders
from analysis.run.source import PARENT
from analysis.sensitivity.parts import PARTS, Inputs, Options, check_patches, run_part, source_of
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
    holds,
    open_networks,
    program,
)
from cadyq.models.network import BACKBONES
from cadyq.quantizers.base import MAX_BITS, MIN_BITS
from cadyq.schemes.base import SCHEMES
from cadyq.utils.errors import UserError
from cadyq.utils.locks import alone_in

BITS = (3, 4, 5, 6)
CONTROLS = ("random", "static", "gradient", "oracle")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `analysis.sensitivity`."""
    parser = Parser(prog=program("analysis.sensitivity"), description=__doc__)
    _add_network_and_data(parser)
    _add_sensitivity(parser)
    _add_selector_and_controls(parser)
    _add_parts(parser)
    add_threads_option(parser)
    add_network_options(parser)
    return parser


def _add_network_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", help="backbone of this project with trained FP32 weights")
    add_model_option(parser)
    parser.add_argument("--scale", type=Numbers(2, 4), default=4, help="upscaling factor (default: 4)")
    add_patch_options(parser, None, 24)
    parser.add_argument("--out", type=Path, required=True, help="run folder")


def _add_sensitivity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bits",
        type=Numbers(MIN_BITS, MAX_BITS),
        nargs="+",
        action="extend",
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
        help="number of patches to measure again with all other points at 8 bits (default: 16)",
    )
    parser.add_argument(
        "--additivity-patches",
        type=Numbers(1),
        default=16,
        help="number of patches for the additivity test (default: 16)",
    )


def _add_selector_and_controls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--selector", help="trained network with a bit selector: zoo:NAME or a .safetensors file")
    parser.add_argument(
        "--controls",
        nargs="+",
        action="extend",
        help="control schemes to compare with (default: random static gradient oracle)",
    )
    parser.add_argument(
        "--capture-patches",
        type=Numbers(2),
        default=16,
        help="number of patches to compare selector, controls and features on (default: 16)",
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
        "--searched", type=Numbers(2), default=16, help="number of training patches for the oracle (default: 16)"
    )


def _add_parts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--outer-images",
        type=Numbers(1),
        default=5,
        help="number of whole images to measure outer layers on (default: 5)",
    )
    parser.add_argument(
        "--parts", nargs="+", action="extend", choices=list(PARTS), help="parts to measure (default: all)"
    )
    parser.add_argument(
        "--seed", type=Numbers(0, MOST_SEED), default=0, help="seed of patches, subsets and shuffles (default: 0)"
    )


def check(args: argparse.Namespace) -> None:
    """Fill in defaults and bring options into their ranges. Raises UserError for options that no part can work with."""
    if (args.backbone is None) == (not args.model):
        raise UserError("give either --backbone NAME, or one or more of --model NAME_OR_PATH")
    if args.backbone:
        BACKBONES.get(args.backbone)
    models.sources(args.model, [PARENT], args.scale, args.calibration)
    for model in args.model:
        source_of(model, args.scale, args.calibration)
    args.bits = sorted(set(args.bits or BITS))
    args.controls = list(dict.fromkeys(args.controls or CONTROLS))
    args.parts = list(dict.fromkeys(args.parts or PARTS))
    args.second = min(args.second, args.patches)
    args.searched = min(args.searched, args.train_patches)
    parents = {SCHEMES.get(name).parent for name in args.controls}
    if len(parents) > 1:
        raise UserError(
            f"--controls {' '.join(args.controls)}: derived from {' and '.join(sorted(parents))}; give controls of one"
        )
    check_writable(args.out)


def manifest(args: argparse.Namespace, inputs: Inputs, parts: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """The manifest of a run: all that is needed to repeat it. Only the last part of each path is kept."""
    kept = {k: str(v.name if isinstance(v, Path) else v) for k, v in vars(args).items() if k != "plugin"}
    kept["model"] = models.label(args.model) if args.model else ""
    return provenance("analysis.sensitivity", without_folders(argv), torch.device("cpu")) | {
        "options": kept,
        "parts": parts,
        "seed": args.seed,
        "tensors_sha256": inputs.hashes(),
    }


def merge(out: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """The parts of an earlier manifest and of this command; a cached part keeps its seconds."""
    before: dict[str, Any] = records.read_manifest(out).get("parts", {})
    for name, status in parts.items():
        if status["status"] == "cached" and name in before:
            status["seconds"] = before[name]["seconds"]
    return before | parts


def run(args: argparse.Namespace, argv: Sequence[str]) -> Path:
    """Measure the missing parts, write tables and plots; return the run folder.

    With --model the run folder holds a folder for each network, named by the stem of its file.

    Raises:
        UserError: bad options, missing data or networks.
    """
    open_networks(args)
    check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    for one in by_network(args):
        with alone_in(one.out):
            measure_and_show(one, argv)
        print(f"tables and plots: {one.out}")
    out: Path = args.out
    return out


def by_network(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options for each network. A model gets a folder of its own in --out."""
    if args.backbone:
        return [argparse.Namespace(**vars(args) | {"model": ""})]
    return [argparse.Namespace(**vars(args) | {"model": m, "out": args.out / models.label(m)}) for m in args.model]


def options_of(args: argparse.Namespace) -> Options:
    """The options of the library, from the command line for one network."""
    given = {field.name: getattr(args, field.name) for field in fields(Options)}
    return Options(**given | {"backbone": args.backbone or "", "model": args.model or ""})


def measure_and_show(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure the missing parts of one network, then write its tables and plots."""
    inputs, done = Inputs(options_of(args)), dict[str, Any]()
    check_patches(args.parts, inputs, args.out)
    for name in args.parts:
        done[name] = run_part(name, inputs, args.out)
        note = done[name]["reason"] or f"{done[name]['seconds']:.0f} s"
        print(f"{name}: {done[name]['status']} ({note})", flush=True)
        records.write_manifest(args.out, manifest(args, inputs, merge(args.out, dict(done)), argv))
    write_plots(args.out, write_tables(args.out))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    return exit_status(lambda: run(args, words), args.debug, kept=holds(args.out, "**/*.parquet"))


if __name__ == "__main__":
    sys.exit(main())
