"""What a network costs: storage, and MACs and BitOPs by convolution (`python -m analysis.cost --model zoo:NAME`)."""

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
    parser = Parser(prog=program("analysis.cost"), description=__doc__)
    parser.add_argument("--model", required=True, help="zoo:NAME or a .safetensors file")
    parser.add_argument("--height", type=Numbers(4, 100_000), default=720, help="of the output")
    parser.add_argument("--width", type=Numbers(4, 100_000), default=1280, help="of the output")
    add_network_options(parser)
    args = parser.parse_args(argv)

    def act() -> None:
        open_networks(args)
        print_layers(args.model, args.height, args.width)

    return exit_status(act, args.debug)
