"""What a network costs to store."""

from __future__ import annotations

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import FULL_PRECISION

GRID_NUMBERS = 2  # step and offset of a uniform grid


def parameter_count(network: SRNetwork) -> int:
    """Weights and biases of the network; clipping bounds and selectors not counted."""
    quantizers = network.quantizer_tensors()
    return sum(p.numel() for name, p in network.named_parameters() if name not in quantizers)


def storage_mb(network: SRNetwork) -> float:
    """Megabytes (1e6 bytes): convolution weights at their bit-widths and their grids, the rest at 32 bits.

    A grid is `GRID_NUMBERS` of 32 bits, once a quantized weight or once each of its output channels; the learned steps
    of weights are these numbers. Of the parameters of activation quantizers those count that a forward reads.
    """
    numbers = parameter_count(network)
    for point in network.points.values():
        if point.quantizer is not None:
            numbers += sum(p.numel() for p in point.quantizer.used_parameters())
    saved = 0
    for conv in network.layer_names:
        if conv.weight_quantizer is not None:
            numbers += GRID_NUMBERS * (
                len(conv.rows(conv.weight)) if conv.weight_quantizer.granularity == "channel" else 1
            )
            saved += conv.weight.numel() * (FULL_PRECISION - conv.weight_bits)
    return (numbers * FULL_PRECISION - saved) / 8e6
