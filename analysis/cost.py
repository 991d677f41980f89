"""What a network costs: storage, and MACs and BitOPs by convolution (`python -m analysis.cost --model zoo:NAME`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn

from cadyq.checkpoints.io import load_model
from cadyq.cli import Numbers, Parser, add_debug_option, exit_status
from cadyq.models.network import SRNetwork, trace_forward
from cadyq.quantizers.interface import FULL_PRECISION
from cadyq.quantizers.trace import Trace

HD_PIXELS = 1280 * 720  # output size that papers quote operations for
GRID_NUMBERS = 2  # step and offset of a uniform grid


def is_network_parameter(name: str) -> bool:
    """Whether a parameter belongs to the network itself and not to a quantizer."""
    return "quantizer" not in name


def parameter_count(network: nn.Module) -> int:
    """Weights and biases of the network; clipping bounds and selectors not counted."""
    return sum(p.numel() for name, p in network.named_parameters() if is_network_parameter(name))


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
    for conv in network.conv_names:
        if conv.weight_quantizer is not None:
            numbers += GRID_NUMBERS * (conv.out_channels if conv.weight_quantizer.granularity == "channel" else 1)
            saved += conv.weight.numel() * (FULL_PRECISION - conv.weight_bits)
    return (numbers * FULL_PRECISION - saved) / 8e6


def layer_table(trace: Trace) -> pd.DataFrame:
    """One row a use of a convolution: name, point, macs_g, weight_bits, act_bits (mean over samples), bitops_g."""
    network, macs = trace.network, trace.macs
    rows, quantized = [], set()
    for record in trace.records.values():
        for conv, bits in record.uses():
            name = network.conv_names[conv]
            quantized.add(name)
            mean_bits = float(bits.float().mean())
            rows.append((name, record.point.name, macs.per_use[name] / 1e9, conv.weight_bits, mean_bits))
    rows += [
        (n, "", m / 1e9, FULL_PRECISION, float(FULL_PRECISION)) for n, m in macs.by_conv.items() if n not in quantized
    ]
    table = pd.DataFrame(rows, columns=["convolution", "point", "macs_g", "weight_bits", "act_bits"])
    table["bitops_g"] = table["macs_g"] * table["weight_bits"] * table["act_bits"]
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m analysis.cost", description=__doc__)
    parser.add_argument("--model", required=True, help="zoo:NAME or a .safetensors file")
    parser.add_argument("--height", type=Numbers(4, 100_000), default=720, help="of the output")
    parser.add_argument("--width", type=Numbers(4, 100_000), default=1280, help="of the output")
    add_debug_option(parser)
    args = parser.parse_args(argv)
    return exit_status(lambda: print_layers(args.model, args.height, args.width), args.debug)


def print_layers(model: str, output_height: int, output_width: int) -> None:
    """Print the layer table, the BitOPs by who spends them, and what was not counted."""
    network = load_model(model)
    height, width = output_height // network.scale, output_width // network.scale
    # the bits of a dynamic scheme depend on content: the table shows them for a flat grey image
    with torch.no_grad():
        trace = trace_forward(network, torch.full((1, 3, height, width), 128.0))[1]
    table, split = layer_table(trace), trace.bitops_split()
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"\nMACs {table['macs_g'].sum():.2f} G for a {width * network.scale}x{height * network.scale} output")
    parts = ", ".join(f"{name} {float(value) / 1e9:.1f}" for name, value in split._asdict().items())
    print(f"BitOPs {float(split.total) / 1e9:.1f} G ({parts})")
    print(f"not counted: {trace.macs.not_counted}")


if __name__ == "__main__":
    sys.exit(main())
