"""Print the loss of calibrated networks, with the seconds and images that calibration needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.tables.calibration import write
from cadyq.commands.cli import Parser, add_debug_option, exit_status, program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    parser = Parser(prog=program("analysis.calibration"), description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--zoo", type=Path, metavar="DIR", required=True, help="folder that cadyq.calibrate wrote")
    add_debug_option(parser)
    args = parser.parse_args(argv)
    return exit_status(lambda: print(*write(args.run, args.zoo), sep="\n"), args.debug)
