"""The base of schemes that keep a trained CADyQ network and replace the choice of bits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from baselines.assignment.search import bisect
from cadyq.models.network import SRNetwork
from cadyq.quantizers import CandidateActivation, PatchContext
from cadyq.quantizers.context import constants
from cadyq.schemes.candidates import CandidateScheme
from cadyq.utils.errors import UserError


class AssignedActivation(CandidateActivation):
    """The candidate of each sample is chosen before the forward, for all points at once: `PatchContext.decision`.

    Attributes:
        index: place of the point among those that count: its column in the decision.
        choice: index of the candidate where a forward has no decision, int64 (B,), or (1,) for all samples. A search
            sets it. It is not part of the network's state.
    """

    def __init__(self, candidates: tuple[int, ...]) -> None:
        super().__init__(candidates)
        self.index = 0
        self.register_buffer("choice", torch.tensor([middle(candidates)]), persistent=False)
        self.choice: Tensor

    def choose(self, x: Tensor, context: PatchContext) -> Tensor:
        choice = self.choice if context.decision is None else context.decision[:, self.index]
        return choice.expand(len(x))


def middle(candidates: tuple[int, ...]) -> int:
    """Index of the middle candidate, which is used until bits are fitted."""
    return len(candidates) // 2


def assigned(network: SRNetwork) -> list[AssignedActivation]:
    """The quantizers of the P points that count, in network order."""
    return [point.quantizer for point in network.points.values() if isinstance(point.quantizer, AssignedActivation)]


def assign(network: SRNetwork, choices: Tensor) -> None:
    """Set the candidates of `SRNetwork.run_with_set_bits`: int64 (B, P), or (1, P) for all samples."""
    for quantizer, column in zip(assigned(network), choices.unbind(1), strict=True):
        quantizer.choice = column


def rows_of(choices: Tensor) -> tuple[str, ...]:
    """Choices (N, P) as options of a scheme hold them: a row for each, with a digit for each point."""
    return tuple("".join(map(str, row)) for row in choices.tolist())


def choices_of(rows: Iterable[str], device: torch.device) -> Tensor:
    """The choices, int64 (N, P), that `rows_of` wrote."""
    digits = torch.tensor([[int(digit) for digit in row] for row in rows])
    return digits.to(device, non_blocking=True)  # a copy that waits for a GPU would hold up each forward


@dataclass(frozen=True)
class AssignedScheme(CandidateScheme):
    """A scheme that chooses for all points before the forward, usually with weights and ranges of a trained CADyQ."""

    parent = "cadyq"
    dynamic = True

    def candidate_quantizer(self, channels: int) -> AssignedActivation:
        return AssignedActivation(self.search_space)

    def assign_bits(self, network: SRNetwork) -> None:
        for index, quantizer in enumerate(assigned(network)):
            quantizer.index = index

    def before_forward(self, network: SRNetwork, context: PatchContext) -> None:
        context.decision = None  # that of an earlier forward on these patches
        context.decision = self.choices(network, context)

    def everywhere(self, network: SRNetwork, context: PatchContext, candidate: int | None = None) -> Tensor:
        """One candidate at every point, int64 (1, P). By default it is the middle one."""
        candidate = middle(self.search_space) if candidate is None else candidate
        return torch.full((1, len(assigned(network))), candidate, device=context.lr.device)

    def fitted(self, rows: Sequence[str], network: SRNetwork, context: PatchContext) -> Tensor:
        """The choices, int64 (N, P), of an option that `rows_of` wrote.

        Raises:
            UserError: they are of another network.
        """
        points = len(assigned(network))
        if len(rows[0]) != points:
            raise UserError(f"{self.name}: bits for {len(rows[0])} points, the network has {points}; derive it anew")
        return choices_of(rows, context.lr.device)

    @abstractmethod
    def choices(self, network: SRNetwork, context: PatchContext) -> Tensor:
        """Index of the candidate of each sample at each point that counts, int64 (B, P), or (1, P) for all."""


class TableScheme(AssignedScheme):
    """A scheme with a table of choices, of which the score of a patch selects a row.

    Each subclass declares both options as fields, so that they keep their place in its label.

    Attributes:
        edges: scores at which the next row of the table begins, ascending.
        table: the rows, as `rows_of` writes them. Without a table every point uses the middle candidate.
    """

    edges: tuple[float, ...]
    table: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "edges", tuple(self.edges))
        object.__setattr__(self, "table", tuple(self.table))
        if self.table and len(self.table) != len(self.edges) + 1:
            raise UserError(
                f"{self.name}: {len(self.edges)} edges need {len(self.edges) + 1} rows, not {len(self.table)}"
            )

    def row_of(self, score: Tensor) -> Tensor:
        """Index of the row for each patch, int64 (B,), from its score (B,)."""
        return torch.bucketize(score, constants(self.edges, score), right=True)

    def choices(self, network: SRNetwork, context: PatchContext) -> Tensor:
        if not self.table:
            return self.everywhere(network, context)
        table = self.fitted(self.table, network, context)
        return table if len(table) == 1 else table[self.row_of(self.score_of(context))]

    @abstractmethod
    def score_of(self, context: PatchContext) -> Tensor:
        """Score of each patch (B,). Its cost is counted by `PatchContext.feature`."""


@lru_cache  # called in every forward of a random scheme
def mean_probabilities(candidates: tuple[int, ...], mean_bits: float) -> Tensor:
    """Probabilities (K,) of the candidates with the given mean and the largest entropy: p_k ~ exp(t b_k).

    A mean outside the candidates is moved to the nearest end. The tensor is cached, so do not change it.
    """
    bits = torch.tensor(candidates, dtype=torch.float64)
    mean = min(max(mean_bits, candidates[0] + 1e-6), candidates[-1] - 1e-6)

    def tilted(tilt: float) -> Tensor:
        return (tilt * (bits - mean)).softmax(0)

    return tilted(bisect(lambda tilt: float((tilted(tilt) * bits).sum()), mean, -50, 50, steps=100))
