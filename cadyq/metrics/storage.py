"""The storage of a network."""

from __future__ import annotations

from torch import nn

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.quantizers.layers import QuantizedLayer

GRID_NUMBERS = 2  # step and offset of a uniform grid


def parameter_count(network: SRNetwork) -> int:
    """Number of weights and biases, without clipping bounds and selectors."""
    quantizers = network.quantizer_tensors()
    return sum(p.numel() for name, p in network.named_parameters() if name not in quantizers)


def storage_mb(network: SRNetwork) -> float:
    """Storage in megabytes (1e6 bytes): quantized weights at their bits, grids and all other parameters at 32 bits.

    A grid has `GRID_NUMBERS` numbers of 32 bits, for a quantized weight or for each of its output channels. Learned
    steps of weights are among these numbers. A weight that layers share counts once, at the most bits. Parameters of
    activation quantizers count if a forward reads them. Calibrated ranges of activations, the selector's normalization
    and BatchNorm statistics are buffers and are not counted.
    """
    numbers = parameter_count(network)
    for point in network.points.values():
        if point.quantizer is not None:
            numbers += sum(p.numel() for p in point.quantizer.used_parameters())
    for layer in network.layer_names:
        if layer.weight_quantizer is not None:
            per_channel = layer.weight_quantizer.granularity == "channel"
            numbers += GRID_NUMBERS * (len(layer.rows(layer.weight)) if per_channel else 1)
    saved = sum(one.numel() * (FULL_PRECISION - bits) for one, bits in _widest_uses(network).items())
    return (numbers * FULL_PRECISION - saved) / 8e6


def _widest_uses(network: SRNetwork) -> dict[nn.Parameter, int]:
    """Each parameter once -> the bits at which it is read, the most of the layers that share it."""
    widest: dict[nn.Parameter, int] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            bits = module.weight_bits if isinstance(module, QuantizedLayer) and name == "weight" else FULL_PRECISION
            widest[parameter] = max(bits, widest.get(parameter, 0))
    return widest
