"""What a network costs: storage, and MACs and BitOPs by convolution (`python -m analysis.cost --model zoo:NAME`)."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.tables.layer_costs import print_layers
from cadyq.checkpoints.folders import use_zoo
from cadyq.commands.cli import (
    Numbers,
    Parser,
    add_debug_option,
    add_plugin_option,
    add_zoo_option,
    exit_status,
    program,
)
from cadyq.plugins import load_plugins


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog=program("analysis.cost"), description=__doc__)
    parser.add_argument("--model", required=True, help="zoo:NAME or a .safetensors file")
    parser.add_argument("--height", type=Numbers(4, 100_000), default=720, help="of the output")
    parser.add_argument("--width", type=Numbers(4, 100_000), default=1280, help="of the output")
    add_zoo_option(parser)
    add_plugin_option(parser)
    add_debug_option(parser)
    args = parser.parse_args(argv)

    def act() -> None:
        use_zoo(args.zoo)
        load_plugins(args.plugin)
        print_layers(args.model, args.height, args.width)

    return exit_status(act, args.debug)
