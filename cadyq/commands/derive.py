"""Make a new network from a trained one: keep its weights and ranges, and choose its bits by another scheme."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cadyq.checkpoints.io import load_model
from cadyq.checkpoints.zoo import add_run_to_zoo, save_run
from cadyq.commands.cli import (
    MOST_SEED,
    Numbers,
    Parser,
    add_network_options,
    add_overwrite_option,
    add_threads_option,
    check_outputs,
    check_zoo,
    exit_status,
    is_finished,
    model_of,
    nothing,
    open_networks,
    program,
)
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import FULL_PRECISION, MIN_BITS
from cadyq.schemes.base import SCHEMES, Scheme
from cadyq.schemes.specs import parse_scheme, read_options, tagged
from cadyq.training.derive import derive, derived_scheme, mean_fab
from cadyq.training.photographs import find_photographs, load_bank
from cadyq.training.start import file_facts
from cadyq.utils.bars import bar
from cadyq.utils.errors import UserError

FAR = 0.2  # bits between the mean that is asked for and the one that is reached


def build_parser() -> argparse.ArgumentParser:
    """The command line of `cadyq.derive`."""
    parser = Parser(prog=program("cadyq.derive"), description=__doc__)
    parser.add_argument("scheme", help="derived scheme, such as static; or the parent's scheme, to change an --option")
    parser.add_argument("--parent", required=True, help="trained network: zoo:NAME or a .safetensors file")
    parser.add_argument("--data-root", type=Path, required=True, help="folder of training photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.safetensors and training.json")
    parser.add_argument(
        "--mean-bits",
        type=Numbers(MIN_BITS, FULL_PRECISION, whole=False),
        help="target FAB (default: the FAB of the parent)",
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="option of the scheme; may be repeated"
    )
    parser.add_argument(
        "--patches",
        type=Numbers(1, 1_000_000),
        default=96,
        help="number of training patches (default: 96). All of them give the parent's FAB, and fit cabm, gradient and "
        "ranges; static and oracle search on the first 16, profiles measures errors on the first 48",
    )
    parser.add_argument(
        "--lr-patch",
        type=Numbers(1),
        default=64,
        help="side of a training patch in LR pixels (default: 64); static and oracle search on its first 24x24 pixels, "
        "profiles measures errors on its first 32x32",
    )
    parser.add_argument(
        "--seed", type=Numbers(0, MOST_SEED), default=0, help="seed that draws the patches (default: 0)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="folder for decoded photographs (default: .cache)"
    )
    add_overwrite_option(parser)
    add_threads_option(parser)
    add_network_options(parser)
    return parser


def check_derived(name: str) -> None:
    """Raises UserError for a scheme that chooses nothing from a trained network."""
    if SCHEMES.get(name).fit is Scheme.fit:
        able = [other for other in SCHEMES.names() if SCHEMES.get(other).fit is not Scheme.fit]
        raise UserError(f"scheme {name!r} is not derived from a trained network; choose one of {', '.join(able)}")


def check_mean_bits(scheme: Scheme, mean_bits: float | None) -> None:
    """Raises UserError for a mean that no choice among the scheme's candidates has."""
    space = getattr(scheme, "search_space", ())
    if mean_bits is not None and space and not min(space) <= mean_bits <= max(space):
        among = f"{scheme.name} chooses among {', '.join(map(str, space))} bits"
        raise UserError(f"--mean-bits {mean_bits:g}: {among}; give a mean from {min(space)} to {max(space)}")


def count_forwards(network: SRNetwork, advance: Callable[[], Any]) -> None:
    """Call `advance` after each forward of a network, and of the copies of it that a search makes."""

    def after_forward(*_: Any) -> None:  # torch takes what it returns in the place of SR
        advance()

    network.register_forward_hook(after_forward)


def run(args: argparse.Namespace) -> Path:
    """Derive what the command line asks for; return the path of the model."""
    if args.threads:
        torch.set_num_threads(args.threads)
    check_zoo(args.zoo)  # a new zoo is made
    open_networks(args)
    check_outputs(args.out, inputs=[args.parent])
    name, options, tag = parse_scheme(args.scheme)
    options |= read_options(name, args.option)
    check_derived(name)
    parent = load_model(args.parent)
    check_mean_bits(derived_scheme(parent, name, **options), args.mean_bits)
    bank = load_bank(find_photographs(args.data_root), parent.scale, args.lr_patch, args.cache)
    training, _ = bank.split()
    facts = {
        "backbone": parent.name,
        "scheme": tagged(SCHEMES.get(name)(**options), tag),
        "scale": parent.scale,
        "derived_from": file_facts(args.parent),
        "data": f"{args.data_root.name}: {args.patches} patches of {args.lr_patch} LR pixels, "
        f"{len(training.images)} photographs",
        "data_sha256": training.sha256(),
        "seed": args.seed,
        "mean_bits_asked": args.mean_bits,
        "torch": torch.__version__,
    }
    if is_finished(args.out, facts, args.overwrite):
        return model_of(args.out)
    batch = training.batch(args.seed, 0, args.patches, args.lr_patch)
    with bar(desc=f"derive {args.scheme}", unit="forward", leave=False, disable=None) as progress:
        count_forwards(parent, progress.update)
        network = derive(parent, name, batch.lr, batch.hr, args.mean_bits, **options)
        reached = None if SCHEMES.get(name).reads_hr else mean_fab(network, batch.lr)
    if args.mean_bits is not None and reached is not None and abs(reached - args.mean_bits) > FAR:
        what = f"{name} takes {reached:.2f} bits on the patches"
        print(f"warning: --mean-bits {args.mean_bits:g}: {what}", file=sys.stderr)
    return save_run(network, facts | {"fab_on_patches": reached}, args.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)

    def act() -> None:
        print(run(args))
        if args.zoo is not None:
            print(add_run_to_zoo(args.out, "", args.zoo))

    return exit_status(act, args.debug, kept=nothing)


if __name__ == "__main__":
    sys.exit(main())
