"""`python -m cadyq.upscale`: enlarge your own photographs with a quantized network, and see what it cost."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cadyq.checkpoints.folders import use_zoo
from cadyq.checkpoints.io import load_model
from cadyq.commands.cli import (
    Numbers,
    Parser,
    add_debug_option,
    add_plugin_option,
    add_threads_option,
    add_zoo_option,
    check_writable,
    error_line,
    exit_status,
    program,
)
from cadyq.data.images import IMAGE_SUFFIXES, images_among, read_rgb, write_png
from cadyq.inference.tiled import REFERENCE_BITS, TiledForward, run_tiles
from cadyq.inference.tiles import Tile, tile_grid, whole_image
from cadyq.models.network import SRNetwork
from cadyq.plugins import load_plugins
from cadyq.utils.bars import bar
from cadyq.utils.devices import pick_device
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs
from cadyq.utils.files import write_text


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=program("cadyq.upscale"), description=__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="image files, or folders of them")
    parser.add_argument("--model", required=True, help="zoo:NAME, as in zoo:edsr_x4_cadyq, or a .safetensors file")
    parser.add_argument("--out", type=Path, required=True, help="folder for <name>_x4.png and <name>_x4.json")
    parser.add_argument("--bit-map", action="store_true", help="also <name>_x4_bits.png: mean bits of each tile")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there; never an input")
    parser.add_argument("--resume", action="store_true", help="leave out what an earlier, stopped command has finished")
    parser.add_argument("--patch", type=Numbers(1), default=96, help="side of a tile, LR pixels")
    parser.add_argument("--step", type=Numbers(1), help="from one tile to the next, LR pixels; default PATCH - 6")
    parser.add_argument("--whole", action="store_true", help="the image as one tile: much memory, bits once an image")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    add_threads_option(parser)
    add_zoo_option(parser)
    add_plugin_option(parser)
    add_debug_option(parser)
    return parser


@dataclass(frozen=True)
class Job:
    """One photograph and the files that are made of it."""

    source: Path
    sr: Path
    facts: Path
    bit_map: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.sr, self.facts, self.bit_map) if path is not None]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def finished(self) -> bool:
        """Whether all its results are there; they are written whole, the facts last."""
        return all(path.exists() for path in self.outputs)


@dataclass(frozen=True)
class Tiling:
    """How photographs are cut: tiles of `patch` every `step` LR pixels, or not at all."""

    patch: int
    step: int
    whole: bool

    def grid(self, height: int, width: int) -> list[Tile]:
        return whole_image(height, width) if self.whole else tile_grid(height, width, self.patch, self.step)


def image_files(inputs: Sequence[Path]) -> Iterator[Path | UserError]:
    """The files named, and the images of the folders named; an error for what is neither."""
    for path in inputs:
        if not path.exists():
            yield UserError(f"{path}: there is no such file or folder; check the path")
        elif not path.is_dir():
            yield path
        else:
            found = images_among(path.iterdir())
            yield from found
            if not found:
                yield UserError(f"{path}: holds no images ({' '.join(sorted(IMAGE_SUFFIXES))}); name another folder")


def plan(
    inputs: Sequence[Path], out: Path, scale: int, bit_map: bool, overwrite: bool
) -> tuple[list[Job], list[UserError]]:
    """What to make of each photograph, and why not for the others; nothing is read or written yet."""
    found = list(image_files(inputs))
    errors = [entry for entry in found if isinstance(entry, UserError)]
    sources = list({_real(path): path for path in found if isinstance(path, Path)}.values())
    named = {_real(path) for path in inputs}
    made = {_real(path) for source in sources for path in _job(source, out, scale, True).outputs}
    # where --out is the folder of the photographs, results of an earlier run are no photographs
    sources = [path for path in sources if _real(path) in named or _real(path) not in made]
    originals = {_real(path) for path in sources}
    jobs: list[Job] = []
    taken: dict[str, Path] = {}
    for source in sources:
        job = _job(source, out, scale, bit_map)
        try:
            _check(job, originals, taken, overwrite)
        except UserError as error:
            errors.append(error)
            continue
        taken |= {path.name.casefold(): source for path in job.outputs}
        jobs.append(job)
    return jobs, errors


def _real(path: Path) -> str:
    """Where a path leads; unlike `Path.resolve`, links that lead in a circle are no error yet."""
    return os.path.realpath(path)


def _job(source: Path, out: Path, scale: int, bit_map: bool) -> Job:
    stem = f"{source.stem}_x{scale}"
    return Job(source, out / f"{stem}.png", out / f"{stem}.json", out / f"{stem}_bits.png" if bit_map else None)


def _check(job: Job, originals: set[str], taken: dict[str, Path], overwrite: bool) -> None:
    """Raise UserError where an output of `job` is an input, belongs to another photograph, or is there already."""
    for path in job.outputs:
        if _real(path) in originals:
            raise UserError(f"{job.source}: its result {path} is itself an input; choose another --out")
        if path.name.casefold() in taken:
            other = taken[path.name.casefold()]
            raise UserError(f"{job.source}: {path.name} is already made of {other}; rename one, or use another --out")
        if path.is_dir() or (path.exists() and not overwrite):
            raise UserError(f"{job.source}: {path} exists already; pass --overwrite, or choose another --out")


def upscale(network: SRNetwork, job: Job, tiling: Tiling, device: torch.device) -> tuple[TiledForward, dict[str, Any]]:
    """Make one photograph's files; returns what ran and the facts that the JSON file holds.

    Raises:
        UserError: the photograph cannot be read, it does not fit into memory, or a result cannot be written.
    """
    lr = read_rgb(job.source)
    height, width = lr.shape[-2:]
    tiles = tiling.grid(height, width)
    with bar(total=len(tiles), desc=job.name, unit="tile", leave=False, disable=None) as shown:
        try:
            ran = run_tiles(network, lr, tiles, device, on_tiles=shown.update)
        except (RuntimeError, MemoryError) as error:  # what torch raises where memory is short
            if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            remedy = "leave --whole out" if tiling.whole else f"use a --patch below {tiling.patch}"
            raise UserError(f"{job.source}: {width}x{height} pixels need too much memory; {remedy}") from error
    facts = _facts(network, job, ran, (height, width), tiling)
    write_png(job.sr, ran.sr)
    if job.bit_map is not None:
        title = f"{job.name}: {ran.fab:.2f} bits on average"
        _bit_map_writer()(job.bit_map, lr, tiles, ran.tile_fab, _limits(network, ran), title)
    write_text(job.facts, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return ran, facts


def _bit_map_writer() -> Callable[..., None]:
    """`write_bit_map`; raises UserError where matplotlib is not installed."""
    with needs("analysis", "--bit-map"):
        from cadyq.inference.bit_map import write_bit_map
    return write_bit_map


def _limits(network: SRNetwork, ran: TiledForward) -> tuple[float, float]:
    """Ends of the legend: the candidate bits of the scheme where it has some, else what the tiles span."""
    candidates = getattr(network.scheme, "search_space", ())
    low, high = float(ran.tile_fab.min()), float(ran.tile_fab.max())
    return (min(low, *candidates), max(high, *candidates)) if candidates else (low - 0.5, high + 0.5)


def _facts(network: SRNetwork, job: Job, ran: TiledForward, size: tuple[int, int], tiling: Tiling) -> dict[str, Any]:
    (height, width), eight_bit = size, ran.eight_bit
    return {
        "image": job.name,
        "result": job.sr.name,
        "backbone": network.name,
        "scheme": network.scheme.label() if network.scheme else None,
        "scale": network.scale,
        "lr_width": width,
        "lr_height": height,
        "tiles": ran.patches,
        "patch": None if tiling.whole else tiling.patch,
        "step": None if tiling.whole else tiling.step,
        "fab": ran.fab,
        "bitops_g": ran.bitops / 1e9,
        "bitops_fp32_g": ran.fp32 / 1e9,
        "bitops_8_bit_g": eight_bit / 1e9,
        "saved_percent": 100 * (1 - ran.bitops / eight_bit) if eight_bit else None,
        "seconds": ran.seconds,
        "tile_fab": [round(bits, 4) for bits in ran.tile_fab.tolist()],
    }


def _line(job: Job, facts: dict[str, Any]) -> str:
    """One photograph's cost for the terminal."""
    size = f"{facts['lr_width'] * facts['scale']}x{facts['lr_height'] * facts['scale']}"
    cost = f"FAB {facts['fab']:.2f}, {facts['bitops_g']:,.0f} G BitOPs"
    if facts["saved_percent"] is not None:
        less = "less" if facts["saved_percent"] >= 0 else "more"
        cost += f" ({abs(facts['saved_percent']):.1f} % {less} than with {REFERENCE_BITS} bits everywhere;"
        cost += f" {facts['bitops_fp32_g'] / facts['bitops_g']:.0%} are of layers in FP32)"
    return f"{job.name} -> {job.sr} ({size}): {cost}, {facts['seconds']:.1f} s"


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns 0, or 2 where some input gave no result."""
    use_zoo(args.zoo)
    load_plugins(args.plugin)
    tiling = _tiling(args)
    if args.bit_map:
        _bit_map_writer()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    network = load_model(args.model)
    if network.scheme is not None and network.scheme.reads_hr:
        raise UserError(f"--model {args.model}: its scheme reads the HR image, which a photograph has not; use another")
    check_writable(args.out)
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    jobs, errors = plan(args.inputs, args.out, network.scale, args.bit_map, args.overwrite or args.resume)
    if args.resume:
        jobs = [job for job in jobs if not job.finished]
    for error in errors:
        print(error_line(error), file=sys.stderr)
    for number, job in enumerate(jobs, 1):
        try:
            facts = upscale(network, job, tiling, device)[1]
            print(f"{number}/{len(jobs)} {_line(job, facts)}", flush=True)
        except UserError as error:
            errors.append(error)
            print(error_line(error), file=sys.stderr, flush=True)
    return 2 if errors else 0


def _tiling(args: argparse.Namespace) -> Tiling:
    """Raises UserError for tiles that do not cover an image."""
    step = args.step if args.step is not None else max(1, args.patch - 6)
    tile_grid(1, 1, args.patch, step)  # refuses what is out of range before any work
    return Tiling(args.patch, step, args.whole)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    status = 0

    def action() -> None:
        nonlocal status
        status = run(args)

    return exit_status(action, args.debug) or status


if __name__ == "__main__":
    sys.exit(main())
