"""The trainer: Adam by a recipe, in one process or several, with checkpoints that resume bit-exactly."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadyq.checkpoints.io import save_model
from cadyq.models.network import SRNetwork
from cadyq.quantizers.trace import Trace, trace_forward
from cadyq.training.bit_controller import BitController, bit_loss, growing_weight
from cadyq.training.checkpoint import read_checkpoint, require_same, write_checkpoint
from cadyq.training.distributed import Processes
from cadyq.training.gradients import backward
from cadyq.training.logs import History, Row, TensorBoard, TrainingProgress
from cadyq.training.losses import AttentionTransfer, reconstruction_loss
from cadyq.training.optimization import WeightAverage, freeze_fp32_layers, parameter_groups, rate_factor
from cadyq.training.patches import Batch, PatchDataset, Prefetcher
from cadyq.training.recipes import Recipe
from cadyq.training.validation import validate
from cadyq.utils.errors import UserError
from cadyq.utils.files import remove_leftovers, write_text
from cadyq.utils.modes import in_eval
from cadyq.utils.seeds import repeatable

CHECKPOINT_SECONDS = 120.0
MOST_FORWARDS = 16  # in which a network that skips layers at random has to meet each of them once
BOARD_EVERY = 20  # steps between points on TensorBoard
IDENTITY = ("backbone", "scheme", "scale", "data", "data_sha256", "mixed_precision", "parent", "teacher_sha256")


@dataclass(frozen=True)
class Settings:
    """How a run is executed. Only mixed precision changes the result, by rounding.

    Attributes:
        workers: threads that crop the next batches.
        mixed_precision: whether the network multiplies in half precision, see `use_half_precision`. On a GPU the loss
            is then scaled.
        checkpoint_seconds: seconds between checkpoints. There is also one after each validation.
    """

    workers: int = 0
    mixed_precision: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS


class Trainer:
    """Trains `network` by `recipe`.

    Args:
        network: initialized, on the device to train on.
        recipe: see `Recipe`.
        bank: training photographs.
        held_out: photographs to validate on.
        out: folder for checkpoint.pt, history.csv, model.safetensors and training.json. An unfinished run resumes.
        provenance: further facts for training.json (parent, data, command).
        seed: seed of the batches.
        teacher: teacher of attention transfer, for recipes with it.
        processes: processes of this training.
        settings: see `Settings`.
    """

    def __init__(
        self,
        network: SRNetwork,
        recipe: Recipe,
        bank: PatchDataset,
        held_out: PatchDataset,
        out: Path,
        provenance: dict[str, Any],
        seed: int,
        teacher: SRNetwork | None = None,
        processes: Processes | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.network = network
        self.recipe, self.bank, self.held_out, self.out, self.seed = recipe, bank, held_out, out, seed
        self.provenance = provenance
        self.processes, self.settings = processes or Processes(), settings or Settings()
        self.device = next(network.parameters()).device
        self._training_mode()
        if recipe.trained_layers == "quantized":
            freeze_fp32_layers(network)
        self.optimizer = torch.optim.Adam(parameter_groups(network, recipe), lr=0.0)
        self.bases = [group["base"] for group in self.optimizer.param_groups]
        scaled = self.settings.mixed_precision and self.device.type == "cuda"  # float16 underflows, bfloat16 does not
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.bit_controller = BitController(recipe.target_fab, recipe.steer)
        self.average = WeightAverage(network, recipe.average) if recipe.average else None
        self.attention = _attention(network, teacher, recipe)
        self.batches = Prefetcher(self._batch, recipe.steps, self.settings.workers)
        self.history = History(out / "history.csv")
        self.step = 0
        self.seconds = 0.0

    @property
    def measured(self) -> SRNetwork:
        """The network that is measured and saved."""
        return self.network if self.average is None else self.average.network

    def run(self) -> Path:
        """Train to the last step; return the path of the full-precision model.

        Raises:
            UserError: training would not meet all quantization points, the folder holds another run, or the loss is not
                finite.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self._finished():
            return self.out / "model.safetensors"
        self._resume()
        recipe, before = self.recipe, self.seconds
        if self.step < recipe.steps:
            _require_points(self.network, self.bank.batch(self.seed, 0, 2, recipe.lr_patch).lr.to(self.device))
        first = self.processes.first
        progress = TrainingProgress(self.out.name, self.step, recipe.steps, recipe.batch, first)
        board = TensorBoard(self.out / "tensorboard", self.step) if first else None
        saved = time.monotonic()
        try:
            while self.step < recipe.steps:
                row = self.train_step()
                self.step += 1
                self.seconds = before + progress.seconds()
                progress.advance(self.step, row)
                measuring = self.step % recipe.validate_every == 0 or self.step == recipe.steps
                if measuring:
                    self._measure(row)
                    progress.measured(self.step, row)
                if board and (measuring or self.step % BOARD_EVERY == 0):
                    board.add(row)
                if measuring or time.monotonic() - saved > self.settings.checkpoint_seconds:
                    self._save(self.seconds)
                    saved = time.monotonic()
        finally:
            self.batches.close()
            progress.close()
            if board:
                board.close()
        return self._finish()

    def _batch(self, step: int) -> Batch:
        recipe, share = self.recipe, self.processes.share(self.recipe.batch)
        where = (self.seed, step, recipe.batch, recipe.lr_patch)
        return self.bank.batch(*where, share, recipe.augment, recipe.hard_patch_candidates)

    def train_step(self) -> Row:
        """Run one step of the optimizer and return the row of its log."""
        recipe = self.recipe
        # random draws of a step are the same after a resume, and differ between processes
        torch.manual_seed((self.seed * 1_000_003 + self.step) * self.processes.count + self.processes.rank)
        batch = self.batches.get(self.step).to(self.device)
        rate = rate_factor(recipe, self.step)
        for group, base in zip(self.optimizer.param_groups, self.bases, strict=True):
            group["lr"] = rate * base
        loss, trace = self._forward(batch)
        fab = self.processes.mean([float(trace.fab().mean())])[0]
        weight_bits = self.bit_controller.update(fab) if recipe.target_fab else growing_weight(recipe, self.step)
        loss = loss + bit_loss(trace, weight_bits, recipe)
        value = self.processes.mean([float(loss.detach())])[0]
        if not -float("inf") < value < float("inf"):
            raise UserError(self._not_finite(value))
        self.optimizer.zero_grad(set_to_none=True)
        auxiliary = trace.auxiliary_loss()
        losses = [loss] if auxiliary is None else [loss, auxiliary.mean()]
        backward(self.network, [self.scaler.scale(one) for one in losses], self.processes)
        self.processes.average_statistics(self.network)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.network, self.step)
        return {"step": self.step, "loss": value, "fab": fab, "bit_weight": weight_bits}

    def _forward(self, batch: Batch) -> tuple[Tensor, Trace]:
        """The loss without the bit penalty, and the trace."""
        lr = batch.lr.contiguous(memory_format=torch.channels_last)
        if self.attention is None:
            sr, trace = trace_forward(self.network, lr)
            return reconstruction_loss(self.recipe, sr, batch), trace
        with self.attention.taps:
            sr, trace = trace_forward(self.network, lr)
        return reconstruction_loss(self.recipe, sr, batch) + self.attention.loss(lr), trace

    def _not_finite(self, loss: float) -> str:
        checkpoint = self.out / "checkpoint.pt"
        good = f"the last good state is {checkpoint}" if checkpoint.exists() else "no checkpoint was written yet"
        recipe = self.recipe
        names = ", ".join(
            self.bank.names_of(self.seed, self.step, recipe.batch, recipe.lr_patch, recipe.hard_patch_candidates)
        )
        return (
            f"{self.out}: the loss is {loss} at step {self.step} (seed {self.seed}), on a batch of {names}; {good}; "
            "lower the learning rates or leave those photographs out"
        )

    def _measure(self, row: Row) -> None:
        """Add the validation on held-out photographs to the row, and pass its FAB to the bit controller."""
        psnr, fab = validate(self.measured, self.held_out)
        self._training_mode()
        self.bit_controller.validated(fab)
        row |= {"held_out_psnr_db": psnr, "held_out_fab": fab, "seconds": round(self.seconds, 1)}
        self.history.rows.append(row)

    def _training_mode(self) -> None:
        self.network.train()
        if self.recipe.batch_norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _identity(self) -> dict[str, Any]:
        """The facts that a run and a checkpoint must share to resume."""
        facts = {key: self.provenance[key] for key in IDENTITY if key in self.provenance}
        return dict(json.loads(json.dumps({"recipe": asdict(self.recipe), "seed": self.seed} | facts)))

    def _save(self, seconds: float) -> None:
        if not self.processes.first:
            return
        state = {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bit_controller": self.bit_controller.state(),
            "step": self.step,
            "seconds": seconds,
            "history": self.history.rows,
            "identity": self._identity(),
        }
        write_checkpoint(state, self.out / "checkpoint.pt")
        self.history.write()

    def _resume(self) -> None:
        path = self.out / "checkpoint.pt"
        state = read_checkpoint(path, self.device) if path.exists() else None
        self.processes.wait()  # before the first process may write another one
        if state is not None:
            require_same(state.get("identity"), self._identity(), path)
            self.network.load_state_dict(state["network"])
            if self.average:
                self.average.network.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.bit_controller.load(state["bit_controller"])
            self.step, self.seconds = state["step"], state["seconds"]
        if self.processes.first:
            self.history.restore(state["history"] if state is not None else [])

    def _finished(self) -> bool:
        """Whether the run has ended and removed its checkpoint."""
        facts_file = self.out / "training.json"
        if (self.out / "checkpoint.pt").exists() or not facts_file.exists():
            return False
        facts = json.loads(facts_file.read_text())
        own = self._identity()
        require_same({key: facts[key] for key in own if key in facts}, own, facts_file)
        return (self.out / "model.safetensors").exists()

    def _finish(self) -> Path:
        path = self.out / "model.safetensors"
        if self.processes.first:
            self.bit_controller.warn_if_missed(self.history.rows[-1]["held_out_fab"])
            save_model(self.measured.eval(), path, parent=self.provenance.get("builds_on", ""))
            facts = self.provenance | {
                "recipe": asdict(self.recipe),
                "seed": self.seed,
                "seconds": round(self.seconds),
                "history": self.history.rows,
            }
            # the checkpoint is removed last: until then the same command finishes the run
            write_text(self.out / "training.json", json.dumps(facts, indent=1, sort_keys=True))
            (self.out / "checkpoint.pt").unlink(missing_ok=True)
            remove_leftovers(self.out)
        self.processes.wait()
        return path


@torch.no_grad()
def _require_points(network: SRNetwork, lr: Tensor) -> None:
    """Raises UserError if forwards in training mode, the mode of `network`, do not meet all points of eval mode.

    A network that merges layers in eval mode would learn no ranges there. One that skips layers at random, as
    stochastic depth does, meets each of them in some forwards.
    """
    plain = network.without_scheme()  # a copy, since layers such as batch normalization learn in each forward
    with in_eval(plain):
        missing = set(trace_forward(plain, lr)[1].records)
    for seed in range(MOST_FORWARDS):
        if missing:
            with repeatable(seed):
                missing -= set(trace_forward(plain, lr)[1].records)
    if missing:
        raise UserError(
            f"{network.name}: training would not meet the quantization point {min(missing)!r}, since the network "
            "computes differently in training mode; leave the layer out with exclude=[...], or use a scheme without "
            "training"
        )


def _attention(network: SRNetwork, teacher: SRNetwork | None, recipe: Recipe) -> AttentionTransfer | None:
    if not recipe.transfers_attention:
        return None
    if teacher is None:
        raise UserError(f"recipe {recipe.name!r} uses attention transfer; give --teacher, or set its weights to 0")
    return AttentionTransfer(network, teacher.to(next(network.parameters()).device), recipe)
