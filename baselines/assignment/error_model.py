"""The squared error of a patch as a quadratic form of its bits. A joint search then needs no forward for each trial.

Let r be the difference between a target and the output with all points at their highest candidates. Let d_pk be the
change of the output when point p alone uses candidate k. Changes add up nearly (`results/sensitivity`). The output with
candidates c then differs from the target by about r + sum_p d_{p,c_p}, and its squared error is

    e(c) = <r, r> + 2 sum_p <r, d_{p,c_p}> + sum_pq <d_{p,c_p}, d_{q,c_q}>.

Measuring the inner products takes P (K - 1) forwards of the patches, each from its point on. Every later search, at any
budget and for any grouping of patches, uses the inner products alone. Errors are those of luma in squared grey levels,
means over pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.models.restartable import PointFunction, TracedForward
from cadyq.quantizers.base import same_for_all
from cadyq.quantizers.context import PatchContext, luma
from cadyq.quantizers.layers import frozen_weights
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.ranges import CandidateActivation

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ErrorModel:
    """The error model of N patches, with P points that count and K candidates.

    All fields are in squared grey levels of luma, means over the pixels of a patch.

    Attributes:
        base: squared error at the highest candidates (N,).
        linear: inner products of r and d_pk (N, P, K).
        gram: inner products of d_pk and d_ql (N, P, K, P, K).
    """

    base: Tensor
    linear: Tensor
    gram: Tensor

    def __getitem__(self, patches: Tensor | slice) -> ErrorModel:
        """The error model of some patches.

        Args:
            patches: indices, int64 (M,), booleans (N,) or a slice.
        """
        return ErrorModel(self.base[patches], self.linear[patches], self.gram[patches])

    def pooled(self, weights: Tensor) -> ErrorModel:
        """The weighted mean over patches as one patch, for a choice that all of them share; `weights` (N,)."""
        share = weights.double() / weights.double().sum()
        parts = (self.base, self.linear, self.gram)
        return ErrorModel(*(torch.einsum("n,n...->...", share.to(part), part)[None] for part in parts))

    def changes_only(self) -> ErrorModel:
        """The squared change of the output instead of its error. `base` is kept, for weights.

        The linear term is dropped. It is mostly noise of HR, and a choice for few patches would fit that noise.
        """
        return ErrorModel(self.base, torch.zeros_like(self.linear), self.gram)

    def sizes_only(self) -> ErrorModel:
        """The sum of the squared changes of single points, as if changes of different points were uncorrelated.

        This is the error that predicted sizes can give. It ignores how changes cancel.
        """
        points = torch.eye(self.linear.shape[1], dtype=self.gram.dtype, device=self.gram.device)
        return replace(self.changes_only(), gram=self.gram * points[:, None, :, None])

    def errors(self, choices: Tensor) -> Tensor:
        """The squared error (N,) of each patch under choices (N, P), or (1, P) for all patches."""
        choices = choices.expand(len(self.base), -1)
        patches, points = torch.arange(len(choices))[:, None], torch.arange(choices.shape[1])
        linear = self.linear[patches, points, choices].sum(1)
        rows = self.gram[patches, points, choices]  # (N, P, P, K)
        pairs = rows.gather(3, choices[:, None, :, None].expand(-1, rows.shape[1], -1, 1))
        return self.base + 2 * linear + pairs.sum((1, 2, 3))

    def descend(self, choices: Tensor, price: Tensor, objective: Objective, sweeps: int = 8) -> Tensor:
        """Coordinate descent of objective(error) + price until no choice changes.

        Args:
            choices: the start (N, P).
            price: price of each candidate at each point (P, K), in units of the objective.
            objective: maps squared errors to costs, element by element; increasing.
            sweeps: how often all points are visited at most.

        Returns:
            The choices (N, P).
        """
        choices = choices.expand(len(self.base), -1).clone()
        patches, points = torch.arange(len(choices)), torch.arange(choices.shape[1])
        # <d_pk, r + sum of the changes chosen at present> of every point and candidate
        chosen = self.gram[patches[:, None], points, choices]  # (N, P, P, K)
        slope = self.linear + chosen.sum(1)
        error = self.errors(choices)
        for _ in range(sweeps):
            before = choices.clone()
            for p in range(choices.shape[1]):
                now = choices[:, p]
                own = self.gram[:, p, :, p, :]  # (N, K, K)
                diagonal, cross = own.diagonal(dim1=1, dim2=2), own[patches, now]
                rest = slope[:, p] - cross  # without the point's own change
                gain = 2 * rest + diagonal
                trial = error[:, None] + gain - gain[patches, now][:, None]
                best = (objective(trial.clamp_min(1e-6)) + price[p]).argmin(1)
                error = trial[patches, best]
                slope = slope + self.gram[patches, p, best] - self.gram[patches, p, now]
                choices[:, p] = best
            if torch.equal(before, choices):
                break
        return choices


@torch.no_grad()
def measure_changes(
    network: SRNetwork, lr: Tensor, targets: Sequence[Tensor], masks: Tensor, batch: int = 16
) -> list[list[ErrorModel]]:
    """The error models of a network for some targets and some parts of the pixels.

    Args:
        network: in eval mode, of a scheme with candidates at every point that counts.
        lr: patches (N, 3, h, w) in 0..255.
        targets: targets of the output, each (N, 3, h scale, w scale).
        masks: M parts of the pixels, 0 or 1, (M, h scale, w scale).
        batch: patches per forward.

    Returns:
        For each target a model for each mask.
    """
    parts: list[list[list[ErrorModel]]] = [[[] for _ in masks] for _ in targets]
    with frozen_weights(network):
        forward = TracedForward(network)
        for start in range(0, len(lr), batch):
            where = slice(start, start + batch)
            reference, changes = _changes(forward, lr[where].contiguous(memory_format=torch.channels_last))
            points, candidates = changes.shape[1:3]
            flat = changes.flatten(1, 2).flatten(2)
            for m, mask in enumerate(masks):
                kept = mask.flatten() > 0
                seen = flat[:, :, kept]
                gram = (seen @ seen.transpose(1, 2)).reshape(-1, points, candidates, points, candidates)
                for t, target in enumerate(targets):
                    rest = luma(reference - target[where]).flatten(1)[:, kept]
                    linear = (seen @ rest[..., None]).reshape(-1, points, candidates)
                    count = int(kept.sum())
                    parts[t][m].append(ErrorModel(rest.square().mean(1), linear / count, gram / count))
    return [[_joined(batches) for batches in of_target] for of_target in parts]


def _joined(parts: Sequence[ErrorModel]) -> ErrorModel:
    return ErrorModel(*(torch.cat([getattr(part, name) for part in parts]) for name in ("base", "linear", "gram")))


def _changes(forward: TracedForward, lr: Tensor) -> tuple[Tensor, Tensor]:
    """The output at the highest candidates, and the change of its luma for each point and candidate (B, P, K, H, W)."""
    context = PatchContext(lr)
    act = at_highest(context)
    reference = forward.run(lr, act)
    changes = []
    for stop in forward.stops(lr, act):
        quantizer = stop.point.quantizer
        if isinstance(quantizer, CandidateActivation):
            last = len(quantizer.candidates) - 1
            outputs = [stop.finish(quantizer.quantize(stop.x, same_for_all(stop.x, k)), act) for k in range(last)]
            changes.append(torch.stack([luma(out - reference)[:, 0] for out in (*outputs, reference)], 1))
    return reference, torch.stack(changes, 1)


def at_highest(context: PatchContext) -> PointFunction:
    """Every point at its highest candidate; points without candidates as they are."""

    def act(point: QuantizationPoint, x: Tensor) -> Tensor:
        quantizer = point.quantizer
        if isinstance(quantizer, CandidateActivation):
            return quantizer.quantize(x, same_for_all(x, len(quantizer.candidates) - 1))
        return x if quantizer is None else quantizer(x, context).value

    return act
