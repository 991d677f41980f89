"""What a scheme is, how it is applied to a network, and CADyQ itself. What a scheme's file imports."""

from cadyq.schemes.base import FixedBitScheme, Scheme, apply_scheme, register_scheme

__all__ = ["FixedBitScheme", "Scheme", "apply_scheme", "register_scheme"]
