"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from cadyq.commands.cli import Numbers


def add_patch_options(parser: argparse.ArgumentParser, dataset: str | None, side: int) -> None:
    """Add the options --data-root, --dataset and --side, which choose the patches to measure.

    Args:
        parser: parser of a command.
        dataset: default of --dataset; None if the option is required.
        side: default of --side, in LR pixels.
    """
    default = "" if dataset is None else " (default: %(default)s)"
    parser.add_argument("--data-root", type=Path, help="folder that holds benchmark/ and the folders of photographs")
    parser.add_argument(
        "--dataset",
        required=dataset is None,
        default=dataset,
        help=f"benchmark set, skimage, or a folder below --data-root{default}",
    )
    parser.add_argument(
        "--side", type=Numbers(8), default=side, help="side of a patch in LR pixels (default: %(default)s)"
    )
