"""AdaRound: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020.

Each weight is rounded up or down, and the choice is learned layer by layer:

    w_q = s clip(floor(w / s) + h(V), -2^(b-1), 2^(b-1) - 1),  h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)  (Eqs. 22, 23).

V minimizes ||W x - W_q x_q||_F^2 + 0.01 sum(1 - |2 h(V) - 1|^beta) (Eqs. 21, 24 and 25). x_q is the input of the layer
in the quantized network, x its input in the FP32 network. beta falls from 20 to 2. The second term is 0 in the first
fifth of the steps. After the last step a weight is rounded up where h >= 1/2. V starts where h is the fraction of w /
s, which is rounding to nearest.

s and the ranges of activations have the least squared error, as under `mse`.

Departures: 500 steps per layer (paper: 10,000). The activation function after a layer is not part of its output. The
first term is divided by the mean square of the output, so that it has no unit, and the second term is a mean over the
weights. With `channelwise` each output channel has its own s. A convolution that a network uses several times (CARN-M)
is fitted to its first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from baselines.mse import MSEActivation
from cadyq.quantizers import ActivationQuantizer, RoundedWeight
from cadyq.schemes import FixedBitScheme, Stage, Step, cosine

WARM_UP, BETAS = 0.2, (20.0, 2.0)
STEPS, BATCH, RATE = 500, 8, 1e-1
ROUNDING_WEIGHT = 0.01


def beta_of(done: float) -> float:
    """beta at this share of the steps, 0 to 1: constant in the warm-up, then falling linearly."""
    first, last = BETAS
    return first + (last - first) * max(0.0, (done - WARM_UP) / (1 - WARM_UP))


def reconstruction(step: Step) -> Tensor:
    """Squared error of the output over its mean square, plus the term that drives h to 0 or 1; a scalar."""
    error = (step.output - step.target).square().mean() / step.target.square().mean().clamp_min(1e-12)
    if step.done < WARM_UP:
        return error
    learned = [part for part in step.module.modules() if isinstance(part, RoundedWeight) and part.rounding is not None]
    count = sum(part.rounding.numel() for part in learned if part.rounding is not None)
    return error + ROUNDING_WEIGHT * sum(part.penalty(beta_of(step.done)) for part in learned) / max(count, 1)


@dataclass(frozen=True)
class AdaRound(FixedBitScheme):
    """Rounding of weights, learned layer by layer.

    Attributes:
        channelwise: a step of its own for each output channel.
    """

    name = "adaround"
    tuned = True

    channelwise: bool = False

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> ActivationQuantizer:
        return MSEActivation(self.act_bits)

    def weight_quantizer(self) -> RoundedWeight:
        return RoundedWeight(self.weight_bits, self.channelwise)

    def stages(self) -> Sequence[Stage]:
        return (Stage("rounding of", {"weight": RATE}, reconstruction, STEPS, BATCH, over="layer", decay=cosine),)
