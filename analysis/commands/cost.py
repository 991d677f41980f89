"""Print the cost of a network: MACs and BitOPs of each convolution."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.tables.layer_costs import print_layers
from cadyq.commands.cli import (
    Numbers,
    Parser,
    add_network_options,
    exit_status,
    open_networks,
    program,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    parser = Parser(prog=program("analysis.cost"), description=__doc__)
    parser.add_argument("--model", required=True, help="network: zoo:NAME or a .safetensors file")
    parser.add_argument(
        "--height", type=Numbers(4, 100_000), default=720, help="height of the output in pixels (default: 720)"
    )
    parser.add_argument(
        "--width", type=Numbers(4, 100_000), default=1280, help="width of the output in pixels (default: 1280)"
    )
    add_network_options(parser)
    args = parser.parse_args(argv)

    def act() -> None:
        open_networks(args)
        print_layers(args.model, args.height, args.width)

    return exit_status(act, args.debug)
