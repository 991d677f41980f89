"""How much of a network a scheme quantizes: the layers that papers quantize, or the outer ones as well.

Read off the scheme as written in records (`outer_bits`, see `cadyq.schemes.base.Scheme`), so that tables are the same
where a plug-in is not loaded any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

AS_PAPERS, WHOLE_NETWORK = "as papers", "whole network"
HEADING = "Quantized"
EXTENT_NOTE = (
    f"{HEADING} {AS_PAPERS}: head, upsampler and tail stay in FP32. {WHOLE_NETWORK.capitalize()}: these are quantized "
    "too, at the bits that the scheme gives as outer_bits. The drop is against FP32 in both."
)
_OUTER_BITS = re.compile(r",outer_bits=\d+")


def extent(scheme: str) -> str:
    """`AS_PAPERS` or `WHOLE_NETWORK`, of a scheme as written in records."""
    return WHOLE_NETWORK if _OUTER_BITS.search(scheme) else AS_PAPERS


def inner(scheme: str) -> str:
    """The scheme without its `outer_bits`: "pams:w8a8,outer_bits=8" -> "pams:w8a8"."""
    return _OUTER_BITS.sub("", scheme)


def holds_both(schemes: Iterable[str]) -> bool:
    """Whether some network is quantized as a whole, so that tables have to tell the two apart."""
    return any(extent(scheme) == WHOLE_NETWORK for scheme in schemes)
