"""Check that schemes follow the rules of the benchmark, on every backbone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cadyq.commands.cli import Numbers, Parser, add_network_options, exit_status, open_networks, program
from cadyq.plugins import load_plugin
from cadyq.quantizers.base import MAX_BITS, MIN_BITS
from cadyq.testing.subject import BITS_TO_TRY
from cadyq.testing.suite import outcomes
from cadyq.utils.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The command line of `cadyq.testing`."""
    parser = Parser(prog=program("cadyq.testing"), description=__doc__)
    parser.add_argument(
        "schemes", nargs="+", metavar="SCHEME", help="Python file that registers schemes, or a scheme's name"
    )
    parser.add_argument(
        "--backbones", nargs="+", action="extend", help="backbones to check on (default: all with quantization points)"
    )
    parser.add_argument(
        "--bits",
        type=Numbers(MIN_BITS, MAX_BITS),
        nargs="+",
        action="extend",
        help="bit-widths of weights and activations to check (default: 2 4 8)",
    )
    add_network_options(parser)
    return parser


def schemes_of(target: str) -> list[str]:
    """The schemes of a plugin file, or the one of that name.

    Raises:
        UserError: see `load_plugin`; a file that registers backbones only.
    """
    if not target.endswith(".py") and not Path(target).is_file():
        return [target]
    found = load_plugin(Path(target)).schemes
    if not found:
        raise UserError(f"{target}: registers no scheme; give the names of schemes, and --plugin {target}")
    return list(found)


def check(args: argparse.Namespace) -> int:
    """Print a line for each check and backbone; return how many failed."""
    open_networks(args)
    failed = total = 0
    for name in [name for target in args.schemes for name in schemes_of(target)]:
        for outcome in outcomes(name, args.backbones, args.bits or BITS_TO_TRY):
            total += 1
            failed += not outcome.passed
            print(f"{'pass' if outcome.passed else 'FAIL'}  {name}  {outcome.backbone}  {outcome.check}", flush=True)
            for line in outcome.lines():
                print(f"      {line}", flush=True)
    print(f"{total - failed} of {total} checks passed")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    failed: list[int] = []
    status = exit_status(lambda: failed.append(check(args)), args.debug)
    return status or int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
