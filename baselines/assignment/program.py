"""Bits by layer under a budget of BitOPs: an integer linear program, and its joint refinement."""

from __future__ import annotations

from collections.abc import Sequence

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


class OutputErrors:
    """Errors of the output under any bits. The ranges of each candidate are calibrated once."""

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

    @torch.no_grad()
    def of(self, bits: Sequence[int | None]) -> float:
        """Mean squared error with these bits at the groups of points; None is FP32."""
        for group, own in zip(self.groups, bits, strict=True):
            for name in group:
                point = self.network.points[name]
                point.quantizer = None if own is None else self.ranges[own].points[name].quantizer
                for layer in point.layers:
                    layer.weight_quantizer = None if own is None else MSEWeight(own)
        return float((self.network(self.lr) - self.target).square().mean())

    def alone(self) -> NDArray[np.float64]:
        """Omega (P, K): the errors with one group of points quantized at a time."""
        count = len(self.groups)
        return np.array(
            [[self.of([b if j == i else None for j in range(count)]) for b in CANDIDATES] for i in range(count)]
        )

    def costs(self) -> NDArray[np.float64]:
        """BitOPs (P, K) at the size of the measured patches."""
        macs = count_macs(self.network, *self.lr.shape[-2:]).by_layer
        names = self.network.layer_names
        read = [{layer for name in group for layer in self.network.points[name].feeds} for group in self.groups]
        own = [sum(macs[names[layer]] for layer in layers) for layers in read]
        return np.array([[count * b * b for b in CANDIDATES] for count in own])


def refine(
    errors: OutputErrors,
    choice: NDArray[np.int64],
    omega: NDArray[np.float64],
    costs: NDArray[np.float64],
    budget: float,
) -> NDArray[np.int64]:
    """Exchange bits between groups of points while the error of the whole network falls and the budget holds."""
    groups = np.arange(len(choice))

    def error(trial: NDArray[np.int64]) -> float:
        return errors.of([CANDIDATES[k] for k in trial])

    least = error(choice)
    for _ in range(ROUNDS):
        before = least
        for up in groups:
            if choice[up] + 1 == len(CANDIDATES):
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
            if costs[groups, trial].sum() <= budget * (1 + ROUNDING) and (now := error(trial)) < least:
                choice, least = trial, now
        if least == before:
            break
    return choice
