"""Compare two runs cell by cell, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.records.store import load
from analysis.tables.run_differences import compare, to_markdown
from cadyq.commands.cli import Parser, add_debug_option, exit_status, program
from cadyq.utils.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    parser = Parser(prog=program("analysis.compare"), description=__doc__)
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="folder of the first run")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="folder of the second run")
    parser.add_argument("--out", type=Path, help="CSV file to write, with all cells in full precision")
    add_debug_option(parser)
    args = parser.parse_args(argv)

    def act() -> None:
        table = compare(load(args.run_a), load(args.run_b))
        print(to_markdown(table))
        if args.out:
            write_text(args.out, table.to_csv(index=False, lineterminator="\n"))

    return exit_status(act, args.debug)
