"""`python -m cadyq.train`: fine-tune a quantized network from a trained parent."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from cadyq.checkpoints.io import load_model, resolve
from cadyq.cli import exit_status
from cadyq.data.images import sha256_file
from cadyq.errors import UserError
from cadyq.models.network import SRNetwork
from cadyq.plugins import add_plugin_option, load_plugins
from cadyq.training.calibration import calibrated, observe
from cadyq.training.photographs import PatchBank, find_photographs, load_bank
from cadyq.training.recipes import load_recipe
from cadyq.training.trainer import Trainer

HELD_OUT = 8
CALIBRATION_PATCHES = 64
CALIBRATION_SIDE = 48


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cadyq.train", description=__doc__)
    parser.add_argument("--recipe", required=True, help="finetune, cadyq, or a .toml file")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--scheme", help="as in pams:w4a4; the recipe's by default")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--init", required=True, help="trained parent: zoo:NAME or a .safetensors file")
    parser.add_argument("--teacher", help="FP32 network whose output is a target; default zoo:BACKBONE_xSCALE_fp32")
    parser.add_argument("--data-root", type=Path, required=True, help="folder of training photographs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="decoded photographs are kept here")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--target-fab", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    add_plugin_option(parser)
    return parser


def quantized_from(parent: SRNetwork, teacher: SRNetwork, spec: str, patches: torch.Tensor) -> SRNetwork:
    """A network of `parent`'s backbone and weights under scheme `spec`, calibrated, ranges inherited."""
    network = calibrated(parent, spec, observe(teacher, patches))
    for key, point in network.points.items():
        before = parent.points[key].quantizer
        if point.quantizer is not None and before is not None:
            point.quantizer.inherit(before)
    return network


def calibration_patches(bank: PatchBank) -> torch.Tensor:
    """The LR patches that calibration sees, the same for every scheme."""
    return bank.batch(seed=0, step=0, size=CALIBRATION_PATCHES, lr_patch=CALIBRATION_SIDE).lr


def parent_facts(init: str) -> dict[str, Any]:
    """Name and hash of the parent; if it was trained by this command, its own training facts as well."""
    path = resolve(init)
    facts: dict[str, Any] = {
        "name": path.parent.name if path.stem == "model" else path.stem,
        "sha256": sha256_file(path),
    }
    trained = path.with_name("training.json")
    if trained.exists():
        facts["training"] = json.loads(trained.read_text())
        facts["training"].pop("history")
    return facts


def train(args: argparse.Namespace) -> Path:
    """Run what the command line asks for; return the path of the trained full-precision model."""
    load_plugins(args.plugin)
    recipe = load_recipe(args.recipe).with_changes(
        scheme=args.scheme, steps=args.steps, batch=args.batch, target_fab=args.target_fab
    )
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    teacher_source = args.teacher or f"zoo:{args.backbone}_x{args.scale}_fp32"
    teacher, parent = load_model(teacher_source), load_model(args.init)
    for source, network in ((teacher_source, teacher), (args.init, parent)):
        if (network.name, network.scale) != (args.backbone, args.scale):
            raise UserError(
                f"{source}: is {network.name} x{network.scale}, not {args.backbone} x{args.scale}; "
                "name its --backbone and --scale, or another file"
            )
    paths = find_photographs(args.data_root)
    bank = load_bank(paths, teacher, max(recipe.lr_patch, CALIBRATION_SIDE), args.cache)
    training = PatchBank(bank.images[:-HELD_OUT], bank.scale)
    held_out = PatchBank(bank.images[-HELD_OUT:], bank.scale)
    network = quantized_from(parent, teacher, recipe.scheme, calibration_patches(training))
    network.to(device=args.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    provenance = {
        "backbone": args.backbone,
        "scheme": recipe.scheme,
        "scale": args.scale,
        "data": f"{args.data_root.name}: {len(training.images)} photographs, {len(held_out.images)} more held out",
        "parent": parent_facts(args.init),
        "teacher_sha256": sha256_file(resolve(teacher_source)),
        "device": args.device,
        "torch": torch.__version__,
    }
    return Trainer(network, recipe, training, held_out, args.out, provenance, args.seed).run()


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = build_parser().parse_args()
    return exit_status(lambda: print(train(args)))


if __name__ == "__main__":
    sys.exit(main())
