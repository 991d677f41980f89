"""The storage of a network."""

from __future__ import annotations

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import FULL_PRECISION

GRID_NUMBERS = 2  # step and offset of a uniform grid


def parameter_count(network: SRNetwork) -> int:
    """Number of weights and biases, without clipping bounds and selectors."""
    quantizers = network.quantizer_tensors()
    return sum(p.numel() for name, p in network.named_parameters() if name not in quantizers)


def storage_mb(network: SRNetwork) -> float:
    """Storage in megabytes (1e6 bytes): quantized weights at their bits, grids and all other parameters at 32 bits.

    A grid has `GRID_NUMBERS` numbers of 32 bits, for a quantized weight or for each of its output channels. Learned
    steps of weights are among these numbers. Parameters of activation quantizers count if a forward reads them.
    Calibrated ranges of activations, the selector's normalization and BatchNorm statistics are buffers and are not
    counted.
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
