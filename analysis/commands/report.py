"""Make tables, plots and report of a run again, from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.report.build import build
from cadyq.commands.cli import Parser, add_debug_option, exit_status, program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    parser = Parser(prog=program("analysis.make_report"), description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a run, with records/*.parquet and manifest.json")
    add_debug_option(parser)
    args = parser.parse_args(argv)
    return exit_status(lambda: print(f"open {build(args.run_dir)[-1]}"), args.debug)
