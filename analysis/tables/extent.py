"""The extent of quantization: the layers that papers quantize, or the outer layers as well.

It is read from the name of the scheme in records (`outer_bits`, see `cadyq.schemes.base.Scheme`), so tables stay the
same without a plug-in.
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
    """`AS_PAPERS` or `WHOLE_NETWORK`, from the name of a scheme in records."""
    return WHOLE_NETWORK if _OUTER_BITS.search(scheme) else AS_PAPERS


def inner(scheme: str) -> str:
    """The scheme without its `outer_bits`: "pams:w8a8,outer_bits=8" -> "pams:w8a8"."""
    return _OUTER_BITS.sub("", scheme)


def holds_both(schemes: Iterable[str]) -> bool:
    """Whether a network is quantized as a whole, so that tables have to show the extent."""
    return any(extent(scheme) == WHOLE_NETWORK for scheme in schemes)
