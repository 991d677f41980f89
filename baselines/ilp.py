"""Bits by layer from an integer linear program (HAWQ-V3: Yao et al., ICML 2021), then refined. A static control.

The program is

    min sum_ik Omega_ik z_ik,  sum_k z_ik = 1,  sum_ik BitOPs_ik z_ik <= budget,  z_ik in {0, 1}.

Point i and the layers that read it have b_k bits, for weights and activations alike. Points that share a layer count as
one. Omega_ik is the mean squared error of the output against the FP32 network when only point i is quantized. The
budget is the cost of uniform bits (X Y BitOPs per MAC for wXaY) in the quantized layers.

Errors of layers do not add up, so the solution is refined jointly. One point goes up a step. Other points go down until
the budget holds, those first that raise Omega least for the BitOPs they save. The exchange is kept if the error of the
whole network falls. Both solutions are stored (`program`, `by_layer`). Ranges are those of `mse`.

Departures: HAWQ-V3 weighs the error of the weights by a trace of the Hessian, and fine-tunes. Here the error of the
output is measured on LR patches, and nothing is trained. At w8a8 the program has no choice. A point that no layer reads
(a branch before its addition) costs no BitOPs. It keeps the bits of the scheme, and errors are measured without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from baselines.assignment.program import CANDIDATES, OutputErrors, groups_of, refine, solve
from baselines.mse import MSEActivation, MSEWeight
from cadyq.models.network import SRNetwork
from cadyq.quantizers import ActivationQuantizer, BoundedActivation, WeightQuantizer
from cadyq.quantizers.ranges import CalibratedRange
from cadyq.schemes import FixedBitScheme
from cadyq.utils.errors import UserError


def set_bits(network: SRNetwork, bits: Sequence[int]) -> None:
    """Set the bits of each group of points and of the layers that read it."""
    for group, own in zip(groups_of(network), bits, strict=True):
        for name in group:
            point = network.points[name]
            assert isinstance(point.quantizer, CalibratedRange | BoundedActivation)
            point.quantizer.bits = own
            for layer in point.layers:
                if layer.weight_quantizer is not None:
                    layer.weight_quantizer.bits = own


@dataclass(frozen=True)
class ILP(FixedBitScheme):
    """Mixed precision by layer.

    Attributes:
        by_layer: bits after the refinement, a digit for each group of points and the layers that read it. Without them
            every point has the bits of the scheme.
        program: the same before the refinement, as the integer linear program gave it.
    """

    name = "ilp"
    tuned = True

    by_layer: str = ""
    program: str = ""

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return MSEActivation(self.act_bits)

    def weight_quantizer(self) -> WeightQuantizer:
        return MSEWeight(self.weight_bits)

    def assign_bits(self, network: SRNetwork) -> None:
        if not self.by_layer:
            return
        if (given := len(self.by_layer)) != (count := len(groups_of(network))):
            raise UserError(f"{self.name}: by_layer has {given} digits for {count} points; calibrate it anew")
        set_bits(network, [int(digit) for digit in self.by_layer])

    def with_chosen_bits(self, parent: SRNetwork, lr: Tensor) -> ILP:
        errors = OutputErrors(parent, lr)
        omega, costs = errors.alone(), errors.costs()
        budget = float(costs[:, 0].sum()) / CANDIDATES[0] ** 2 * self.weight_bits * self.act_bits
        first = solve(omega, costs, budget)
        best = refine(errors, first, omega, costs, budget)
        digits = ["".join(str(CANDIDATES[k]) for k in choice) for choice in (best, first)]
        return replace(self, by_layer=digits[0], program=digits[1])
