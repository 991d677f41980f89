"""Add trained networks or calibration statistics to a zoo."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cadyq.checkpoints.io import load_model
from cadyq.checkpoints.names import fp32_name
from cadyq.checkpoints.zoo import add_calibration_to_zoo, add_run_to_zoo, writable_zoo
from cadyq.commands.cli import (
    Numbers,
    Parser,
    add_network_options,
    check_zoo,
    exit_status,
    open_networks,
    program,
)
from cadyq.quantization import SIDE
from cadyq.schemes.calibration import observe
from cadyq.training.photographs import find_photographs, load_bank
from cadyq.training.start import bank_patches


def calibrate(backbone: str, scale: int, data_root: Path, cache: Path, folder: Path) -> Path:
    """Measure the calibration statistics of an FP32 network on training photographs and add them to a zoo.

    Args:
        backbone: name of the backbone.
        scale: upscaling factor.
        data_root: folder of training photographs.
        cache: folder for decoded photographs.
        folder: folder of the zoo.
    """
    network = load_model(fp32_name(backbone, scale))
    patches = bank_patches(load_bank(find_photographs(data_root), scale, SIDE, cache).split()[0])
    note = f"{len(patches)} LR patches of {SIDE} pixels from {data_root.name} photographs, seed 0"
    return add_calibration_to_zoo(observe(network, patches), backbone, scale, note, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = Parser(prog=program("cadyq.zoo.ship"), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="add trained networks", description="Add trained networks to a zoo.")
    run.add_argument(
        "run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="output folder of train, derive or calibrate"
    )
    run.add_argument("--tag", default="", help="name of this variant, listed as SCHEME:TAG")
    run.add_argument("--overwrite", action="store_true", help="replace another network of that name")
    calibration = commands.add_parser(
        "calibration",
        help="add calibration statistics",
        description="Calibrate a backbone on training photographs and add the statistics to a zoo.",
    )
    calibration.add_argument("backbone", help="name of the backbone, such as edsr")
    calibration.add_argument("--scale", type=Numbers(2, 4), default=4, help="upscaling factor (default: 4)")
    calibration.add_argument("--data-root", type=Path, required=True, help="folder of training photographs")
    calibration.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="folder for decoded photographs (default: .cache)"
    )
    for command in (run, calibration):
        add_network_options(command)
    args = parser.parse_args(argv)

    def act() -> None:
        check_zoo(args.zoo)  # a new zoo is made
        open_networks(args)
        folder = writable_zoo()
        check_zoo(folder)
        if args.command == "run":
            for run_dir in args.run_dirs:
                print(add_run_to_zoo(run_dir, args.tag, folder, args.overwrite))
        else:
            print(calibrate(args.backbone, args.scale, args.data_root, args.cache, folder))

    return exit_status(act, args.debug)


if __name__ == "__main__":
    sys.exit(main())
