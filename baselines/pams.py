"""PAMS: Li et al., PAMS: Quantized Super-Resolution via Parameterized Max Scale, ECCV 2020.

Activations: round(clamp(x, -a, a) / a * q) / q * a with a learned bound a for each point and q = 2^(b-1) - 1, also
after a ReLU (Eq. 2). Gradients reach a through the clamp and the scale (Eq. 5). Weights: symmetric, bounded by their
largest magnitude, which is not learned.

Departures: a starts at a share of the calibrated maximum, which shrinks with the bit-width (paper: an average of batch
maxima). The block input is quantized, as in CADyQ's code and in PAMS's own figure; the PAMS code leaves it in FP32.
"""

from __future__ import annotations

from dataclasses import dataclass

from cadyq.quantizers import LearnedBoundActivation
from cadyq.schemes import FixedBitScheme


@dataclass(frozen=True)
class PAMS(FixedBitScheme):
    """Parameterized max scale at fixed bits."""

    name = "pams"

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> LearnedBoundActivation:
        return LearnedBoundActivation(self.act_bits)
