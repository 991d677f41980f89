"""`python -m cadyq.derive SCHEME`: take over a trained network, weights and ranges, and choose its bits another way."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadyq.checkpoints.io import load_model, network_sha256, resolve, save_model
from cadyq.cli import MOST_SEED, Numbers, Parser, add_debug_option, add_threads_option, exit_status, parse_options
from cadyq.errors import UserError
from cadyq.factory import with_scheme
from cadyq.files import write_text
from cadyq.locks import alone_in
from cadyq.models.network import SCHEMES, SRNetwork, trace_forward
from cadyq.quantizers.interface import FULL_PRECISION, MIN_BITS, PackedWeight, Scheme
from cadyq.training.photographs import find_photographs, load_bank

BATCH = 16


def transplant(parent: SRNetwork, scheme: Scheme) -> SRNetwork:
    """A network of the parent's backbone under `scheme`, with its weights and ranges, in eval mode."""
    network = with_scheme(parent, scheme.name, scheme.options())
    network.inherit_ranges(parent)
    for conv, source_conv in zip(network.conv_names, parent.conv_names, strict=True):
        if isinstance(source_conv.weight_quantizer, PackedWeight):
            conv.weight_quantizer = source_conv.weight_quantizer
    return network.eval()


def derived_scheme(parent: SRNetwork, name: str, **options: Any) -> Scheme:
    """The scheme of that name with the options that it shares with the parent's, and others; nothing is fitted yet.

    Raises:
        UserError: the scheme is not derived from the parent's; an unknown option.
    """
    kind = SCHEMES.get(name)
    origin = name if kind.parent == "fp32" else kind.parent  # one that is trained can only be given other options
    if parent.scheme is None or parent.scheme.name != origin:
        has = "fp32" if parent.scheme is None else parent.scheme.name
        raise UserError(
            f"scheme {name!r} is derived from a network of {origin!r}, not of {has!r}: name one as --parent"
        )
    shared = {key: value for key, value in parent.scheme.options().items() if key in kind.option_names()}
    unknown = sorted(options.keys() - set(kind.option_names()))
    if unknown:
        raise UserError(f"scheme {name!r} has no option {unknown[0]!r}: it has {', '.join(kind.option_names())}")
    return kind(**(shared | options))


@torch.no_grad()
def mean_fab(network: SRNetwork, lr: Tensor) -> float:
    """FAB of `network` on patches (N, 3, h, w), mean over them."""
    return float(torch.cat([trace_forward(network, batch)[1].fab() for batch in torch.split(lr, BATCH)]).mean())


def derive(parent: SRNetwork, name: str, lr: Tensor, hr: Tensor, mean_bits: float | None, **options: Any) -> SRNetwork:
    """A network of scheme `name` from a trained one.

    Args:
        parent: trained, in eval mode.
        name: a scheme whose `parent` is the parent's scheme.
        lr: patches of training photographs (N, 3, h, w) in 0..255.
        hr: what they should become (N, 3, h scale, w scale).
        mean_bits: FAB to aim for; None for the parent's own on these patches.
        **options: of the scheme, beside those it shares with the parent's.

    Raises:
        UserError: see `derived_scheme`.
    """
    scheme = derived_scheme(parent, name, **options)
    target = mean_fab(parent, lr) if mean_bits is None else mean_bits
    return transplant(parent, scheme.fit(parent, lr, hr, target))


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m cadyq.derive", description=__doc__)
    parser.add_argument(
        "scheme", help="a scheme that is derived, such as static; or the parent's own, for another --option"
    )
    parser.add_argument("--parent", required=True, help="trained network: zoo:NAME or a .safetensors file")
    parser.add_argument("--data-root", type=Path, required=True, help="folder of training photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.safetensors and training.json")
    parser.add_argument(
        "--mean-bits",
        type=Numbers(MIN_BITS, FULL_PRECISION, whole=False),
        help="FAB to aim for; the parent's own by default",
    )
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the scheme")
    parser.add_argument("--patches", type=Numbers(1, 1_000_000), default=96, help="number of training patches")
    parser.add_argument("--lr-patch", type=Numbers(1), default=64, help="their side in LR pixels")
    parser.add_argument("--seed", type=Numbers(0, MOST_SEED), default=0, help="of the choice of patches")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    add_threads_option(parser)
    add_debug_option(parser)
    return parser


def run(args: argparse.Namespace) -> Path:
    """Derive what the command line asks for; return the path of the model."""
    if args.threads:
        torch.set_num_threads(args.threads)
    parent = load_model(args.parent)
    bank = load_bank(find_photographs(args.data_root), parent.scale, args.lr_patch, args.cache)
    training, _ = bank.split()
    batch = training.batch(args.seed, 0, args.patches, args.lr_patch)
    network = derive(parent, args.scheme, batch.lr, batch.hr, args.mean_bits, **parse_options(args.option))
    path: Path = args.out / "model.safetensors"
    parent_path = resolve(args.parent)
    facts = {
        "backbone": parent.name,
        "scheme": args.scheme,
        "scale": parent.scale,
        "derived_from": {"name": parent_path.stem, "sha256": network_sha256(parent_path)},
        "data": f"{args.data_root.name}: {args.patches} patches of {args.lr_patch} LR pixels, "
        f"{len(training.images)} photographs",
        "seed": args.seed,
        "mean_bits_asked": args.mean_bits,
        "fab_on_patches": None if SCHEMES.get(args.scheme).reads_hr else mean_fab(network, batch.lr),
        "torch": torch.__version__,
    }
    with alone_in(args.out):  # the two files belong together
        save_model(network, path)
        write_text(args.out / "training.json", json.dumps(facts, indent=1, sort_keys=True))
    return path


def main() -> int:
    args = build_parser().parse_args()
    return exit_status(lambda: print(run(args)), args.debug)


if __name__ == "__main__":
    sys.exit(main())
