"""Measure how much content-dependent bits can gain on one network, and how much the network's own choice gains.

Photographs are cut into tiles side by side. Every tile is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from analysis.commands.options import add_patch_options
from analysis.content.potential import measure, own_choices, table
from analysis.content.tiles import Spread, cut_tiles
from analysis.run.provenance import provenance, without_folders
from analysis.sensitivity.patches import open_dataset
from analysis.sensitivity.points import candidate_quantizers
from cadyq.checkpoints.io import load_model, resolve
from cadyq.checkpoints.tensors import network_sha256
from cadyq.commands.cli import (
    Numbers,
    Parser,
    add_network_options,
    add_threads_option,
    check_writable,
    exit_status,
    nothing,
    open_networks,
    program,
)
from cadyq.quantizers.base import MAX_BITS, MIN_BITS
from cadyq.utils.errors import UserError
from cadyq.utils.files import write_text

MEAN_BITS = (4.0, 5.0, 6.0)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=program("analysis.content"), description=__doc__)
    parser.add_argument("--model", required=True, help="network with candidate bits: zoo:NAME or a .safetensors file")
    add_patch_options(parser, "BSDS500/test", 40)
    parser.add_argument(
        "--photographs", type=Numbers(2), default=12, help="number of photographs, evenly spread (default: 12)"
    )
    parser.add_argument(
        "--mean-bits",
        type=Numbers(MIN_BITS, MAX_BITS, whole=False),
        nargs="+",
        action="extend",
        help="mean activation bits to compare at, besides those of the network (default: 4 5 6)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for potential.csv and manifest.json")
    add_threads_option(parser)
    add_network_options(parser)
    return parser


def run(args: argparse.Namespace, words: Sequence[str]) -> Path:
    """Measure one network; write the table and the manifest; return the path of the table.

    Raises:
        UserError: the network has no candidate bits, or the network, the dataset or a photograph is unusable.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    open_networks(args)
    check_writable(args.out)
    network = load_model(args.model).eval()
    if not candidate_quantizers(network):
        raise UserError(f"--model {args.model}: has no candidate bits; make such a network with cadyq.derive")
    photographs = Spread(open_dataset(args.dataset, network.scale, args.data_root), args.photographs)
    patches = cut_tiles(photographs, args.side)
    started = time.perf_counter()
    errors, own = measure(network, patches), own_choices(network, patches)
    measured = time.perf_counter()
    found = table(errors, own, args.mean_bits or list(MEAN_BITS), patches.table["image"].to_numpy())
    seconds = {"forwards": round(measured - started, 1), "searches": round(time.perf_counter() - measured, 1)}
    path = resolve(args.model)
    facts = provenance("analysis.content", without_folders(words), torch.device("cpu")) | {
        "model": {"name": path.stem, "sha256": network_sha256(path)},
        "patches": {"count": len(patches.lr), "side_px": args.side, "photographs": len(photographs)},
        "seconds": seconds,
    }
    csv = write_text(args.out / "potential.csv", found.to_csv(index=False, lineterminator="\n", float_format="%.5f"))
    write_text(args.out / "manifest.json", json.dumps(facts, indent=1, sort_keys=True) + "\n")
    print(found.to_string(index=False, float_format="{:.3f}".format))
    return csv


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    return exit_status(lambda: print(run(args, words)), args.debug, kept=nothing)


if __name__ == "__main__":
    sys.exit(main())
