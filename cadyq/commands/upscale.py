"""Upscale photographs with a quantized network, and report BitOPs and bits of each."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from cadyq.checkpoints.io import load_model
from cadyq.commands.cli import (
    Numbers,
    Parser,
    add_network_options,
    add_threads_option,
    check_writable,
    error_line,
    exit_status,
    holds,
    open_networks,
    program,
)
from cadyq.data.images import stored_size
from cadyq.inference.tiled import REFERENCE_BITS
from cadyq.inference.tiles import tile_grid
from cadyq.models.network import SRNetwork
from cadyq.upscaling.canvas import finished_tiles, tile_list
from cadyq.upscaling.estimate import estimate
from cadyq.upscaling.files import UpscaleJob, left_out, plan
from cadyq.upscaling.work import Result, Tiling, Upscaler, bit_map_writer
from cadyq.utils.bars import bar
from cadyq.utils.devices import pick_device
from cadyq.utils.errors import UserError
from cadyq.utils.signals import stopped
from cadyq.utils.wording import counted

PATCH = 96  # side of a tile in LR pixels


def build_parser() -> argparse.ArgumentParser:
    """The command line of `cadyq.upscale`."""
    parser = Parser(prog=program("cadyq.upscale"), description=__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="image files, or folders of them")
    parser.add_argument(
        "--model",
        required=True,
        help="network: zoo:NAME, such as zoo:edsr_x4_cadyq, published:NAME, spandrel:PATH or a .safetensors file",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the results <name>_x4.png and <name>_x4.json"
    )
    parser.add_argument(
        "--bit-map", action="store_true", help="also write <name>_x4_bits.png, a map of the mean bits of each tile"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing results; an input is never replaced")
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted command; finished photographs and tiles are kept"
    )
    parser.add_argument("--patch", type=Numbers(1), help="side of a tile in LR pixels (default: 96)")
    parser.add_argument("--step", type=Numbers(1), help="distance between tiles in LR pixels (default: PATCH - 6)")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="process the image as one tile; needs more memory, and bits are chosen once per image",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add_threads_option(parser)
    add_network_options(parser)
    return parser


def network_of(args: argparse.Namespace, device: torch.device) -> SRNetwork:
    """The network that --model names, on the device.

    Raises:
        UserError: it cannot be loaded, or its scheme reads the HR image.
    """
    network = load_model(args.model)
    if network.scheme is not None and network.scheme.reads_hr:
        raise UserError(
            f"--model {args.model}: its scheme needs the HR image, and a photograph has none; use another network"
        )
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def left_to_do(
    jobs: Sequence[UpscaleJob], upscaler: Upscaler, overwrite: bool
) -> tuple[list[UpscaleJob], list[UserError]]:
    """With --resume, the unfinished photographs, and an error for each result made with other options."""
    left, errors = [], []
    for job in jobs:
        if job.finished and not upscaler.is_stale(job):
            continue
        if job.finished and not overwrite:
            what = f"{job.sr} was made with another model, photograph or option"
            errors.append(UserError(f"{job.source}: {what}; pass --overwrite as well, or choose another --out"))
        else:
            left.append(job)
    return left, errors


def readable(jobs: Sequence[UpscaleJob]) -> tuple[list[UpscaleJob], list[tuple[int, int]], list[UserError]]:
    """The photographs that are images by their headers, their sizes, and an error for each that is not."""
    found, sizes, errors = [], [], []
    for job in jobs:
        try:
            sizes.append(stored_size(job.source))
            found.append(job)
        except UserError as error:
            errors.append(error)
    return found, sizes, errors


def line_of(result: Result, facts: dict[str, Any]) -> str:
    """The line of one photograph for the terminal: its cost, and its notes."""
    size = f"{facts['lr_width'] * facts['scale']}x{facts['lr_height'] * facts['scale']}"
    cost = f"FAB {facts['fab']:.2f}, {facts['bitops_g']:,.0f} G BitOPs"
    if facts["saved_percent"] is not None:
        less = "less" if facts["saved_percent"] >= 0 else "more"
        cost += f" ({abs(facts['saved_percent']):.1f} % {less} than with {REFERENCE_BITS} bits everywhere;"
        cost += f" {facts['bitops_fp32_g'] / facts['bitops_g']:.0%} are of layers in FP32)"
    notes = "".join(f"; {note}" for note in result.notes)
    return f"{result.job.name} -> {result.job.sr} ({size}): {cost}, {facts['seconds']:.1f} s{notes}"


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns 0, or 2 where some input gave no result."""
    open_networks(args)
    tiling = _tiling(args)
    if args.bit_map:
        bit_map_writer()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    network = network_of(args, device)
    if args.bit_map and network.scheme_label == "fp32":
        raise UserError(f"--bit-map: {args.model} is FP32 and has no bits to map; leave the option out")
    check_writable(args.out)
    upscaler = Upscaler(network, tiling, device, args.resume)
    jobs, errors = plan(args.inputs, args.out, network.scale, args.bit_map, args.overwrite or args.resume)
    if args.resume:
        planned = len(jobs)
        jobs, stale = left_to_do(jobs, upscaler, args.overwrite)
        errors += stale
        if finished := planned - len(jobs) - len(stale):
            print(f"{counted(finished, 'photograph')} finished before", flush=True)
    else:
        for job in jobs:
            say_discarded(job, upscaler)
    jobs, sizes, unreadable = readable(jobs)
    others = left_out(args.inputs, args.out, network.scale)
    if others:
        print(f"left out: {others}", flush=True)
    for error in [*errors, *unreadable]:
        print(error_line(error), file=sys.stderr)
    failed = enlarge(upscaler, jobs, sizes, args.debug)
    return 2 if errors or unreadable or failed else 0


def say_discarded(job: UpscaleJob, upscaler: Upscaler) -> None:
    """Say that tiles of an interrupted command are computed again, since --resume is missing."""
    if not tile_list(job.sr).is_file():
        return  # the key would read the whole photograph
    kept = finished_tiles(job.sr, upscaler.key(job))
    if kept:
        what = f"{counted(len(kept), 'finished tile')} of an interrupted command"
        print(f"note: {job.source}: starts anew; --resume keeps {what}", file=sys.stderr)


def enlarge(upscaler: Upscaler, jobs: Sequence[UpscaleJob], sizes: Sequence[tuple[int, int]], debug: bool) -> int:
    """Upscale photographs with a progress bar, and print a line for each. Returns the number without a result."""
    missing = [upscaler.missing(job, *size) for job, size in zip(jobs, sizes, strict=True)]
    expected = estimate(upscaler.network, missing, sizes, upscaler.device)
    if expected is not None:
        print(expected, flush=True)
    failed = 0
    tiles = sum(len(upscaler.tiling.grid(*size)) for size in sizes)
    with bar(total=tiles, unit="tile", leave=False, disable=None) as shown, closing(upscaler.run(jobs)) as results:
        upscaler.on_tiles = shown.update
        for number, result in enumerate(results, 1):
            if result.facts is not None:
                shown.write(f"{number}/{len(jobs)} {line_of(result, result.facts)}")
            if result.error is not None:
                failed += 1
                if debug:
                    traceback.print_exception(result.error)
                shown.write(error_line(result.error), file=sys.stderr)
            if stopped():  # an interrupt that a library turned into another error
                raise KeyboardInterrupt
    return failed


def _tiling(args: argparse.Namespace) -> Tiling:
    """Raises UserError for tiles that do not cover an image, or that --whole makes none of."""
    for option, value in (("--patch", args.patch), ("--step", args.step)):
        if args.whole and value is not None:
            raise UserError(f"{option} {value} and --whole exclude each other; give one of them")
    patch = args.patch or PATCH
    step = args.step or max(1, patch - 6)
    tile_grid(1, 1, patch, step)  # refuses what is out of range before any work
    return Tiling(patch, step, args.whole)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    status = 0

    def action() -> None:
        nonlocal status
        status = run(args)

    kept = holds(args.out, "*_x[234].json", ".*.tiles")
    return exit_status(action, args.debug, "the same command with --resume", kept) or status


if __name__ == "__main__":
    sys.exit(main())
