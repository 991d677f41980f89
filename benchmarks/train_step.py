"""How long a training step of a quantized network takes, against an FP32 step of the same network.

`python benchmarks/train_step.py [--threads N]`: EDSR, batch 16, LR patches 24x24. The steps are those of
`cadyq.training`, from the crops to the optimizer; schemes take turns, so that a busy machine slows all of them alike,
and processor time is given beside the time on the clock. The published code takes 1.87 FP32 steps for a CADyQ step.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from timing import Seconds, table, take_turns

import cadyq
from cadyq.data.datasets import photographs
from cadyq.training.patches import PatchDataset
from cadyq.training.recipes import load_recipe
from cadyq.training.start import bank_patches, quantized_from
from cadyq.training.trainer import Trainer

SCHEMES = ("fp32", "pams:w8a8", "cadyq")


def trainer_of(scheme: str, backbone: str, bank: PatchDataset, batch: int, out: Path) -> Trainer:
    """A trainer at its first step, random weights, no teacher."""
    recipe = load_recipe("paper", backbone).without_teacher().with_changes(batch=batch, lr_patch=24, scheme=scheme)
    torch.manual_seed(0)
    parent = cadyq.create_model(backbone)
    network = quantized_from(parent, parent, scheme, bank_patches(bank), recipe.scheme_options)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trainer(network, recipe, bank, bank, out / scheme, {}, seed=0)


def one_step(trainer: Trainer) -> None:
    trainer.train_step()
    trainer.step += 1


def row(scheme: str, seconds: Seconds, fp32: Seconds) -> list[str]:
    cells = [[f"{1000 * mine:.0f}", f"{mine / full:.2f}"] for mine, full in zip(seconds, fp32, strict=True)]
    return [scheme, *cells[0], *cells[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="edsr")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bank = PatchDataset([(pair.lr, pair.hr) for pair in photographs(4)], 4)
    with tempfile.TemporaryDirectory() as out:
        trainers = {s: trainer_of(s, args.backbone, bank, args.batch, Path(out)) for s in SCHEMES}
        seconds = take_turns({s: partial(one_step, trainer) for s, trainer in trainers.items()}, args.repetitions)
    print(f"{args.backbone}, batch {args.batch}, LR 24x24, {args.threads} threads, {args.repetitions} repetitions")
    heads = ["scheme", "median ms", "ratio", "median processor ms", "ratio"]
    print(table(heads, [row(scheme, mine, seconds["fp32"]) for scheme, mine in seconds.items()]))


if __name__ == "__main__":
    main()
