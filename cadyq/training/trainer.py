"""The trainer: Adam with a learning rate for each kind of parameter, cosine schedule, checkpoints that resume."""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cadyq.checkpoints.io import save_model
from cadyq.errors import UserError
from cadyq.models.network import SRNetwork, trace_forward
from cadyq.training.photographs import PatchBank
from cadyq.training.recipes import Recipe

CHECKPOINT_SECONDS = 120.0
WARMUP_STEPS = 20
BATCH_DECAY = 0.9  # of the running mean of the batches' FAB
PROPORTIONAL = 40.0  # the steering's answer to the present difference, in steps of its integral


def parameter_groups(network: SRNetwork, recipe: Recipe) -> list[dict[str, Any]]:
    """Adam groups: weights, selectors, and each clipping bound in units of its own size."""
    groups: list[dict[str, Any]] = []
    selectors: list[nn.Parameter] = []
    quantizer_parameters: set[nn.Parameter] = set()
    for point in network.points.values():
        for name, parameter in point.quantizer.named_parameters() if point.quantizer else ():
            quantizer_parameters.add(parameter)
            if point.quantizer is not None and point.quantizer.learning_role(name) == "selector":
                selectors.append(parameter)
            else:
                size = float(parameter.detach().abs().mean())
                groups.append({"params": [parameter], "base": recipe.rate_range * size})
    for conv in network.conv_names:
        for parameter in conv.weight_quantizer.parameters() if conv.weight_quantizer else ():
            quantizer_parameters.add(parameter)
            groups.append({"params": [parameter], "base": recipe.rate_range * float(parameter.detach().abs().mean())})
    weights = [parameter for parameter in network.parameters() if parameter not in quantizer_parameters]
    groups.append({"params": weights, "base": recipe.rate_weights})
    if selectors:
        groups.append({"params": selectors, "base": recipe.rate_selector})
    return groups


class BitSteering:
    """Moves the bit penalty's weight until held-out photographs reach the target FAB (a PI controller).

    Deviations are larger over a whole photograph than over a training patch, so the selector gives it more bits. The
    difference is measured at every validation and added to what the batches show in between.
    """

    def __init__(self, target: float, speed: float) -> None:
        self.target = target
        self.speed = speed
        self.integral = 0.0
        self.offset = 0.0
        self.batches = 0.0

    def update(self, fab: float) -> float:
        """The penalty's weight for a batch of that FAB; negative where more bits are wanted."""
        if not self.target:
            return 0.0
        self.batches = fab if not self.batches else BATCH_DECAY * self.batches + (1 - BATCH_DECAY) * fab
        excess = fab + self.offset - self.target
        self.integral += self.speed * excess
        return self.integral + PROPORTIONAL * self.speed * excess

    def validated(self, fab: float) -> None:
        """Take in the FAB of the held-out photographs."""
        self.offset = fab - self.batches

    def state(self) -> dict[str, float]:
        return {"integral": self.integral, "offset": self.offset, "batches": self.batches}

    def load(self, state: dict[str, float]) -> None:
        self.integral, self.offset, self.batches = state["integral"], state["offset"], state["batches"]


class Trainer:
    """Trains `network` by `recipe`.

    Args:
        network: initialized, on the device to train on.
        recipe: see `Recipe`.
        bank: training photographs.
        held_out: photographs to measure on, of the same form.
        out: folder for checkpoint.pt, history.csv, model.safetensors and training.json. An unfinished run resumes.
        provenance: what else goes into training.json (parent, data, command).
        seed: of the batches.
    """

    def __init__(
        self,
        network: SRNetwork,
        recipe: Recipe,
        bank: PatchBank,
        held_out: PatchBank,
        out: Path,
        provenance: dict[str, Any],
        seed: int,
    ) -> None:
        self.network = network.train()
        self.recipe, self.bank, self.held_out, self.out, self.seed = recipe, bank, held_out, out, seed
        self.provenance = provenance
        self.optimizer = torch.optim.Adam(parameter_groups(network, recipe), lr=0.0)
        self.bases = [group["base"] for group in self.optimizer.param_groups]
        self.steering = BitSteering(recipe.target_fab, recipe.steer)
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.device = next(network.parameters()).device

    def run(self) -> Path:
        """Train to the last step; return the path of the full-precision model."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        started = saved = time.monotonic()
        bar = tqdm(total=self.recipe.steps, initial=self.step, disable=None, desc=self.out.name)
        while self.step < self.recipe.steps:
            row = self._train_step()
            self.step += 1
            bar.update()
            now = time.monotonic()
            if self.step % self.recipe.validate_every == 0 or self.step == self.recipe.steps:
                self._report(row, self.seconds + now - started)
            if now - saved > CHECKPOINT_SECONDS:
                self._save(self.seconds + now - started)
                saved = now
        bar.close()
        self.seconds += time.monotonic() - started
        return self._finish()

    def _train_step(self) -> dict[str, float]:
        recipe = self.recipe
        batch = self.bank.batch(self.seed, self.step, recipe.batch, recipe.lr_patch)
        lr, hr, teacher = (part.to(self.device) for part in (batch.lr, batch.hr, batch.teacher))
        rate = min(1.0, (self.step + 1) / WARMUP_STEPS)
        rate *= 0.5 * (1 + math.cos(math.pi * self.step / recipe.steps))
        for group, base in zip(self.optimizer.param_groups, self.bases, strict=True):
            group["lr"] = rate * base
        sr, trace = trace_forward(self.network, lr.contiguous(memory_format=torch.channels_last))
        loss = recipe.weight_teacher * (sr - teacher).abs().mean() + recipe.weight_hr * (sr - hr).abs().mean()
        fab = float(trace.fab().mean())
        weight_bits = self.steering.update(fab)
        if weight_bits:
            selectors = sum(record.bit_penalty is not None for record in trace.records.values())
            loss = loss + weight_bits * trace.bit_penalty().mean() / selectors
        if not bool(loss.isfinite()):
            raise UserError(
                f"{self.out}: the loss is {float(loss.detach())} at step {self.step} (seed {self.seed}); "
                f"the last good state is {self.out / 'checkpoint.pt'}; lower the learning rates"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {"step": self.step, "loss": float(loss.detach()), "fab": fab, "bit_weight": weight_bits}

    def _report(self, row: dict[str, float], seconds: float) -> None:
        psnr, fab = self._validate()
        self.steering.validated(fab)
        row |= {"held_out_psnr_db": psnr, "held_out_fab": fab, "seconds": round(seconds, 1)}
        self.history.append(row)
        if not sys.stderr.isatty():
            print(" ".join(f"{key}={value:.5g}" for key, value in row.items()), flush=True)

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """PSNR over RGB (border 4) and FAB on the held-out photographs, image-wise, mean over photographs."""
        self.network.eval()
        psnrs, fabs = [], []
        for lr, hr, _ in self.held_out.images:
            sr, trace = trace_forward(self.network, lr[None].float().to(self.device))
            psnrs.append(_psnr_rgb(sr[0].cpu(), hr, self.held_out.scale))
            fabs.append(float(trace.fab()))
        self.network.train()
        return sum(psnrs) / len(psnrs), sum(fabs) / len(fabs)

    def _save(self, seconds: float) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steering": self.steering.state(),
            "step": self.step,
            "seconds": seconds,
            "history": self.history,
            "recipe": asdict(self.recipe),
            "seed": self.seed,
        }
        temporary = self.out / ".checkpoint.part"
        torch.save(state, temporary)
        temporary.replace(self.out / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe) or state["seed"] != self.seed:
            raise UserError(f"{path}: was made by another recipe or seed; give another --out or remove it")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steering.load(state["steering"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def _finish(self) -> Path:
        path = self.out / "model.safetensors"
        save_model(self.network.eval(), path)
        with (self.out / "history.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[-1]))
            writer.writeheader()
            writer.writerows(self.history)
        facts = self.provenance | {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "seconds": round(self.seconds),
            "history": self.history,
        }
        (self.out / "training.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
        (self.out / "checkpoint.pt").unlink(missing_ok=True)
        return path


def _psnr_rgb(sr: Tensor, hr: Tensor, border: int) -> float:
    error = sr.clamp(0, 255).round() - hr.float()
    return float(-10 * torch.log10((error[:, border:-border, border:-border] / 255).square().mean()))
