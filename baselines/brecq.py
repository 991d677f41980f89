"""BRECQ: Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021. QDrop:
Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization, ICLR 2022.

The output of each block of the quantized network is brought to that of the FP32 network (BRECQ, Eq. 10), block by
block: weights are rounded up or down as in AdaRound, V by Adam at 1e-3, and the bounds of activations inside the block
learn with them at 4e-5. `qdrop` leaves each value at the input of a block and at the points inside it unquantized with
probability 0.5 in each step (QDrop, Eqs. 8 and 9).

Departures: errors of a block are weighed alike, not by squared gradients of the loss (the diagonal Fisher matrix of Eq.
10), as the output error of an SR network has no class; 500 steps a block (papers: 20,000), for which V learns at 1e-2
and bounds at 1e-3; weights of a block and its bounds learn together (papers: weights first, then steps of activations,
in BRECQ; together in QDrop); a step for the whole weight, or with `channelwise` for each output channel, as in the
papers. A block is an outermost module of the network; layers outside of any block with weights keep what calibration
gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from baselines.adaround import reconstruction
from baselines.mse import MSEActivation
from cadyq.quantizers import ActivationQuantizer, BoundedActivation, PointStatistics, RoundedWeight
from cadyq.schemes import FixedBitScheme, Role, Stage, cosine

STEPS, BATCH = 500, 8
RATE_ROUNDING, RATE_BOUNDS = 1e-1, 1e-3
DROP = 0.5


class ReconstructedActivation(BoundedActivation):
    """Bounds that start at the least squared error."""

    def clipping_bounds(self, statistics: PointStatistics) -> tuple[Tensor, Tensor]:
        searched = MSEActivation(self.bits).to(statistics.minimum.device)
        searched.initialize(statistics)
        return searched.low, searched.high


@dataclass(frozen=True)
class BRECQ(FixedBitScheme):
    """Rounding of weights and bounds of activations found block by block.

    Attributes:
        qdrop: drop the quantization of activations at random meanwhile.
        channelwise: a step of the weights for each output channel.
    """

    name = "brecq"
    tuned = True

    qdrop: bool = False
    channelwise: bool = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return ReconstructedActivation(self.act_bits)

    def weight_quantizer(self) -> RoundedWeight:
        return RoundedWeight(self.weight_bits, self.channelwise)

    def stages(self) -> Sequence[Stage]:
        rates: dict[Role, float] = {"weight": RATE_ROUNDING, "activation": RATE_BOUNDS}
        drop = DROP if self.qdrop else 0.0
        return (Stage("reconstruction of", rates, reconstruction, STEPS, BATCH, "block", cosine, drop),)
