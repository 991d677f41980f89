"""Train a network by a recipe, from a trained network or from scratch.

The same command continues an interrupted run. `torchrun --nproc-per-node N -m cadyq.train ...` runs on N processes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cadyq.checkpoints.zoo import add_run_to_zoo
from cadyq.commands.cli import (
    MOST_SEED,
    MOST_THREADS,
    Numbers,
    Parser,
    add_network_options,
    add_threads_option,
    check_outputs,
    check_zoo,
    exit_status,
    holds,
    open_networks,
    program,
)
from cadyq.models.network import SRNetwork
from cadyq.quantization import SIDE
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.schemes.specs import canonical
from cadyq.training.checkpoint import require_resumable
from cadyq.training.distributed import Processes, choose_device, join, leave
from cadyq.training.optimization import use_half_precision
from cadyq.training.patches import PatchDataset
from cadyq.training.photographs import find_photographs, load_bank, open_bank_file, with_outputs
from cadyq.training.recipes import Recipe, load_recipe
from cadyq.training.start import (
    Start,
    authors_name,
    bank_patches,
    calibration_network,
    load_parent,
    load_teacher,
    quantized_from,
    random_parent,
    require_trainable,
)
from cadyq.training.trainer import CHECKPOINT_SECONDS, Settings, Trainer
from cadyq.utils.errors import UserError
from cadyq.utils.options import parse_options

DEFAULT_SCALE = 4  # of --from-scratch
DEVICE_SHARE = 0.5  # of a GPU's free memory that photographs may take


def build_parser() -> argparse.ArgumentParser:
    """The command line of `cadyq.train`."""
    parser = Parser(prog=program("cadyq.train"), description=__doc__)
    what = parser.add_argument_group("network and recipe")
    _add_network(what)
    _add_training(what)
    _add_photographs(parser.add_argument_group("photographs"))
    _add_output_and_hardware(parser.add_argument_group("output and hardware"))
    add_network_options(parser)
    return parser


def _add_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--recipe", required=True, help="recipe: fp32, finetune, cadyq, cpu, paper or a .toml file")
    group.add_argument("--backbone", help="backbone; required with --from-scratch (default: that of --model)")
    group.add_argument("--scheme", help="scheme with its bit-widths, such as pams:w4a4 (default: set by the recipe)")
    group.add_argument(
        "--scale", type=Numbers(2, 4), help="upscaling factor (default: that of --model; 4 from scratch)"
    )
    group.add_argument(
        "--model",
        "--init",
        dest="init",
        help="network to start from: zoo:NAME, published:NAME, spandrel:PATH or a .safetensors file",
    )
    group.add_argument("--from-scratch", action="store_true", help="start from random weights")
    group.add_argument(
        "--size",
        nargs="+",
        action="extend",
        metavar="NAME=N",
        help="sizes for --from-scratch, such as n_feats=32",
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--teacher", help="teacher: zoo:NAME, a .safetensors file or spandrel:PATH (default: set by the recipe)"
    )
    group.add_argument("--steps", type=Numbers(1), help="training steps (default: set by the recipe)")
    group.add_argument(
        "--batch",
        type=Numbers(1, 1_000_000),
        help="patches per step, summed over all processes (default: set by the recipe)",
    )
    group.add_argument(
        "--target-fab",
        type=Numbers(0, FULL_PRECISION, whole=False),
        help="FAB to reach; 0 for no target (default: set by the recipe)",
    )
    group.add_argument(
        "--set", nargs="+", action="extend", metavar="NAME=VALUE", help="change keys of the recipe, such as lr_patch=24"
    )
    group.add_argument("--seed", type=Numbers(0, MOST_SEED), default=0, help="seed of weights and patches (default: 0)")


def _add_photographs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data-root", type=Path, help="folder of training photographs")
    group.add_argument(
        "--bank", type=Path, help="file that python -m cadyq.training.photographs wrote; replaces --data-root"
    )
    group.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="folder for decoded photographs (default: .cache)"
    )


def _add_output_and_hardware(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", type=Path, required=True, help="folder for model.safetensors, training.json and checkpoints"
    )
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_threads_option(group)
    group.add_argument(
        "--workers", type=Numbers(0, MOST_THREADS), default=1, help="threads that prepare batches (default: 1)"
    )
    group.add_argument("--amp", action="store_true", help="run inner convolutions in float16 (CUDA) or bfloat16 (CPU)")
    group.add_argument("--bank-on-device", action="store_true", help="keep the photographs in GPU memory if they fit")
    group.add_argument(
        "--checkpoint-seconds",
        type=Numbers(0, whole=False),
        default=CHECKPOINT_SECONDS,
        help="seconds between two checkpoints (default: %(default)s)",
    )


def recipe_of(args: argparse.Namespace, backbone: str) -> Recipe:
    """The recipe for that backbone with what the command line changes.

    Raises:
        UserError: a key of --set is wrong, or has an option of its own that is given as well.
    """
    recipe, keys = load_recipe(args.recipe, backbone), parse_options(args.set or (), "--set")
    changes = {"scheme": args.scheme, "steps": args.steps, "batch": args.batch, "target_fab": args.target_fab}
    for key, value in changes.items():
        if value is not None and key in keys:
            raise UserError(f"{key} is given by --{key.replace('_', '-')} and by --set; write it once")
    return recipe.with_settings(args.set or ()).with_changes(**changes)


def parent_of(args: argparse.Namespace) -> Start:
    """The network to start from. The command line must name one.

    Raises:
        UserError: neither a parent nor random weights are asked for, or both; sizes are given for a parent.
    """
    if args.from_scratch and args.init:
        raise UserError(f"--from-scratch and --model {args.init} exclude each other; give one of them")
    if args.from_scratch:
        if not args.backbone:
            raise UserError("--from-scratch: the backbone is missing; give --backbone NAME")
        return random_parent(args.backbone, args.scale or DEFAULT_SCALE, args.size or ())
    if not args.init:
        raise UserError(
            f"recipe {args.recipe!r} starts from a network: give --model FILE, or --from-scratch for random weights"
        )
    if args.size:
        raise UserError(
            f"--size {' '.join(args.size)}: sizes are those of --model {args.init}; leave the option out, or give "
            "--from-scratch instead of --model"
        )
    return load_parent(args.init, args.backbone, args.scale)


def bank_of(
    args: argparse.Namespace, recipe: Recipe, scale: int, teacher: SRNetwork | None, device: torch.device
) -> PatchDataset:
    """All photographs, with the teacher's outputs if the loss asks for them."""
    if (args.data_root is None) == (args.bank is None):
        raise UserError("training photographs: give one of --data-root DIR and --bank FILE")
    photographs = find_photographs(args.data_root) if args.data_root else open_bank_file(args.bank)
    side = max(recipe.lr_patch, SIDE)
    why = f", which calibration needs beside lr_patch={recipe.lr_patch}" if side > recipe.lr_patch else ""
    bank = load_bank(photographs, scale, side, args.cache, why)
    return with_outputs(bank, teacher, args.cache, device) if teacher and recipe.weight_teacher else bank


def on_device(bank: PatchDataset, device: torch.device) -> PatchDataset:
    """The bank on the device if it fits, else as it is."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if bank.nbytes() > DEVICE_SHARE * free:
            sizes = f"{bank.nbytes() / 2**30:.1f} GiB of photographs, {free / 2**30:.1f} GiB free"
            logging.warning("--bank-on-device: %s; the photographs stay in main memory", sizes)
            return bank
    return bank.to(device)


def provenance_of(
    args: argparse.Namespace, recipe: Recipe, parent: Start, parts: tuple[PatchDataset, PatchDataset]
) -> dict[str, Any]:
    """The facts of parent, data and command for training.json."""
    source = args.data_root or args.bank
    facts = {
        "backbone": parent.network.name,
        "scheme": canonical(recipe.scheme),
        "scale": parent.network.scale,
        "data": f"{source.name}: {len(parts[0].images)} photographs, {len(parts[1].images)} more held out",
        "data_sha256": [part.sha256() for part in parts],
        "torch": torch.__version__,
        "parent": parent.facts,
        "mixed_precision": args.amp,
    }
    authors = authors_name(parent)
    return facts | ({"builds_on": authors} if authors else {})


def start_of(args: argparse.Namespace) -> tuple[Start, Recipe, Start | None]:
    """The parent, the recipe for it, and the teacher if the recipe has one.

    Raises:
        UserError: see `parent_of`, `recipe_of` and `load_teacher`; the parent cannot be trained under the scheme.
    """
    parent = parent_of(args)
    recipe = recipe_of(args, parent.network.name)
    if parent.untrained and recipe.scheme != "fp32":
        raise UserError(
            f"--model {args.init}: was trained at another scale than x{args.scale}; "
            f"train it with --recipe fp32 --scale {args.scale} before it is quantized"
        )
    require_trainable(parent.network, recipe.scheme)
    teacher = load_teacher(args.teacher, recipe, parent)
    return parent, recipe if teacher else recipe.without_teacher(), teacher


def network_of(
    parent: SRNetwork, guide: SRNetwork | None, recipe: Recipe, training: PatchDataset, device: torch.device
) -> SRNetwork:
    """The network to train, under the scheme of the recipe, calibrated on the photographs, on the device."""
    reference = calibration_network(parent, guide).cpu()
    network = quantized_from(parent, reference, recipe.scheme, bank_patches(training), recipe.scheme_options)
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def train(args: argparse.Namespace, processes: Processes) -> Path:
    """Run what the command line asks for; return the path of the trained full-precision model."""
    check_zoo(args.zoo)  # a new zoo is made
    open_networks(args)
    check_outputs(args.out, inputs=[args.init, args.teacher, args.bank])
    device = processes.device
    torch.manual_seed(args.seed)
    parent, recipe, teacher = start_of(args)
    require_resumable(args.out, asdict(recipe), args.seed)
    processes.share(recipe.batch)
    guide = teacher.network if teacher else None
    training, held_out = processes.in_turn(lambda: bank_of(args, recipe, parent.network.scale, guide, device)).split()
    network = network_of(parent.network, guide, recipe, training, device)
    processes.same_start(network)
    if args.amp:
        use_half_precision(network, device)
    facts = provenance_of(args, recipe, parent, (training, held_out)) | {
        "teacher_sha256": teacher.facts["sha256"] if teacher else None,
        "device": device.type,
        "processes": processes.count,
    }
    with processes.alone_in(args.out):
        return Trainer(
            network=network,
            recipe=recipe,
            bank=on_device(training, device) if args.bank_on_device else training,
            held_out=held_out,
            out=args.out,
            provenance=facts,
            seed=args.seed,
            teacher=guide,
            processes=processes,
            settings=Settings(args.workers, args.amp, args.checkpoint_seconds),
        ).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = build_parser().parse_args(argv)

    def act() -> None:
        if args.threads:
            torch.set_num_threads(args.threads)
        processes = join(choose_device(args.device))
        try:
            path = train(args, processes)
        finally:
            leave(processes)
        if processes.first:
            print(path)
            if args.zoo is not None:
                print(add_run_to_zoo(args.out, "", args.zoo))

    return exit_status(act, args.debug, kept=holds(args.out, "checkpoint.pt", "model.safetensors"))


if __name__ == "__main__":
    sys.exit(main())
