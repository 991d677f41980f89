"""`python -m cadyq.training.photographs`: put the photographs below a folder into one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cadyq.commands.cli import Parser, add_debug_option, exit_status, program
from cadyq.training.photographs import pack_photographs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = Parser(prog=program("cadyq.training.photographs"), description=pack_photographs.__doc__)
    parser.add_argument("--data-root", type=Path, required=True, help="folder of training photographs")
    parser.add_argument("--out", type=Path, required=True, help="file to write, for --bank of cadyq.train")
    add_debug_option(parser)
    args = parser.parse_args(argv)

    def act() -> None:
        count = pack_photographs(args.data_root, args.out)
        print(f"{args.out}: {count} photographs, {args.out.stat().st_size / 2**20:.1f} MiB")

    return exit_status(act, args.debug)
