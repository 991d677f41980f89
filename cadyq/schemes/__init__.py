"""The interface of a scheme, how it is applied to a network, and CADyQ. A scheme's file imports from here."""

from cadyq.schemes.base import FixedBitScheme, Scheme, apply_scheme, register_scheme
from cadyq.schemes.tuning import Loss, Role, Stage, Step, cosine, normalized_distance

__all__ = [
    "FixedBitScheme",
    "Loss",
    "Role",
    "Scheme",
    "Stage",
    "Step",
    "apply_scheme",
    "cosine",
    "normalized_distance",
    "register_scheme",
]
