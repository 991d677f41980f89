"""Bits by layer under a budget of BitOPs: an integer linear program, and its joint refinement."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.mse import MSE, MSEWeight
from cadyq.models.network import SRNetwork
from cadyq.quantizers.cost import count_macs
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.schemes.calibration import calibrated, observe
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs

CANDIDATES = (2, 3, 4, 5, 6, 8)
MEASURED, SIDE = 8, 32  # how many patches errors are measured on, and their side in LR pixels
ROUNDING = 1e-9  # relative rounding error of sums of costs
ROUNDS = 2  # of the joint refinement, over all groups of points

Bits = tuple[int | None, int | None]  # of the weights and of the activations of a group; None is FP32
FP32: Bits = (None, None)


def solve(sensitivity: NDArray[np.float64], costs: NDArray[np.float64], budget: float) -> NDArray[np.int64]:
    """Solve the integer linear program.

    Args:
        sensitivity: Omega (P, K), a row for each group of points.
        costs: BitOPs (P, K).
        budget: BitOPs that may be spent.

    Returns:
        The index of each group's candidate (P,).

    Raises:
        UserError: even the cheapest candidates exceed the budget.
    """
    with needs("train", "an integer linear program"):
        from scipy.optimize import Bounds, LinearConstraint, milp
    points, candidates = sensitivity.shape
    one_each = np.kron(np.eye(points), np.ones(candidates))
    affordable = LinearConstraint(costs.reshape(1, -1), -np.inf, budget * (1 + ROUNDING))
    # in units of the largest entry, as the solver's tolerances are absolute
    found = milp(
        sensitivity.ravel() / max(sensitivity.max(), 1e-30),
        constraints=[LinearConstraint(one_each, 1, 1), affordable],
        integrality=np.ones(points * candidates),
        bounds=Bounds(0, 1),
    )
    if found.x is None:
        raise UserError(f"a budget of {budget:g} BitOPs is less than the lowest bits cost; allow more bits")
    chosen: NDArray[np.int64] = np.asarray(found.x).reshape(points, candidates).argmax(1)
    return chosen


def groups_of(network: SRNetwork) -> list[list[str]]:
    """Names of the points whose bits are chosen: those that at least one layer reads.

    Points that share a layer form a group with the same bits, since the layer's weight has only one bit-width.
    """
    groups: list[tuple[set[QuantizedLayer], list[str]]] = []
    for name, point in network.points.items():
        if point.quantizer is None or not point.feeds or point.outer:
            continue
        layers, names = set(point.layers), [name]
        for group in [other for other in groups if other[0] & layers]:
            groups.remove(group)
            layers, names = layers | group[0], group[1] + names
        groups.append((layers, names))
    return [names for _, names in groups]


@dataclass(frozen=True)
class Options:
    """What each of P groups of points can choose from: K pairs of bits, cheapest first.

    Attributes:
        bits: P lists of K pairs.
        omega: (P, K), the mean squared error of the output with one group quantized.
        costs: (P, K), BitOPs at the size of the measured patches.
    """

    bits: list[list[Bits]]
    omega: NDArray[np.float64]
    costs: NDArray[np.float64]

    def chosen(self, indices: NDArray[np.int64]) -> list[Bits]:
        """The pair of each group at these indices (P,)."""
        return [own[k] for own, k in zip(self.bits, indices, strict=True)]

    def highest(self, group: int) -> int:
        """Index of the last pair of a group, where its repetitions begin."""
        return self.bits[group].index(self.bits[group][-1])


class OutputErrors:
    """Errors of the output under any bits. The ranges of each candidate are calibrated once.

    Attributes:
        groups: names of the points of each of the P groups, see `groups_of`.
        macs: MACs (P,) of the layers that read each group, at the size of the measured patches.
    """

    def __init__(self, parent: SRNetwork, lr: Tensor) -> None:
        self.lr = lr[:MEASURED, :, :SIDE, :SIDE]
        statistics = observe(parent, lr)
        self.ranges = {b: calibrated(parent, f"{MSE.name}:w{b}a{b}", statistics).eval() for b in CANDIDATES}
        self.network = calibrated(parent, MSE.name, statistics).eval()
        self.groups = groups_of(self.network)
        if not self.groups:
            raise UserError(f"{parent.name}: no layer is left to choose bits for; exclude fewer")
        for name in self.network.points.keys() - {name for group in self.groups for name in group}:
            self.network.points[name].quantizer = None
        with torch.no_grad():
            self.target = parent(self.lr)
        self.macs = self._macs()

    @torch.no_grad()
    def of(self, bits: Sequence[Bits]) -> float:
        """Mean squared error with these bits at the groups of points."""
        for group, (of_weights, of_activations) in zip(self.groups, bits, strict=True):
            for name in group:
                point = self.network.points[name]
                point.quantizer = None if of_activations is None else self.ranges[of_activations].points[name].quantizer
                for layer in point.layers:
                    layer.weight_quantizer = None if of_weights is None else MSEWeight(of_weights)
        return float((self.network(self.lr) - self.target).square().mean())

    def alone(self, candidates: Sequence[Bits]) -> NDArray[np.float64]:
        """The errors (P, K) with one group of points quantized at a time."""
        count = len(self.groups)
        return np.array(
            [[self.of([b if j == i else FP32 for j in range(count)]) for b in candidates] for i in range(count)]
        )

    def _macs(self) -> NDArray[np.float64]:
        macs = count_macs(self.network, *self.lr.shape[-2:]).by_layer
        names = self.network.layer_names
        read = [{layer for name in group for layer in self.network.points[name].feeds} for group in self.groups]
        return np.array([sum(macs[names[layer]] for layer in layers) for layers in read])


def equal_bits(errors: OutputErrors) -> Options:
    """The same bits for the weights and the activations of a group."""
    bits: list[Bits] = [(b, b) for b in CANDIDATES]
    costs = np.outer(errors.macs, [b * b for b in CANDIDATES])
    return Options([bits] * len(errors.groups), errors.alone(bits), costs)


def separate_bits(errors: OutputErrors) -> Options:
    """Weights and activations of a group each have their own bits. The errors of both are taken to add up.

    Of all pairs, a group keeps those that no cheaper pair has a smaller error than. The last is repeated where others
    keep more.
    """
    of_weights = errors.alone([(b, None) for b in CANDIDATES])
    of_activations = errors.alone([(None, b) for b in CANDIDATES])
    kept = [_front(*errors_of_group) for errors_of_group in zip(of_weights, of_activations, strict=True)]
    most = max(map(len, kept))
    kept = [front + front[-1:] * (most - len(front)) for front in kept]
    bits: list[list[Bits]] = [[(CANDIDATES[w], CANDIDATES[a]) for w, a in front] for front in kept]
    omega = [[of_weights[i, w] + of_activations[i, a] for w, a in front] for i, front in enumerate(kept)]
    costs = [
        [macs * CANDIDATES[w] * CANDIDATES[a] for w, a in front] for macs, front in zip(errors.macs, kept, strict=True)
    ]
    return Options(bits, np.array(omega), np.array(costs))


def _front(of_weights: NDArray[np.float64], of_activations: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Indices of bits (weights, activations) that no cheaper pair has a smaller error than, cheapest first."""
    pairs = itertools.product(range(len(CANDIDATES)), repeat=2)
    ordered = sorted(
        pairs, key=lambda p: (CANDIDATES[p[0]] * CANDIDATES[p[1]], of_weights[p[0]] + of_activations[p[1]])
    )
    front: list[tuple[int, int]] = []
    least = float("inf")
    for w, a in ordered:
        if (error := of_weights[w] + of_activations[a]) < least:
            front.append((w, a))
            least = error
    return front


def refine(errors: OutputErrors, choice: NDArray[np.int64], options: Options, budget: float) -> NDArray[np.int64]:
    """Exchange bits between groups of points while the error of the whole network falls and the budget holds."""
    groups, omega, costs = list(range(len(choice))), options.omega, options.costs
    least = errors.of(options.chosen(choice))
    for _ in range(ROUNDS):
        before = least
        for up in groups:
            if choice[up] >= options.highest(up):
                continue
            trial = choice.copy()
            trial[up] += 1
            while costs[groups, trial].sum() > budget * (1 + ROUNDING):
                can = [i for i in groups if i != up and trial[i] > 0]
                if not can:
                    break
                rises = {i: omega[i, trial[i] - 1] - omega[i, trial[i]] for i in can}
                saved = {i: costs[i, trial[i]] - costs[i, trial[i] - 1] for i in can}
                trial[min(can, key=lambda i: rises[i] / max(saved[i], 1e-30))] -= 1
            fits = costs[groups, trial].sum() <= budget * (1 + ROUNDING)
            if fits and (now := errors.of(options.chosen(trial))) < least:
                choice, least = trial, now
        if least == before:
            break
    return choice
