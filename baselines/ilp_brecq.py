"""Bits by layer as in `ilp` (HAWQ-V3: Yao et al., ICML 2021), then the reconstruction of BRECQ (Li et al., ICLR 2021).

The integer linear program gives each layer its bits under the budget of uniform bits. Rounding of weights and bounds of
activations are then learned block by block, with activations left unquantized at random as in QDrop (Wei et al., ICLR
2022). BRECQ searches bits by layer too (Section 3.4), by a genetic algorithm over errors of blocks.

Departures are those of `ilp` and `brecq`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baselines.brecq import BRECQ, ReconstructedActivation
from baselines.ilp import ILP
from cadyq.quantizers import ActivationQuantizer, RoundedWeight
from cadyq.schemes import Stage


@dataclass(frozen=True)
class ILPBRECQ(ILP):
    """Bits by layer, then rounding of weights and bounds of activations, learned block by block.

    Attributes:
        channelwise: a step of its own for each output channel of a weight.
    """

    name = "ilp_brecq"

    channelwise: bool = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return ReconstructedActivation(self.act_bits)

    def weight_quantizer(self) -> RoundedWeight:
        return RoundedWeight(self.weight_bits, self.channelwise)

    def stages(self) -> Sequence[Stage]:
        return BRECQ(qdrop=True, channelwise=self.channelwise).stages()
