"""Print the table of backbones in docs/backbones.md."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.tables.backbones import table
from cadyq.commands.cli import Parser, add_debug_option, exit_status, program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    parser = Parser(prog=program("analysis.backbones"), description=__doc__)
    add_debug_option(parser)
    args = parser.parse_args(argv)
    return exit_status(lambda: print(table()), args.debug)
