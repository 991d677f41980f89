"""Calibrate a scheme on LR images, and tune its ranges, rounding and bits if it has tuning stages.

No HR image is read. The output stores what calibration found, and refers to the FP32 network.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadyq.checkpoints.io import load_model, resolve
from cadyq.checkpoints.tensors import network_sha256
from cadyq.checkpoints.zoo import add_run_to_zoo, check_tag, save_run
from cadyq.commands.cli import (
    MOST_SEED,
    Numbers,
    Parser,
    add_network_options,
    add_overwrite_option,
    add_threads_option,
    check_outputs,
    check_zoo,
    exit_status,
    is_finished,
    model_of,
    nothing,
    open_networks,
    program,
)
from cadyq.data import datasets
from cadyq.data.images import images_among
from cadyq.models.network import SRNetwork
from cadyq.quantization import LEAST_SIDE, PATCHES, SIDE, Images, calibration_patches
from cadyq.schemes.base import SCHEMES
from cadyq.schemes.specs import canonical, parse_scheme, scheme_name, scheme_of
from cadyq.schemes.tuning import TUNED
from cadyq.training.reconstruction import StageReport, calibrate
from cadyq.training.start import lasting_name, plain
from cadyq.utils.bars import bar
from cadyq.utils.devices import pick_device
from cadyq.utils.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The command line of `cadyq.calibrate`."""
    parser = Parser(prog=program("cadyq.calibrate"), description=__doc__)
    parser.add_argument("--scheme", required=True, help="scheme with its bit-widths, such as ptq4sr:w4a4")
    parser.add_argument(
        "--model", required=True, help="FP32 network: zoo:NAME, published:NAME, spandrel:PATH or a .safetensors file"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of LR images (default: photographs of scikit-image)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for model.safetensors and training.json")
    parser.add_argument(
        "--patches",
        type=Numbers(2, 1_000_000),
        default=PATCHES,
        help="number of patches to crop from the images (default: %(default)s)",
    )
    parser.add_argument(
        "--lr-patch",
        type=Numbers(LEAST_SIDE),
        default=SIDE,
        help="side of a patch in LR pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes", type=Numbers(0.01, whole=False), help="time limit of tuning in minutes (default: none)"
    )
    parser.add_argument("--steps", type=Numbers(1), help="steps of each tuning stage (default: set by the scheme)")
    parser.add_argument("--batch", type=Numbers(1, 1_000_000), help="patches per step (default: set by the scheme)")
    parser.add_argument("--tag", default="", help="name of this variant in --zoo, listed as ptq4sr:w4a4:TAG")
    parser.add_argument(
        "--seed", type=Numbers(0, MOST_SEED), default=0, help="seed that draws the patches of each step (default: 0)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add_overwrite_option(parser)
    add_threads_option(parser)
    add_network_options(parser)
    return parser


def lr_images(folder: Path | None, scale: int) -> tuple[Images, int, str]:
    """The LR images of a folder, or of the photographs inside scikit-image: images, their number, and their name.

    Raises:
        UserError: no such folder, or it holds no image.
    """
    if folder is None:
        photographs = [pair.lr for pair in datasets.photographs(scale)]
        return photographs, len(photographs), datasets.EMBEDDED
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder; give a folder of LR images, or leave the option out")
    return folder, len(images_among(folder.iterdir())), folder.name


def _say_unused(args: argparse.Namespace) -> None:
    """Warn of a tag without a zoo, and of options of the tuning where the scheme has no stage to tune."""
    if args.tag and args.zoo is None:
        print("warning: --tag has no effect without --zoo; leave it out, or give --zoo", file=sys.stderr)
    if scheme_of(args.scheme).stages():
        return
    for option in ("minutes", "steps", "batch"):
        if getattr(args, option) is not None:
            why = f"{scheme_name(args.scheme)} has no tuning stages, so --{option} has no effect; leave it out"
            print(f"warning: {why}", file=sys.stderr)


def _fp32_parent(args: argparse.Namespace, device: torch.device) -> SRNetwork:
    tag = parse_scheme(args.scheme)[2]
    if tag:
        raise UserError(f"--scheme {args.scheme}: give the tag as --tag {tag}")
    kind = SCHEMES.get(scheme_name(args.scheme))
    if kind.trained and not kind.tuned:
        remedy = f"use python -m cadyq.{kind.made_by()}"
        raise UserError(f"--scheme {args.scheme}: calibration alone does not make this scheme; {remedy}")
    parent = load_model(args.model, device=device)
    if not plain(parent):
        raise UserError(f"--model {args.model}: is already quantized; give its FP32 network")
    return parent


def _calibrate(args: argparse.Namespace, parent: SRNetwork, patches: Tensor) -> tuple[SRNetwork, list[StageReport]]:
    """The calibrated network and the reports of its stages, with a progress bar."""
    limit = math.inf if args.minutes is None else 60 * args.minutes
    how = {"seconds": limit, "steps": args.steps, "batch": args.batch, "seed": args.seed}
    with bar(desc=canonical(args.scheme), unit="step", leave=False, disable=None) as progress:

        def on_step(stage: str, planned: int) -> None:
            progress.total = planned if args.minutes is None else None  # a time limit may end it before
            progress.set_postfix_str(stage, refresh=False)
            progress.update()

        return calibrate(parent, args.scheme, patches, **how, on_step=on_step)


def _facts(args: argparse.Namespace, parent: SRNetwork, origin: str, device: torch.device) -> dict[str, Any]:
    """The content of `training.json` except patches and results of calibration."""
    path = resolve(args.model)
    return {
        "backbone": parent.name,
        "scheme": canonical(args.scheme),
        "scale": parent.scale,
        "calibrated_from": origin,
        "parent": {"name": args.model if origin else path.stem, "sha256": network_sha256(path)},
        "minutes_allowed": args.minutes,
        "steps_a_stage": args.steps,
        "batch": args.batch,
        "seed": args.seed,
        "device": device.type,
        "torch": torch.__version__,
    }


def _stage_facts(report: StageReport) -> dict[str, Any]:
    """What `training.json` says of a stage."""
    return {key: value for key, value in vars(report).items() if key != "untuned"}


def run(args: argparse.Namespace) -> Path:
    """Calibrate what the command line asks for; return the path of the model."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    check_tag(args.tag)
    check_zoo(args.zoo)  # a new zoo is made
    open_networks(args)
    check_outputs(args.out, inputs=[args.model])
    parent, origin = _fp32_parent(args, device), lasting_name(args.model)
    images, count, called = lr_images(args.images, parent.scale)
    patches = calibration_patches(images, args.patches, args.lr_patch).to(device)
    _say_unused(args)
    facts = _facts(args, parent, origin, device) | {
        "data": f"{called}: {len(patches)} patches of {patches.shape[-1]} LR pixels",
        "images": count,
        "data_sha256": hashlib.sha256(patches.cpu().numpy().tobytes()).hexdigest(),
    }
    if is_finished(args.out, facts, args.overwrite):
        out = model_of(args.out)
    else:
        start = time.monotonic()
        network, reports = _calibrate(args, parent, patches)
        seconds = round(time.monotonic() - start, 1)
        facts |= {"seconds": seconds, "stages": [_stage_facts(report) for report in reports]}
        out = save_run(network, facts, args.out, origin)
    if args.zoo is not None:
        scheme = scheme_of(args.scheme)
        tuned = bool(scheme.stages()) and not scheme.trained  # the plain label is without tuning
        print(add_run_to_zoo(args.out, args.tag or (TUNED if tuned else ""), args.zoo))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: print(run(args)), args.debug, kept=nothing)


if __name__ == "__main__":
    sys.exit(main())
