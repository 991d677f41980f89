"""What a scheme is, how it is applied to a network, and CADyQ itself. What a scheme's file imports."""

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
