"""The losses of training: distances to HR, to a teacher's output and to a teacher's attention."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadyq.models.network import SRNetwork
from cadyq.training.patches import Batch
from cadyq.training.recipes import Recipe
from cadyq.utils.errors import UserError


def reconstruction_loss(recipe: Recipe, sr: Tensor, batch: Batch) -> Tensor:
    """Weighted L1 distances of `sr` (B, 3, h scale, w scale) to the teacher's output and to HR, a scalar in grey
    levels.

    Raises:
        UserError: the recipe needs a teacher and there is none.
    """
    if not recipe.weight_teacher:
        return recipe.weight_hr * (sr - batch.hr).abs().mean()
    if batch.teacher is None:
        raise UserError(f"weight_teacher={recipe.weight_teacher} needs a teacher: give --teacher, or set it to 0")
    return recipe.weight_teacher * (sr - batch.teacher).abs().mean() + recipe.weight_hr * (sr - batch.hr).abs().mean()


def attention_map(features: Tensor) -> Tensor:
    """a(x): the mean over channels of x^2, flattened and L2-normalized. (B, C, H, W) to (B, H W)."""
    return F.normalize(features.square().mean(1).flatten(1))


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """AT(x, y) = mean((a(x) - a(y))^2) (Zagoruyko and Komodakis 2017; as in PAMS, Sec. 3.4, and CADyQ, Sec. 3.4)."""
    return (attention_map(student) - attention_map(teacher)).square().mean()


class AttentionTaps:
    """Keeps the feature maps for attention transfer, of the forwards inside `with taps:`.

    Attributes:
        features: input of the upsampler.
        branches: outputs of the blocks' branches, in order. A module that runs three times gives three.

    Raises:
        UserError: the network does not name the modules that the recipe needs.
    """

    def __init__(self, network: SRNetwork, recipe: Recipe) -> None:
        modules = dict(network.named_modules())
        self._upsampling = [modules[network.upsampling]] if network.upsampling in modules else []
        self._branches = [m for name, m in modules.items() if any(fnmatchcase(name, p) for p in network.branches)]
        if recipe.weight_at_features and not self._upsampling:
            raise UserError(_lacks(network, "module before which it upsamples", "weight_at_features"))
        if recipe.weight_at_branches and not self._branches:
            raise UserError(_lacks(network, "branches of blocks", "weight_at_branches"))
        self.features: list[Tensor] = []
        self.branches: list[Tensor] = []

    def __enter__(self) -> AttentionTaps:
        self.features, self.branches = [], []
        self._hooks: list[Any] = [m.register_forward_pre_hook(self._keep_input) for m in self._upsampling]
        self._hooks += [module.register_forward_hook(self._keep_output) for module in self._branches]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features.append(inputs[0].clone())

    def _keep_output(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.branches.append(output.clone())  # the network may add its shortcut into it


def _lacks(network: SRNetwork, what: str, key: str) -> str:
    return (
        f"{network.name} defines no {what} for attention transfer; set {key} = 0 in the recipe, "
        "or define them in its class"
    )


class AttentionTransfer:
    """Attention transfer from a teacher that runs on the same patches as the network.

    Attributes:
        taps: the network's forward must run inside `with transfer.taps:`.
    """

    def __init__(self, network: SRNetwork, teacher: SRNetwork, recipe: Recipe) -> None:
        self.recipe = recipe
        self.teacher = teacher.eval().requires_grad_(False)
        self.taps, self._teacher_taps = AttentionTaps(network, recipe), AttentionTaps(self.teacher, recipe)

    def loss(self, lr: Tensor) -> Tensor:
        """The weighted distances (a scalar), after the network's forward on `lr` (B, 3, h, w) in 0..255."""
        with torch.no_grad(), self._teacher_taps as teacher:
            self.teacher(lr)
        total = lr.new_zeros(())
        if self.recipe.weight_at_features:
            distances = _distances(self.taps.features, teacher.features)
            total = total + self.recipe.weight_at_features * distances
        if self.recipe.weight_at_branches:
            total = total + self.recipe.weight_at_branches * _distances(self.taps.branches, teacher.branches)
        return total


def _distances(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    if len(student) != len(teacher):
        raise UserError(
            f"the teacher has {len(teacher)} block branches, the network {len(student)}: attention transfer needs a "
            "teacher of the same sizes"
        )
    pairs = zip(student, teacher, strict=True)
    return torch.stack([attention_distance(own, other) for own, other in pairs]).sum()
