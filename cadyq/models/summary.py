"""A network in words: each layer with its bits."""

from __future__ import annotations

from torch import nn

from cadyq.quantizers.base import FULL_PRECISION, ActivationQuantizer
from cadyq.quantizers.layers import QUANTIZABLE, QuantizedLayer
from cadyq.quantizers.points import QuantizationPoint


def bits_text(quantizer: ActivationQuantizer | None) -> str:
    """The bits of a quantizer: "8 bit", "4/6/8 bit" if it chooses, "FP32" without a quantizer."""
    if quantizer is None:
        return "FP32"
    candidates = getattr(quantizer, "candidates", None)
    if candidates is not None:
        return "/".join(str(int(bits)) for bits in candidates) + " bit"
    bits = getattr(quantizer, "bits", None)
    return "quantized" if bits is None else f"{bits} bit"


def layer_lines(network: nn.Module, points: dict[str, QuantizationPoint], reasons: dict[str, str]) -> list[str]:
    """A line for each layer: its name, bits of its weights, bits of its input, and why it stays in FP32."""
    read: dict[QuantizedLayer, list[str]] = {}
    for point in points.values():
        for layer in point.feeds:
            read.setdefault(layer, []).append(bits_text(point.quantizer))
        for layer in point.bypassed_by:
            read.setdefault(layer, []).append("FP32")
    rows = []
    for name, module in network.named_modules():
        if isinstance(module, QUANTIZABLE) or name in reasons:
            weights, activations = FULL_PRECISION, ["FP32"]
            if isinstance(module, QuantizedLayer):
                weights, activations = module.weight_bits, read.get(module, activations)
            shown = "FP32" if weights == FULL_PRECISION else f"{weights} bit"
            rows.append((name, shown, ", ".join(dict.fromkeys(activations)), reasons.get(name, "")))
    width = max((len(row[0]) for row in rows), default=0)
    return [f"{name:{width}}  {weights:9} {reads:12} {reason}".rstrip() for name, weights, reads, reason in rows]
