"""Download weights that other authors published, and check their hash. Without names, list them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cadyq.checkpoints import published
from cadyq.checkpoints.download import fetch
from cadyq.checkpoints.published import Published
from cadyq.commands.cli import Parser, add_debug_option, check_writable, exit_status, program
from cadyq.utils.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The command line of `cadyq.download`."""
    parser = Parser(prog=program("cadyq.download"), description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="weights to fetch, such as imdn_x4; without a name, all are listed"
    )
    used = f"set {published.FOLDER_VARIABLE} to the same folder to load them"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=f"folder for the files; {used}")
    add_debug_option(parser)
    return parser


def listing() -> str:
    """One line for each network of the table."""
    head = ("name", "architecture", "scale", "Set5, dB", "licence", "authors' file")
    rows = [
        (row.name, row.architecture, f"x{row.scale}", f"{row.psnr_set5_db:.2f}", row.licence, row.address)
        for row in published.table()
    ]
    widths = [max(len(cells[i]) for cells in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)) for cells in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    if not args.names:
        print(listing())
        return
    for row in [published.get(name) for name in args.names]:
        print(f"{row.name}: {_obtain(row, args.cache)} (licence of its authors: {row.licence})")


def _obtain(row: Published, cache: Path | None) -> Path:
    """The file of a network: one that is here, or fetched to `cache` or else to the usual folder."""
    here = None if cache else published.here(row)
    if here is not None:
        return here
    folder = cache or published.cache_folder()
    if folder is None:
        raise UserError("downloading needs pooch: pip install 'cadyq[foreign]'")
    check_writable(folder, "--cache")
    return fetch(row, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: run(args), args.debug)


if __name__ == "__main__":
    sys.exit(main())
