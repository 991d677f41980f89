"""BRECQ: Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021. QDrop:
Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization, ICLR 2022.

Block by block, the output of the quantized network is fitted to that of the FP32 network (BRECQ, Eq. 10). Weights are
rounded up or down as in AdaRound, with V learned by Adam at 1e-3. The bounds of activations inside the block are
learned at 4e-5. With `qdrop`, each value at the input of a block and at the points inside it stays unquantized with
probability 0.5 in each step (QDrop, Eqs. 8 and 9).

Departures: all errors of a block have the same weight. The papers weigh them by squared gradients of the loss (the
diagonal of the Fisher matrix, Eq. 10), which needs classes. A block has 500 steps (papers: 20,000), so V learns at 1e-1
in units of its mean magnitude, and bounds at 1e-3 in units of their distance. Both bounds of a point are learned, and
zero is a level; the papers learn the step of a point. Weights and bounds of a block are learned together, as in QDrop;
BRECQ learns the weights first. A weight has one step, or with `channelwise` one for each output channel, as in the
papers. A block is an outermost module of the network. Layers with weights outside of any block keep their calibrated
values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from baselines.adaround import reconstruction
from baselines.mse import MSEActivation
from cadyq.quantizers import ActivationQuantizer, BoundedActivation, PointStatistics, RoundedWeight
from cadyq.quantizers.functional import fake_quantize_bounds
from cadyq.schemes import FixedBitScheme, Role, Stage, cosine

STEPS, BATCH = 500, 8
RATE_ROUNDING, RATE_BOUNDS = 1e-1, 1e-3
DROP = 0.5


class ReconstructedActivation(BoundedActivation):
    """Learned bounds with zero as a level. They start at the least squared error."""

    fake_quantize = staticmethod(fake_quantize_bounds)

    def clipping_bounds(self, statistics: PointStatistics) -> tuple[Tensor, Tensor]:
        searched = MSEActivation(self.bits).to(statistics.minimum.device)
        searched.initialize(statistics)
        return searched.low, searched.high


@dataclass(frozen=True)
class BRECQ(FixedBitScheme):
    """Rounding of weights and bounds of activations, learned block by block.

    Attributes:
        qdrop: leave activations unquantized at random during the learning.
        channelwise: a step of its own for each output channel of a weight.
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
