"""How long a training step of a quantized network takes, against an FP32 step of the same network.

`python benchmarks/train_step.py [--threads N]`: EDSR, batch 16, LR patches 24x24. The steps are those of
`cadyq.training`, from the crops to the optimizer; schemes take turns, so that a busy machine slows all of them alike,
and processor time is given beside the time on the clock. The published code takes 1.87 FP32 steps for a CADyQ step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

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


def seconds_of_a_step(trainer: Trainer) -> tuple[float, float]:
    """On the clock, and of all processor cores together."""
    started, busy = time.perf_counter(), time.process_time()
    trainer.train_step()
    trainer.step += 1
    return time.perf_counter() - started, time.process_time() - busy


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
        seconds: dict[str, list[tuple[float, float]]] = {scheme: [] for scheme in SCHEMES}
        for trainer in trainers.values():
            seconds_of_a_step(trainer)  # allocations and choice of algorithms
        for _ in range(args.repetitions):
            for scheme, trainer in trainers.items():
                seconds[scheme].append(seconds_of_a_step(trainer))
    print(f"{args.backbone}, batch {args.batch}, LR 24x24, {args.threads} threads, {args.repetitions} repetitions")
    print("| scheme | median ms | ratio | median processor ms | ratio |\n|---|---:|---:|---:|---:|")
    medians = {s: [statistics.median(column) for column in zip(*v, strict=True)] for s, v in seconds.items()}
    for scheme, values in medians.items():
        cells = [f"{1000 * v:.0f} | {v / fp32:.2f}" for v, fp32 in zip(values, medians["fp32"], strict=True)]
        print(f"| {scheme} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
