"""Bits by layer from an integer linear program (HAWQ-V3: Yao et al., ICML 2021), then refined: a static control.

min sum_ik Omega_ik z_ik, sum_k z_ik = 1, sum_ik BitOPs_ik z_ik <= budget, z_ik in {0, 1}: point i and the layers that
read it take b_k bits, weights and activations alike. Omega_ik is the mean squared error of the output against the FP32
network's, where point i alone is quantized. The budget is what uniform bits cost (wXaY: X Y a MAC, in what is
quantized).

Errors of layers do not add, so the answer is refined jointly: one point goes a step up, and the one whose step down
costs least by Omega pays for it, as long as the error of the whole network falls. Both answers are kept (`program`,
`by_layer`). Ranges are those of `mse`.

Departures: HAWQ-V3 weighs the weights' own error by a trace of the Hessian and fine-tunes; here the error of the output
is measured on LR patches, and nothing is trained. At w8a8 the program has nothing to choose. A point that no layer
reads (a branch before its addition) costs no BitOPs: it keeps the scheme's bits, and errors are measured without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from baselines.assignment.program import CANDIDATES, OutputErrors, points_of, refine, solve
from baselines.mse import MSEActivation, MSEWeight
from cadyq.models.network import SRNetwork
from cadyq.quantizers import ActivationQuantizer
from cadyq.schemes import FixedBitScheme
from cadyq.utils.errors import UserError


def set_bits(network: SRNetwork, bits: Sequence[int]) -> None:
    """Give each point, and the layers that read it, its bits."""
    for name, own in zip(points_of(network), bits, strict=True):
        point = network.points[name]
        assert isinstance(point.quantizer, MSEActivation)
        point.quantizer.bits = own
        for layer in point.layers:
            if layer.weight_quantizer is not None:
                layer.weight_quantizer.bits = own


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
        if len(self.by_layer) != len(points_of(network)):
            count = len(points_of(network))
            raise UserError(f"ilp: by_layer has {len(self.by_layer)} digits for {count} points; calibrate it anew")
        set_bits(network, [int(digit) for digit in self.by_layer])

    def with_chosen_bits(self, parent: SRNetwork, lr: Tensor) -> ILP:
        errors = OutputErrors(parent, lr)
        omega, costs = errors.alone(), errors.costs()
        budget = float(costs[:, 0].sum()) / CANDIDATES[0] ** 2 * self.weight_bits * self.act_bits
        first = solve(omega, costs, budget)
        best = refine(errors, first, omega, costs, budget)
        digits = ["".join(str(CANDIDATES[k]) for k in choice) for choice in (best, first)]
        return replace(self, by_layer=digits[0], program=digits[1])
