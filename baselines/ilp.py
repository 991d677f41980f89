"""Bits by layer from an integer linear program (HAWQ-V3: Yao et al., ICML 2021), then refined: a static control.

min sum_ik Omega_ik z_ik, sum_k z_ik = 1, sum_ik BitOPs_ik z_ik <= budget, z_ik in {0, 1}: point i and the layers that
read it take b_k bits, weights and activations alike. Omega_ik is the mean squared error of the output against the FP32
network's, where point i alone is quantized. The budget is what uniform bits cost (wXaY: X Y a MAC, in what is
quantized).

Errors of layers do not add, so the answer is refined jointly: one point goes a step up, and the one whose step down
costs least by Omega pays for it, as long as the error of the whole network falls. Both answers are kept (`program`,
`by_layer`). Ranges are those of `mse`.

Departures: HAWQ-V3 weighs the weights' own error by a trace of the Hessian and fine-tunes; here the error of the output
is measured on LR patches, and nothing is trained. At w8a8 the program has nothing to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.mse import MSEActivation, MSEWeight
from cadyq.models.network import SRNetwork
from cadyq.quantizers import ActivationQuantizer
from cadyq.quantizers.cost import count_macs
from cadyq.schemes import FixedBitScheme
from cadyq.schemes.calibration import calibrated, observe
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs

CANDIDATES = (2, 3, 4, 5, 6, 8)
MEASURED, SIDE = 8, 32  # patches that errors are measured on, and their side in LR pixels
ROUNDING = 1e-9  # of sums of costs
ROUNDS = 2  # of the joint refinement, over all points


def solve(sensitivity: NDArray[np.float64], costs: NDArray[np.float64], budget: float) -> NDArray[np.int64]:
    """The program.

    Args:
        sensitivity: Omega (P, K).
        costs: BitOPs (P, K).
        budget: BitOPs that may be spent.

    Returns:
        The candidate of each point (P,).

    Raises:
        UserError: not even the cheapest candidates fit.
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
        raise UserError(f"ilp: a budget of {budget:g} BitOPs is less than the lowest bits cost; allow more bits")
    chosen: NDArray[np.int64] = np.asarray(found.x).reshape(points, candidates).argmax(1)
    return chosen


def _points(network: SRNetwork) -> list[str]:
    """Names of the points whose bits are chosen."""
    return [name for name, point in network.points.items() if point.quantizer is not None and not point.outer]


def set_bits(network: SRNetwork, bits: Sequence[int]) -> None:
    """Give each point, and the layers that read it, its bits."""
    for name, own in zip(_points(network), bits, strict=True):
        point = network.points[name]
        assert isinstance(point.quantizer, MSEActivation)
        point.quantizer.bits = own
        for layer in point.layers:
            if layer.weight_quantizer is not None:
                layer.weight_quantizer.bits = own


class _Errors:
    """Errors of the output under any bits, from ranges that were calibrated for each candidate once."""

    def __init__(self, parent: SRNetwork, lr: Tensor) -> None:
        self.lr = lr[:MEASURED, :, :SIDE, :SIDE]
        statistics = observe(parent, lr)
        self.ranges = {b: calibrated(parent, f"{ILP.name}:w{b}a{b}", statistics).eval() for b in CANDIDATES}
        self.network = calibrated(parent, ILP.name, statistics).eval()
        self.names = _points(self.network)
        with torch.no_grad():
            self.target = parent(self.lr)

    @torch.no_grad()
    def of(self, bits: Sequence[int | None]) -> float:
        """Mean squared error where each point has these bits, None for FP32."""
        for name, own in zip(self.names, bits, strict=True):
            point = self.network.points[name]
            point.quantizer = None if own is None else self.ranges[own].points[name].quantizer
            for layer in point.layers:
                layer.weight_quantizer = None if own is None else MSEWeight(own)
        return float((self.network(self.lr) - self.target).square().mean())

    def alone(self) -> NDArray[np.float64]:
        """Omega (P, K)."""
        count = len(self.names)
        return np.array(
            [[self.of([b if j == i else None for j in range(count)]) for b in CANDIDATES] for i in range(count)]
        )

    def costs(self) -> NDArray[np.float64]:
        """BitOPs (P, K) for the measured patches' size."""
        macs = count_macs(self.network, *self.lr.shape[-2:]).by_layer
        names = self.network.layer_names
        own = [sum(macs[names[layer]] for layer in self.network.points[name].feeds) for name in self.names]
        return np.array([[count * b * b for b in CANDIDATES] for count in own])


def refine(
    errors: _Errors, choice: NDArray[np.int64], omega: NDArray[np.float64], costs: NDArray[np.float64], budget: float
) -> NDArray[np.int64]:
    """Exchanges of bits between two points that lower the error of the whole network within the budget."""
    points = np.arange(len(choice))

    def error(trial: NDArray[np.int64]) -> float:
        return errors.of([CANDIDATES[k] for k in trial])

    least = error(choice)
    for _ in range(ROUNDS):
        before = least
        for up in points:
            if choice[up] + 1 == len(CANDIDATES):
                continue
            trial = choice.copy()
            trial[up] += 1
            while costs[points, trial].sum() > budget * (1 + ROUNDING):
                can = [i for i in points if i != up and trial[i] > 0]
                if not can:
                    break
                rises = {i: omega[i, trial[i] - 1] - omega[i, trial[i]] for i in can}
                saved = {i: costs[i, trial[i]] - costs[i, trial[i] - 1] for i in can}
                trial[min(can, key=lambda i: rises[i] / max(saved[i], 1e-30))] -= 1
            if costs[points, trial].sum() <= budget * (1 + ROUNDING) and (now := error(trial)) < least:
                choice, least = trial, now
        if least == before:
            break
    return choice


@dataclass(frozen=True)
class ILP(FixedBitScheme):
    """Mixed precision by layer.

    Attributes:
        by_layer: bits of each point and the layers that read it, a digit each, after the refinement. Without them
            every point has the scheme's bits.
        program: the same as the integer linear program gave it.
    """

    name = "ilp"
    tuned = True

    by_layer: str = ""
    program: str = ""

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return MSEActivation(self.act_bits)

    def weight_quantizer(self) -> MSEWeight:
        return MSEWeight(self.weight_bits)

    def assign_bits(self, network: SRNetwork) -> None:
        if not self.by_layer:
            return
        if len(self.by_layer) != len(_points(network)):
            count = len(_points(network))
            raise UserError(f"ilp: by_layer has {len(self.by_layer)} digits for {count} points; calibrate it anew")
        set_bits(network, [int(digit) for digit in self.by_layer])

    def with_chosen_bits(self, parent: SRNetwork, lr: Tensor) -> ILP:
        errors = _Errors(parent, lr)
        omega, costs = errors.alone(), errors.costs()
        budget = float(costs[:, 0].sum()) / CANDIDATES[0] ** 2 * self.weight_bits * self.act_bits
        first = solve(omega, costs, budget)
        best = refine(errors, first, omega, costs, budget)
        digits = ["".join(str(CANDIDATES[k]) for k in choice) for choice in (best, first)]
        return replace(self, by_layer=digits[0], program=digits[1])
