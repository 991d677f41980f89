"""Bits by layer from an integer linear program (HAWQ-V3: Yao et al., ICML 2021), then refined. A static control.

The program is

    min sum_ik Omega_ik z_ik,  sum_k z_ik = 1,  sum_ik BitOPs_ik z_ik <= budget,  z_ik in {0, 1}.

Point i and the layers that read it have b_k bits, for weights and activations alike. Points that share a layer count as
one. Omega_ik is the mean squared error of the output against the FP32 network when only point i is quantized. The
budget is the cost of uniform bits (X Y BitOPs per MAC for wXaY) in the quantized layers.

With `separate`, the weights of a layer and the activations that it reads each have their own bits, as in HAQ (Wang et
al., CVPR 2019): k runs over pairs, which cost their product for each MAC, and Omega is the sum of the errors with only
the weights and only the activations quantized.

Errors of layers do not add up, so the solution is refined jointly. One point goes up a step. Other points go down until
the budget holds, those first that raise Omega least for the BitOPs they save. The exchange is kept if the error of the
whole network falls. Both solutions are stored (`program`, `by_layer`). Ranges are those of `mse`.

Departures: HAWQ-V3 weighs the error of the weights by a trace of the Hessian, and fine-tunes. Here the error of the
output is measured on LR patches, and nothing is trained. At w8a8 the program has no choice. A point that no layer reads
(a branch before its addition) costs no BitOPs. It keeps the bits of the scheme, and errors are measured without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from baselines.assignment.program import OutputErrors, equal_bits, groups_of, refine, separate_bits, solve
from baselines.mse import MSEActivation, MSEWeight
from cadyq.models.network import SRNetwork
from cadyq.quantizers import ActivationQuantizer, BoundedActivation, WeightQuantizer
from cadyq.quantizers.ranges import CalibratedRange
from cadyq.schemes import FixedBitScheme
from cadyq.utils.errors import UserError


def set_bits(network: SRNetwork, of_activations: Sequence[int], of_weights: Sequence[int]) -> None:
    """Set the bits of each group of points, and of the weights of the layers that read it."""
    for group, bits, weight_bits in zip(groups_of(network), of_activations, of_weights, strict=True):
        for name in group:
            point = network.points[name]
            assert isinstance(point.quantizer, CalibratedRange | BoundedActivation)
            point.quantizer.bits = bits
            for layer in point.layers:
                if layer.weight_quantizer is not None:
                    layer.weight_quantizer.bits = weight_bits


def digits_of(bits: Iterable[int | None]) -> str:
    """A digit for each number of bits."""
    return "".join(map(str, bits))


@dataclass(frozen=True)
class ILP(FixedBitScheme):
    """Mixed precision by layer.

    Attributes:
        separate: weights and activations of a layer each have their own bits.
        by_layer: bits after the refinement, a digit for each group of points, and for the layers that read it unless
            `weights_by_layer` has theirs. Without it every point has the bits of the scheme.
        weights_by_layer: with `separate`, the same for the weights of these layers.
        program: `by_layer` before the refinement, as the integer linear program gave it; with `separate`, a hyphen and
            `weights_by_layer` follow.
    """

    name = "ilp"
    tuned = True

    by_layer: str = ""
    program: str = ""
    separate: bool = False
    weights_by_layer: str = ""

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return MSEActivation(self.act_bits)

    def weight_quantizer(self) -> WeightQuantizer:
        return MSEWeight(self.weight_bits)

    def assign_bits(self, network: SRNetwork) -> None:
        if not self.by_layer:
            return
        of_weights = self.weights_by_layer or self.by_layer
        for option, digits in (("by_layer", self.by_layer), ("weights_by_layer", of_weights)):
            if (given := len(digits)) != (count := len(groups_of(network))):
                raise UserError(f"{self.name}: {option} has {given} digits for {count} points; calibrate it anew")
        set_bits(network, [int(digit) for digit in self.by_layer], [int(digit) for digit in of_weights])

    def with_chosen_bits(self, parent: SRNetwork, lr: Tensor) -> ILP:
        errors = OutputErrors(parent, lr)
        options = separate_bits(errors) if self.separate else equal_bits(errors)
        budget = float(errors.macs.sum()) * self.weight_bits * self.act_bits
        first = solve(options.omega, options.costs, budget)
        best = refine(errors, first, options, budget)
        (weights, activations), (first_weights, first_activations) = (
            [digits_of(bits) for bits in zip(*options.chosen(found), strict=True)] for found in (best, first)
        )
        if not self.separate:
            return replace(self, by_layer=activations, program=first_activations)
        program = f"{first_activations}-{first_weights}"
        return replace(self, by_layer=activations, weights_by_layer=weights, program=program)
