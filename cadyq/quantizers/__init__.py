"""Quantizers, quantization points, quantizable layers and traces. A scheme's file imports from here."""

from cadyq.quantizers.base import (
    FULL_PRECISION,
    RANGE_SHARE,
    ActivationQuantizer,
    ChannelWeight,
    PointStatistics,
    QuantizerOutput,
    SymmetricWeight,
    TanhWeight,
    WeightQuantizer,
    constant_bits,
)
from cadyq.quantizers.bounds import BoundedActivation, BoundedWeight
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import fake_quantize_affine, fake_quantize_bounds, signed_levels, straight_through
from cadyq.quantizers.ranges import (
    AffineRange,
    CalibratedRange,
    CandidateActivation,
    LearnedBoundActivation,
    MinMaxRange,
)
from cadyq.quantizers.rounding import RoundedWeight

__all__ = [
    "FULL_PRECISION",
    "RANGE_SHARE",
    "ActivationQuantizer",
    "AffineRange",
    "BoundedActivation",
    "BoundedWeight",
    "CalibratedRange",
    "CandidateActivation",
    "ChannelWeight",
    "LearnedBoundActivation",
    "MinMaxRange",
    "PatchContext",
    "PointStatistics",
    "QuantizerOutput",
    "RoundedWeight",
    "SymmetricWeight",
    "TanhWeight",
    "WeightQuantizer",
    "constant_bits",
    "fake_quantize_affine",
    "fake_quantize_bounds",
    "signed_levels",
    "straight_through",
]
