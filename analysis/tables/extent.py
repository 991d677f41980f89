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
    "too, at 8 bits unless other bits are stated. The drop is against FP32 in both."
)
_OUTER_BITS = re.compile(r",outer_bits=(\d+)")
_USUAL_BITS = "8"


def extent(scheme: str) -> str:
    """`AS_PAPERS`, or `WHOLE_NETWORK` with the bits of outer layers if they are not 8, from a name in records."""
    found = _OUTER_BITS.search(scheme)
    if found is None:
        return AS_PAPERS
    return WHOLE_NETWORK if found[1] == _USUAL_BITS else f"{WHOLE_NETWORK}, outer layers {found[1]} bit"


def inner(scheme: str) -> str:
    """The scheme without its `outer_bits`: "pams:w8a8,outer_bits=8" -> "pams:w8a8"."""
    return _OUTER_BITS.sub("", scheme)


def holds_both(schemes: Iterable[str]) -> bool:
    """Whether a network is quantized as a whole, so that tables have to show the extent."""
    return any(extent(scheme) != AS_PAPERS for scheme in schemes)
